//! Launches of `average.cu`: the average of the weights.

use super::super::Cuda;
use super::super::args::{Act, F32, In, Out, bindings};
use super::super::memory::Buf;
use super::super::modules::Geometry;
use crate::ops::{Average, Perform, Result};

bindings! {
    "average.cu" {
        struct AverageArgs {
            average: Out<F32>, param: In<Act>, master: In<F32>, length: u64, rate: f32, unused: u32,
        }
        kernel AVERAGE(AverageArgs) = "average";
    }
}

impl Perform<Average<'_, Buf>> for Cuda {
    fn perform(&mut self, op: Average<'_, Buf>) -> Result<()> {
        const OP: &str = "average";
        let Average { average, param, at, master, rate } = op;
        let (k, len) = (&self.kernels, average.len());
        let args = AverageArgs {
            average: Out::at(k.f32(OP, "average", average, len)?),
            param: In::at(k.act(OP, "param", param, at + len)? + (at * param.dtype().size()) as u64),
            master: In::at(master.map_or(Ok(0), |master| k.f32(OP, "master", master, len))?),
            length: len as u64,
            rate,
            unused: 0,
        };
        // SAFETY: all lengths were checked.
        unsafe { k.launch(OP, &AVERAGE, Geometry::new((len as u64).div_ceil(1024), 256), &args) }
    }
}
