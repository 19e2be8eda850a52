//! Copies to and from the device, digests of its memory, and what is refused.

use sha2::{Digest, Sha256};

use super::*;

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn numbers_and_bytes_survive_the_way_there_and_back() {
    let mut cuda = cuda();
    // Less than a slot, a slot and a bit, and several rounds of slots.
    for len in [1, 5_000, (4 << 20) + 3, 13 << 20] {
        let sent: Vec<f32> = (0..len).map(|i| (i % 251) as f32).collect();
        for role in [Role::F32, Role::Activation] {
            let buf = filled(&mut cuda, role, &sent);
            assert_eq!(values(&mut cuda, &buf, len), sent, "{len} elements as {role:?}");
        }
        let mut buf = cuda.alloc(Role::F32, len).expect("memory");
        assert!(bytes(&mut cuda, &buf).iter().all(|byte| *byte == 0), "memory starts at zero");
        let noise: Vec<u8> = (0..4 * len).map(|i| (i * 31 % 253) as u8).collect();
        cuda.write_bytes(&mut buf, &noise).expect("an upload");
        assert_eq!(bytes(&mut cuda, &buf), noise);
    }
    // Rounding to nearest, ties to even.
    let halfway = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::INFINITY, -0.0];
    let buf = filled(&mut cuda, Role::Activation, &halfway);
    assert_eq!(values(&mut cuda, &buf, 4), [1.0, 1.0 + 4.0 / 256.0, f32::INFINITY, -0.0]);
}

/// RFC 9162's tree over leaves of 4096 bytes, as the digest's specification writes it.
fn merkle_root(bytes: &[u8]) -> [u8; 32] {
    fn hash(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
        let once = Sha256::digest(tag);
        let mut hash = Sha256::new().chain_update(once).chain_update(once);
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    }
    fn tree(leaves: &[[u8; 32]]) -> [u8; 32] {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                hash("runner/node/v1", &[&tree(left), &tree(right)])
            }
        }
    }
    tree(&bytes.chunks(4096).map(|leaf| hash("runner/leaf/v1", &[leaf])).collect::<Vec<_>>())
}

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn merkle_roots_on_the_device_are_those_of_the_host() {
    let mut cuda = cuda();
    let lengths = [0, 1, 55, 56, 64, 4095, 4096, 4097, 3 * 4096, 512 * 4096, 513 * 4096 + 17, 5_000_001];
    let tensors: Vec<(Vec<u8>, Buf)> = lengths
        .iter()
        .map(|&len| {
            let content: Vec<u8> = (0..len).map(|i| ((i * 2_654_435_761_usize) >> 7) as u8).collect();
            let mut buf = cuda.alloc(Role::F32, len / 4 + 1).expect("memory");
            cuda.write_bytes(&mut buf, &content).expect("an upload");
            (content, buf)
        })
        .collect();
    let (long, buf) = tensors.last().expect("there are tensors");
    let ranges = [16..48, 8 * 4096..12 * 4096, 1024 * 4096..long.len()];
    let parts = cuda
        .merkle_roots(&ranges.clone().map(|range| (buf, range)))
        .expect("roots")
        .expect("the device hashes");
    for (range, root) in ranges.into_iter().zip(parts) {
        assert_eq!(hex::encode(root), hex::encode(merkle_root(&long[range.clone()])), "{range:?}");
    }
    let asked: Vec<(&Buf, std::ops::Range<usize>)> =
        tensors.iter().map(|(content, buf)| (buf, 0..content.len())).collect();
    for round in 0..2 {
        let roots = cuda.merkle_roots(&asked).expect("roots").expect("the device hashes");
        for ((content, _), root) in tensors.iter().zip(roots) {
            assert_eq!(
                hex::encode(root),
                hex::encode(merkle_root(content)),
                "{} bytes, round {round}",
                content.len()
            );
        }
    }
}

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn too_little_memory_and_wrong_operands_are_refused_by_name() {
    let mut cuda = cuda();
    let all = cuda.gpu().total_bytes;
    assert!(cuda.free_bytes().expect("the driver knows") < all, "some of it is taken");
    let Err(error) = cuda.alloc(Role::F32, all as usize) else { panic!("four times the memory there is") };
    assert!(
        error.to_string().contains("`fp32 tensors`") && error.to_string().contains("out of memory"),
        "{error}"
    );
    let mut short = cuda.alloc(Role::Activation, 64).expect("memory");
    let x = cuda.alloc(Role::Activation, 128).expect("memory");
    let layer = LinearShape { rows: 2, c_in: 64, c_out: 64 };
    let op = Linear { out: &mut short, x: &x, weight: &x, bias: None, shape: layer };
    let error = cuda.linear(op).expect_err("`weight` is short").to_string();
    assert!(
        error.contains("linear failed on") && error.contains("`weight` has 128 elements, 4096 are needed"),
        "{error}"
    );
    let floats = cuda.alloc(Role::F32, 128).expect("memory");
    let function = Nonlinearity::Gelu;
    let op = Activate { out: &mut short, pre: &floats, function, rows: 1, channels: 64 };
    let error = cuda.activate(op).expect_err("`pre` is fp32").to_string();
    assert!(error.contains("activate failed on") && error.contains("`pre` is F32, expected BF16"), "{error}");
}
