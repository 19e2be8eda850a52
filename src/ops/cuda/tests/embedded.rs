//! Kernels that travel in the program against those that NVRTC makes here.

use super::super::compile::CodeOrigin;
use super::*;

/// Names and bits of everything that the operations make.
fn bits(cuda: &mut Cuda) -> Vec<(String, Vec<u32>)> {
    let limits = Limits { row_multiple: 8, head_sizes: Some(&launch::attention::HEAD_SIZES) };
    let mut cases = testing::cases_within(cuda, limits);
    cases.extend(testing::decoding_cases(cuda, limits));
    cases.into_iter().map(|case| (case.name, case.got.iter().map(|x| x.to_bits()).collect())).collect()
}

#[test]
#[ignore = "skipped: needs a CUDA GPU, NVRTC, and kernels in the program (KERNEL_PACK); run with \
            --include-ignored"]
fn who_compiled_the_kernels_changes_no_bit_of_any_operation() {
    for compute in [Compute::Bf16, Compute::Fp32] {
        let mut embedded = open(&CudaOptions { compute, ..CudaOptions::default() });
        let mut fresh = open(&CudaOptions { compute, embedded: false, ..CudaOptions::default() });
        let origins = |cuda: &Cuda| cuda.cubins().iter().map(|cubin| cubin.origin).collect::<Vec<_>>();
        assert!(
            origins(&embedded).iter().all(|origin| *origin == CodeOrigin::Embedded),
            "build with KERNEL_PACK"
        );
        assert!(origins(&fresh).iter().all(|origin| *origin != CodeOrigin::Embedded));
        // In fp32 a plan is an order of sums, and two devices that time the same products may choose two. The
        // first pass settles the plans: a shape may be drawn there before its family is timed.
        bits(&mut embedded);
        let ours = bits(&mut embedded);
        fresh.load_plans(&embedded.plans()).expect("the same library and GPU");
        let theirs = bits(&mut fresh);
        assert!(ours.len() > 100 && ours.len() == theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(ours == theirs, "{} in {compute:?}", ours.0);
        }
    }
}
