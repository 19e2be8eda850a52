//! Safetensors files whose every byte is a function of the tensors.
//!
//! The format (huggingface.co/docs/safetensors): header length as u64, a JSON header, the data without
//! gaps. The library of that name writes metadata in random order, so the writer is ours: header
//! entries in byte order of the names, fixed spelling, padded with spaces to a multiple of 8; data in
//! order of falling element size, then of names, so that every tensor is aligned to its element.
//! Reading uses the library's types but does its own checks, so that every error names file and tensor.
//!
//! Whether the bytes are the right ones is checked in [`super::checkpoint`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use super::{Result, StoreError, atomic};
use crate::ops::Dtype;
use crate::proof::hash::Hashed;
use crate::proof::{Hash, json, regular};

/// A named tensor on the host, as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian, row-major, dense.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Bytes that a tensor of this type and shape takes; none if that overflows.
    pub fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
        shape.iter().try_fold(dtype.size(), |bytes, dimension| bytes.checked_mul(*dimension))
    }

    /// The first element that is NaN or infinite, counted in row-major order, and its value; none in a
    /// tensor of whole numbers.
    pub fn first_not_finite(&self) -> Option<(usize, f64)> {
        first_not_finite(self.dtype, &self.bytes)
    }

    /// The shape as u64, as digests and headers have it.
    pub fn shape_u64(&self) -> Vec<u64> {
        self.shape.iter().map(|dimension| *dimension as u64).collect()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {} {:?}, {} bytes)", self.name, self.dtype, self.shape, self.bytes.len())
    }
}

/// The first element that is NaN or infinite, with its number; none in a tensor of integers.
pub fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f64)> {
    // All bits of the exponent are set.
    const F32: u32 = 0x7f80_0000;
    const F64: u64 = 0x7ff0_0000_0000_0000;
    const BF16: u16 = 0x7f80;
    match dtype {
        Dtype::F32 => find(bytes, |b| u32::from_le_bytes(*b) & F32 == F32)
            .map(|(at, b)| (at, f64::from(f32::from_le_bytes(b)))),
        Dtype::F64 => {
            find(bytes, |b| u64::from_le_bytes(*b) & F64 == F64).map(|(at, b)| (at, f64::from_le_bytes(b)))
        }
        Dtype::BF16 => find(bytes, |b| u16::from_le_bytes(*b) & BF16 == BF16)
            .map(|(at, b)| (at, f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)))),
        Dtype::U32 | Dtype::U64 | Dtype::I64 => None,
    }
}

/// The first element of N bytes for which `is` holds. Blocks are tested whole, without a branch in them, at
/// the speed of memory.
fn find<const N: usize>(bytes: &[u8], is: impl Fn(&[u8; N]) -> bool) -> Option<(usize, [u8; N])> {
    const BLOCK: usize = 1024;
    let elements = bytes.as_chunks::<N>().0;
    let holds = |block: &[[u8; N]]| block.iter().fold(false, |any, element| any | is(element));
    let start = BLOCK * elements.chunks(BLOCK).position(holds)?;
    let at = start + elements[start..].iter().position(is)?;
    Some((at, elements[at]))
}

/// The header of a file and the order of its data.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Vec<u8>,
    order: Vec<usize>,
    /// First byte of each tensor, counted from the header's end.
    starts: Vec<u64>,
    data_bytes: u64,
}

impl Layout {
    /// Lays out `tensors`, in any order, with free-form metadata.
    ///
    /// # Errors
    /// A name given twice or reserved, or bytes that are not as many as type and shape say.
    pub fn new(tensors: &[Tensor], metadata: &BTreeMap<String, String>) -> Result<Layout> {
        Layout::of(&tensors.iter().map(Info::of).collect::<Vec<_>>(), metadata)
    }

    /// The same from what a header says of each tensor.
    pub fn of(tensors: &[Info], metadata: &BTreeMap<String, String>) -> Result<Layout> {
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
        check(tensors, &by_name)?;
        let mut order = by_name.clone();
        order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].dtype.size()));

        let mut offsets = vec![(0, 0); tensors.len()];
        let mut end = 0;
        for &i in &order {
            let start = end;
            end += tensors[i].bytes as u64;
            offsets[i] = (start, end);
        }
        let mut entries = Vec::with_capacity(tensors.len() + 1);
        if !metadata.is_empty() {
            entries.push(format!("\"__metadata__\":{}", json(metadata)));
        }
        for &i in &by_name {
            let Info { name, dtype, shape, .. } = &tensors[i];
            let (start, end) = offsets[i];
            entries.push(format!(
                "{}:{{\"dtype\":\"{dtype}\",\"shape\":{},\"data_offsets\":[{start},{end}]}}",
                json(name),
                json(shape)
            ));
        }
        let mut text = format!("{{{}}}", entries.join(","));
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(text.as_bytes());
        Ok(Layout {
            header,
            order,
            starts: offsets.into_iter().map(|(start, _)| start).collect(),
            data_bytes: end,
        })
    }

    /// Everything before the data.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Indices of the tensors in the order of their data.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Where in the file the data of a tensor begins, by its index.
    pub fn offset(&self, tensor: usize) -> u64 {
        self.header.len() as u64 + self.starts[tensor]
    }

    /// Length of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }
}

fn check(tensors: &[Info], by_name: &[usize]) -> Result<()> {
    let bad = |i: usize, why: String| StoreError::BadTensor { name: tensors[i].name.clone(), why };
    for (position, &i) in by_name.iter().enumerate() {
        let Info { name, dtype, shape, bytes } = &tensors[i];
        if position > 0 && tensors[by_name[position - 1]].name == *name {
            return Err(bad(i, "the name is given twice".into()));
        }
        if name == "__metadata__" {
            return Err(bad(i, "the format reserves this name".into()));
        }
        if Tensor::byte_len(*dtype, shape) != Some(*bytes) {
            return Err(bad(i, format!("{bytes} bytes do not fill {dtype} {shape:?}")));
        }
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("strings, numbers and maps of strings become JSON")
}

/// Writes a whole file, or leaves what was there; returns its length.
pub fn write(path: &Path, tensors: &[Tensor], metadata: &BTreeMap<String, String>) -> Result<u64> {
    let layout = Layout::new(tensors, metadata)?;
    atomic::write_with(path, layout.file_bytes(), |out| {
        out.write_all(layout.header())?;
        layout.order().iter().try_for_each(|&i| out.write_all(&tensors[i].bytes))
    })?;
    Ok(layout.file_bytes())
}

/// A tensor's entry in a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: usize,
}

impl Info {
    /// The entry of a tensor.
    pub fn of(tensor: &Tensor) -> Info {
        Info {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes: tensor.bytes.len(),
        }
    }
}

/// Opens a file; gives its length too.
fn open_file(path: &Path) -> Result<(File, u64)> {
    let file = match regular::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { path: path.into() });
        }
        opened => opened.map_err(StoreError::io(path, "open"))?,
    };
    let length = file.metadata().map_err(StoreError::io(path, "open"))?.len();
    Ok((file, length))
}

/// The longest header that the format's own library reads.
const LONGEST_HEADER: u64 = 100_000_000;

/// Everything before the data of a file of `length` bytes.
fn read_header(path: &Path, file: &mut impl Read, length: u64) -> Result<Vec<u8>> {
    let bad = |why: String| StoreError::BadHeader { path: path.into(), why };
    if length < 8 {
        return Err(bad(format!("the file has {length} bytes, expected at least 8 for the header's length")));
    }
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(StoreError::io(path, "read"))?;
    let size = u64::from_le_bytes(size);
    if size > length - 8 {
        return Err(bad(format!("it claims {size} bytes, but {} follow", length - 8)));
    }
    if size > LONGEST_HEADER {
        return Err(bad(format!("it claims {size} bytes, and the format allows {LONGEST_HEADER}")));
    }
    let mut header = size.to_le_bytes().to_vec();
    header.resize(8 + usize::try_from(size).map_err(|e| bad(e.to_string()))?, 0);
    file.read_exact(&mut header[8..]).map_err(StoreError::io(path, "read"))?;
    Ok(header)
}

/// What a header says of the tensors, in the order of the data, which must fill the rest of `length` bytes.
fn checked_infos(path: &Path, header: &[u8], length: u64) -> Result<Vec<Info>> {
    let infos = parse_header(&header[8..]).map_err(|why| StoreError::BadHeader { path: path.into(), why })?;
    let expected = infos.iter().fold(header.len() as u64, |sum, info| sum.saturating_add(info.bytes as u64));
    if expected != length {
        return Err(StoreError::WrongLength { path: path.into(), expected, found: length });
    }
    Ok(infos)
}

/// What the header of a file in memory says of the tensors, checked as [`Reader::open`] checks it.
pub fn infos(path: &Path, mut file: &[u8]) -> Result<Vec<Info>> {
    let length = file.len() as u64;
    let header = read_header(path, &mut file, length)?;
    checked_infos(path, &header, length)
}

/// The tensors of another program's file.
pub struct Floats {
    /// Those that were wanted, in the order of the file; F16 is widened to F32, exactly.
    pub tensors: Vec<Tensor>,
    /// The names of the others, which may be of any type.
    pub others: Vec<String>,
}

/// Reads the tensors of another program's file whose names are `wanted`, which must be floats, and hashes the
/// whole file as it is read.
///
/// # Errors
///
/// As [`Reader::open`], and a wanted tensor that is neither F32 nor BF16 nor F16.
pub fn read_floats(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<(Floats, Hash)> {
    let (file, length) = open_file(path)?;
    let mut file = BufReader::with_capacity(1 << 20, Hashed::new(file.take(length)));
    let header = read_header(path, &mut file, length)?;
    let floats = floats_behind(path, &mut file, &header, length, wanted)?;
    Ok((floats, file.into_inner().finish().1))
}

/// [`read_floats`] of a file that is in memory.
pub fn parse_floats(path: &Path, bytes: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Floats> {
    let (mut file, length) = (bytes, bytes.len() as u64);
    let header = read_header(path, &mut file, length)?;
    floats_behind(path, file, &header, length, wanted)
}

/// The tensors of a file of `length` bytes that is read up to the end of its header.
fn floats_behind(
    path: &Path,
    mut file: impl Read,
    header: &[u8],
    length: u64,
    wanted: impl Fn(&str) -> bool,
) -> Result<Floats> {
    let bad = |why: String| StoreError::BadHeader { path: path.into(), why };
    let entries = entries(&header[8..]).map_err(bad)?;
    let end = entries.last().map_or(0, |(_, info)| info.data_offsets.1);
    let expected = (header.len() as u64).saturating_add(end as u64);
    if expected != length {
        return Err(StoreError::WrongLength { path: path.into(), expected, found: length });
    }
    let mut floats = Floats { tensors: Vec::new(), others: Vec::new() };
    for (name, info) in entries {
        let length = info.data_offsets.1 - info.data_offsets.0;
        if !wanted(&name) {
            // Read all the same: it is part of the file's hash.
            let skipped = io::copy(&mut file.by_ref().take(length as u64), &mut io::sink());
            match skipped.map_err(StoreError::io(path, "read"))? {
                read if read == length as u64 => floats.others.push(name),
                _ => return Err(StoreError::io(path, "read")(io::ErrorKind::UnexpectedEof.into())),
            }
            continue;
        }
        let (dtype, half) = match info.dtype {
            safetensors::Dtype::F32 => (Dtype::F32, false),
            safetensors::Dtype::BF16 => (Dtype::BF16, false),
            safetensors::Dtype::F16 => (Dtype::F32, true),
            other => {
                let why = format!("is stored as {other}, expected F32, BF16 or F16");
                return Err(StoreError::BadTensorOf { path: path.into(), name, why });
            }
        };
        let shape = info.shape;
        let widened = if half { length.saturating_mul(2) } else { length };
        if Tensor::byte_len(dtype, &shape) != Some(widened) {
            return Err(bad(format!(
                "tensor `{name}` has {length} bytes, which do not fill {} {shape:?}",
                info.dtype
            )));
        }
        let memory = |bytes| memory_of(path, &name, bytes);
        let mut bytes = memory(length)?;
        file.read_exact(&mut bytes).map_err(StoreError::io(path, "read"))?;
        if half {
            let narrow = std::mem::replace(&mut bytes, memory(widened)?);
            for (to, from) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(narrow.as_chunks::<2>().0) {
                *to = half::f16::from_le_bytes(*from).to_f32().to_le_bytes();
            }
        }
        floats.tensors.push(Tensor { name, dtype, shape, bytes });
    }
    Ok(floats)
}

/// Memory for a tensor of a file.
fn memory_of(path: &Path, name: &str, bytes: usize) -> Result<Vec<u8>> {
    regular::memory(bytes).map_err(|why| StoreError::BadTensorOf {
        path: path.into(),
        name: name.into(),
        why,
    })
}

/// A file being read: the header is checked, tensors follow one by one in the order of the file.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    header: Vec<u8>,
    /// In the order of the data, which has no gaps.
    infos: std::vec::IntoIter<Info>,
    /// Where in the file the first of them begins.
    at: u64,
}

impl Reader {
    /// Opens a file and checks its header against its length.
    pub fn open(path: &Path) -> Result<Reader> {
        let (mut file, length) = open_file(path)?;
        let header = read_header(path, &mut file, length)?;
        let infos = checked_infos(path, &header, length)?;
        let at = header.len() as u64;
        Ok(Reader { path: path.into(), file, header, infos: infos.into_iter(), at })
    }

    /// Everything before the data, as read.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// What the header says of the tensors not read yet, in the order of the data.
    pub fn infos(&self) -> &[Info] {
        self.infos.as_slice()
    }

    /// The next tensor of the file; none after the last.
    pub fn next_tensor(&mut self) -> Result<Option<Tensor>> {
        Ok(self.next_group(0)?.pop())
    }

    /// The next tensors of the file, as many as have `bytes` together or are left, at least one if one is;
    /// read by several threads.
    pub fn next_group(&mut self, bytes: usize) -> Result<Vec<Tensor>> {
        let (mut places, mut taken) = (Vec::new(), 0);
        while taken < bytes || places.is_empty() {
            let Some(info) = self.infos.next() else { break };
            taken += info.bytes;
            let at = self.at;
            self.at += info.bytes as u64;
            places.push((at, info));
        }
        let read = |(at, Info { name, dtype, shape, bytes }): (u64, Info)| {
            // At most the length that the file had when it was opened, which memory may not have.
            let mut bytes = memory_of(&self.path, &name, bytes)?;
            self.file.read_exact_at(&mut bytes, at).map_err(StoreError::io(&self.path, "read"))?;
            Ok(Tensor { name, dtype, shape, bytes })
        };
        places.into_par_iter().map(read).collect()
    }

    /// Skips the next tensor of the file without reading it.
    pub fn skip_tensor(&mut self) {
        if let Some(info) = self.infos.next() {
            self.at += info.bytes as u64;
        }
    }
}

/// Reads one tensor of a file without reading those before it; none if the file has no such tensor.
pub fn read_one(path: &Path, name: &str) -> Result<Option<Tensor>> {
    let mut reader = Reader::open(path)?;
    while reader.infos().first().is_some_and(|info| info.name != name) {
        reader.skip_tensor();
    }
    reader.next_tensor()
}

/// Reads all tensors of a file, sorted by name.
pub fn read(path: &Path) -> Result<Vec<Tensor>> {
    let mut tensors = Reader::open(path)?.next_group(usize::MAX)?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

#[derive(Deserialize)]
struct JsonHeader {
    #[serde(rename = "__metadata__")]
    _metadata: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

/// The entries of a JSON header in the order of the data, which must follow each other without gaps
/// and fit types and shapes.
fn parse_header(header: &[u8]) -> Result<Vec<Info>, String> {
    entries(header)?.into_iter().map(|(name, info)| as_stored(name, &info)).collect()
}

/// The entries of a JSON header in the order of the data, without gaps; of any type.
fn entries(header: &[u8]) -> Result<Vec<(String, TensorInfo)>, String> {
    let header: JsonHeader = json::parse(header).map_err(|e| e.to_string())?;
    let mut entries: Vec<(String, TensorInfo)> = header.tensors.into_iter().collect();
    entries.sort_by_key(|(_, info)| info.data_offsets);
    let mut expected = 0;
    for (name, TensorInfo { data_offsets: (start, end), .. }) in &entries {
        if *start != expected || end < start {
            return Err(format!(
                "tensor `{name}` has the offsets {start} to {end}, expected to start at {expected}"
            ));
        }
        expected = *end;
    }
    Ok(entries)
}

/// An entry of a known type, whose shape fills its bytes.
fn as_stored(
    name: String,
    TensorInfo { dtype, shape, data_offsets: (start, end) }: &TensorInfo,
) -> Result<Info, String> {
    let bytes = end - start;
    let dtype = Dtype::parse(&dtype.to_string())
        .ok_or_else(|| format!("tensor `{name}` has the type {dtype}, which no state holds"))?;
    if Tensor::byte_len(dtype, shape) != Some(bytes) {
        return Err(format!("tensor `{name}` has {bytes} bytes, which do not fill {dtype} {shape:?}"));
    }
    Ok(Info { name, dtype, shape: shape.clone(), bytes })
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
