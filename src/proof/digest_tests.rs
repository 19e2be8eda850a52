use super::*;
use crate::proof::tree::{empty_root, node};

/// The specification, whose table of test vectors `tests/verify_digest.py --vectors` printed.
const SPECIFICATION: &str = include_str!("../../docs/digest.md");

fn ramp(n: usize) -> Vec<u8> {
    (0..n).map(|i| ((31 * i + 7) % 251) as u8).collect()
}

/// The hash that the specification gives for `what`.
fn vector(what: &str) -> Hash {
    let row = format!("| {what} | `");
    let start = SPECIFICATION.find(&row).unwrap_or_else(|| panic!("no vector {what}")) + row.len();
    SPECIFICATION[start..start + 64].parse().unwrap()
}

#[test]
fn merkle_roots_are_those_of_the_independent_script() {
    for n in [0, 1, 4095, 4096, 4097, 12288, 20480, 28772, 1_048_577, 3_145_728] {
        assert_eq!(merkle_root(&ramp(n)), vector(&format!("`merkle(ramp({n}))`")), "{n} bytes");
    }
}

#[test]
fn tensor_and_state_digests_are_those_of_the_independent_script() {
    let b = tensor_digest("b", "F32", &[3, 683], &ramp(8196));
    let a = tensor_digest("a/é", "BF16", &[0, 4], &[]);
    let step = tensor_digest("train/step", "U64", &[], &ramp(8));
    assert_eq!(b, vector(r#"`tensor("b", F32, [3, 683], ramp(8196))`"#));
    assert_eq!(a, vector(r#"`tensor("a/é", BF16, [0, 4], ramp(0))`"#));
    assert_eq!(step, vector(r#"`tensor("train/step", U64, [], ramp(8))`"#));
    for order in [[("b", b), ("a/é", a), ("train/step", step)], [("train/step", step), ("b", b), ("a/é", a)]]
    {
        assert_eq!(state_root(order), Ok(vector("`state` of these three")));
    }
}

#[test]
fn the_first_levels_are_what_the_specification_says() {
    let bytes = ramp(3 * LEAF_BYTES);
    let [a, b, c] = [0, 1, 2].map(|i| leaf(&bytes[i * LEAF_BYTES..][..LEAF_BYTES]));
    assert_eq!(merkle_root(&bytes), node(&node(&a, &b), &c));
    assert_eq!(merkle_root(&bytes[..LEAF_BYTES]), a);
    assert_eq!(merkle_root(&[]), empty_root());
}

#[test]
fn a_leaf_never_passes_for_a_node() {
    let (left, right) = (leaf(b"left"), leaf(b"right"));
    assert_ne!(leaf(&[left.0, right.0].concat()), node(&left, &right));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let bytes = ramp(5 * LEAF_BYTES * TASK_LEAVES + 1);
    let root = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| merkle_root(&bytes))
    };
    assert_eq!(root(1), root(7));
}

#[test]
fn everything_about_a_tensor_enters_its_digest() {
    let digest = tensor_digest("wte", "F32", &[2, 3], &[0; 24]);
    for other in [
        tensor_digest("wtf", "F32", &[2, 3], &[0; 24]),
        tensor_digest("wte", "U32", &[2, 3], &[0; 24]),
        tensor_digest("wte", "F32", &[3, 2], &[0; 24]),
        tensor_digest("wte", "F32", &[2, 3, 1], &[0; 24]),
        tensor_digest("wte", "F32", &[2, 3], &[&[1][..], &[0; 23]].concat()),
        tensor_digest("wteF", "32", &[2, 3], &[0; 24]),
    ] {
        assert_ne!(digest, other);
    }
}

#[test]
fn a_name_given_twice_is_refused() {
    let digest = leaf(b"x");
    assert_eq!(
        state_root([("w", digest), ("v", digest), ("w", digest)]),
        Err(DigestError::DuplicateName { name: "w".into() })
    );
    assert_eq!(state_root([]), Ok(empty_root()));
}

/// `cargo test --release --lib digest_throughput -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn digest_throughput() {
    let bytes = vec![0x5a; 1 << 30];
    for threads in [1, rayon::current_num_threads()] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let best = (0..5)
            .map(|_| {
                let start = std::time::Instant::now();
                std::hint::black_box(pool.install(|| merkle_root(&bytes)));
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min);
        eprintln!("{threads} threads: {:.2} GB/s", bytes.len() as f64 / best / 1e9);
    }
}
