//! Copies in a bucket, and runs that go on from there.
//!
//! The server is `s3s-fs`, which speaks S3 over a folder and checks signatures. It is looked for in
//! `target/ci-s3/bin` (docs/copies.md); the tests are ignored unless they are asked for.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::copies::{CI, STATE, assert_same, keep, step, whole};
use crate::process::{Running, wait_until};
use crate::support::{Finished, Lab, flip_bit};

const SOON: Duration = Duration::from_secs(120);

/// An S3 server over a folder.
struct Server {
    running: Option<Running>,
    folder: PathBuf,
    port: u16,
}

impl Server {
    const KEY: &str = "AKIDOFTHETEST";
    const SECRET: &str = "a-secret-that-nobody-repeats";

    /// A server that is not started yet, with the bucket `bucket`.
    fn new(lab: &Lab) -> Server {
        let folder = lab.path("server");
        std::fs::create_dir_all(folder.join("bucket")).expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("its number").port();
        Server { running: None, folder, port }
    }

    fn start(&mut self) {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ci-s3/bin/s3s-fs");
        let port = self.port.to_string();
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", &port, "--access-key", Self::KEY]);
        command.args(["--secret-key", Self::SECRET]).arg(&self.folder).stdin(Stdio::null());
        self.running = Some(Running::start("s3s-fs", &mut command));
        wait_until("the S3 server", SOON, || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn signal(&self, name: &str) {
        self.running.as_ref().expect("it runs").signal(name);
    }

    fn copies(&self) -> PathBuf {
        self.folder.join("bucket/runs/ci")
    }

    /// A verb with the keys and the address of this server in its environment.
    fn command(&self, lab: &Lab, verb: &str, what: &str, more: &[&str]) -> Command {
        let mut command = lab.command(&[verb, what, "--runs"]);
        command.arg(lab.path("")).args(more);
        command.env("AWS_ACCESS_KEY_ID", Self::KEY).env("AWS_SECRET_ACCESS_KEY", Self::SECRET);
        command.env("AWS_ENDPOINT", format!("http://127.0.0.1:{}", self.port)).env("AWS_ALLOW_HTTP", "true");
        command.env("NO_PROXY", "127.0.0.1");
        command
    }

    fn finish(&self, lab: &Lab, verb: &str, what: &str, more: &[&str]) -> Finished {
        let output = self.command(lab, verb, what, more).output().expect("the program starts");
        let finished = Finished::from(output);
        for text in [&finished.stdout, &finished.stderr] {
            assert!(!text.contains(Self::SECRET) && !text.contains(Self::KEY), "{text}");
        }
        finished
    }
}

const TO_BUCKET: [&str; 2] = ["--set", "checkpoint.copy_to=s3://bucket/runs"];
const BUCKET: &str = "s3://bucket/runs/ci";

#[test]
#[ignore = "skipped: needs s3s-fs, an S3 server; run with --include-ignored"]
fn a_run_goes_on_from_a_bucket_to_the_same_bits() {
    let (lab, elsewhere) = (Lab::new(), Lab::new());
    let mut server = Server::new(&lab);
    server.start();
    let made = server.finish(&lab, "run", CI, &TO_BUCKET);
    let root = made.root().to_owned();
    assert_eq!(whole(&server.copies()), [5, 10, 15, 20], "{}", made.stderr);
    keep(&server.copies(), &[10, 15]);
    flip_bit(&step(&server.copies(), 15).join(STATE), 0.7);
    let resumed = server.finish(&elsewhere, "resume", BUCKET, &[]);
    assert_eq!(resumed.root(), root);
    let named = format!("the copy `{BUCKET}/step_00000015/{STATE}` is damaged: tensor `");
    assert!(resumed.stderr.contains(&named), "{}", resumed.stderr);
    assert_same(&elsewhere, &lab);
    for (path, bytes) in elsewhere.files("ci") {
        let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(!holds(Server::SECRET) && !holds(Server::KEY), "{}", path.display());
    }
}

#[test]
#[ignore = "skipped: needs s3s-fs, an S3 server; run with --include-ignored"]
fn a_server_that_is_down_stops_no_step_and_is_served_when_it_is_back() {
    let (lab, elsewhere) = (Lab::new(), Lab::new());
    let mut server = Server::new(&lab);
    let made = server.finish(&lab, "run", CI, &TO_BUCKET);
    let root = made.root().to_owned();
    assert!(made.stderr.contains("the checkpoints of steps 5, 10, 15, 20"), "{}", made.stderr);
    server.finish(&elsewhere, "resume", BUCKET, &[]).assert_fails(1, &["cannot list `s3://bucket/runs/ci`"]);
    server.start();
    assert_eq!(server.finish(&lab, "resume", "ci", &[]).root(), root);
    assert_eq!(whole(&server.copies()), [5, 10, 15, 20]);
    keep(&server.copies(), &[5]);
    assert_eq!(server.finish(&elsewhere, "resume", BUCKET, &[]).root(), root);
}

#[test]
#[ignore = "skipped: needs s3s-fs, an S3 server; run with --include-ignored"]
fn a_kill_while_a_copy_is_made_leaves_none_that_a_resume_takes() {
    let (lab, elsewhere) = (Lab::new(), Lab::new());
    let mut server = Server::new(&lab);
    server.start();
    let root = lab.run(CI, &["--name", "alone"]).root().to_owned();
    let mut command = server.command(&lab, "run", CI, &TO_BUCKET);
    let mut killed = Running::start("a run", &mut command);
    wait_until("the first copy", SOON, || whole(&server.copies()).contains(&5));
    // It answers no more: training goes on, and the next copy hangs.
    server.signal("STOP");
    killed.wait_for_rows(&lab, 16);
    killed.kill();
    server.signal("CONT");
    // It may still do what it had heard.
    std::thread::sleep(Duration::from_millis(500));
    let left = whole(&server.copies());
    assert!(!left.contains(&20), "{left:?}");
    let resumed = server.finish(&elsewhere, "resume", BUCKET, &[]);
    assert_eq!(resumed.root(), root);
    let last = left.last().expect("the first");
    assert!(resumed.stderr.contains(&format!("at step {last} to")), "{}", resumed.stderr);
}
