//! Descriptions of tensors for Hopper's tensor memory accelerator.

use cudarc::driver::sys;

use super::super::args::Field;
use super::super::driver::Gpu;
use crate::ops::Result;

/// The driver's description of a tensor.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap {
    opaque: [u64; 16],
}

impl Field for TensorMap {
    fn c_type() -> String {
        "TensorMap".to_owned()
    }
}

/// How the 16-byte columns of a box's rows are permuted in shared memory, by the bytes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    Bytes64,
    Bytes128,
}

impl TensorMap {
    /// Describes nothing, for a kernel that does not look.
    pub const NONE: TensorMap = TensorMap { opaque: [0; 16] };

    /// A bf16 tensor at `address` with `dimensions`, the densest first, `strides` in bytes for all but that,
    /// and the box that one instruction moves. What lies outside of the tensor reads as zero.
    pub fn new<const RANK: usize>(
        gpu: &Gpu,
        op: &'static str,
        address: u64,
        dimensions: [u64; RANK],
        strides: &[u64],
        boxes: [u32; RANK],
        swizzle: Swizzle,
    ) -> Result<TensorMap> {
        assert_eq!(strides.len() + 1, RANK, "one stride for each dimension but the densest");
        // The driver wants the alignment of its own type, which is stricter than the hardware's.
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: all arrays have as many entries as the rank says, and are copied before the call returns;
        // the address is only written down.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                RANK as u32,
                address as *mut std::ffi::c_void,
                dimensions.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                [1u32; RANK].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                match swizzle {
                    Swizzle::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
                    Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                },
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        status.result().map_err(|e| gpu.fail(op, e))?;
        Ok(TensorMap { opaque: map.opaque })
    }
}
