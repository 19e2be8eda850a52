//! Linear layers: matrix multiplications with what is fused around them.
//!
//! With `kernels.gelu_fusion` 0, GELU sees what is stored. Our own products then apply it as they store,
//! cuBLASLt's are followed by a pass of its own, and the bits of GELU are the same. The option's other values
//! ask for cuBLASLt's fusion, which sees the sum before rounding.

use super::classifier;
use super::launch::{activate, gelu, gemm_hopper, reduce};
use super::memory::Buf;
use super::product::{Epilogue, GemmKey, Operands, Product, Types};
use super::scratch::Use;
use super::{Cuda, CudaOptions, GeluSums, act_dtype};
use crate::experiment::Compute;
use crate::ops::op::linear::NO_ROOM;
use crate::ops::{
    Activate, ActivateBackward, Linear, LinearActivate, LinearBackwardInput, LinearBackwardInputActivate,
    LinearBackwardWeight, LinearShape, Nonlinearity, Perform, Result, ScratchShape, Write,
};

/// The key of a product of a linear layer.
pub(super) fn key(
    shape: LinearShape,
    product: Product,
    options: &CudaOptions,
    epilogue: Epilogue,
) -> GemmKey {
    let types = match (options.compute, product) {
        (Compute::Fp32, _) => Types::F32,
        (Compute::Tf32, _) => Types::Tf32,
        (Compute::Auto | Compute::Bf16, Product::BackwardWeight) => Types::Bf16ToF32,
        (Compute::Auto | Compute::Bf16, _) => Types::Bf16,
    };
    let LinearShape { rows, c_in, c_out } = shape;
    GemmKey { product, rows: rows as u64, c_in: c_in as u64, c_out: c_out as u64, types, epilogue }
}

/// The epilogue of a layer with GELU behind it.
fn forward_gelu(options: &CudaOptions, bias: bool) -> Epilogue {
    match (options.fusion() >= 1, bias) {
        (true, true) => Epilogue::BiasGelu,
        (true, false) => Epilogue::Gelu,
        (false, true) => Epilogue::BiasThenGelu,
        (false, false) => Epilogue::ThenGelu,
    }
}

/// The epilogue of a layer with squared ReLU behind it.
fn then_relu2(bias: bool) -> Epilogue {
    if bias { Epilogue::BiasThenRelu2 } else { Epilogue::ThenRelu2 }
}

/// The epilogue of a layer with SwiGLU behind it.
fn then_swiglu(bias: bool) -> Epilogue {
    if bias { Epilogue::BiasThenSwiglu } else { Epilogue::ThenSwiglu }
}

/// The epilogue of the gradient of a layer whose input came out of a GELU.
fn backward_gelu(options: &CudaOptions) -> Epilogue {
    if options.fusion() >= 2 { Epilogue::GeluGradient } else { Epilogue::ThenGeluGradient }
}

/// Every matrix multiplication that training (or, without `backward`, evaluating) a model on
/// micro-batches of `shape` asks for. `powers`: whether the classifier
/// [ends in powers](classifier::ends_in_powers).
pub fn gemm_keys(shape: &ScratchShape, options: &CudaOptions, powers: bool) -> Vec<GemmKey> {
    let n = shape.rows.count();
    let c = shape.channels;
    let (gelu_forward, gelu_backward) = (forward_gelu(options, shape.bias), backward_gelu(options));
    use Epilogue::{Bias, BiasGradient, Nothing, ThenRelu2Gradient, ThenSwigluGradient};
    let (added, gradient) = if shape.bias { (Bias, BiasGradient) } else { (Nothing, Nothing) };
    // GELU's gradient leaves the sums that are the gradient of the bias before it, unless cuBLASLt fuses it.
    let before_gelu = if options.fusion() >= 2 { gradient } else { Nothing };
    let layer = |c_in, c_out| LinearShape { rows: n, c_in, c_out };
    let (up, down) = match shape.mlp.function {
        Nonlinearity::Gelu => ([gelu_forward, Nothing, before_gelu], [added, gelu_backward, gradient]),
        Nonlinearity::SquaredRelu => {
            ([then_relu2(shape.bias), Nothing, gradient], [added, ThenRelu2Gradient, gradient])
        }
        Nonlinearity::Swiglu => {
            ([then_swiglu(shape.bias), Nothing, gradient], [added, ThenSwigluGradient, gradient])
        }
    };
    let mut layers = vec![
        (layer(c, shape.heads.qkv_channels()), [added, Nothing, gradient]),
        (layer(c, c), [added, Nothing, gradient]),
        (layer(c, shape.mlp.inputs()), up),
        (layer(shape.mlp.channels, c), down),
    ];
    for (_, rows) in classifier::chunks(n, shape.vocab, act_dtype(options.compute)) {
        layers
            .push((LinearShape { rows, c_in: c, c_out: shape.vocab.padded }, classifier::epilogues(powers)));
    }
    let mut keys = Vec::new();
    for (layer, [forward, input, weight]) in layers {
        keys.push(key(layer, Product::Forward, options, forward));
        if shape.backward {
            keys.push(key(layer, Product::BackwardInput, options, input));
            keys.push(key(layer, Product::BackwardWeight, options, weight));
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

/// The outputs and input gradients of layers without bias.
pub fn layer_keys(layers: &[LinearShape], options: &CudaOptions) -> Vec<GemmKey> {
    let products = [Product::Forward, Product::BackwardInput];
    let of = |layer: &LinearShape| products.map(|product| key(*layer, product, options, Epilogue::Nothing));
    let mut keys: Vec<GemmKey> = layers.iter().flat_map(of).collect();
    keys.sort();
    keys.dedup();
    keys
}

impl Perform<Linear<'_, Buf>> for Cuda {
    fn perform(&mut self, op: Linear<'_, Buf>) -> Result<()> {
        const OP: &str = "linear";
        let Linear { out, x, weight, bias, shape } = op;
        let k = &self.kernels;
        let operands = Operands {
            bias: bias.map_or(Ok(0), |bias| k.act(OP, "bias", bias, shape.c_out))?,
            ..Operands::new(
                k.act(OP, "x", x, shape.input())?,
                k.act(OP, "weight", weight, shape.weight())?,
                k.act(OP, "out", out, shape.output())?,
            )
        };
        self.written(out);
        let epilogue = if bias.is_some() { Epilogue::Bias } else { Epilogue::Nothing };
        let key = key(shape, Product::Forward, &self.options, epilogue);
        // SAFETY: all lengths were checked.
        unsafe { self.gemm.run(&self.kernels, OP, key, operands) }
    }
}

impl Perform<LinearActivate<'_, Buf>> for Cuda {
    fn perform(&mut self, op: LinearActivate<'_, Buf>) -> Result<()> {
        const OP: &str = "linear_activate";
        let channels = op.channels();
        let LinearActivate { out, pre, x, weight, bias, function, shape } = op;
        let rows = shape.rows;
        let epilogue = match function {
            Nonlinearity::Gelu => forward_gelu(&self.options, bias.is_some()),
            Nonlinearity::SquaredRelu => then_relu2(bias.is_some()),
            Nonlinearity::Swiglu => then_swiglu(bias.is_some()),
        };
        let k = &self.kernels;
        let operands = Operands {
            bias: bias.map_or(Ok(0), |bias| k.act(OP, "bias", bias, shape.c_out))?,
            pre: k.act(OP, "pre", pre, shape.output())?,
            ..Operands::new(
                k.act(OP, "x", x, shape.input())?,
                k.act(OP, "weight", weight, shape.weight())?,
                k.act(OP, "out", out, rows * channels)?,
            )
        };
        self.written(out);
        self.written(pre);
        let key = key(shape, Product::Forward, &self.options, epilogue);
        let whole = epilogue.fuses_gelu() || self.gemm.own(key)?.is_some();
        let operands = if whole { operands } else { Operands { out: operands.pre, ..operands } };
        // SAFETY: all lengths were checked.
        unsafe { self.gemm.run(&self.kernels, OP, key, operands) }?;
        if whole {
            Ok(())
        } else {
            activate::forward(&self.kernels, Activate { out, pre, function, rows, channels })
        }
    }
}

impl Perform<LinearBackwardInput<'_, Buf>> for Cuda {
    fn perform(&mut self, op: LinearBackwardInput<'_, Buf>) -> Result<()> {
        const OP: &str = "linear_backward_input";
        let LinearBackwardInput { dx, dout, weight, shape } = op;
        let operands = self.input_operands(OP, dx, dout, weight, shape)?;
        self.written(dx);
        let key = key(shape, Product::BackwardInput, &self.options, Epilogue::Nothing);
        // SAFETY: all lengths were checked.
        unsafe { self.gemm.run(&self.kernels, OP, key, operands) }
    }
}

impl Perform<LinearBackwardInputActivate<'_, Buf>> for Cuda {
    fn perform(&mut self, op: LinearBackwardInputActivate<'_, Buf>) -> Result<()> {
        const OP: &str = "linear_backward_input_activate";
        let inputs = op.inputs();
        let LinearBackwardInputActivate { dpre, room, dout, weight, pre, again, function, shape } = op;
        let LinearShape { rows, c_in: channels, .. } = shape;
        let epilogue = match function {
            Nonlinearity::Gelu => backward_gelu(&self.options),
            Nonlinearity::SquaredRelu => Epilogue::ThenRelu2Gradient,
            Nonlinearity::Swiglu => Epilogue::ThenSwigluGradient,
        };
        let key = key(shape, Product::BackwardInput, &self.options, epilogue);
        let own = self.gemm.own(key)?.is_some();
        let mut again_address = 0;
        if let Some(out) = again {
            self.require_stored_input(OP, function)?;
            if own && function != Nonlinearity::Swiglu {
                again_address = self.kernels.act(OP, "again", out, shape.input())?;
                self.written(out);
            } else {
                self.perform(Activate { out, pre, function, rows, channels })?;
            }
        }
        if function == Nonlinearity::Swiglu && !own {
            let room = room.ok_or_else(|| self.kernels.gpu.refuse(OP, NO_ROOM))?;
            let operands = self.input_operands(OP, room, dout, weight, shape)?;
            self.written(room);
            // SAFETY: all lengths were checked.
            unsafe { self.gemm.run(&self.kernels, OP, key, operands) }?;
            return self.perform(ActivateBackward { dpre, dout: Some(room), pre, function, rows, channels });
        }
        let mut operands = self.input_operands(OP, dpre, dout, weight, shape)?;
        operands.pre = self.kernels.act(OP, "pre", pre, inputs)?;
        operands.again = again_address;
        self.kernels.act(OP, "dpre", dpre, inputs)?;
        self.written(dpre);
        let separate = key.epilogue == Epilogue::ThenGeluGradient;
        let mut sums = 0;
        if separate {
            let bytes = reduce::partials_bytes(rows as u64, channels as u64);
            sums = self.scratch.get(&mut self.memory, Use::GeluPartials, bytes)?;
            if own {
                operands.sums = sums;
            }
        }
        // SAFETY: all lengths were checked, and the scratch holds the sums.
        unsafe { self.gemm.run(&self.kernels, OP, key, operands) }?;
        if function == Nonlinearity::SquaredRelu && !own {
            return self.perform(ActivateBackward { dpre, dout: None, pre, function, rows, channels });
        }
        if !separate {
            return Ok(());
        }
        if operands.sums == 0 {
            gelu::backward_in_place(&self.kernels, OP, sums, dpre, pre, rows, channels)?;
        }
        self.gelu_sums = Some(GeluSums { dpre: dpre.address(), rows, width: channels });
        Ok(())
    }
}

impl Perform<LinearBackwardWeight<'_, Buf>> for Cuda {
    fn perform(&mut self, op: LinearBackwardWeight<'_, Buf>) -> Result<()> {
        const OP: &str = "linear_backward_weight";
        let LinearBackwardWeight { dweight, dbias, dout, x, shape, write } = op;
        let k = &self.kernels;
        let (n, c_out) = (shape.rows, shape.c_out);
        let mut operands = Operands {
            add: write == Write::Add,
            ..Operands::new(
                k.act(OP, "dout", dout, shape.output())?,
                k.act(OP, "x", x, shape.input())?,
                k.f32(OP, "dweight", dweight, shape.weight())?,
            )
        };
        // GELU's gradient has added the columns when it made this tensor.
        let known = self
            .gelu_sums
            .is_some_and(|sums| sums.dpre == dout.address() && sums.rows == n && sums.width == c_out);
        let epilogue = if dbias.is_some() && !known { Epilogue::BiasGradient } else { Epilogue::Nothing };
        let key = key(shape, Product::BackwardWeight, &self.options, epilogue);
        // Whether the product adds the columns of `dout` on its way.
        let inside = self.gemm.own(key)?.is_some() && gemm_hopper::order(&key).bias_chains.is_some();
        let (mut partials, mut partial_rows) = (0, (n as u64).div_ceil(reduce::COLUMN_ROWS));
        if dbias.is_some() {
            let which = if known { Use::GeluPartials } else { Use::ColumnPartials };
            partials =
                self.scratch.get(&mut self.memory, which, reduce::partials_bytes(n as u64, c_out as u64))?;
        }
        if inside {
            operands.sums = partials;
            partial_rows = gemm_hopper::sum_rows(&key);
        }
        // SAFETY: all lengths were checked, and the scratch holds the sums.
        unsafe { self.gemm.run(&self.kernels, OP, key, operands) }?;
        let Some(dbias) = dbias else { return Ok(()) };
        let k = &self.kernels;
        if epilogue == Epilogue::BiasGradient && !inside {
            reduce::column_sum(k, OP, partials, dout, n, c_out)?;
        }
        let width = c_out as u64;
        let targets =
            reduce::Targets { first: k.f32(OP, "dbias", dbias, c_out)?, second: 0, split: width, width };
        reduce::reduce_partials(k, OP, targets, partials, partial_rows, write)
    }
}

impl Cuda {
    fn input_operands(
        &self,
        op: &'static str,
        dx: &Buf,
        dout: &Buf,
        weight: &Buf,
        shape: LinearShape,
    ) -> Result<Operands> {
        let k = &self.kernels;
        Ok(Operands::new(
            k.act(op, "dout", dout, shape.output())?,
            k.act(op, "weight", weight, shape.weight())?,
            k.act(op, "dx", dx, shape.input())?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Heads, MlpShape, ParamCount, Rows, Vocab};

    fn shape(backward: bool) -> ScratchShape {
        let vocab = Vocab { used: 50_257, padded: 50_304 };
        ScratchShape {
            rows: Rows { batch: 16, seq: 1024 },
            least_seq: 1024,
            channels: 768,
            heads: Heads::new(12, 64),
            vocab,
            backward,
            bias: true,
            mlp: MlpShape::gpt2(768),
            params: ParamCount { tensors: 148, elements: 124_439_808 },
        }
    }

    #[test]
    fn training_asks_for_three_products_a_layer_and_evaluation_for_one() {
        let options = CudaOptions::default();
        assert_eq!(gemm_keys(&shape(true), &options, true).len(), 3 * 5);
        assert_eq!(gemm_keys(&shape(false), &options, true).len(), 5);
        for powers in [false, true] {
            let keys = gemm_keys(&shape(true), &options, powers);
            let of = |epilogue| keys.iter().filter(|key| key.epilogue == epilogue).count();
            assert_eq!([of(Epilogue::Softmax), of(Epilogue::RowFactors)], [usize::from(powers); 2]);
        }
    }

    #[test]
    fn fusion_changes_the_epilogues_of_the_mlp_alone() {
        let plain = gemm_keys(&shape(true), &CudaOptions::default(), false);
        let fused = gemm_keys(&shape(true), &CudaOptions { gelu_fusion: 2, ..CudaOptions::default() }, false);
        let epilogues = |a: &[GemmKey], b: &[GemmKey]| -> Vec<_> {
            a.iter().filter(|key| !b.contains(key)).map(|key| key.epilogue).collect()
        };
        assert_eq!(
            epilogues(&fused, &plain),
            [Epilogue::BiasGelu, Epilogue::GeluGradient, Epilogue::BiasGradient]
        );
        assert_eq!(
            epilogues(&plain, &fused),
            [Epilogue::BiasThenGelu, Epilogue::ThenGeluGradient, Epilogue::Nothing]
        );
    }

    #[test]
    fn without_biases_no_product_adds_one_or_sums_its_gradient() {
        use Epilogue::{Gelu, GeluGradient, Nothing, ThenGelu, ThenGeluGradient};
        let shape = ScratchShape { bias: false, ..shape(true) };
        for (gelu_fusion, gelu) in [(0, [ThenGelu, ThenGeluGradient]), (2, [Gelu, GeluGradient])] {
            let keys = gemm_keys(&shape, &CudaOptions { gelu_fusion, ..CudaOptions::default() }, false);
            assert_eq!(keys.len(), 3 * 5);
            let others: Vec<_> = keys.iter().map(|key| key.epilogue).filter(|it| *it != Nothing).collect();
            assert_eq!(others, gelu, "beside plain products, which no two layers share");
        }
    }

    #[test]
    fn squared_relu_and_swiglu_end_the_products_around_them() {
        use Epilogue::{Bias, BiasGradient, Nothing, ThenRelu2Gradient, ThenSwigluGradient};
        for (function, channels, inputs, forward, backward) in [
            (Nonlinearity::SquaredRelu, 3072, 3072, then_relu2 as fn(bool) -> Epilogue, ThenRelu2Gradient),
            (Nonlinearity::Swiglu, 2048, 4096, then_swiglu, ThenSwigluGradient),
        ] {
            let mlp = MlpShape { function, channels };
            for bias in [false, true] {
                let keys =
                    gemm_keys(&ScratchShape { bias, mlp, ..shape(true) }, &CudaOptions::default(), false);
                assert_eq!(keys.len(), 3 * 5);
                let found = |c_in, c_out| keys.iter().any(|key| (key.c_in, key.c_out) == (c_in, c_out));
                assert!(found(768, inputs) && found(channels as u64, 768), "{function:?}");
                let plain = |key: &&GemmKey| matches!(key.epilogue, Bias | BiasGradient | Nothing);
                assert_eq!(keys.iter().filter(plain).count(), 15 - 2);
                assert!(keys.iter().any(|key| key.c_out == inputs && key.epilogue == forward(bias)));
                assert!(keys.iter().any(|key| key.c_in == channels as u64 && key.epilogue == backward));
            }
        }
    }
}
