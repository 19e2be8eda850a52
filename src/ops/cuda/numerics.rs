//! What the bits of this device depend on, as names and values for a lock file, and the way back: the
//! pinned algorithms that a lock holds.

use std::collections::BTreeMap;

use super::Cuda;
use super::gemm::plan::GemmPlan;
use super::launch::{attention_hopper, gemm_hopper};
use crate::ops::{DeviceError, Dtype, Result};

/// Where the pinned algorithms stand, each as JSON.
const PLAN: &str = "cuda.gemm.";

impl Cuda {
    /// Whether the bits here are those of [`crate::ops::mirror`]: bf16 on a Hopper GPU, without cuBLASLt's
    /// own fusions, in heads that have kernels of Hopper's own. Known once [`crate::ops::Ops::alloc_scratch`]
    /// has run.
    pub fn has_mirror(&self) -> bool {
        let (gpu, act) = (&self.kernels.gpu, self.kernels.act);
        act == Dtype::BF16
            && self.options.gelu_fusion == 0
            && gemm_hopper::fits(&gpu.info)
            && self.head_size.is_none_or(|size| attention_hopper::fits(gpu, act, size))
    }

    /// Architecture, compiler, libraries, kernels and plans: equal values mean equal bits. Complete once
    /// [`crate::ops::Ops::alloc_scratch`] has run.
    pub fn numerics(&self) -> Result<BTreeMap<String, String>> {
        let mut compilers: Vec<_> = self.cubins().iter().map(|cubin| cubin.nvrtc).collect();
        compilers.sort_unstable();
        compilers.dedup();
        let compilers: Vec<String> = compilers.iter().map(ToString::to_string).collect();
        let cublaslt = self.cublaslt_version().map_or_else(|| "none".to_owned(), |v| v.to_string());
        let info = self.gpu();
        let mut values = BTreeMap::from([
            ("cuda.architecture".to_owned(), info.architecture()),
            ("cuda.sm_count".to_owned(), info.sm_count.to_string()),
            ("cuda.nvrtc".to_owned(), compilers.join(", ")),
            ("cuda.cublaslt".to_owned(), cublaslt),
        ]);
        // Decoding writes text and changes no bit of the training state.
        for cubin in self.cubins().iter().filter(|cubin| cubin.file != "decode.cu") {
            let name = |what| format!("cuda.kernels.{}.{what}", cubin.file);
            values.insert(name("source_sha256"), hex::encode(cubin.source_sha256));
            values.insert(name("code_sha256"), hex::encode(cubin.code_sha256));
            values.insert(name("options"), cubin.options.join(" "));
        }
        values.extend(self.plans().iter().map(encode));
        Ok(values)
    }

    /// Pins the plans among `values`, before [`crate::ops::Ops::alloc_scratch`] tunes what is left.
    ///
    /// # Errors
    ///
    /// A plan that is damaged, or that this library and GPU cannot run as it is written.
    pub fn restore_plans(&mut self, values: &BTreeMap<String, String>) -> Result<()> {
        let plans = decode(values)
            .map_err(|name| DeviceError::Unavailable(format!("the lock's `{name}` is not a plan")))?;
        self.load_plans(&plans)
    }
}

fn encode(plan: &GemmPlan) -> (String, String) {
    let json = serde_json::to_string(plan).expect("a plan is plain data");
    (format!("{PLAN}{}", plan.key), json)
}

/// The plans among `values`, or the name of one that cannot be read.
fn decode(values: &BTreeMap<String, String>) -> Result<Vec<GemmPlan>, String> {
    let plans = values.iter().filter(|(name, _)| name.starts_with(PLAN));
    plans.map(|(name, json)| serde_json::from_str(json).map_err(|_| name.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::gemm::plan::{Algorithm, Attributes, CublasLt};
    use super::super::product::{Epilogue, GemmKey, Product, Tiling, Types};
    use super::*;

    #[test]
    fn plans_come_back_from_a_lock() {
        let plan = |rows| GemmPlan {
            key: GemmKey {
                product: Product::Forward,
                rows,
                c_in: 768,
                c_out: 3072,
                types: Types::Bf16,
                epilogue: Epilogue::Bias,
            },
            algorithm: Algorithm::CublasLt(CublasLt {
                algo: CublasLt::encode([rows; 8]),
                attributes: Attributes { algorithm: 66, split_k: -1, ..Attributes::default() },
                workspace_bytes: 1 << 40,
            }),
        };
        let hopper = Tiling { width: 160, cluster: 2, group: 4 };
        let plans = [plan(1024), GemmPlan { algorithm: Algorithm::Hopper { hopper }, ..plan(2048) }];
        let mut values: BTreeMap<String, String> = plans.iter().map(encode).collect();
        values.insert("cuda.nvrtc".into(), "13.0".into());
        assert_eq!(decode(&values), Ok(plans.to_vec()));
        values.insert("cuda.gemm.x".into(), "{}".into());
        assert_eq!(decode(&values), Err("cuda.gemm.x".to_owned()));
    }
}
