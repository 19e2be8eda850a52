//! `runner data`: fetching from a server on this machine, through an interruption and a kill.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{Finished, Lab};

/// A server that gives one file, from the byte that is asked for; the ranges that were asked for.
struct Server {
    url: String,
    ranges: Arc<Mutex<Vec<Option<usize>>>>,
    /// Send half of what is asked for, then nothing.
    stalls: Arc<AtomicBool>,
}

fn serve(file: Vec<u8>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (ranges, stalls) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let server = Server { url, ranges: ranges.clone(), stalls: stalls.clone() };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut from = None;
            for line in BufReader::new(&stream).lines() {
                let line = line.expect("a line").to_ascii_lowercase();
                if let Some(range) = line.strip_prefix("range: bytes=") {
                    from = range.trim_end_matches('-').parse().ok();
                }
                if line.is_empty() {
                    break;
                }
            }
            ranges.lock().expect("unpoisoned").push(from);
            let start = from.unwrap_or(0);
            let range = from.map_or(String::new(), |from| {
                format!("content-range: bytes {from}-{}/{}\r\n", file.len() - 1, file.len())
            });
            let status = if from.is_some() { 206 } else { 200 };
            let body = &file[start..];
            let head = format!(
                "HTTP/1.1 {status} X\r\nconnection: close\r\netag: \"1\"\r\n{range}content-length: \
                 {}\r\n\r\n",
                body.len()
            );
            // The client may be killed, as the test does.
            let _ = stream.write_all(head.as_bytes());
            if stalls.load(Ordering::Relaxed) {
                let _ = stream.write_all(&body[..body.len() / 2]);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_secs(30));
                    drop(stream);
                });
            } else {
                let _ = stream.write_all(body);
            }
        }
    });
    server
}

fn shard(tokens: u32) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    for (at, word) in [20_240_520, 1, tokens].into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes.extend((0..tokens).flat_map(|i| ((i % 50_257) as u16).to_le_bytes()));
    bytes
}

fn fetch(lab: &Lab, server: &Server) -> Command {
    let mut command =
        lab.command(&["data", "fetch", "fineweb-edu-100b", "--shards", "1", "--parallel", "1", "--out"]);
    command.arg(lab.path("data")).env("HF_ENDPOINT", &server.url).env_remove("HF_TOKEN");
    command.args(["--revision", "0123456789012345678901234567890123456789"]);
    command
}

/// Starts the program, and stops it with a signal once the first half of the first file is there.
#[cfg(unix)]
fn stopped_half_way(lab: &Lab, server: &Server, signal: &str, half: u64) -> Finished {
    server.stalls.store(true, Ordering::Relaxed);
    let child =
        fetch(lab, server).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let part = lab.path("data/edu_fineweb_val_000000.bin.part");
    let started = Instant::now();
    while std::fs::metadata(&part).map_or(0, |m| m.len()) < half {
        assert!(started.elapsed() < Duration::from_secs(20), "the download does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
    let finished = Finished::from(child.wait_with_output().expect("it ends"));
    server.stalls.store(false, Ordering::Relaxed);
    finished
}

#[test]
#[cfg(unix)]
fn a_fetch_that_was_interrupted_or_killed_goes_on_and_says_what_to_do_next() {
    let file = shard(500_000);
    for signal in ["-INT", "-KILL"] {
        let lab = Lab::new();
        let server = serve(file.clone());
        let half = file.len() / 2;
        let stopped = stopped_half_way(&lab, &server, signal, half as u64);
        if signal == "-INT" {
            stopped.assert_fails(130, &["interrupted; what came is kept"]);
        }
        assert!(
            !lab.path("data/edu_fineweb_val_000000.bin").exists(),
            "half a file has the name of a whole one"
        );
        let done = Finished::from(fetch(&lab, &server).output().expect("the program starts"));
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert_eq!(*server.ranges.lock().expect("unpoisoned"), [None, Some(half), None], "{signal}");
        for name in ["edu_fineweb_val_000000.bin", "edu_fineweb_train_000001.bin"] {
            assert!(
                std::fs::read(lab.path("data").join(name)).expect("there") == file,
                "{signal}: {name} differs"
            );
            assert!(done.stdout.contains(name), "{}", done.stdout);
        }
        assert!(done.stderr.contains("next: runner run gpt2_124m"), "{}", done.stderr);
    }
}

#[test]
fn usage_errors_of_fetch_exit_with_two() {
    let lab = Lab::new();
    lab.finish(&["data", "fetch", "hellaswag", "--shards", "3"])
        .assert_fails(2, &["`--shards` is 3: `hellaswag` has 1 to 1"]);
    lab.finish(&["data", "fetch", "imagenet"]).assert_fails(2, &["fineweb-edu-100b"]);
    let mut command = lab.command(&["data", "fetch", "hellaswag"]);
    let bad = command.env("HF_ENDPOINT", "huggingface.co").output().expect("the program starts");
    Finished::from(bad).assert_fails(2, &["`HF_ENDPOINT` is `huggingface.co`: expected an address"]);
}

#[test]
fn json_lines_become_shards_that_open() {
    let lab = Lab::new();
    let rows: String = (0..200).map(|i| format!("{{\"text\": \"the row {i}\"}}\n")).collect();
    std::fs::write(lab.path("x.jsonl"), rows).expect("writable");
    let (input, out) = (lab.path("x.jsonl").display().to_string(), lab.path("out").display().to_string());
    let done = lab.done(&["data", "prepare", "--out", &out, "--val-tokens", "100", &input]);
    assert!(done.stdout.contains("200 documents"), "{}", done.stdout);
    lab.finish(&["data", "prepare", "--out", &out, "--overwrite", "--column", "body", &input])
        .assert_fails(1, &["line 1 is no document: it has no column `body`, but `text`", "--column"]);
}
