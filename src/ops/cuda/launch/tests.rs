//! The bindings against the text of the `.cu` files: nothing is missing on either side.

use super::super::args::{FieldLayout, StructInfo};
use super::*;

/// Structs behind pointers that the device alone writes and reads: no layout of them is known here.
const DEVICE_ONLY: [(&str, &str); 1] = [("digest.cu", "DigestValue")];

fn structs() -> Vec<StructInfo> {
    BINDINGS.iter().flat_map(|file| (file.structs)()).collect()
}

fn text_of(file: &str) -> &'static str {
    sources().find(|source| source.file == file).unwrap_or_else(|| panic!("{file} is embedded")).text
}

/// The fields of `struct name` in CUDA source: type and name, without comments.
fn fields_in_source(text: &str, name: &str) -> Vec<(String, String)> {
    let start =
        text.find(&format!("struct {name} {{")).unwrap_or_else(|| panic!("struct {name} is in the source"));
    let body = &text[start..][..text[start..].find("};").expect("the struct ends")];
    let lines = body
        .lines()
        .skip(1)
        .map(|line| line.split("//").next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let line = line.strip_suffix(';').unwrap_or_else(|| panic!("`{line}` of {name} is one field"));
            let (c_type, field) = line.rsplit_once(' ').expect("type and name");
            match field.split_once('[') {
                Some((field, count)) => (format!("{c_type}[{count}"), field.to_owned()),
                None => (c_type.to_owned(), field.to_owned()),
            }
        })
        .collect()
}

/// Names of the structs that a file declares.
fn structs_in_source(text: &str) -> Vec<&str> {
    let declared = text.lines().filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {"));
    declared.filter_map(|words| words.split_whitespace().last()).collect()
}

/// `name(const __grid_constant__ Args args)` behind `__global__`, as (name, Args without namespace). Where
/// that stands in the macro `KERNEL(a, b, c, …)`, names are `a_b_c` of its uses.
fn kernels_in_source(text: &str) -> Vec<(String, String)> {
    const PARAMETER: &str = "(const __grid_constant__ ";
    let uses = |line: &str| {
        let parts: Vec<&str> = line.strip_prefix("KERNEL(")?.split(", ").take(3).collect();
        Some(parts.join("_"))
    };
    text.split("__global__")
        .skip(1)
        .flat_map(|rest| {
            let at = rest.find(PARAMETER).expect("a kernel takes one argument struct");
            let name = rest[..at].split_whitespace().last().expect("a name");
            let args = rest[at + PARAMETER.len()..].split_whitespace().next().expect("a type");
            let args = args.rsplit("::").next().expect("a type");
            let names = match name.contains("##") {
                true => text.lines().filter_map(uses).collect(),
                false => vec![name.to_owned()],
            };
            names.into_iter().map(|name| (name, args.to_owned()))
        })
        .collect()
}

/// What the sources have and the bindings lack: kernels, their argument structs, the entries of tables that
/// those point to.
fn unbound(kernels: &[KernelInfo], structs: &[StructInfo]) -> Vec<String> {
    let mut missing = Vec::new();
    for source in sources() {
        let file = source.file;
        let bound = |name: &str| structs.iter().any(|bound| bound.file == file && bound.name == name);
        let written = kernels_in_source(source.text);
        for (name, args) in &written {
            if !kernels.iter().any(|bound| (bound.file, bound.name, bound.args) == (file, name, args)) {
                missing.push(format!("kernel {name} of {file}"));
            }
            if !bound(args) {
                missing.push(format!("struct {args} of {file}"));
            }
        }
        let pointed_to = |name: &str| {
            let pointers = [format!("const {name}* "), format!(" {name}* ")];
            let taken = written.iter().flat_map(|(_, args)| fields_in_source(source.text, args));
            let mut fields = taken.map(|(c_type, _)| format!(" {c_type} "));
            fields.any(|field| pointers.iter().any(|pointer| field.contains(pointer)))
        };
        for name in structs_in_source(source.text) {
            let known = bound(name) || DEVICE_ONLY.contains(&(file, name));
            if !known && (name.ends_with("Args") || pointed_to(name)) {
                missing.push(format!("struct {name} of {file}"));
            }
        }
    }
    missing.sort();
    missing.dedup();
    missing
}

#[test]
fn every_argument_struct_matches_the_source() {
    for StructInfo { name, file, bytes, align, fields } in structs() {
        let bound: Vec<(String, String)> =
            fields.iter().map(|field| (field.c_type.clone(), field.name.to_owned())).collect();
        assert_eq!(fields_in_source(text_of(file), name), bound, "fields of {name} in {file}");
        // C lays fields out by the same rule; without padding the sizes alone fix every offset.
        let mut end = 0;
        for FieldLayout { name: field, offset, bytes, .. } in &fields {
            assert_eq!(*offset, end, "{name}.{field} follows without padding");
            end += bytes;
        }
        let tail = if align <= 8 { end } else { end.next_multiple_of(align) };
        assert_eq!(tail, bytes, "{name} ends without padding");
    }
}

#[test]
fn every_kernel_and_every_struct_of_the_sources_is_bound() {
    assert_eq!(unbound(&kernels(), &structs()), [""; 0]);
    for (file, name) in DEVICE_ONLY {
        assert!(structs_in_source(text_of(file)).contains(&name), "{name} has left {file}");
    }
}

#[test]
fn a_kernel_or_a_struct_that_is_left_out_is_named() {
    for left_out in 0..kernels().len() {
        let mut kernels = kernels();
        let KernelInfo { name, file, .. } = kernels.remove(left_out);
        assert_eq!(unbound(&kernels, &structs()), [format!("kernel {name} of {file}")]);
    }
    for left_out in 0..structs().len() {
        let mut structs = structs();
        let StructInfo { name, file, .. } = structs.remove(left_out);
        assert_eq!(unbound(&kernels(), &structs), [format!("struct {name} of {file}")]);
    }
}

#[test]
fn every_binding_names_a_kernel_once() {
    let bound = kernels();
    for kernel in &bound {
        let written = kernels_in_source(text_of(kernel.file));
        let pair = (kernel.name.to_owned(), kernel.args.to_owned());
        assert!(written.contains(&pair), "{} has {written:?}, not {pair:?}", kernel.file);
    }
    let mut names: Vec<_> = bound.iter().map(|kernel| (kernel.file, kernel.name)).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "a kernel is bound once");
}
