//! Work that shows whether a GPU computes: one digest whenever a GPU is opened, and for `runner doctor` a few
//! seconds, with how fast it moves.

use super::Cuda;
use super::args::In;
use super::launch::digest::{self, DigestTensor};
use super::memory::{Buf, Memory};
use super::optimizer::bytes_of;
use crate::ops::{Linear, LinearShape, Ops, Result, Role};
use crate::proof;
use crate::rng::Key;

/// The results of the self-test.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct SelfTest {
    /// Largest difference of a small product from its exact value, over the largest exact value.
    pub gemm_error: f64,
    /// Speed of a product of 4096 x 4096 x 4096 in the device's precision.
    pub gemm_tflops: f64,
    /// Copy within the device, bytes read and written.
    pub copy_gb_per_s: f64,
}

impl SelfTest {
    /// Whether the small product is as near as bf16 can be.
    pub fn passes(&self) -> bool {
        self.gemm_error.is_finite() && self.gemm_error < 0.01
    }
}

/// Hashes two leaves on the device, and holds them to what the host makes of the same bytes. Machine code
/// that this GPU and driver do not run as they should is then found before the first step, wherever it came
/// from. Takes memory of its own, and gives it back.
pub fn digest_is_right(cuda: &mut Cuda) -> Result<()> {
    const OP: &str = "self-test";
    const BYTES: usize = digest::LEAF_BYTES as usize + 7;
    let data: Vec<u8> = (0..BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut memory = Memory::new(cuda.kernels.gpu.clone());
    let [bytes, table, digests] =
        [BYTES as u64, size_of::<DigestTensor>() as u64, 64].map(|bytes| memory.allocate(OP, bytes));
    let (bytes, table, digests) = (bytes?, table?, digests?);
    let row = [DigestTensor { data: In::at(bytes.address()), bytes: BYTES as u64, first: 0 }];
    let mut words = Vec::new();
    // SAFETY: the allocations live to the end of this function, and each is as long as what it is given.
    unsafe {
        let staging = &mut cuda.staging;
        staging.upload(bytes.address(), BYTES as u64, OP, |at, piece| {
            piece.copy_from_slice(&data[at..][..piece.len()])
        })?;
        staging.upload(table.address(), table.bytes(), OP, |at, piece| {
            piece.copy_from_slice(&bytes_of(&row)[at..][..piece.len()])
        })?;
        digest::leaves(&cuda.kernels, table.address(), 1, digests.address(), 2)?;
        staging.download(digests.address(), 64, OP, |_, piece| words.extend_from_slice(piece))?;
    }
    // The device keeps a digest's words as numbers.
    words.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    let leaves: Vec<u8> =
        data.chunks(digest::LEAF_BYTES as usize).flat_map(|leaf| proof::digest::leaf(leaf).0).collect();
    cuda.kernels.check(OP, words == leaves, || {
        "the GPU hashes wrongly: its kernels do not run as they should\n  hint: update the driver; if \
         `runner doctor` says the same again, the GPU is faulty"
            .into()
    })
}

/// Multiplies and copies.
pub fn run(cuda: &mut Cuda) -> Result<SelfTest> {
    Ok(SelfTest {
        gemm_error: gemm_error(cuda)?,
        gemm_tflops: gemm_tflops(cuda, 4096)?,
        copy_gb_per_s: copy_gb_per_s(cuda, 256 << 20)?,
    })
}

/// A (64, 96) by (96, 128) product against the same in f64 on the host.
fn gemm_error(cuda: &mut Cuda) -> Result<f64> {
    let (n, c_in, c_out) = (64, 96, 128);
    let numbers = |purpose: &str, len: usize| -> Vec<f32> {
        let key = Key::new(0, purpose);
        // Multiples of 1/128 in [-1, 1) are exact in bf16.
        (0..len).map(|i| ((key.uniform(0, i as u64) * 256.0) as i32 - 128) as f32 / 128.0).collect()
    };
    let (x, w) = (numbers("selftest x", n * c_in), numbers("selftest w", c_out * c_in));
    let mut buffers = [
        cuda.alloc(Role::Activation, x.len())?,
        cuda.alloc(Role::Param, w.len())?,
        cuda.alloc(Role::Activation, n * c_out)?,
    ];
    cuda.upload(&mut buffers[0], &x)?;
    cuda.upload(&mut buffers[1], &w)?;
    let [x_buf, w_buf, out] = &mut buffers;
    let shape = LinearShape { rows: n, c_in, c_out };
    cuda.linear(Linear { out, x: x_buf, weight: w_buf, bias: None, shape })?;
    let mut got = vec![0.0; n * c_out];
    cuda.download(out, &mut got)?;
    let (mut worst, mut largest) = (0f64, 0f64);
    for i in 0..n {
        for j in 0..c_out {
            let exact: f64 = (0..c_in).map(|k| f64::from(x[i * c_in + k]) * f64::from(w[j * c_in + k])).sum();
            let error = (f64::from(got[i * c_out + j]) - exact).abs();
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
            largest = largest.max(exact.abs());
        }
    }
    Ok(worst / largest)
}

/// Speed of a square product on random numbers: zeros would run faster than real work does.
pub fn gemm_tflops(cuda: &mut Cuda, size: usize) -> Result<f64> {
    let mut x = cuda.alloc(Role::Activation, size * size)?;
    let w = cuda.alloc(Role::Param, size * size)?;
    let mut out = cuda.alloc(Role::Activation, size * size)?;
    cuda.fill_random(&mut x, 1)?;
    // SAFETY: both tensors have the same length and do not overlap.
    unsafe { cuda.kernels.gpu.copy(w.address(), x.address(), x.bytes(), "selftest") }?;
    let shape = LinearShape { rows: size, c_in: size, c_out: size };
    let mut times = Vec::new();
    for _ in 0..8 {
        let op = Linear { out: &mut out, x: &x, weight: &w, bias: None, shape };
        times.push(cuda.time(|cuda| cuda.linear(op))?);
    }
    // The first run is the warm-up.
    times.remove(0);
    Ok(2.0 * (size as f64).powi(3) / (median(&mut times) * 1e-3) / 1e12)
}

/// Speed of copying `bytes` within the device.
pub fn copy_gb_per_s(cuda: &mut Cuda, bytes: usize) -> Result<f64> {
    let from = cuda.alloc(Role::F32, bytes / 4)?;
    let to = cuda.alloc(Role::F32, bytes / 4)?;
    let mut times = Vec::new();
    for _ in 0..8 {
        // SAFETY: both tensors are live, as long as each other, and do not overlap.
        times.push(cuda.time(|cuda| unsafe {
            cuda.kernels.gpu.copy(to.address(), from.address(), from.bytes(), "selftest")
        })?);
    }
    times.remove(0);
    Ok(2.0 * bytes as f64 / (median(&mut times) * 1e-3) / 1e9)
}

fn median(times: &mut [f32]) -> f64 {
    times.sort_by(f32::total_cmp);
    f64::from(times[times.len() / 2])
}

impl Cuda {
    /// Fills a tensor with uniform numbers in [-1, 1), a few MiB of them repeated: for timing.
    pub fn fill_random(&mut self, buf: &mut Buf, seed: u64) -> Result<()> {
        let floats = buf.dtype().size() == 4;
        // SAFETY: the tensor is live and borrowed mutably.
        unsafe { self.gemm.fill_random(&mut self.staging, buf.address(), buf.bytes(), floats, seed) }
    }
}
