//! `verify --twice` proves a resume only where a run was killed.

use crate::support::Lab;

#[test]
fn a_run_that_ends_before_every_kill_proves_no_resume() {
    let lab = Lab::new();
    let mut command = vec!["verify", "experiments/ci.toml", "--twice"];
    // The ledger's first line is the last: no kill comes between.
    for set in ["schedule.steps=1", "schedule.warmup_steps=0", "eval.every=0", "sample.every=0"] {
        command.extend(["--set", set]);
    }
    let verified = lab.finish(&command);
    assert_eq!(verified.code, Some(5), "{}{}", verified.stdout, verified.stderr);
    for says in
        ["ok      repeat: ", "FAILED  resume: nothing was killed: 5 runs of 1 step ended", "schedule.steps=N"]
    {
        assert!(verified.stdout.contains(says), "`{says}` is not in:\n{}", verified.stdout);
    }
}

#[test]
fn runs_that_an_earlier_call_kept_are_made_anew() {
    let lab = Lab::new();
    let kept = lab.path("kept").display().to_string();
    // Of an earlier call: a finished run, whose ledger is as long as one can be.
    let killed = lab.path("kept").join("killed");
    lab.done(&["run", "experiments/ci.toml", "--runs", &kept, "--name", "killed"]);
    assert!(killed.join("ledger.jsonl").is_file());
    let verified = lab.finish(&["verify", "experiments/ci.toml", "--twice", "--keep", &kept]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    assert!(verified.stdout.contains("done and resumed: the same bits"), "{}", verified.stdout);
}
