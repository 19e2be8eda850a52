//! cuBLASLt's own objects: descriptors of a product, preferences, an algorithm's settings, the launch.

use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};

use super::super::driver::Gpu;
use super::super::memory::Allocation;
use super::super::product::{Epilogue, GemmKey, Operands, Product, Types};
use super::plan::Attributes;

/// No split of the sum, or partial sums in the workspace that a second kernel adds by index. The
/// in-place scheme adds in the output's type, and newer kernels may use -1 for "as it comes".
pub fn adds_in_order(attributes: &Attributes) -> bool {
    let scheme = |scheme: sys::cublasLtReductionScheme_t| scheme as u32;
    let none = scheme(sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE);
    let workspace = scheme(sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    attributes.split_k >= 0 && (attributes.reduction == none || attributes.reduction == workspace)
}

/// # Safety
/// The operands are live buffers of the descriptors' shape; the descriptors' pointers are set.
pub unsafe fn launch(
    handle: sys::cublasLtHandle_t,
    descriptors: &Descriptors,
    algo: &sys::cublasLtMatmulAlgo_t,
    operands: &Operands,
    workspace: &Allocation,
    gpu: &Gpu,
) -> Result<(), result::CublasError> {
    let alpha = 1.0f32;
    let beta = if operands.add { 1.0f32 } else { 0.0 };
    let Descriptors { desc, a, b, d } = *descriptors;
    // In columns the factors swap places: the row-major right factor is the left one.
    let (first, second) = (operands.right, operands.left);
    // SAFETY: the caller's promise; alpha and beta are read before the call returns.
    unsafe {
        result::matmul(
            handle,
            desc,
            (&raw const alpha).cast(),
            (&raw const beta).cast(),
            first as *const c_void,
            a,
            second as *const c_void,
            b,
            operands.out as *const c_void,
            d,
            operands.out as *mut c_void,
            d,
            std::ptr::from_ref(algo),
            workspace.address() as *mut c_void,
            workspace.bytes() as usize,
            gpu.stream().cast(),
        )
    }
}

/// The descriptors of one product; `a` and `b` in cuBLASLt's order, `d` for both C and D.
pub struct Descriptors {
    pub desc: sys::cublasLtMatmulDesc_t,
    pub a: sys::cublasLtMatrixLayout_t,
    pub b: sys::cublasLtMatrixLayout_t,
    pub d: sys::cublasLtMatrixLayout_t,
}

impl Descriptors {
    pub fn new(key: &GemmKey) -> Result<Descriptors, result::CublasError> {
        use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32};
        use sys::cublasLtEpilogue_t as E;
        use sys::cublasLtMatmulDescAttributes_t as A;
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let (input, output, compute) = match key.types {
            Types::Bf16 => (CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F),
            Types::Bf16ToF32 => (CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F),
            Types::F32 => (CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F),
            Types::Tf32 => (CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32),
        };
        let GemmKey { rows, c_in, c_out, .. } = *key;
        // A row-major (r, c) matrix is a column-major (c, r) one with leading dimension c.
        let weight = || result::create_matrix_layout(input, c_in, c_out, c_in as i64);
        let wide = |kind, c: u64| result::create_matrix_layout(kind, c, rows, c as i64);
        let (mut a_transposed, mut b_transposed) = (false, false);
        let (a, b, d) = match key.product {
            Product::Forward => {
                a_transposed = true;
                (weight()?, wide(input, c_in)?, wide(output, c_out)?)
            }
            Product::BackwardInput => (weight()?, wide(input, c_out)?, wide(output, c_in)?),
            Product::BackwardWeight => {
                b_transposed = true;
                (
                    wide(input, c_in)?,
                    wide(input, c_out)?,
                    result::create_matrix_layout(output, c_in, c_out, c_in as i64)?,
                )
            }
        };
        let made = Descriptors { desc: result::create_matmul_desc(compute, CUDA_R_32F)?, a, b, d };
        // CUBLAS_OP_N and CUBLAS_OP_T of cublas_api.h, which has no bindings here.
        let transposed = |yes| i32::from(yes);
        made.set(A::CUBLASLT_MATMUL_DESC_TRANSA, transposed(a_transposed))?;
        made.set(A::CUBLASLT_MATMUL_DESC_TRANSB, transposed(b_transposed))?;
        let epilogue = match key.epilogue {
            Epilogue::Nothing
            | Epilogue::ThenGelu
            | Epilogue::ThenGeluGradient
            | Epilogue::ThenRelu2
            | Epilogue::ThenRelu2Gradient
            | Epilogue::ThenSwiglu
            | Epilogue::ThenSwigluGradient
            | Epilogue::BiasGradient => E::CUBLASLT_EPILOGUE_DEFAULT,
            Epilogue::Bias | Epilogue::BiasThenGelu | Epilogue::BiasThenRelu2 | Epilogue::BiasThenSwiglu => {
                E::CUBLASLT_EPILOGUE_BIAS
            }
            Epilogue::BiasGelu => E::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
            Epilogue::Gelu => E::CUBLASLT_EPILOGUE_GELU_AUX,
            Epilogue::GeluGradient => E::CUBLASLT_EPILOGUE_DGELU,
            // Our own products' alone: no pass behind the library's would give the same.
            Epilogue::Softmax | Epilogue::RowFactors => {
                return Err(result::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
            }
        };
        made.set(A::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        // Bias and pre-activation have the output's type unless an attribute says otherwise.
        if key.epilogue.fuses_gelu() {
            let width = if key.product == Product::Forward { c_out } else { c_in };
            made.set(A::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, width as i64)?;
        }
        // The heuristic wants to see that there are pointers; `run` sets the true ones.
        let some = Operands { bias: 256, pre: 256, ..Operands::new(0, 0, 0) };
        made.set_pointers(&some.only(key.epilogue))?;
        Ok(made)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: T,
    ) -> Result<(), result::CublasError> {
        // SAFETY: the descriptor is live, and the library copies the value.
        unsafe {
            result::set_matmul_desc_attribute(self.desc, attribute, (&raw const value).cast(), size_of::<T>())
        }
    }

    pub fn set_pointers(&self, operands: &Operands) -> Result<(), result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as A;
        if operands.bias != 0 {
            self.set(A::CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias)?;
        }
        if operands.pre != 0 {
            self.set(A::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, operands.pre)?;
        }
        Ok(())
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: all four were created together and are destroyed here alone; the library copies
        // what running work needs of them.
        unsafe {
            let _ = result::destroy_matmul_desc(self.desc);
            for layout in [self.a, self.b, self.d] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// The limits of the heuristic.
pub struct Preference(pub sys::cublasLtMatmulPreference_t);

impl Preference {
    pub fn new(workspace_bytes: u64) -> Result<Preference, result::CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as A;
        let made = Preference(result::create_matmul_pref()?);
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        // SAFETY: the preference is live, and the library copies the values.
        unsafe {
            result::set_matmul_pref_attribute(
                made.0,
                A::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace_bytes).cast(),
                8,
            )?;
            result::set_matmul_pref_attribute(
                made.0,
                A::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                (&raw const schemes).cast(),
                4,
            )?;
        }
        Ok(made)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed here alone.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// Reads an algorithm's settings.
pub fn attributes(algo: &sys::cublasLtMatmulAlgo_t) -> Result<Attributes, result::CublasError> {
    use sys::cublasLtMatmulAlgoConfigAttributes_t as A;
    fn get<T: Default>(algo: &sys::cublasLtMatmulAlgo_t, attribute: A) -> Result<T, result::CublasError> {
        let mut value = T::default();
        let mut written = 0;
        // SAFETY: `value` is as large as it says, and `algo` is live.
        unsafe {
            sys::cublasLtMatmulAlgoConfigGetAttribute(
                algo,
                attribute,
                (&raw mut value).cast(),
                size_of::<T>(),
                &raw mut written,
            )
        }
        .result()?;
        Ok(value)
    }
    Ok(Attributes {
        algorithm: get(algo, A::CUBLASLT_ALGO_CONFIG_ID)?,
        tile: get(algo, A::CUBLASLT_ALGO_CONFIG_TILE_ID)?,
        stages: get(algo, A::CUBLASLT_ALGO_CONFIG_STAGES_ID)?,
        split_k: get(algo, A::CUBLASLT_ALGO_CONFIG_SPLITK_NUM)?,
        reduction: get(algo, A::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)?,
        swizzle: get(algo, A::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING)?,
        custom: get(algo, A::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION)?,
        inner_shape: get(algo, A::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID)?,
        cluster_shape: get(algo, A::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID)?,
    })
}
