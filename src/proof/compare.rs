//! Where two tensors differ: the first leaf and element, both values, and how far apart they are.

use super::digest::LEAF_BYTES;

/// Element types that values can be shown of, by their name in safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShownType {
    F32,
    Bf16,
    F64,
    Unsigned(usize),
    Bytes,
}

impl ShownType {
    fn of(dtype: &str) -> ShownType {
        match dtype {
            "F32" => ShownType::F32,
            "BF16" => ShownType::Bf16,
            "F64" => ShownType::F64,
            "U32" => ShownType::Unsigned(4),
            "U64" | "I64" => ShownType::Unsigned(8),
            _ => ShownType::Bytes,
        }
    }

    fn size(self) -> usize {
        match self {
            ShownType::F32 => 4,
            ShownType::Bf16 => 2,
            ShownType::F64 => 8,
            ShownType::Unsigned(size) => size,
            ShownType::Bytes => 1,
        }
    }

    /// The number in these little-endian bytes, and its bits.
    fn read(self, bytes: &[u8]) -> Value {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        let number = match self {
            ShownType::F32 => f64::from(f32::from_bits(bits as u32)),
            ShownType::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
            ShownType::F64 => f64::from_bits(bits),
            ShownType::Unsigned(_) | ShownType::Bytes => bits as f64,
        };
        Value { element: self, bits, number }
    }
}

/// One element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    element: ShownType,
    pub bits: u64,
    pub number: f64,
}

impl Value {
    /// How far two numbers of one type are apart; none where one is not finite.
    fn apart(self, other: Value) -> Option<f64> {
        let apart = match self.element {
            ShownType::Unsigned(_) | ShownType::Bytes => self.bits.abs_diff(other.bits) as f64,
            ShownType::F32 | ShownType::Bf16 | ShownType::F64 => (self.number - other.number).abs(),
        };
        apart.is_finite().then_some(apart)
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = 2 * self.element.size();
        match self.element {
            ShownType::F32 | ShownType::Bf16 => {
                write!(f, "{:e} (0x{:0digits$x})", self.number as f32, self.bits)
            }
            ShownType::F64 => write!(f, "{:e} (0x{:0digits$x})", self.number, self.bits),
            ShownType::Unsigned(_) | ShownType::Bytes => {
                write!(f, "{} (0x{:0digits$x})", self.bits, self.bits)
            }
        }
    }
}

/// Where two tensors of one type and shape differ.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorDifference {
    /// Leaf of the Merkle tree, from 0.
    pub leaf: usize,
    /// First byte that differs.
    pub byte: usize,
    /// Element in row-major order, and its coordinates.
    pub element: usize,
    pub coordinates: Vec<usize>,
    pub a: Value,
    pub b: Value,
    /// Elements that differ, of how many.
    pub differing: usize,
    pub elements: usize,
    /// The largest absolute difference of two finite elements; none where no two such differ.
    pub largest: Option<f64>,
    /// Pairs of which one is infinite or no number.
    pub not_finite: usize,
}

/// The first difference of two tensors of one type and shape; none when all bytes are equal.
///
/// # Panics
///
/// When the lengths differ; the caller must compare shapes first.
pub fn first_difference(dtype: &str, shape: &[usize], a: &[u8], b: &[u8]) -> Option<TensorDifference> {
    assert_eq!(a.len(), b.len(), "tensors of one type and shape have one length");
    if a == b {
        return None;
    }
    let kind = ShownType::of(dtype);
    let size = kind.size();
    let pairs = || a.chunks_exact(size).zip(b.chunks_exact(size));
    let element = pairs().position(|(a, b)| a != b)?;
    let at = |bytes: &[u8]| kind.read(&bytes[element * size..][..size]);
    let byte = a.iter().zip(b).position(|(a, b)| a != b)?;
    let apart: Vec<Option<f64>> =
        pairs().filter(|(a, b)| a != b).map(|(a, b)| kind.read(a).apart(kind.read(b))).collect();
    let finite = || apart.iter().flatten();
    Some(TensorDifference {
        leaf: byte / LEAF_BYTES,
        byte,
        element,
        coordinates: coordinates(element, shape),
        a: at(a),
        b: at(b),
        differing: apart.len(),
        elements: a.len() / size,
        largest: finite().copied().reduce(f64::max),
        not_finite: apart.len() - finite().count(),
    })
}

fn coordinates(mut element: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinates = vec![0; shape.len()];
    for (at, dimension) in shape.iter().enumerate().rev() {
        coordinates[at] = element % dimension.max(&1);
        element /= dimension.max(&1);
    }
    coordinates
}

impl std::fmt::Display for TensorDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "leaf {}, element {} {:?}: {} and {}; {} of {} elements differ",
            self.leaf, self.element, self.coordinates, self.a, self.b, self.differing, self.elements
        )?;
        if let Some(largest) = self.largest {
            write!(f, ", by at most {largest:.3e}")?;
        }
        match self.not_finite {
            0 => Ok(()),
            count => write!(f, "; {count} of them where one is not finite"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flipped_bit_is_located_to_leaf_and_element() {
        let a: Vec<u8> = (0..3000u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let mut b = a.clone();
        // Element 2500 is byte 10000, in leaf 2 of 4096 bytes each.
        b[10_001] ^= 0x40;
        let found = first_difference("F32", &[3, 1000], &a, &b).unwrap();
        assert_eq!((found.leaf, found.byte, found.element), (2, 10_001, 2500));
        assert_eq!(found.coordinates, [2, 500]);
        assert_eq!((found.differing, found.elements), (1, 3000));
        assert_eq!(found.a.to_string(), "2.5e3 (0x451c4000)");
        assert_eq!(found.a.bits ^ found.b.bits, 0x4000);
    }

    #[test]
    fn equal_tensors_do_not_differ_and_a_nan_is_compared_by_bits() {
        let nan = f32::NAN.to_le_bytes();
        assert_eq!(first_difference("F32", &[], &nan, &nan), None);
        let other = f32::from_bits(f32::NAN.to_bits() ^ 1).to_le_bytes();
        assert!(first_difference("F32", &[], &nan, &other).is_some());
    }

    #[test]
    fn what_is_not_finite_is_counted_and_whole_numbers_are_compared_as_such() {
        let bytes = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
        let shown = |a, b| first_difference("F32", &[2], &bytes(a), &bytes(b)).unwrap().to_string();
        assert!(
            shown([1.0, 2.0], [f32::NAN, 2.0])
                .ends_with("1 of 2 elements differ; 1 of them where one is not finite")
        );
        assert!(shown([1.0, 2.0], [f32::INFINITY, 2.5]).contains("by at most 5.000e-1; 1 of them"));
        let (a, b) = ((1u64 << 60).to_le_bytes(), ((1u64 << 60) + 1).to_le_bytes());
        assert_eq!(first_difference("U64", &[1], &a, &b).unwrap().largest, Some(1.0));
    }

    #[test]
    fn every_type_shows_its_values() {
        let shown = |dtype, a: &[u8], b: &[u8]| first_difference(dtype, &[1], a, b).unwrap().a.to_string();
        assert_eq!(shown("BF16", &[0x80, 0x3f], &[0, 0]), "1e0 (0x3f80)");
        assert_eq!(shown("U64", &7u64.to_le_bytes(), &[0; 8]), "7 (0x0000000000000007)");
        assert_eq!(shown("F64", &0.5f64.to_le_bytes(), &[0; 8]), "5e-1 (0x3fe0000000000000)");
    }
}
