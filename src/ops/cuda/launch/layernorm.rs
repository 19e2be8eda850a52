//! Launches of `layernorm.cu`: layer normalisation and RMSNorm, with and without a residual addition.

use super::super::Cuda;
use super::super::args::{Act, F32, In, Kernel, Out, bindings};
use super::super::memory::Buf;
use super::super::modules::{Geometry, Kernels};
use super::super::scratch::Use;
use super::reduce::{self, Targets};
use crate::ops::op::norm::OTHER_BIAS;
use crate::ops::{Layernorm, LayernormBackward, Perform, ResidualLayernorm, Result, Write};

bindings! {
    "layernorm.cu" {
        struct LayernormArgs {
            out: Out<Act>, residual: Out<Act>, mean: Out<F32>, rstd: Out<F32>, x: In<Act>, branch: In<Act>,
            weight: In<Act>, bias: In<Act>, rows: u64, channels: u32, warps_per_row: u32,
        }
        struct LayernormBackwardArgs {
            dx: Out<Act>, out: Out<Act>, bias: In<Act>, partials: Out<F32>, dout: In<Act>, x: In<Act>,
            weight: In<Act>, mean: In<F32>, rstd: In<F32>, rows: u64, channels: u32, rows_per_block: u32,
            add: u32, unused: u32,
        }
        each FORWARD;
        each RESIDUAL_FORWARD;
        each BACKWARD;
        each BACKWARD_WIDE;
    }
}

const FORWARD: [Kernel<LayernormArgs>; 4] = [
    Kernel::new("layernorm_forward"),
    Kernel::new("layernorm_forward_unbiased"),
    Kernel::new("rmsnorm_forward"),
    Kernel::new("rmsnorm_forward_unbiased"),
];
const RESIDUAL_FORWARD: [Kernel<LayernormArgs>; 4] = [
    Kernel::new("residual_layernorm_forward"),
    Kernel::new("residual_layernorm_forward_unbiased"),
    Kernel::new("residual_rmsnorm_forward"),
    Kernel::new("residual_rmsnorm_forward_unbiased"),
];
const BACKWARD: [Kernel<LayernormBackwardArgs>; 4] = [
    Kernel::new("layernorm_backward"),
    Kernel::new("layernorm_backward_unbiased"),
    Kernel::new("rmsnorm_backward"),
    Kernel::new("rmsnorm_backward_unbiased"),
];
const BACKWARD_WIDE: [Kernel<LayernormBackwardArgs>; 4] = [
    Kernel::new("layernorm_backward_wide"),
    Kernel::new("layernorm_backward_wide_unbiased"),
    Kernel::new("rmsnorm_backward_wide"),
    Kernel::new("rmsnorm_backward_wide_unbiased"),
];

/// Which of the four kernels of a list.
fn variant(rms: bool, bias: bool) -> usize {
    2 * usize::from(rms) + usize::from(!bias)
}

/// The widest row that the kernels hold.
const MOST_CHANNELS: usize = 16_384;

fn forward(k: &Kernels, op: Layernorm<'_, Buf>) -> Result<()> {
    const OP: &str = "layernorm";
    let kernel = &FORWARD[variant(op.is_rms(), op.bias.is_some())];
    let Layernorm { out, mean, rstd, x, weight, bias, rows, channels } = op;
    check_channels(k, OP, channels)?;
    let size = rows * channels;
    let args = LayernormArgs {
        out: Out::at(k.act(OP, "out", out, size)?),
        residual: Out::null(),
        mean: mean.map_or(Ok(Out::null()), |mean| k.f32(OP, "mean", mean, rows).map(Out::at))?,
        rstd: Out::at(k.f32(OP, "rstd", rstd, rows)?),
        x: In::at(k.act(OP, "x", x, size)?),
        branch: In::null(),
        weight: In::at(k.act(OP, "weight", weight, channels)?),
        bias: bias.map_or(Ok(In::null()), |bias| k.act(OP, "bias", bias, channels).map(In::at))?,
        rows: rows as u64,
        channels: channels as u32,
        warps_per_row: warps_per_row(channels),
    };
    // SAFETY: all lengths were checked.
    unsafe { k.launch(OP, kernel, forward_geometry(&args), &args) }
}

fn residual_forward(k: &Kernels, op: ResidualLayernorm<'_, Buf>) -> Result<()> {
    const OP: &str = "residual_layernorm";
    let kernel = &RESIDUAL_FORWARD[variant(op.is_rms(), op.bias.is_some())];
    let ResidualLayernorm { residual, out, mean, rstd, x, branch, weight, bias, rows, channels } = op;
    check_channels(k, OP, channels)?;
    let size = rows * channels;
    let args = LayernormArgs {
        out: Out::at(k.act(OP, "out", out, size)?),
        residual: Out::at(k.act(OP, "residual", residual, size)?),
        mean: mean.map_or(Ok(Out::null()), |mean| k.f32(OP, "mean", mean, rows).map(Out::at))?,
        rstd: Out::at(k.f32(OP, "rstd", rstd, rows)?),
        x: In::at(k.act(OP, "x", x, size)?),
        branch: In::at(k.act(OP, "branch", branch, size)?),
        weight: In::at(k.act(OP, "weight", weight, channels)?),
        bias: bias.map_or(Ok(In::null()), |bias| k.act(OP, "bias", bias, channels).map(In::at))?,
        rows: rows as u64,
        channels: channels as u32,
        warps_per_row: warps_per_row(channels),
    };
    // SAFETY: all lengths were checked.
    unsafe { k.launch(OP, kernel, forward_geometry(&args), &args) }
}

fn warps_per_row(channels: usize) -> u32 {
    channels.div_ceil(2048).next_power_of_two() as u32
}

/// Eight warps a block.
fn forward_geometry(args: &LayernormArgs) -> Geometry {
    let rows_per_block = 8 / u64::from(args.warps_per_row);
    Geometry::new(args.rows.div_ceil(rows_per_block), 256)
}

/// Rows that one block of the gradient adds, and the number of blocks.
fn blocks(n: u64) -> (u64, u64) {
    let rows = n.div_ceil(512).next_multiple_of(4).max(4);
    (rows, n.div_ceil(rows))
}

/// Bytes of the partial weight gradients, and of those of a bias.
pub fn partials_bytes(n: u64, channels: u64, bias: bool) -> u64 {
    blocks(n).1 * (1 + u64::from(bias)) * channels * 4
}

/// `partials` has the bytes of [`partials_bytes`].
fn backward(k: &Kernels, partials: u64, op: LayernormBackward<'_, Buf>) -> Result<()> {
    const OP: &str = "layernorm_backward";
    k.check(OP, op.again_fits(), || OTHER_BIAS.into())?;
    let variant = variant(op.is_rms(), op.dbias.is_some());
    let LayernormBackward {
        dx,
        dx_write,
        dweight,
        dbias,
        write,
        dout,
        x,
        weight,
        mean,
        rstd,
        again,
        rows: n,
        channels,
    } = op;
    check_channels(k, OP, channels)?;
    let size = n * channels;
    let (rows_per_block, count) = blocks(n as u64);
    let bias = again.as_ref().and_then(|again| again.bias);
    let args = LayernormBackwardArgs {
        dx: Out::at(k.act(OP, "dx", dx, size)?),
        out: again.map_or(Ok(Out::null()), |again| k.act(OP, "out", again.out, size).map(Out::at))?,
        bias: bias.map_or(Ok(In::null()), |bias| k.act(OP, "bias", bias, channels).map(In::at))?,
        partials: Out::at(partials),
        dout: In::at(k.act(OP, "dout", dout, size)?),
        x: In::at(k.act(OP, "x", x, size)?),
        weight: In::at(k.act(OP, "weight", weight, channels)?),
        mean: mean.map_or(Ok(In::null()), |mean| k.f32(OP, "mean", mean, n).map(In::at))?,
        rstd: In::at(k.f32(OP, "rstd", rstd, n)?),
        rows: n as u64,
        channels: channels as u32,
        rows_per_block: rows_per_block as u32,
        add: u32::from(dx_write == Write::Add),
        unused: 0,
    };
    let (kernel, block) = if channels <= 4096 {
        (&BACKWARD[variant], (channels / 8).next_multiple_of(32) as u32)
    } else {
        (&BACKWARD_WIDE[variant], 512)
    };
    // SAFETY: all lengths were checked; the scratch is the caller's promise.
    unsafe { k.launch(OP, kernel, Geometry::new(count, block), &args) }?;
    let vectors = 1 + u64::from(dbias.is_some());
    let targets = Targets {
        first: k.f32(OP, "dweight", dweight, channels)?,
        second: dbias.map_or(Ok(0), |dbias| k.f32(OP, "dbias", dbias, channels))?,
        split: channels as u64,
        width: vectors * channels as u64,
    };
    reduce::reduce_partials(k, OP, targets, partials, count, write)
}

fn check_channels(k: &Kernels, op: &'static str, channels: usize) -> Result<()> {
    k.row_length(op, channels)?;
    k.check(op, channels <= MOST_CHANNELS, || format!("{channels} channels are more than {MOST_CHANNELS}"))
}

impl Perform<Layernorm<'_, Buf>> for Cuda {
    fn perform(&mut self, op: Layernorm<'_, Buf>) -> Result<()> {
        self.written(op.out);
        forward(&self.kernels, op)
    }
}

impl Perform<ResidualLayernorm<'_, Buf>> for Cuda {
    fn perform(&mut self, op: ResidualLayernorm<'_, Buf>) -> Result<()> {
        self.written(op.residual);
        self.written(op.out);
        residual_forward(&self.kernels, op)
    }
}

impl Perform<LayernormBackward<'_, Buf>> for Cuda {
    fn perform(&mut self, op: LayernormBackward<'_, Buf>) -> Result<()> {
        self.written(op.dx);
        if let Some(again) = &op.again {
            self.written(again.out);
        }
        let bytes = partials_bytes(op.rows as u64, op.channels as u64, op.dbias.is_some());
        let partials = self.scratch.get(&mut self.memory, Use::LayernormPartials, bytes)?;
        backward(&self.kernels, partials, op)
    }
}
