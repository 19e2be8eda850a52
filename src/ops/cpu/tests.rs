//! The CPU device against plain f64, and against itself under every setting.

use std::collections::BTreeMap;

use super::super::testing::{self, Tolerance, random};
use super::super::*;
use super::simd::Isa;
use super::*;
use crate::experiment::{DeviceKind, Simd};

fn cpu(threads: usize, simd: Simd) -> Cpu {
    Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads, simd }).unwrap()
}

fn upload(cpu: &mut Cpu, values: &[f32]) -> Buffer {
    let mut buf = cpu.alloc(Role::F32, values.len()).unwrap();
    cpu.upload(&mut buf, values).unwrap();
    buf
}

#[test]
fn every_operation_matches_the_f64_reference() {
    testing::check_all(&mut cpu(2, Simd::Auto), Tolerance { relative: 1e-5 });
}

#[test]
fn threads_and_instruction_sets_change_no_bit() {
    let bits = |cpu: &mut Cpu| -> Vec<(String, Vec<u32>)> {
        testing::cases(cpu)
            .into_iter()
            .map(|case| (case.name, case.got.iter().map(|x| x.to_bits()).collect()))
            .collect()
    };
    let want = bits(&mut cpu(1, Simd::Baseline));
    for simd in [Simd::Auto, Simd::Avx512, Simd::Avx2, Simd::Baseline] {
        if Isa::new(simd).is_err() {
            continue;
        }
        for threads in [1, 2, 3] {
            for (got, want) in bits(&mut cpu(threads, simd)).iter().zip(&want) {
                assert!(got == want, "{} with {threads} threads and {simd:?}", got.0);
            }
        }
    }
}

/// The bits of every operation of training on every machine, as [`NUMERICS_VERSION`] 1. A change of a hash
/// changes every lock and every golden root: raise the version with it.
#[test]
fn the_bits_of_each_operation_are_those_of_the_numerics_version() {
    use sha2::{Digest, Sha256};
    let mut hashes: BTreeMap<String, Sha256> = BTreeMap::new();
    for case in testing::cases(&mut cpu(2, Simd::Auto)) {
        let operation = case.name.split(' ').next().unwrap_or_default();
        let hash = hashes.entry(operation.to_owned()).or_default();
        case.got.iter().for_each(|x| hash.update(x.to_le_bytes()));
    }
    let hashes: Vec<(String, String)> =
        hashes.into_iter().map(|(operation, hash)| (operation, hex::encode(hash.finalize()))).collect();
    let pinned: Vec<(String, String)> =
        testing::cpu_bits().into_iter().map(|(operation, hash)| (operation.into(), hash.into())).collect();
    assert_eq!((NUMERICS_VERSION, hashes), (1, pinned));
}

#[test]
fn more_memory_than_there_is_is_an_error() {
    let refused = |role| cpu(1, Simd::Auto).alloc(role, 1 << 55).err().unwrap().to_string();
    let error = refused(Role::Param);
    assert!(
        error.starts_with("out of memory on CPU: `Param buffer of 36028797018963968 elements` needs"),
        "{error}"
    );
    for (role, hint) in [
        (Role::Param, "hint: lower `model.layers`"),
        (Role::F32, "more ranks with `parallel.zero`"),
        (Role::Activation, "hint: lower `batch.micro`"),
    ] {
        assert!(refused(role).contains(hint), "{role:?}: {}", refused(role));
    }
}

#[test]
fn a_nan_in_the_logits_is_a_nan_loss() {
    let mut cpu = cpu(2, Simd::Auto);
    let (n, channels, vocab) = (20, 8, Vocab { used: 100, padded: 128 });
    let x = upload(&mut cpu, &random(1, n * channels, 1.0));
    let mut ids = cpu.alloc_ids(n).unwrap();
    cpu.upload_ids(&mut ids, &vec![5; n]).unwrap();
    for broken in [0, 5, 63, 64, 99] {
        for value in [f32::NAN, f32::INFINITY] {
            let mut wte = random(2, vocab.padded * channels, 1.0);
            wte[broken * channels] = value;
            let wte = upload(&mut cpu, &wte);
            let mut losses = upload(&mut cpu, &vec![0.0; n]);
            cpu.classifier_loss(ClassifierLoss {
                losses: &mut losses,
                losses_at: 0,
                x: &x,
                wte: &wte,
                targets: &ids,
                rows: n,
                channels,
                vocab,
                terms: LogitTerms::default(),
            })
            .unwrap();
            let bad = losses.as_slice().iter().filter(|loss| !loss.is_finite()).count();
            // An infinite logit of the wrong sign is probability 0 of a token that is not the target.
            assert!(
                bad == n || (value == f32::INFINITY && bad > 0),
                "row {broken} of wte with {value} gave {bad} bad losses"
            );
        }
    }
}

#[test]
fn a_nan_in_the_input_reaches_every_output_that_depends_on_it() {
    let mut cpu = cpu(2, Simd::Auto);
    let (n, c) = (9, 70);
    for column in [0, 15, 16, 69] {
        let mut x = random(3, n * c, 1.0);
        x[4 * c + column] = f32::NAN;
        let x = upload(&mut cpu, &x);
        let ones = upload(&mut cpu, &vec![1.0; c]);
        let [mut out, mut mean, mut rstd] = [n * c, n, n].map(|len| cpu.alloc(Role::F32, len).unwrap());
        cpu.layernorm(Layernorm {
            out: &mut out,
            mean: Some(&mut mean),
            rstd: &mut rstd,
            x: &x,
            weight: &ones,
            bias: Some(&ones),
            rows: n,
            channels: c,
        })
        .unwrap();
        for row in 0..n {
            assert!(out.as_slice()[row * c..][..c].iter().all(|x| x.is_nan() == (row == 4)));
        }
        for function in [Nonlinearity::Gelu, Nonlinearity::SquaredRelu, Nonlinearity::Swiglu] {
            let channels = function.outputs_of(c);
            cpu.activate(Activate { out: &mut out, pre: &x, function, rows: n, channels }).unwrap();
            let outputs = &out.as_slice()[..n * channels];
            assert_eq!(outputs.iter().filter(|x| x.is_nan()).count(), 1, "{function:?}");
        }
        let squares = cpu.sum_squares(SumSquares { tensors: &[&x] }).unwrap();
        assert!(squares[0].is_nan());
    }
    let (rows, heads) = (Rows { batch: 1, seq: 60 }, Heads::new(2, 16));
    for which in 0..3 {
        let mut qkv = random(4, 60 * 96, 1.0);
        qkv[53 * 96 + which * 32 + 7] = f32::NAN;
        let qkv = upload(&mut cpu, &qkv);
        let [mut out, mut lse] = [60 * 32, 120].map(|len| cpu.alloc(Role::F32, len).unwrap());
        cpu.attention(Attention { out: &mut out, lse: &mut lse, qkv: &qkv, values: None, rows, heads })
            .unwrap();
        let token = |t: usize| &out.as_slice()[t * 32..(t + 1) * 32];
        assert!(token(53)[..16].iter().any(|x| x.is_nan()), "part {which}");
        assert!(token(53)[16..].iter().all(|x| x.is_finite()), "part {which}: the other head");
        assert!(token(40).iter().all(|x| x.is_finite()), "part {which}: an earlier block");
    }
}

#[test]
fn later_tokens_change_no_bit_of_earlier_outputs() {
    let mut cpu = cpu(2, Simd::Auto);
    let (rows, heads) = (Rows { batch: 1, seq: 60 }, Heads::new(1, 16));
    let run = |cpu: &mut Cpu, qkv: &[f32]| {
        let qkv = upload(cpu, qkv);
        let [mut out, mut lse] = [60 * 16, 60].map(|len| cpu.alloc(Role::F32, len).unwrap());
        cpu.attention(Attention { out: &mut out, lse: &mut lse, qkv: &qkv, values: None, rows, heads })
            .unwrap();
        out.as_slice().to_vec()
    };
    let mut qkv = random(5, 60 * 48, 1.0);
    let before = run(&mut cpu, &qkv);
    for t in 1..60 {
        qkv[t * 48..].iter_mut().for_each(|x| *x *= -2.0);
        let after = run(&mut cpu, &qkv);
        assert_eq!(before[..t * 16], after[..t * 16], "tokens before {t}");
        qkv[t * 48..].iter_mut().for_each(|x| *x /= -2.0);
    }
}

#[test]
fn wrong_lengths_and_tokens_are_errors_that_say_so() {
    let mut cpu = cpu(1, Simd::Auto);
    let (x, weight) = (upload(&mut cpu, &[0.0; 6]), upload(&mut cpu, &[0.0; 6]));
    let mut out = cpu.alloc(Role::F32, 3).unwrap();
    let shape = LinearShape { rows: 2, c_in: 3, c_out: 2 };
    let op = Linear { out: &mut out, x: &x, weight: &weight, bias: None, shape };
    let error = cpu.linear(op).unwrap_err().to_string();
    assert_eq!(error, "linear failed on CPU: `out` has 3 elements, expected 4");
    let mut ids = cpu.alloc_ids(1).unwrap();
    cpu.upload_ids(&mut ids, &[3]).unwrap();
    let rows = Rows { batch: 1, seq: 1 };
    let op = Embedding { out: &mut out, ids: &ids, wte: &x, wpe: Some(&weight), rows, channels: 3 };
    let error = cpu.embedding(op).unwrap_err().to_string();
    assert_eq!(error, "embedding failed on CPU: token 3 at position 0 is not below the vocabulary of 2");
}

#[test]
fn bytes_round_trip_nan_payloads_and_negative_zero() {
    let mut cpu = cpu(1, Simd::Auto);
    let words = [0x7fc0_1234u32, 0x8000_0000, 0x0000_0001, 0xff80_0000];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut buf = cpu.alloc(Role::F32, 4).unwrap();
    cpu.write_bytes(&mut buf, &bytes).unwrap();
    let mut back = vec![0; 16];
    cpu.read_bytes(&buf, &mut back).unwrap();
    assert_eq!(bytes, back);
}

#[test]
fn planned_scratch_is_what_the_operations_use() {
    let mut cpu = cpu(2, Simd::Auto);
    let shape = ScratchShape {
        rows: Rows { batch: 2, seq: 40 },
        least_seq: 40,
        channels: 32,
        heads: Heads::new(2, 16),
        vocab: Vocab { used: 100, padded: 128 },
        backward: true,
        bias: true,
        mlp: MlpShape::gpt2(32),
        params: ParamCount::default(),
    };
    cpu.alloc_scratch(&shape).unwrap();
    let planned: u64 = scratch_bytes(&shape, 2).iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(planned, cpu.held_scratch_bytes());
    let (n, c) = (80, 32);
    let [mut a, mut b, mut dwte, mut wide, mut dwide] =
        [n * c, n * c, 128 * c, n * 4 * c, 4 * c * c].map(|len| cpu.alloc(Role::F32, len).unwrap());
    let [mut qkv, mut lse, mut losses, mut denominators] =
        [3 * n * c, 160, n, 2 * n].map(|len| cpu.alloc(Role::F32, len).unwrap());
    let ids = cpu.alloc_ids(n).unwrap();
    let dout = cpu.alloc(Role::F32, n * c).unwrap();
    let (rows, heads) = (shape.rows, shape.heads);
    cpu.attention(Attention { out: &mut a, lse: &mut lse, qkv: &qkv, values: None, rows, heads }).unwrap();
    let input = cpu.alloc(Role::F32, 3 * n * c).unwrap();
    cpu.attention_backward(AttentionBackward {
        dqkv: &mut qkv,
        dout: &dout,
        qkv: &input,
        values: None,
        out: &a,
        lse: &lse,
        rows,
        heads,
    })
    .unwrap();
    let wte = cpu.alloc(Role::F32, 128 * c).unwrap();
    cpu.classifier(Classifier {
        losses: &mut losses,
        losses_at: 0,
        denominators: &mut denominators,
        dx: &mut b,
        dwte: &mut dwte,
        x: &a,
        wte: &wte,
        targets: &ids,
        rows: n,
        channels: c,
        vocab: shape.vocab,
        terms: LogitTerms::default(),
        scale: 1.0,
        write: Write::Set,
    })
    .unwrap();
    let up = LinearShape { rows: n, c_in: c, c_out: 4 * c };
    let down = LinearShape { rows: n, c_in: 4 * c, c_out: c };
    cpu.linear(Linear { out: &mut wide, x: &a, weight: &wte, bias: None, shape: up }).unwrap();
    cpu.linear(Linear { out: &mut a, x: &wide, weight: &wte, bias: None, shape: down }).unwrap();
    cpu.linear_backward_weight(LinearBackwardWeight {
        dweight: &mut dwide,
        dbias: None,
        dout: &dout,
        x: &wide,
        shape: down,
        write: Write::Set,
    })
    .unwrap();
    assert_eq!(planned, cpu.held_scratch_bytes());
}

#[test]
fn a_decoded_row_has_the_same_bits_alone_and_among_others() {
    for n in [2, 3, 4, 7, 9] {
        let [together, alone] = testing::decoding_alone_and_together(&mut cpu(2, Simd::Auto), n);
        assert!(together.iter().map(|x| x.to_bits()).eq(alone.iter().map(|x| x.to_bits())), "{n} rows");
    }
}

#[test]
fn threads_and_instruction_sets_change_no_bit_of_decoding() {
    let bits = |cpu: &mut Cpu| -> Vec<Vec<u32>> {
        let cases = testing::decoding_cases(cpu, testing::Limits::NONE);
        cases.into_iter().map(|case| case.got.iter().map(|x| x.to_bits()).collect()).collect()
    };
    let want = bits(&mut cpu(1, Simd::Baseline));
    for simd in [Simd::Avx512, Simd::Avx2, Simd::Auto] {
        if Isa::new(simd).is_ok() {
            assert!(bits(&mut cpu(3, simd)) == want, "{simd:?}");
        }
    }
}

#[test]
fn a_position_or_stream_outside_the_cache_is_refused() {
    let mut cpu = cpu(1, Simd::Auto);
    let [mut out, mut keys, mut values, qkv] = [8, 16, 16, 24].map(|len| upload(&mut cpu, &vec![0.0; len]));
    let mut attend = |stream: u16, position: u16| {
        let [mut streams, mut positions] = [(); 2].map(|()| cpu.alloc_ids(1).unwrap());
        cpu.upload_ids(&mut streams, &[stream]).unwrap();
        cpu.upload_ids(&mut positions, &[position]).unwrap();
        let op = DecodeAttention {
            out: &mut out,
            cache: KvCache { keys: &mut keys, values: &mut values, capacity: 2 },
            qkv: &qkv,
            at: RowPositions { streams: &streams, positions: &positions },
            rows: 1,
            heads: Heads::new(1, 8),
        };
        cpu.decode_attention(op).map_err(|e| e.to_string())
    };
    assert_eq!(attend(0, 1), Ok(()));
    assert!(attend(0, 2).unwrap_err().contains("position 2 is not below 2"));
    assert!(attend(1, 0).unwrap_err().contains("stream 1 is not below 1"));
}

#[test]
fn a_norm_that_turns_has_the_bits_of_norm_and_rotary() {
    let (rows, heads, theta) = (Rows { batch: 2, seq: 37 }, Heads::new(3, 18), 10_000.0);
    let (n, wide) = (rows.count(), 3 * rows.count() * heads.channels());
    let mut ops = cpu(2, Simd::Auto);
    let table = upload(&mut ops, &rotary_table(rows.seq, heads.head_size, theta));
    let [x, dout] = [1, 2].map(|seed| upload(&mut ops, &random(seed, wide, 1.0)));
    let [q_weight, k_weight] = [3, 4].map(|seed| upload(&mut ops, &random(seed, heads.head_size, 1.0)));
    let (q_weight, k_weight) = (&q_weight, &k_weight);
    let at = RotaryAt::Sequences(rows);
    let [together, apart] = [true, false].map(|together| {
        let turn = QkRotary { table: &table, theta, at };
        let rotary = together.then_some(turn);
        let mut out = ops.alloc(Role::F32, wide).unwrap();
        let mut rstd = ops.alloc(Role::F32, 2 * n * heads.heads).unwrap();
        let op = QkNorm {
            out: &mut out,
            rstd: &mut rstd,
            x: &x,
            q_weight,
            k_weight,
            rows: n,
            heads,
            values: true,
            rotary,
        };
        ops.qk_norm(op).unwrap();
        let mut dqkv = upload(&mut ops, dout.as_slice());
        for (qkv, inverse) in [(&mut out, false), (&mut dqkv, true)] {
            if !together {
                ops.rotary(Rotary { qkv, table: &table, theta, at, heads, inverse }).unwrap();
            }
        }
        let [mut dq_weight, mut dk_weight] = [(); 2].map(|()| ops.alloc(Role::F32, heads.head_size).unwrap());
        let op = QkNormBackward {
            dqkv: &mut dqkv,
            dq_weight: &mut dq_weight,
            dk_weight: &mut dk_weight,
            write: Write::Set,
            x: &x,
            q_weight,
            k_weight,
            rstd: &rstd,
            rows: n,
            heads,
            rotary,
        };
        ops.qk_norm_backward(op).unwrap();
        [out, rstd, dqkv, dq_weight, dk_weight].map(|buf| buf.as_slice().to_vec())
    });
    assert!(together == apart, "nothing is rounded between the two on this device");
    // A position for each row.
    let mut out = ops.alloc(Role::F32, wide).unwrap();
    let mut rstd = ops.alloc(Role::F32, 2 * n * heads.heads).unwrap();
    let rotary = Some(QkRotary { table: &table, theta, at: RotaryAt::Sequences(Rows { batch: 1, ..rows }) });
    let (out, rstd, x, values) = (&mut out, &mut rstd, &x, true);
    let op = QkNorm { out, rstd, x, q_weight, k_weight, rows: n, heads, values, rotary };
    assert!(ops.qk_norm(op).unwrap_err().to_string().contains("37 positions of 74 rows"));
}
