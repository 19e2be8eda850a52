//! Plans of matrix products are pinned and checked.

use super::*;

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn plans_are_restored_and_a_wrong_one_is_refused() {
    let mut cuda = cuda();
    let shape = ScratchShape {
        rows: Rows { batch: 4, seq: 256 },
        least_seq: 256,
        channels: 256,
        heads: Heads::new(4, 64),
        vocab: Vocab { used: 500, padded: 512 },
        backward: true,
        bias: true,
        mlp: MlpShape::gpt2(256),
        params: ParamCount::default(),
    };
    cuda.alloc_scratch(&shape).expect("scratch and plans");
    let plans = cuda.plans();
    let own = ends_in_powers(cuda.gpu(), Dtype::BF16);
    let keys = gemm_keys(&shape, &CudaOptions::default(), own);
    assert_eq!(plans.iter().map(|plan| plan.key).collect::<Vec<_>>(), keys, "one plan a product");
    let mut again = self::cuda();
    again.restore_plans(&cuda.numerics().expect("numerics")).expect("the plans fit");
    again.alloc_scratch(&shape).expect("scratch");
    assert_eq!(again.plans(), plans);
    assert!(again.tuned().is_empty(), "nothing was left to tune");
    assert_eq!(again.numerics().expect("numerics"), cuda.numerics().expect("numerics"));
    for mut wrong in plans {
        let reason = match &mut wrong.algorithm {
            Algorithm::CublasLt(plan) => {
                plan.attributes.tile += 1;
                "64 bytes mean"
            }
            Algorithm::Hopper { hopper } => {
                hopper.width += 8;
                "no kernel has"
            }
        };
        let error = again.load_plans(&[wrong]).expect_err("the plan is wrong").to_string();
        assert!(error.contains(reason), "{error}");
    }
}
