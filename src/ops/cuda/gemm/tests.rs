//! Our own products for Hopper, on such a GPU.

use super::super::gemm::plan::{Algorithm, Epilogue, GemmKey, GemmPlan, Product, Tiling, Types};
use super::super::launch::gemm_hopper;
use super::*;

/// A device with our own products, or nothing.
fn hopper() -> Option<Cuda> {
    let found = cuda()?;
    if !gemm_hopper::fits(found.gpu()) {
        eprintln!("skipped: no Hopper GPU");
        return None;
    }
    Some(found)
}

/// Multiples of `unit` from -2 to 2 of them: all products and sums below are exact, in any order.
fn whole(purpose: &str, len: usize, unit: f32) -> Vec<f32> {
    let key = Key::new(5, purpose);
    (0..len).map(|i| (key.block_at(0, i as u64)[0] % 5) as f32 * unit - 2.0 * unit).collect()
}

#[derive(Clone, Copy)]
struct Layer {
    n: usize,
    c_in: usize,
    c_out: usize,
}

impl Layer {
    fn key(self, product: Product, epilogue: Epilogue) -> GemmKey {
        let types = if product == Product::BackwardWeight { Types::Bf16ToF32 } else { Types::Bf16 };
        GemmKey {
            product,
            rows: self.n as u64,
            c_in: self.c_in as u64,
            c_out: self.c_out as u64,
            types,
            epilogue,
        }
    }

    fn keys(self) -> Vec<GemmKey> {
        vec![
            self.key(Product::Forward, Epilogue::Nothing),
            self.key(Product::Forward, Epilogue::Bias),
            self.key(Product::Forward, Epilogue::BiasThenGelu),
            self.key(Product::BackwardInput, Epilogue::Nothing),
            self.key(Product::BackwardInput, Epilogue::ThenGeluGradient),
            self.key(Product::BackwardWeight, Epilogue::Nothing),
            self.key(Product::BackwardWeight, Epilogue::BiasGradient),
        ]
    }
}

/// All products of a layer, by name. The last is the column sums that GELU's gradient left.
fn run<O: Ops>(ops: &mut O, layer: Layer) -> Vec<(&'static str, Vec<f32>)> {
    let Layer { n, c_in, c_out } = layer;
    let x = filled(ops, Role::Activation, &whole("x", n * c_in, 1.0));
    let w = filled(ops, Role::Param, &whole("w", c_out * c_in, 1.0 / 64.0));
    let b = filled(ops, Role::Param, &whole("b", c_out, 0.25));
    let d = filled(ops, Role::Activation, &whole("d", n * c_out, 0.5));
    let before = filled(ops, Role::Activation, &numbers("before", n * c_in, 1.5));
    // Not a number wherever a product forgets to write.
    let poison = |ops: &mut O, role, len| filled(ops, role, &vec![f32::NAN; len]);
    let mut results = Vec::new();
    let mut out = poison(ops, Role::Activation, n * c_out);
    ops.linear(&mut out, &x, &w, None, n, c_in, c_out).expect("linear");
    results.push(("out", values(ops, &out, n * c_out)));
    ops.linear(&mut out, &x, &w, Some(&b), n, c_in, c_out).expect("linear");
    results.push(("out with bias", values(ops, &out, n * c_out)));
    let (mut out, mut pre) =
        (poison(ops, Role::Activation, n * c_out), poison(ops, Role::Activation, n * c_out));
    ops.linear_gelu(&mut out, &mut pre, &x, &w, &b, n, c_in, c_out).expect("linear_gelu");
    results.push(("pre", values(ops, &pre, n * c_out)));
    results.push(("gelu", values(ops, &out, n * c_out)));
    let (mut dx, mut dpre) =
        (poison(ops, Role::Activation, n * c_in), poison(ops, Role::Activation, n * c_in));
    ops.linear_backward_input(&mut dx, &d, &w, n, c_in, c_out).expect("linear_backward_input");
    results.push(("dx", values(ops, &dx, n * c_in)));
    let (mut dw, mut db) = (poison(ops, Role::F32, c_out * c_in), poison(ops, Role::F32, c_out));
    ops.linear_backward_weight(&mut dw, None, &d, &x, n, c_in, c_out, Write::Set).expect("set");
    results.push(("dweight", values(ops, &dw, c_out * c_in)));
    ops.linear_backward_weight(&mut dw, Some(&mut db), &d, &x, n, c_in, c_out, Write::Set).expect("set");
    ops.linear_backward_weight(&mut dw, Some(&mut db), &d, &x, n, c_in, c_out, Write::Add).expect("add");
    results.push(("dweight added", values(ops, &dw, c_out * c_in)));
    results.push(("dbias added", values(ops, &db, c_out)));
    ops.linear_backward_input_gelu(&mut dpre, &d, &w, &before, n, c_in, c_out)
        .expect("linear_backward_input_gelu");
    results.push(("dpre", values(ops, &dpre, n * c_in)));
    let (mut dw, mut db) = (poison(ops, Role::F32, c_in * c_in), poison(ops, Role::F32, c_in));
    ops.linear_backward_weight(&mut dw, Some(&mut db), &dpre, &x, n, c_in, c_in, Write::Set).expect("set");
    results.push(("sums of dpre", values(ops, &db, c_in)));
    results
}

fn pin(cuda: &mut Cuda, key: GemmKey, hopper: Tiling) {
    cuda.load_plans(&[GemmPlan { key, algorithm: Algorithm::Hopper { hopper } }]).expect("the plan fits");
}

#[test]
fn our_products_are_exact_where_sums_are_and_have_the_bits_of_separate_passes() {
    let Some(mut cuda) = hopper() else { return };
    for layer in [
        Layer { n: 300, c_in: 200, c_out: 328 },
        Layer { n: 129, c_in: 72, c_out: 40 },
        Layer { n: 1000, c_in: 392, c_out: 136 },
        Layer { n: 512, c_in: 256, c_out: 384 },
    ] {
        let exact = run(&mut cpu(), layer);
        // Nobody announced these shapes: cuBLASLt's heuristic, and a pass for what it does not fuse.
        let passes = run(&mut cuda, layer);
        let candidates: Vec<_> =
            layer.keys().into_iter().map(|key| (key, gemm_hopper::tilings(&key, 8))).collect();
        for round in 0..candidates.iter().map(|(_, tilings)| tilings.len()).max().unwrap_or(0) {
            let mut used = Vec::new();
            for (key, tilings) in &candidates {
                let tiling = tilings[round % tilings.len()];
                pin(&mut cuda, *key, tiling);
                used.push(tiling);
            }
            let ours = run(&mut cuda, layer);
            for (((name, got), (_, exact)), (_, passes)) in ours.iter().zip(&exact).zip(&passes) {
                let Layer { n, c_in, c_out } = layer;
                let what = format!("{name} of {n} x {c_in} -> {c_out} with {used:?}");
                match *name {
                    "sums of dpre" => assert!(distance(got, passes) < 1e-6, "{what}"),
                    "gelu" | "dpre" => assert!(got == passes, "{what} differs from a pass of its own"),
                    name => {
                        let stored = |x: &f32| {
                            if name.starts_with("d") && name != "dx" {
                                *x
                            } else {
                                half::bf16::from_f32(*x).to_f32()
                            }
                        };
                        assert!(
                            got.iter().eq(exact.iter().map(stored).collect::<Vec<_>>().iter()),
                            "{what} is not exact"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_split_sum_has_the_same_bits_every_time() {
    let Some(mut cuda) = hopper() else { return };
    let layer = Layer { n: 8192, c_in: 384, c_out: 256 };
    let key = layer.key(Product::BackwardWeight, Epilogue::BiasGradient);
    let d = filled(&mut cuda, Role::Activation, &numbers("d", layer.n * layer.c_out, 1.0));
    let x = filled(&mut cuda, Role::Activation, &numbers("x", layer.n * layer.c_in, 1.0));
    for cluster in [1, 2] {
        pin(&mut cuda, key, Tiling { width: 192, cluster, group: 4, splits: 31 });
        let mut once = || {
            let (mut dw, mut db) = (
                cuda.alloc(Role::F32, layer.c_out * layer.c_in).expect("memory"),
                cuda.alloc(Role::F32, layer.c_out).expect("memory"),
            );
            cuda.linear_backward_weight(
                &mut dw,
                Some(&mut db),
                &d,
                &x,
                layer.n,
                layer.c_in,
                layer.c_out,
                Write::Set,
            )
            .expect("set");
            (bytes(&mut cuda, &dw), bytes(&mut cuda, &db))
        };
        let first = once();
        for time in 0..100 {
            assert!(once() == first, "time {time}, cluster {cluster}");
        }
    }
}
