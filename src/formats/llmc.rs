//! llm.c's model file, `.bin`: version 3 (fp32) and 5 (bf16).
//!
//! 256 little-endian int32 (magic 20240326, version, context, V, L, NH, C, padded V), then the tensors, each
//! stacked over the layers: all first layernorms' weights, then all their biases, and so on. Weights
//! are (out, in), as in our state; the token table has its padding rows, which are 0.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use super::content::Content;
use super::error::{FormatError, Result};
use super::format::FormatReader;
use super::hf;
use super::parameters::{Parameters, Precision};
use super::parameters::{encoded, require_finite};
use crate::experiment::{Model, largest};
use crate::model::Weights;
use crate::model::weights::Affine;
use crate::proof::hash::Hashed;
use crate::proof::{Hash, regular};
use crate::store::{Tensor, atomic};

const MAGIC: i32 = 20_240_326;
/// Bytes before the weights.
const HEADER_BYTES: usize = 1024;

/// How such files are read.
pub(super) const READER: FormatReader = FormatReader {
    what: "llm.c's `.bin`",
    recognises: |_, content| match content {
        Content::File(start) => start.starts_with(&MAGIC.to_le_bytes()),
        _ => false,
    },
    sizes,
    read: |path| read_hashed(path).map(|((parameters, _), sha256)| (parameters, vec![sha256])),
    tokenizer: |_| Ok(None),
    weights: |path| Ok(vec![path.to_owned()]),
};

impl Precision {
    fn version(self) -> i32 {
        match self {
            Precision::Fp32 => 3,
            Precision::Bf16 => 5,
        }
    }
}

/// All tensors in the order of the file; none of blocks that lack one of them.
fn stacked<T>(weights: &Weights<T>) -> Option<Vec<&T>> {
    let Weights { wte, wpe, layers, ln_f, .. } = weights;
    let mut order = vec![wte, wpe.as_ref()?];
    let layers: Vec<[&Affine<T>; 6]> =
        layers.iter().map(|l| [&l.ln_1, &l.qkv, &l.attn_proj, &l.ln_2, &l.fc, &l.fc_proj]).collect();
    for part in 0..6 {
        order.extend(layers.iter().map(|layer| &layer[part].weight));
        for layer in &layers {
            order.push(layer[part].bias.as_ref()?);
        }
    }
    order.extend([&ln_f.weight, ln_f.bias.as_ref()?]);
    Some(order)
}

/// Writes a whole file, or leaves what was there; returns its length.
pub fn write(path: &Path, parameters: &Parameters, precision: Precision) -> Result<u64> {
    let Parameters { model, tensors } = parameters;
    let specs = Weights::of(model);
    let (true, Some(ordered_specs), Some(ordered)) =
        (model.has_gpt2_blocks(), stacked(&specs), stacked(tensors))
    else {
        let hint = match hf::architecture(model) {
            Some(name) => {
                format!("it holds GPT-2's blocks alone; `--format hf` makes a `{name}` of this model")
            }
            None => "it holds GPT-2's blocks alone, and `--format hf` those of GPT-2, Llama and Qwen3".into(),
        };
        return Err(FormatError::Blocks { format: "llm.c's `.bin`", parts: model.other_parts(), hint });
    };
    let element = precision.dtype().size();
    let bytes = HEADER_BYTES as u64 + specs.parameters() * element as u64;
    atomic::write_with(path, bytes, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&header(model, precision))?;
        for (spec, tensor) in ordered_specs.iter().zip(&ordered) {
            out.write_all(&encoded(tensor, precision))?;
            io::copy(&mut io::repeat(0).take(((spec.len - spec.logical_len()) * element) as u64), &mut out)?;
        }
        out.flush()
    })?;
    Ok(bytes)
}

fn header(model: &Model, precision: Precision) -> Vec<u8> {
    let sizes = [model.context, model.vocab, model.layers, model.heads, model.channels, model.vocab_padded];
    let mut words = [0i32; HEADER_BYTES / 4];
    (words[0], words[1]) = (MAGIC, precision.version());
    for (word, size) in words[2..].iter_mut().zip(sizes) {
        *word = i32::try_from(size).expect("sizes of a model that was trained are far below 2^31");
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Reads a file back: the sizes of its model, and its parameters in the file's precision.
///
/// # Errors
///
/// A file that is no such model, is shorter or longer than its header says, holds NaN or infinity, or has
/// numbers in the padding rows, which our state does not keep.
pub fn read(path: &Path) -> Result<(Parameters, Precision)> {
    read_hashed(path).map(|(read, _)| read)
}

/// [`read`], with the SHA-256 of the file as it was read.
fn read_hashed(path: &Path) -> Result<((Parameters, Precision), Hash)> {
    let io = |source| FormatError::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut file = BufReader::with_capacity(1 << 20, Hashed::new(file.take(length)));
    let read = read_from(path, &mut file, length)?;
    Ok((read, file.into_inner().finish().1))
}

/// [`read`] of a file that is in memory.
pub fn parse(path: &Path, file: &[u8]) -> Result<(Parameters, Precision)> {
    read_from(path, file, file.len() as u64)
}

fn read_from(path: &Path, mut file: impl Read, length: u64) -> Result<(Parameters, Precision)> {
    let io = |source| FormatError::Io { path: path.into(), source };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    file.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(io)?;
    let (model, precision) = parse_header(path, &header)?;

    let element = precision.dtype().size();
    let expected = file_bytes(&model, element as u128);
    if u128::from(length) != expected {
        let expected = u64::try_from(expected).unwrap_or(u64::MAX);
        return Err(FormatError::Length { path: path.into(), got: length, expected });
    }
    let specs = Weights::of(&model);
    let mut read: Vec<Option<Tensor>> = vec![None; specs.iter().count()];
    for spec in stacked(&specs).expect("GPT-2 has them all") {
        let no_memory =
            |problem| FormatError::Parameter { path: path.into(), tensor: spec.name.clone(), problem };
        let mut bytes = regular::memory(spec.len * element).map_err(no_memory)?;
        file.read_exact(&mut bytes).map_err(io)?;
        let padding = bytes.split_off(spec.logical_len() * element);
        if let Some(at) = padding.iter().position(|&byte| byte != 0) {
            let row = model.vocab + at / (model.channels * element);
            return Err(FormatError::Padding { path: path.into(), row });
        }
        let tensor =
            Tensor { name: spec.name.clone(), dtype: precision.dtype(), shape: spec.shape.clone(), bytes };
        require_finite(path, [&tensor])?;
        read[spec.id as usize] = Some(tensor);
    }
    let tensors: Result<_> =
        specs.try_map(|spec| Ok(read[spec.id as usize].take().expect("`stacked` gives every tensor once")));
    Ok((Parameters { model, tensors: tensors? }, precision))
}

/// The sizes of the model in a file, from its header alone.
fn sizes(path: &Path) -> Result<Model> {
    let io = |source| FormatError::Io { path: path.into(), source };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    File::open(path).map_err(io)?.take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(io)?;
    parse_header(path, &header).map(|(model, _)| model)
}

/// Sizes and precision in a header. Every size must be in the range of the key of its name.
fn parse_header(path: &Path, header: &[u8]) -> Result<(Model, Precision)> {
    if header.len() < HEADER_BYTES {
        let (path, got) = (path.into(), header.len());
        return Err(FormatError::CutShort { path, got, expected: HEADER_BYTES });
    }
    let words = header.as_chunks().0;
    let word = |i: usize| i32::from_le_bytes(words[i]);
    let bad = |what, i: usize, expected: &str| FormatError::Header {
        path: path.into(),
        what,
        byte: 4 * i,
        got: word(i).into(),
        expected: expected.into(),
    };
    if word(0) != MAGIC {
        return Err(bad("the magic number", 0, "20240326"));
    }
    let precision = match word(1) {
        3 => Precision::Fp32,
        5 => Precision::Bf16,
        _ => return Err(bad("the version", 1, "3 (fp32) or 5 (bf16)")),
    };
    let size = |what, i: usize, most: u64| match u64::try_from(word(i)) {
        Ok(size) if (1..=most).contains(&size) => Ok(size as usize),
        _ => Err(bad(what, i, &format!("at least 1 and at most {most}"))),
    };
    // A file that is written again has 0 there.
    if let Some(i) = (8..HEADER_BYTES / 4).find(|&i| word(i) != 0) {
        return Err(bad("a word without a meaning", i, "0"));
    }
    let most_tokens = largest("model.vocab");
    let context = size("the context", 2, largest("model.context"))?;
    let vocab = size("the vocabulary", 3, most_tokens)?;
    let layers = size("the number of layers", 4, largest("model.layers"))?;
    let heads = size("the number of heads", 5, largest("model.heads"))?;
    let channels = size("the number of channels", 6, largest("model.channels"))?;
    let vocab_padded = size("the padded vocabulary", 7, 2 * most_tokens)?;
    let model = Model { vocab_padded, ..Model::gpt2(layers, heads, channels, context, vocab) };
    if !model.channels.is_multiple_of(model.heads) {
        return Err(bad("the number of heads", 5, &format!("a divisor of {} channels", model.channels)));
    }
    if model.vocab_padded < model.vocab {
        return Err(bad("the padded vocabulary", 7, &format!("at least the vocabulary, {}", model.vocab)));
    }
    Ok((model, precision))
}

/// Length of the file of a model; computed without [`Weights`], which would list all the layers of a wrong
/// header.
fn file_bytes(model: &Model, element: u128) -> u128 {
    let Model { layers, channels, context, vocab_padded, .. } = *model;
    let [l, c, t, v] = [layers, channels, context, vocab_padded].map(|size| size as u128);
    HEADER_BYTES as u128 + element * (v * c + t * c + l * (12 * c * c + 13 * c) + 2 * c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::parameters::sample_parameters;
    use crate::ops::Dtype;

    fn written(parameters: &Parameters, precision: Precision) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.bin");
        let bytes = write(&path, parameters, precision).expect("written");
        assert_eq!(std::fs::metadata(&path).expect("there").len(), bytes);
        (folder, path)
    }

    #[test]
    fn the_file_is_as_the_format_says() {
        let parameters = sample_parameters(Dtype::F32);
        let (_folder, path) = written(&parameters, Precision::Fp32);
        let bytes = std::fs::read(path).expect("readable");
        let word = |i: usize| i32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().expect("four bytes"));
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 255].map(word), [20_240_326, 3, 5, 11, 3, 2, 8, 128, 0, 0]);
        // V=11 of 128 padded rows, C=8, context 5: where tensors start, counted by hand.
        let at = |element: usize, tensor: &Tensor| bytes[1024 + 4 * element..].starts_with(&tensor.bytes);
        let opt = |element: usize, tensor: &Option<Tensor>| at(element, tensor.as_ref().expect("GPT-2's"));
        let layers = &parameters.tensors.layers;
        assert!(at(0, &parameters.tensors.wte));
        assert!(bytes[1024 + 4 * 88..1024 + 4 * 1024].iter().all(|&byte| byte == 0));
        assert!(opt(1024, &parameters.tensors.wpe));
        let ln_1 = 1024 + 40;
        assert!((0..3).all(
            |l| at(ln_1 + 8 * l, &layers[l].ln_1.weight) && opt(ln_1 + 24 + 8 * l, &layers[l].ln_1.bias)
        ));
        let qkv = ln_1 + 48;
        assert!((0..3).all(
            |l| at(qkv + 192 * l, &layers[l].qkv.weight) && opt(qkv + 576 + 24 * l, &layers[l].qkv.bias)
        ));
        assert!(bytes.ends_with(&parameters.tensors.ln_f.bias.as_ref().expect("GPT-2's").bytes));
    }

    #[test]
    fn both_versions_come_back_bit_for_bit() {
        for (dtype, precision) in [(Dtype::F32, Precision::Fp32), (Dtype::BF16, Precision::Bf16)] {
            let parameters = sample_parameters(dtype);
            let (_folder, path) = written(&parameters, precision);
            let (back, found) = read(&path).expect("readable");
            assert_eq!((&back.model, found), (&parameters.model, precision));
            assert!(back.tensors.iter().eq(parameters.tensors.iter()), "{dtype}");
            let (_folder, again) = written(&back, found);
            assert_eq!(std::fs::read(path).expect("readable"), std::fs::read(again).expect("readable"));
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        let (folder, path) = written(&sample_parameters(Dtype::F32), Precision::Fp32);
        let whole = std::fs::read(&path).expect("readable");
        let refusal = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            let path = folder.path().join("damaged.bin");
            std::fs::write(&path, bytes).expect("writable");
            read(&path).expect_err("damaged").to_string()
        };
        let word = |i: usize, value: i32| {
            move |bytes: &mut Vec<u8>| bytes[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes())
        };
        let html = |bytes: &mut Vec<u8>| bytes[..6].copy_from_slice(b"<html>");
        assert!(refusal(&html).contains("the magic number at byte 0"));
        assert!(refusal(&word(1, 4)).contains("the version at byte 4 is 4, expected 3 (fp32) or 5 (bf16)"));
        assert!(refusal(&word(4, 0)).contains("layers at byte 16 is 0"));
        assert!(
            refusal(&word(4, i32::MAX))
                .contains("layers at byte 16 is 2147483647, expected at least 1 and at most 1024")
        );
        assert!(refusal(&word(4, 1024)).contains("the file was cut short"));
        assert!(refusal(&word(5, 3)).contains("a divisor of 8 channels"));
        assert!(refusal(&word(7, 10)).contains("at least the vocabulary, 11"));
        assert!(refusal(&word(3, 10)).contains("row 10 of the token table"));
        for i in [8, 255] {
            let says = format!("a word without a meaning at byte {} is 1, expected 0", 4 * i);
            assert!(refusal(&word(i, 1)).contains(&says));
        }
        assert!(refusal(&|bytes| bytes.truncate(1000)).contains("cut short"));
        assert!(refusal(&|bytes| _ = bytes.pop()).contains("cut short"));
        assert!(refusal(&|bytes| bytes.push(0)).contains("behind its end"));
    }
}
