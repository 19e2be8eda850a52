//! The order of the modules, the absence of circles between files, and a name of its own for each type, read
//! from the sources.
//!
//! `use` trees, paths in code (`crate::…`, `super::…`, `self::…`, and paths that begin with a child module or
//! an imported name) are followed through re-exports to the file that they mean. Comments, strings and what
//! is compiled for tests alone are left out: a module's tests may look anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use source::Mention;

mod source;

/// From the ground up: a module uses those before it in this list, and itself.
const ORDER: &str = "units rng experiment proof ops optim model store data parallel generate eval train \
                     formats \
                     plan report run verify cli";

/// How many files of one folder may use each other in a circle, such as a type and its errors. Files of
/// different folders may not, and a `mod.rs` may with the files beside it.
const CLOSE: usize = 3;

/// The names that many modules may give to a type of their own: its errors, its result, a verb's arguments.
const PER_MODULE: [&str; 3] = ["Error", "Result", "Args"];

/// What a path means.
enum Meaning {
    Module(Vec<String>),
    /// An item in the file of this module.
    Item(Vec<String>),
}

/// All modules of a crate, their files and what they mention.
struct Crate {
    /// The file of each module.
    files: BTreeMap<Vec<String>, String>,
    mentions: Vec<Mention>,
    /// The `use` that gives a module a name.
    imports: BTreeMap<(Vec<String>, String), Vec<String>>,
    /// Where each type is declared, by its name.
    types: BTreeMap<String, Vec<String>>,
}

impl Crate {
    /// Reads sources by their paths below `src`.
    fn read(sources: &BTreeMap<String, String>) -> Crate {
        let (mut files, mut mentions, mut tests) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut declared = Vec::new();
        for (file, text) in sources {
            let module = module_of(file);
            let mut scan = source::scan(text, &module);
            files.insert(module, file.clone());
            files.extend(scan.inline.into_iter().map(|module| (module, file.clone())));
            mentions.append(&mut scan.mentions);
            tests.append(&mut scan.tests);
            declared.append(&mut scan.types);
        }
        let is_test = |module: &[String]| {
            let last = module.last().map_or("", String::as_str);
            last == "tests" || last.ends_with("_tests") || tests.iter().any(|test| module.starts_with(test))
        };
        files.retain(|module, _| !is_test(module));
        mentions.retain(|mention| !is_test(&mention.module));
        let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (module, name, line) in declared.into_iter().filter(|(module, ..)| !is_test(module)) {
            types.entry(name).or_default().push(format!("{}:{line}", files[&module]));
        }
        let mut imports = BTreeMap::new();
        for Mention { module, path, name, .. } in &mentions {
            // A crate that is imported under its own name is not a module of this crate.
            if let Some(name) = name.as_ref().filter(|name| path.first() != Some(name)) {
                imports.entry((module.clone(), name.clone())).or_insert_with(|| path.clone());
            }
        }
        Crate { files, mentions, imports, types }
    }

    /// What `path` means in `module`; none for other crates and for local names.
    fn meaning(&self, module: &[String], path: &[String], depth: usize) -> Option<Meaning> {
        let (mut at, mut rest) = (module.to_vec(), path);
        match path.first()?.as_str() {
            "crate" => (at, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {}
            first => {
                let child = [module, &[first.to_owned()]].concat();
                if !self.files.contains_key(&child) && self.imported(module, first).is_none() {
                    return None;
                }
            }
        }
        while let Some(next) = rest.first() {
            let child = [&at[..], std::slice::from_ref(next)].concat();
            if next == "super" {
                at.pop();
            } else if self.files.contains_key(&child) {
                at = child;
            } else if let Some(import) = self.imported(&at, next).filter(|_| depth < 16) {
                let path = [&import[..], &rest[1..]].concat();
                return self.meaning(&at, &path, depth + 1);
            } else {
                return Some(Meaning::Item(at));
            }
            rest = &rest[1..];
        }
        Some(Meaning::Module(at))
    }

    fn imported(&self, module: &[String], name: &str) -> Option<&Vec<String>> {
        self.imports.get(&(module.to_vec(), name.to_owned()))
    }

    /// Types of one name in several places.
    fn homonyms(&self) -> Vec<String> {
        let twice =
            self.types.iter().filter(|(name, at)| at.len() > 1 && !PER_MODULE.contains(&name.as_str()));
        twice.map(|(name, at)| format!("`{name}` names a type in {}", at.join(" and in "))).collect()
    }

    /// What reaches past the order: the whole of the crate's root under a name or none, and items of its own.
    fn past_the_order(&self) -> Vec<String> {
        let mut faults = BTreeSet::new();
        for mention in &self.mentions {
            let at = format!("{}:{}", self.files[&mention.module], mention.line);
            let of_root = |meaning| match meaning {
                Some(Meaning::Module(module)) => mention.name.is_some() && module.is_empty(),
                Some(Meaning::Item(module)) => module.is_empty(),
                None => mention.path.first().is_some_and(|first| first == "runner"),
            };
            if !mention.module.is_empty() && of_root(self.meaning(&mention.module, &mention.path, 0)) {
                faults.insert(format!("{at}: `{}` is the crate's root or in it", mention.path.join("::")));
            }
        }
        let order: Vec<&str> = ORDER.split_whitespace().collect();
        let tops = self.files.keys().filter_map(|module| module.first());
        faults.extend(
            tops.filter(|top| !order.contains(&top.as_str()))
                .map(|top| format!("`{top}` is not in the order of modules")),
        );
        faults.into_iter().collect()
    }

    /// Uses of modules that stand later in the order.
    fn arrows_up(&self) -> Vec<String> {
        let order: Vec<&str> = ORDER.split_whitespace().collect();
        let rank = |module: &[String]| {
            let top = module.first()?;
            Some(order.iter().position(|name| name == top).ok_or_else(|| top.clone()))
        };
        let mut faults = BTreeSet::new();
        for mention in &self.mentions {
            let Some(from) = rank(&mention.module) else { continue };
            let at = format!("{}:{}", self.files[&mention.module], mention.line);
            let meant = match self.meaning(&mention.module, &mention.path, 0) {
                Some(Meaning::Module(module) | Meaning::Item(module)) => module,
                None => continue,
            };
            let written = if mention.path[0] == "crate" { &mention.path[1..] } else { &[] };
            for to in [rank(&meant), rank(written)].into_iter().flatten() {
                match (&from, to) {
                    (Ok(from), Ok(to)) if to > *from => {
                        faults.insert(format!(
                            "{at}: `{}` uses `{}`, which stands above it",
                            order[*from], order[to]
                        ));
                    }
                    (Err(name), _) => _ = faults.insert(format!("`{name}` is not in the order of modules")),
                    _ => {}
                }
            }
        }
        faults.into_iter().collect()
    }

    /// Which file uses which, each with the first line that says so. What a `mod.rs` re-exports of its own
    /// folder is no use of it.
    fn edges(&self) -> BTreeMap<(String, String), usize> {
        let mut edges = BTreeMap::new();
        for mention in &self.mentions {
            let meant = match self.meaning(&mention.module, &mention.path, 0) {
                Some(Meaning::Item(module)) => module,
                Some(Meaning::Module(module)) if mention.name.as_deref() == Some("*") => module,
                _ => continue,
            };
            if mention.public && meant.starts_with(&mention.module) {
                continue;
            }
            let (Some(from), Some(to)) = (self.files.get(&mention.module), self.files.get(&meant)) else {
                continue;
            };
            if from != to {
                edges.entry((from.clone(), to.clone())).or_insert(mention.line);
            }
        }
        edges
    }

    /// Files that use each other: between folders always, within one unless it is a `mod.rs` with its files.
    fn circles(&self) -> Vec<String> {
        let edges = self.edges();
        let folder =
            |file: &str| file.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
        let is_own_mod =
            |a: &str, b: &str| folder(a) == folder(b) && (a.ends_with("/mod.rs") || b.ends_with("/mod.rs"));
        let all = |_: &(String, String)| true;
        let siblings = |(a, b): &(String, String)| !is_own_mod(a, b);
        let mut faults = Vec::new();
        for (wanted, between_folders) in
            [(&all as &dyn Fn(&(String, String)) -> bool, true), (&siblings, false)]
        {
            for circle in components(edges.keys().filter(|edge| wanted(edge))) {
                let folders: BTreeSet<String> = circle.iter().map(|file| folder(file)).collect();
                let is_wide = folders.len() > 1;
                if is_wide != between_folders || (!is_wide && circle.len() <= CLOSE) {
                    continue;
                }
                let inside = edges.iter().filter(|((a, b), _)| circle.contains(a) && circle.contains(b));
                let lines: Vec<String> =
                    inside.map(|((a, b), line)| format!("  {a}:{line} uses {b}")).collect();
                faults.push(format!("these files use each other:\n{}", lines.join("\n")));
            }
        }
        faults
    }
}

/// Sets of files that can all reach each other, of two files and more.
fn components<'a>(edges: impl Iterator<Item = &'a (String, String)>) -> Vec<BTreeSet<String>> {
    let mut uses: BTreeMap<&'a str, Vec<&'a str>> = BTreeMap::new();
    edges.for_each(|(from, to)| uses.entry(from).or_default().push(to));
    let reached = |from: &'a str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            open.extend(uses.get(file).into_iter().flatten().filter(|next| seen.insert(**next)));
        }
        seen
    };
    let from: BTreeMap<&str, BTreeSet<&str>> = uses.keys().map(|file| (*file, reached(file))).collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (file, reach) in &from {
        if reach.contains(file) && !found.iter().any(|circle| circle.contains(*file)) {
            let back = |other: &&&str| from.get(**other).is_some_and(|reach| reach.contains(file));
            found.push(reach.iter().filter(back).map(|file| (*file).to_owned()).collect());
        }
    }
    found
}

/// `store/mod.rs` is `store`, `store/writer.rs` is `store::writer`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    if ["lib", "main"].contains(&path) { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

fn read_folder(folder: &Path, src: &Path, sources: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read_folder(&path, src, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(src).expect("below src").to_string_lossy().into_owned();
            sources.insert(name, std::fs::read_to_string(&path).expect("readable"));
        }
    }
}

fn this_crate() -> Crate {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    read_folder(&src, &src, &mut sources);
    sources.remove("main.rs");
    Crate::read(&sources)
}

#[test]
fn every_module_uses_only_those_below_it() {
    let house = this_crate();
    let uses = house.edges().len();
    assert!(uses > 300, "only {uses} uses were found: is the search right?");
    let faults = [house.arrows_up(), house.past_the_order()].concat();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let faults = this_crate().circles();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_two_types_have_one_name() {
    let house = this_crate();
    assert!(house.types.len() > 400, "only {} types were found: is the search right?", house.types.len());
    let faults = house.homonyms();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A crate of these files and texts, with an empty `mod.rs` where a folder has none.
fn made_up(sources: &[(&str, &str)]) -> Crate {
    let mut files = BTreeMap::new();
    for (file, text) in sources {
        for (end, _) in file.match_indices('/') {
            files.entry(format!("{}/mod.rs", &file[..end])).or_insert_with(String::new);
        }
        files.insert((*file).to_owned(), (*text).to_owned());
    }
    Crate::read(&files)
}

#[test]
fn a_use_of_a_module_above_is_found_in_every_form() {
    let train = ("train/run.rs", "pub struct Run;");
    let cli = ("cli/mod.rs", "pub fn run() {}");
    for (file, text) in [
        ("model/gpt2.rs", "use crate::{units, train::{self, run::Run}};"),
        ("model/gpt2.rs", "use super::super::{ops, train::run::Run as R};"),
        ("model/gpt2.rs", "fn f() {\n    crate::cli::run();\n}"),
        ("model/gpt2.rs", "fn f(x: super::super::train::run::Run) {}"),
        ("model/gpt2.rs", "fn f() -> Vec<crate::train::run::Run> { vec![] }"),
        ("model/gpt2.rs", "mod inner { fn f() { super::super::super::cli::run() } }"),
        ("model/deep/part.rs", "impl self::super::super::super::train::run::Run {}"),
        (
            "model/gpt2.rs",
            "fn f(x: f32) { if x <= 0.0 { g() } }\nfn h(t: (u8,)) { match t.0 { _ => crate::cli::run() } }",
        ),
        ("model/gpt2.rs", "fn f() { for _ in 0..crate::cli::run() {} }"),
        ("model/gpt2.rs", "fn f() { crate::r#cli::run() }"),
        ("model/gpt2.rs", "fn f(x: u8) { match x { 0..=9 => crate::cli::run(), _ => {} } }"),
        ("model/gpt2.rs", "fn f<'a>(c: char) -> bool { c == '\"' || crate::cli::run() == '\\'' }"),
    ] {
        let faults = made_up(&[train, cli, (file, text)]).arrows_up();
        assert!(!faults.is_empty() && faults[0].starts_with(file), "`{text}`: {faults:?}");
        assert!(faults[0].contains("`model` uses `train`") || faults[0].contains("`model` uses `cli`"));
    }
}

#[test]
fn a_way_around_the_order_is_found_in_every_form() {
    for (file, text) in [
        ("model/gpt2.rs", "use crate::*;\nfn f() { cli::run() }"),
        ("model/gpt2.rs", "use super::super::*;"),
        ("model/gpt2.rs", "use crate as c;"),
        ("model/gpt2.rs", "fn f() { crate::go() }"),
        ("model/gpt2.rs", "fn f() { runner::cli::run() }"),
        ("new/mod.rs", "pub fn f() {}"),
    ] {
        let house = made_up(&[("cli/mod.rs", "pub fn run() {}"), (file, text)]);
        assert_eq!(house.past_the_order().len(), 1, "`{text}`: {:?}", house.past_the_order());
    }
    let fine = [("units.rs", "pub fn f() {}"), ("model/gpt2.rs", "use crate::units;\nfn f() { units::f() }")];
    assert_eq!(made_up(&fine).past_the_order(), [""; 0]);
}

#[test]
fn a_name_that_is_exported_again_is_a_use_of_both_modules() {
    let sources = [
        ("ops/mod.rs", "pub struct Region;"),
        ("parallel/mod.rs", "pub use crate::ops::Region;"),
        ("store/mod.rs", "pub use writer::Writer;\nmod writer;"),
        ("store/writer.rs", "pub struct Writer;"),
        ("model/gpt2.rs", "use crate::parallel::Region;"),
        ("train/run.rs", "use crate::store::Writer;\nfn f(w: Writer) {}"),
    ];
    let house = made_up(&sources);
    assert_eq!(house.arrows_up(), ["model/gpt2.rs:1: `model` uses `parallel`, which stands above it"]);
    let edges = house.edges();
    assert!(edges.contains_key(&("train/run.rs".into(), "store/writer.rs".into())), "{edges:?}");
    assert!(edges.contains_key(&("model/gpt2.rs".into(), "ops/mod.rs".into())), "{edges:?}");
}

#[test]
fn what_is_no_code_of_the_program_is_left_out() {
    let text = r##"
        //! [`crate::cli`]
        /* use crate::cli; /* crate::cli::run() */ */
        const A: &str = "crate::cli::run()";
        const B: &str = r#"use crate::cli; " crate::cli::run()"#;
        const C: &[u8] = b"\" crate::cli::run()";
        #[cfg(test)]
        use crate::cli::{self, run};
        struct S {
            #[cfg(test)]
            trial: crate::cli::Trial,
            used: u8,
        }
        #[cfg(test)]
        #[allow(dead_code)]
        fn f<A, B>(x: A) -> B { crate::cli::run() }
        #[cfg(test)]
        mod tests { use crate::cli; }
        #[cfg(test)]
        pub mod testing;
        fn last() { crate::units::f() }
    "##;
    let sources = [
        ("cli/mod.rs", ""),
        ("units.rs", "pub fn f() {}"),
        ("ops/mod.rs", text),
        ("ops/testing/mod.rs", "use crate::cli;"),
        ("ops/gemm_tests.rs", "use crate::cli;"),
    ];
    let house = made_up(&sources);
    assert_eq!(house.arrows_up(), [""; 0]);
    assert!(house.edges().contains_key(&("ops/mod.rs".into(), "units.rs".into())), "the end was not reached");
}

#[test]
fn a_module_that_the_order_does_not_know_is_found() {
    let faults =
        made_up(&[("new/mod.rs", "use crate::units::f;"), ("units.rs", "pub fn f() {}")]).arrows_up();
    assert_eq!(faults, ["`new` is not in the order of modules"]);
}

#[test]
fn a_second_type_of_a_name_is_found_in_every_form() {
    for text in [
        "pub struct Run;",
        "pub(in crate::cli) enum Run<T> { One(T) }",
        "unsafe trait Run {}",
        "type Run = u8;",
        "mod inner { struct Run { x: u8 } }",
    ] {
        let faults = made_up(&[("train/run.rs", "\npub struct Run;"), ("cli/run.rs", text)]).homonyms();
        assert_eq!(faults, ["`Run` names a type in cli/run.rs:1 and in train/run.rs:2"], "{text}");
    }
    let fine = "fn f() { struct Run; }\nimpl Ops for Cpu { type Run = u8; }\nmacro_rules! m \
                { () => { struct Run; } }\n\
                #[cfg(test)]\nmod tests { struct Run; }\nenum Job { Run }\nstruct Args;";
    let house = made_up(&[("train/run.rs", "pub struct Run;\nstruct Args;"), ("cli/run.rs", fine)]);
    assert_eq!(house.homonyms(), [""; 0]);
}

#[test]
fn a_circle_between_folders_is_found_and_one_of_a_folder_with_its_mod_is_none() {
    let between = [
        ("ops/gemm/mod.rs", "pub struct Operands;\nfn f() { crate::ops::launch::hopper::start() }"),
        ("ops/launch/hopper.rs", "use super::super::gemm::Operands;\npub fn start() {}"),
    ];
    let faults = made_up(&between).circles();
    assert_eq!(
        faults,
        ["these files use each other:\n  ops/gemm/mod.rs:2 uses ops/launch/hopper.rs\n  \
          ops/launch/hopper.rs:1 uses ops/gemm/mod.rs"]
    );
    // A folder's own mod.rs does not hide a circle through another folder.
    let hidden = [
        ("a/mod.rs", "pub mod x;\nfn f() { crate::b::y::g() }"),
        ("a/x.rs", "use super::f;\npub fn h() {}"),
        ("b/y.rs", "pub fn g() { crate::a::x::h() }"),
    ];
    assert_eq!(made_up(&hidden).circles().len(), 1);
    let own = [
        ("ops/mod.rs", "pub mod cpu;\npub trait Ops {}\nfn f() { cpu::open() }"),
        ("ops/cpu.rs", "use super::Ops;\npub fn open() {}"),
        ("store/mod.rs", "pub use writer::Writer;\npub mod writer;\npub type Result = ();"),
        ("store/writer.rs", "use super::Result;\npub struct Writer;"),
    ];
    assert_eq!(made_up(&own).circles(), [""; 0]);
}

#[test]
fn many_files_of_one_folder_may_not_use_each_other() {
    let names = ["a", "b", "c", "d"];
    let ring = |count: usize| {
        let file = |at: usize| format!("run/{}.rs", names[at]);
        let text = |at: usize| format!("use super::{}::f;\npub fn f() {{}}", names[(at + 1) % count]);
        let files: Vec<(String, String)> = (0..count).map(|at| (file(at), text(at))).collect();
        made_up(&files.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect::<Vec<_>>())
    };
    assert_eq!(ring(CLOSE).circles(), [""; 0]);
    assert_eq!(ring(CLOSE + 1).circles().len(), 1);
}
