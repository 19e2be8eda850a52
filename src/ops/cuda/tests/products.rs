//! Our own products for Hopper, on such a GPU.

use super::*;

/// A device with our own products.
fn hopper() -> Cuda {
    let found = cuda();
    assert!(gemm_hopper::fits(found.gpu()), "this test needs a Hopper GPU, not {}", found.gpu().name);
    found
}

/// Multiples of `unit` from -2 to 2 of them: all products and sums below are exact, in any order.
fn whole(purpose: &str, len: usize, unit: f32) -> Vec<f32> {
    let key = Key::new(5, purpose);
    (0..len).map(|i| (key.block_at(0, i as u64)[0] % 5) as f32 * unit - 2.0 * unit).collect()
}

fn key(layer: LinearShape, product: Product, epilogue: Epilogue) -> GemmKey {
    let types = if product == Product::BackwardWeight { Types::Bf16ToF32 } else { Types::Bf16 };
    let LinearShape { rows, c_in, c_out } = layer;
    GemmKey { product, rows: rows as u64, c_in: c_in as u64, c_out: c_out as u64, types, epilogue }
}

fn keys(layer: LinearShape) -> Vec<GemmKey> {
    [
        (Product::Forward, Epilogue::Nothing),
        (Product::Forward, Epilogue::Bias),
        (Product::Forward, Epilogue::BiasThenGelu),
        (Product::Forward, Epilogue::ThenGelu),
        (Product::Forward, Epilogue::BiasThenRelu2),
        (Product::Forward, Epilogue::ThenRelu2),
        (Product::Forward, Epilogue::BiasThenSwiglu),
        (Product::Forward, Epilogue::ThenSwiglu),
        (Product::BackwardInput, Epilogue::Nothing),
        (Product::BackwardInput, Epilogue::ThenGeluGradient),
        (Product::BackwardInput, Epilogue::ThenRelu2Gradient),
        (Product::BackwardInput, Epilogue::ThenSwigluGradient),
        (Product::BackwardWeight, Epilogue::Nothing),
        (Product::BackwardWeight, Epilogue::BiasGradient),
    ]
    .map(|(product, epilogue)| key(layer, product, epilogue))
    .to_vec()
}

/// All products of a layer, by name. The last is the column sums that GELU's gradient left.
fn run<O: Ops>(ops: &mut O, shape: LinearShape) -> Vec<(&'static str, Vec<f32>)> {
    let LinearShape { rows, c_in, c_out } = shape;
    let x = filled(ops, Role::Activation, &whole("x", shape.input(), 1.0));
    let w = filled(ops, Role::Param, &whole("w", shape.weight(), 1.0 / 64.0));
    let b = filled(ops, Role::Param, &whole("b", c_out, 0.25));
    let d = filled(ops, Role::Activation, &whole("d", shape.output(), 0.5));
    let before = filled(ops, Role::Activation, &numbers("before", shape.input(), 1.5));
    // Not a number wherever a product forgets to write.
    let poison = |ops: &mut O, role, len| filled(ops, role, &vec![f32::NAN; len]);
    let mut results = Vec::new();
    let mut out = poison(ops, Role::Activation, shape.output());
    for (name, bias) in [("out", None), ("out with bias", Some(&b))] {
        ops.linear(Linear { out: &mut out, x: &x, weight: &w, bias, shape }).expect("linear");
        results.push((name, values(ops, &out, shape.output())));
    }
    let [mut out, mut pre] = [(); 2].map(|()| poison(ops, Role::Activation, shape.output()));
    let (gelu, relu2) = (Nonlinearity::Gelu, Nonlinearity::SquaredRelu);
    for ([name_pre, name], function, bias) in [
        (["pre", "gelu"], gelu, Some(&b)),
        (["pre without bias", "gelu without bias"], gelu, None),
        (["relu2 pre", "relu2"], relu2, Some(&b)),
        (["relu2 pre without bias", "relu2 without bias"], relu2, None),
    ] {
        let op = LinearActivate { out: &mut out, pre: &mut pre, x: &x, weight: &w, bias, function, shape };
        ops.linear_activate(op).expect("linear_activate");
        results.push((name_pre, values(ops, &pre, shape.output())));
        results.push((name, values(ops, &out, shape.output())));
    }
    let [mut dx, mut dpre] = [(); 2].map(|()| poison(ops, Role::Activation, shape.input()));
    ops.linear_backward_input(LinearBackwardInput { dx: &mut dx, dout: &d, weight: &w, shape })
        .expect("linear_backward_input");
    results.push(("dx", values(ops, &dx, shape.input())));
    let (mut dw, mut db) = (poison(ops, Role::F32, shape.weight()), poison(ops, Role::F32, c_out));
    let mut gradient = |ops: &mut O, dbias: Option<&mut O::Buf>, write| {
        let op = LinearBackwardWeight { dweight: &mut dw, dbias, dout: &d, x: &x, shape, write };
        ops.linear_backward_weight(op).expect("linear_backward_weight");
        values(ops, &dw, shape.weight())
    };
    results.push(("dweight", gradient(ops, None, Write::Set)));
    gradient(ops, Some(&mut db), Write::Set);
    results.push(("dweight added", gradient(ops, Some(&mut db), Write::Add)));
    results.push(("dbias added", values(ops, &db, c_out)));
    let mut gave = poison(ops, Role::Activation, shape.input());
    // GELU's last: the sums below are its.
    for (name, function, again) in [
        ("dpre alone", gelu, None),
        ("relu2 gradient alone", relu2, None),
        ("relu2 gradient", relu2, Some("relu2 again")),
        ("dpre", gelu, Some("gelu again")),
    ] {
        let op = LinearBackwardInputActivate {
            again: again.is_some().then_some(&mut gave),
            dpre: &mut dpre,
            room: None,
            dout: &d,
            weight: &w,
            pre: &before,
            function,
            shape,
        };
        ops.linear_backward_input_activate(op).expect("linear_backward_input_activate");
        results.push((name, values(ops, &dpre, shape.input())));
        results.extend(again.map(|name| (name, values(ops, &gave, shape.input()))));
    }
    let square = LinearShape { rows, c_in, c_out: c_in };
    let function = Nonlinearity::Swiglu;
    let [mut half, mut room] =
        [shape.output() / 2, shape.input()].map(|len| poison(ops, Role::Activation, len));
    for ([name_pre, name], bias) in
        [(["swiglu pre", "swiglu"], Some(&b)), (["swiglu pre without bias", "swiglu without bias"], None)]
    {
        let op = LinearActivate { out: &mut half, pre: &mut pre, x: &x, weight: &w, bias, function, shape };
        ops.linear_activate(op).expect("linear_activate");
        results.push((name_pre, values(ops, &pre, shape.output())));
        results.push((name, values(ops, &half, shape.output() / 2)));
    }
    let pairs = filled(ops, Role::Activation, &numbers("pairs", 2 * shape.input(), 1.5));
    let mut wide = poison(ops, Role::Activation, 2 * shape.input());
    let op = LinearBackwardInputActivate {
        again: Some(&mut gave),
        dpre: &mut wide,
        room: Some(&mut room),
        dout: &d,
        weight: &w,
        pre: &pairs,
        function,
        shape,
    };
    ops.linear_backward_input_activate(op).expect("linear_backward_input_activate");
    results.push(("swiglu gradient", values(ops, &wide, 2 * shape.input())));
    results.push(("swiglu again", values(ops, &gave, shape.input())));
    let (mut dw, mut db) = (poison(ops, Role::F32, square.weight()), poison(ops, Role::F32, c_in));
    ops.linear_backward_weight(LinearBackwardWeight {
        dweight: &mut dw,
        dbias: Some(&mut db),
        dout: &dpre,
        x: &x,
        shape: square,
        write: Write::Set,
    })
    .expect("linear_backward_weight");
    results.push(("sums of dpre", values(ops, &db, c_in)));
    results
}

fn pin(cuda: &mut Cuda, key: GemmKey, hopper: Tiling) {
    cuda.load_plans(&[GemmPlan { key, algorithm: Algorithm::Hopper { hopper } }]).expect("the plan fits");
}

#[test]
#[ignore = "skipped: needs a Hopper GPU; run with --include-ignored"]
fn our_products_are_exact_where_sums_are_and_have_the_bits_of_separate_passes() {
    let mut cuda = hopper();
    for layer in [
        LinearShape { rows: 300, c_in: 200, c_out: 328 },
        LinearShape { rows: 129, c_in: 72, c_out: 40 },
        LinearShape { rows: 1, c_in: 8, c_out: 16 },
        LinearShape { rows: 1000, c_in: 392, c_out: 136 },
        LinearShape { rows: 512, c_in: 256, c_out: 384 },
    ] {
        let exact = run(&mut cpu(), layer);
        // These shapes were not announced: cuBLASLt's heuristic, and a pass for what it does not fuse.
        let passes = run(&mut cuda, layer);
        // Halves of rows that are no multiples of 8 have none.
        let candidates = keys(layer).into_iter().map(|key| (key, gemm_hopper::tilings(&key)));
        let candidates: Vec<_> = candidates.filter(|(_, tilings)| !tilings.is_empty()).collect();
        for round in 0..candidates.iter().map(|(_, tilings)| tilings.len()).max().unwrap_or(0) {
            let mut used = Vec::new();
            for (key, tilings) in &candidates {
                let tiling = tilings[round % tilings.len()];
                pin(&mut cuda, *key, tiling);
                used.push(tiling);
            }
            let ours = run(&mut cuda, layer);
            for (((name, got), (_, exact)), (_, passes)) in ours.iter().zip(&exact).zip(&passes) {
                let LinearShape { rows, c_in, c_out } = layer;
                let what = format!("{name} of {rows} x {c_in} -> {c_out} with {used:?}");
                match *name {
                    "sums of dpre" => assert!(distance(got, passes) < 1e-6, "{what}"),
                    "gelu"
                    | "gelu without bias"
                    | "gelu again"
                    | "dpre alone"
                    | "dpre"
                    | "relu2"
                    | "relu2 without bias"
                    | "relu2 gradient alone"
                    | "relu2 gradient"
                    | "relu2 again"
                    | "swiglu"
                    | "swiglu without bias"
                    | "swiglu gradient"
                    | "swiglu again" => {
                        let same = got.iter().zip(passes).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same && got.len() == passes.len(), "{what} differs from a pass of its own")
                    }
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
#[ignore = "skipped: needs a Hopper GPU; run with --include-ignored"]
fn a_split_sum_has_the_same_bits_every_time() {
    let mut cuda = hopper();
    let layer = LinearShape { rows: 8192, c_in: 384, c_out: 256 };
    let key = key(layer, Product::BackwardWeight, Epilogue::BiasGradient);
    let d = filled(&mut cuda, Role::Activation, &numbers("d", layer.output(), 1.0));
    let x = filled(&mut cuda, Role::Activation, &numbers("x", layer.input(), 1.0));
    for cluster in [1, 2] {
        pin(&mut cuda, key, Tiling { width: 192, cluster, group: 4 });
        let mut once = || {
            let (mut dw, mut db) = (
                cuda.alloc(Role::F32, layer.weight()).expect("memory"),
                cuda.alloc(Role::F32, layer.c_out).expect("memory"),
            );
            cuda.linear_backward_weight(LinearBackwardWeight {
                dweight: &mut dw,
                dbias: Some(&mut db),
                dout: &d,
                x: &x,
                shape: layer,
                write: Write::Set,
            })
            .expect("linear_backward_weight");
            (bytes(&mut cuda, &dw), bytes(&mut cuda, &db))
        };
        let first = once();
        for time in 0..100 {
            assert!(once() == first, "time {time}, cluster {cluster}");
        }
    }
}
