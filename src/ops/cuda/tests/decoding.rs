//! Decoding on a GPU: close to f64, and the same bits whatever is decoded beside it.

use super::*;

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn a_decoded_row_has_the_same_bits_alone_and_among_others() {
    for compute in [Compute::Bf16, Compute::Fp32] {
        let mut cuda = open(&CudaOptions { compute, ..CudaOptions::default() });
        for n in [2, 3, 4, 7, 8, 9, 19] {
            let [together, alone] = testing::decoding_alone_and_together(&mut cuda, n);
            assert!(
                together.iter().map(|x| x.to_bits()).eq(alone.iter().map(|x| x.to_bits())),
                "{n} rows in {compute:?}"
            );
        }
    }
}

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn decoding_agrees_with_f64() {
    for (compute, tolerance) in [(Compute::Bf16, 0.01), (Compute::Fp32, 1e-5)] {
        let mut cuda = open(&CudaOptions { compute, ..CudaOptions::default() });
        for head_sizes in [&[16, 24, 64, 80, 128][..], &[40, 72, 96, 120]] {
            for case in
                testing::decoding_cases(&mut cuda, Limits { row_multiple: 8, head_sizes: Some(head_sizes) })
            {
                let distance = case.distance();
                println!("{} in {compute:?}: {distance:.1e}", case.name);
                assert!(distance <= tolerance, "{} in {compute:?} is off by {distance:.2e}", case.name);
            }
        }
    }
}

/// The logits after the last four tokens of some texts, written side by side after the rest was read.
fn decode<O: Ops>(ops: &mut O, params: &Weights<O::Buf>, texts: &[Vec<u16>]) -> Vec<Vec<f32>> {
    let config = small_model();
    let mut decoder =
        Decoder::new(ops, &config, Room { streams: texts.len(), positions: 160 }).expect("a decoder");
    for (stream, text) in texts.iter().enumerate() {
        decoder.read(ops, params, stream, 0, &text[..text.len() - 4]).expect("a prompt");
    }
    let mut logits = vec![Vec::new(); texts.len()];
    for back in [4, 3, 2, 1] {
        let new = |(stream, text): (usize, &Vec<u16>)| {
            let position = text.len() - back;
            NewToken { token: text[position], stream, position }
        };
        let new: Vec<NewToken> = texts.iter().enumerate().map(new).collect();
        let all = decoder.logits(ops, params, &new).expect("logits");
        logits
            .iter_mut()
            .zip(all.chunks(config.vocab))
            .for_each(|(logits, row)| logits.extend_from_slice(row));
    }
    logits
}

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn decoded_logits_agree_with_f64_and_neither_company_nor_graphs_change_a_bit() {
    let config = small_model();
    let texts = texts(&config);
    let weights = steep_weights(&config);
    let exact: Vec<Vec<f32>> = texts.iter().map(|text| logits(&config, &weights, text, 4, |x| x)).collect();
    let rounded: Vec<Vec<f32>> = texts.iter().map(|text| logits(&config, &weights, text, 4, bf16)).collect();
    for compute in [Compute::Fp32, Compute::Bf16] {
        let mut bits = Vec::new();
        for cuda_graph in [true, false] {
            let mut cuda = open(&CudaOptions { compute, cuda_graph, ..CudaOptions::default() });
            let params = weights
                .try_map(|values| Ok::<_, DeviceError>(filled(&mut cuda, Role::Param, values)))
                .expect("memory");
            let together = decode(&mut cuda, &params, &texts);
            for (stream, (text, logits)) in texts.iter().zip(&together).enumerate() {
                let tolerance = match compute {
                    Compute::Fp32 => 2e-5,
                    _ => ROUNDINGS * distance(&rounded[stream], &exact[stream]),
                };
                let distance = distance(logits, &exact[stream]);
                println!("{compute:?}, text {stream}: {distance:.1e}, at most {tolerance:.1e}");
                assert!(
                    distance < tolerance,
                    "text {stream} in {compute:?} is off by {distance:.2e}, at most {tolerance:.2e}"
                );
                assert_eq!(
                    &decode(&mut cuda, &params, std::slice::from_ref(text))[0],
                    logits,
                    "text {stream} alone"
                );
            }
            bits.push(together);
        }
        assert_eq!(bits[0], bits[1], "graphs in {compute:?}");
    }
}
