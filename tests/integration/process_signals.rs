//! A closed terminal saves the run as Ctrl-C does, with one process and with ranks.

use std::process::Command;
use std::time::Duration;

use crate::process::Running;
use crate::support::Lab;

const CI: &str = "experiments/ci.toml";
const SOON: Duration = Duration::from_secs(60);
const LONGER: [&str; 4] = ["--set", "schedule.steps=300", "--set", "checkpoint.every=0"];

#[test]
fn a_hangup_saves_of_one_process_and_of_ranks_and_the_run_goes_on_to_the_same_root() {
    let expected = Lab::new().run(CI, &LONGER).root().to_owned();
    for ranks in ["1", "2"] {
        let lab = Lab::new();
        // Where the tests themselves were started by `nohup`, hangups are ignored from the outset.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_runner"), "run", CI, "--runs"]);
        command.arg(lab.path("")).args(LONGER).args(["--ranks", ranks]);
        let mut run = Running::start("a run", command.current_dir(env!("CARGO_MANIFEST_DIR")));
        run.wait_for_rows(&lab, 3);
        run.signal("HUP");
        run.end(SOON).assert_fails(130, &["stopped as asked"]);
        let saved = std::fs::read_dir(lab.path("ci/checkpoints")).expect("a folder").count();
        assert_eq!(saved, 1, "{ranks} ranks");
        assert_eq!(lab.resume("ci", &["--ranks", "1"]).root(), expected, "{ranks} ranks");
    }
}

#[test]
fn a_run_that_was_started_to_ignore_hangups_goes_on() {
    let lab = Lab::new();
    let mut command = Command::new("sh");
    let script = "trap '' HUP; exec \"$@\"";
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_runner"), "run", CI, "--runs"]);
    command.arg(lab.path("")).args(LONGER).current_dir(env!("CARGO_MANIFEST_DIR"));
    let mut run = Running::start("a run without hangups", &mut command);
    run.wait_for_rows(&lab, 3);
    run.signal("HUP");
    run.end(SOON).root();
}
