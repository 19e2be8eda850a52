//! Fetching from a server with the faults of connections, proxies and mirrors.

mod server;

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::super::shard;
use super::*;
use server::{Asked, Reply, Server};

const ETAG: &str = "\"v1\"";

/// A shard of `tokens` tokens.
fn shard_of(tokens: usize, seed: usize) -> Vec<u8> {
    let mut bytes = shard::header(tokens as u64).to_vec();
    bytes.extend((0..tokens).flat_map(|i| (((i + seed) * 7 % 50_257) as u16).to_le_bytes()));
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        stall: Duration::from_millis(300),
        stall_bytes: 1000,
        attempts: 3,
        progress_bytes: 1 << 20,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(20),
    }
}

/// A request for one shard of the pre-tokenised set, from servers of ours.
fn request(server: &Server, out: &Path) -> FetchRequest {
    let files = DataSet::FineWebEdu100B.files(Some(1)).unwrap().split_off(1);
    let variable = |name: &str| match name {
        "HF_ENDPOINT" | "GITHUB_RAW_ENDPOINT" => Some(server.url.clone()),
        "HF_TOKEN" => Some("hf_secret".to_owned()),
        _ => None,
    };
    FetchRequest {
        data_set: DataSet::FineWebEdu100B,
        files,
        out: out.to_owned(),
        // A commit: nothing is asked before the file itself.
        revision: Some("0123456789012345678901234567890123456789".to_owned()),
        endpoints: Endpoints::from_variables(variable).unwrap(),
        parallel: 2,
        patience: patience(),
    }
}

fn run(request: &FetchRequest) -> Result<Vec<Fetched>, FetchError> {
    fetch(request, &AtomicBool::new(false), |_, _| ())
}

/// Fetches one shard from `answer`; the error's text, and the names that are left in the folder.
fn refusal(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> (String, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(answer);
    let error = run(&request(&server, dir.path())).unwrap_err().to_string();
    (error, names(dir.path()))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const NAME: &str = "edu_fineweb_train_000001.bin";
const PART: [&str; 2] = ["edu_fineweb_train_000001.bin.part", "edu_fineweb_train_000001.bin.part.json"];
const RECORD: &str = "fineweb-edu-100b.fetched.json";

// ---- without faults -----

#[test]
fn a_file_comes_whole_with_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = shard_of(100_000, 0);
    let served = bytes.clone();
    let server = Server::start(move |asked| Reply::file(asked, &served, ETAG));
    let fetched = run(&request(&server, dir.path())).unwrap();
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), bytes);
    assert_eq!((fetched[0].bytes, fetched[0].sha256.clone()), (201_024, Some(sha256(&bytes))));
    assert_eq!(names(dir.path()), [NAME, RECORD]);
    let asked = server.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].path,
        "/datasets/karpathy/fineweb-edu-100B-gpt2-token-shards/resolve/\
         0123456789012345678901234567890123456789/edu_fineweb_train_000001.bin"
    );
    assert!(asked[0].from().is_none() && asked[0].header("accept-encoding") == Some("identity"));
    let record = FetchRecord::read(dir.path(), "fineweb-edu-100b").unwrap();
    assert_eq!(
        (record.files[NAME].sha256.as_str(), record.files[NAME].verified),
        (sha256(&bytes).as_str(), false)
    );
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|asked| Reply::file(asked, &shard_of(50, 0), ETAG));
    let request = request(&server, dir.path());
    run(&request).unwrap();
    let again = run(&request).unwrap();
    assert!(again[0].was_there);
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn many_files_come_in_parallel_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|asked| {
        let index: usize = asked.path[asked.path.len() - 10..asked.path.len() - 4].parse().unwrap();
        Reply {
            pause: Some((600, Duration::from_millis(100))),
            ..Reply::file(asked, &shard_of(100 + index, index), ETAG)
        }
    });
    let files = DataSet::FineWebEdu100B.files(Some(7)).unwrap();
    let started = Instant::now();
    let fetched = run(&FetchRequest { files, parallel: 4, ..request(&server, dir.path()) }).unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(790),
        "eight files, 100 ms each, were not fetched in parallel"
    );
    let sizes: Vec<_> = fetched.iter().map(|file| file.bytes).collect();
    assert_eq!(sizes, [1224, 1226, 1228, 1230, 1232, 1234, 1236, 1238]);
    assert_eq!(FetchRecord::read(dir.path(), "fineweb-edu-100b").unwrap().files.len(), 8);
}

#[test]
fn a_branch_is_pinned_to_its_commit_and_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let commit = "aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd";
    let server = Server::start(move |asked| {
        Reply::file(asked, &shard_of(50, 0), ETAG).header("x-repo-commit", commit)
    });
    let mut request = FetchRequest { revision: None, ..request(&server, dir.path()) };
    run(&request).unwrap();
    request.files = DataSet::FineWebEdu100B.files(Some(2)).unwrap();
    run(&request).unwrap();
    assert_eq!(server.asked()[0].method, "HEAD");
    let revisions: Vec<String> =
        server.asked().iter().map(|a| a.path.split('/').nth(5).unwrap().to_owned()).collect();
    assert_eq!(revisions, ["main", commit, commit, commit]);
    assert_eq!(FetchRecord::read(dir.path(), "fineweb-edu-100b").unwrap().revision, commit);
}

#[test]
fn a_mirror_without_commits_is_asked_for_the_branch() {
    for status in [200, 403, 404, 405, 501] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |asked| match asked.method.as_str() {
            "HEAD" => Reply::new(status, b""),
            _ => Reply::file(asked, &shard_of(50, 0), ETAG),
        });
        run(&FetchRequest { revision: None, ..request(&server, dir.path()) }).unwrap();
        assert!(server.asked()[1].path.contains("/resolve/main/"));
        assert_eq!(FetchRecord::read(dir.path(), "fineweb-edu-100b").unwrap().revision, "main");
    }
    let (server, dir) = (Server::start(|_| Reply::new(404, b"")), tempfile::tempdir().unwrap());
    let error =
        run(&FetchRequest { revision: None, ..request(&server, dir.path()) }).unwrap_err().to_string();
    assert!(error.contains("answered 404"), "{error}");
}

#[test]
fn the_digest_that_the_hub_publishes_in_its_redirect_is_checked() {
    for good in [true, false] {
        let bytes = shard_of(5000, 0);
        let digest = if good { sha256(&bytes) } else { sha256(b"other") };
        let cdn = Server::start(move |asked| Reply::file(asked, &bytes, ETAG));
        let to = format!("{}/blob?signature=1", cdn.url);
        let hub = Server::start(move |_| {
            Reply::redirect(&to)
                .header("x-linked-etag", format!("\"{digest}\""))
                .header("x-linked-size", 11_024)
        });
        let dir = tempfile::tempdir().unwrap();
        let result = run(&request(&hub, dir.path()));
        if good {
            assert!(result.unwrap()[0].verified);
            // The token goes to the hub, not to where it redirects.
            assert_eq!(hub.asked()[0].header("authorization"), Some("Bearer hf_secret"));
            assert_eq!(cdn.asked()[0].header("authorization"), None);
        } else {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(&format!("expected {}, as the hub says", sha256(b"other"))), "{error}");
            assert!(names(dir.path()).is_empty(), "nothing is kept of a file that is not the published one");
        }
    }
}

#[test]
fn a_pinned_digest_is_checked_and_the_token_stays_off_github() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|asked| Reply::file(asked, b"{\"ctx\": \"not HellaSwag\"}\n", ETAG));
    let other = Server::start(|_| Reply::new(404, b""));
    let endpoints = Endpoints::from_variables(|name| match name {
        "GITHUB_RAW_ENDPOINT" => Some(server.url.clone()),
        "HF_ENDPOINT" => Some(other.url.clone()),
        _ => Some("hf_secret".to_owned()),
    });
    let files = DataSet::HellaSwag.files(None).unwrap();
    let request = FetchRequest {
        data_set: DataSet::HellaSwag,
        files,
        revision: None,
        endpoints: endpoints.unwrap(),
        ..request(&server, dir.path())
    };
    let error = run(&request).unwrap_err().to_string();
    assert!(
        error.contains("0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588, which is pinned"),
        "{error}"
    );
    assert!(
        server.asked()[0]
            .path
            .starts_with("/rowanz/hellaswag/a29ff8e9a04bba4bd6588223785ce105328adc57/data/")
    );
    assert_eq!(server.asked()[0].header("authorization"), None);
    assert!(names(dir.path()).is_empty());
}

// ---- resuming ----

#[test]
fn after_a_cut_only_the_missing_bytes_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = shard_of(100_000, 3);
    let served = bytes.clone();
    let server = Server::start(move |asked| match asked.number {
        0 => Reply::file(asked, &served, ETAG).cut_after(70_000),
        1 => Reply::new(503, b"busy"),
        2 => Reply::file(asked, &served, ETAG).cut_after(50_000),
        _ => Reply::file(asked, &served, ETAG),
    });
    let request =
        FetchRequest { patience: Patience { attempts: 4, ..patience() }, ..request(&server, dir.path()) };
    run(&request).unwrap();
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), bytes);
    let ranges: Vec<_> = server
        .asked()
        .iter()
        .map(|asked| (asked.from(), asked.header("if-range").map(str::to_owned)))
        .collect();
    let etag = || Some(ETAG.to_owned());
    assert_eq!(
        ranges,
        [(None, None), (Some(70_000), etag()), (Some(70_000), etag()), (Some(120_000), etag())]
    );
}

#[test]
fn a_file_that_changed_on_the_server_meanwhile_is_fetched_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (shard_of(100_000, 1), shard_of(90_000, 2));
    let served = new.clone();
    let server = Server::start(move |asked| match asked.number {
        0 => Reply::file(asked, &old, ETAG).cut_after(70_000),
        _ => Reply::file(asked, &served, "\"v2\""),
    });
    run(&request(&server, dir.path())).unwrap();
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), new);
    assert_eq!(server.asked().iter().map(Asked::from).collect::<Vec<_>>(), [None, Some(70_000)]);
}

#[test]
fn a_part_of_another_version_is_noticed_though_the_server_ignores_if_range() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (shard_of(100_000, 1), shard_of(100_001, 2));
    let served = new.clone();
    let server = Server::start(move |asked| match asked.number {
        0 => Reply::file(asked, &old, ETAG).cut_after(70_000),
        1 => Reply::file(asked, &served, asked.header("if-range").unwrap()),
        _ => Reply::file(asked, &served, "\"v2\""),
    });
    run(&request(&server, dir.path())).unwrap();
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), new);
    assert_eq!(server.asked().iter().map(Asked::from).collect::<Vec<_>>(), [None, Some(70_000), None]);
}

#[test]
fn a_resumed_file_with_a_wrong_digest_is_fetched_once_more_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (shard_of(100_000, 1), shard_of(100_000, 2));
    let (served, digest) = (new.clone(), sha256(&new));
    // Same length, same ETag: only the digest knows.
    let server = Server::start(move |asked| {
        let reply = match asked.number {
            0 => Reply::file(asked, &old, ETAG).cut_after(70_000),
            _ => Reply::file(asked, &served, ETAG),
        };
        reply.header("x-linked-etag", &digest)
    });
    run(&request(&server, dir.path())).unwrap();
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), new);
    assert_eq!(server.asked().iter().map(Asked::from).collect::<Vec<_>>(), [None, Some(70_000), None]);
}

#[test]
fn a_server_without_ranges_gives_the_whole_file_again() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = shard_of(10_000, 1);
    let served = bytes.clone();
    let server = Server::start(move |asked| {
        let reply = Reply::new(200, &served).header("etag", ETAG);
        if asked.number == 0 { reply.cut_after(5000) } else { reply }
    });
    run(&request(&server, dir.path())).unwrap();
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), bytes);
}

#[test]
fn without_etag_date_or_digest_nothing_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = shard_of(10_000, 1);
    let served = bytes.clone();
    let server = Server::start(move |asked| {
        let reply = Reply::new(200, &served);
        if asked.number == 0 { reply.cut_after(5000) } else { reply }
    });
    run(&request(&server, dir.path())).unwrap();
    assert_eq!(server.asked().iter().map(Asked::from).collect::<Vec<_>>(), [None, None]);
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), bytes);
}

#[test]
fn a_kill_between_two_calls_leaves_a_part_that_the_second_goes_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = shard_of(100_000, 3);
    let served = bytes.clone();
    let server = Server::start(move |asked| {
        let reply = Reply::file(asked, &served, ETAG);
        if asked.number == 0 { reply.cut_after(70_000) } else { reply }
    });
    let once =
        FetchRequest { patience: Patience { attempts: 1, ..patience() }, ..request(&server, dir.path()) };
    let error = run(&once).unwrap_err().to_string();
    assert!(error.contains("gave up after 1 attempt;"), "{error}");
    assert!(error.contains("was cut after 70000 of 201024 bytes"), "{error}");
    assert_eq!(names(dir.path()), PART);
    run(&once).unwrap();
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), bytes);
    assert_eq!(server.asked()[1].from(), Some(70_000));
}

#[test]
fn an_interruption_ends_a_waiting_request_at_once_and_keeps_the_part() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|asked| Reply {
        pause: Some((50_000, Duration::from_secs(20))),
        ..Reply::file(asked, &shard_of(100_000, 3), ETAG)
    });
    let mut request = request(&server, dir.path());
    request.patience.stall = Duration::from_secs(20);
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let received = AtomicUsize::new(0);
    let error = std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let report = |_: usize, event: FetchEvent<'_>| {
                if let FetchEvent::Received(bytes) = event {
                    received.fetch_add(bytes as usize, Ordering::Relaxed);
                }
            };
            fetch(&request, &stop, report)
        });
        while received.load(Ordering::Relaxed) < 50_000 && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
        run.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, FetchError::Interrupted), "{error}");
    assert!(started.elapsed() < Duration::from_secs(8), "the request was waited for");
    assert_eq!(names(dir.path()), PART);
    assert_eq!(fs::metadata(dir.path().join(PART[0])).unwrap().len(), 50_000);
}

// ---- faults -----------------

#[test]
fn statuses_that_are_no_file_are_named_and_only_passing_ones_tried_again() {
    for (status, says, requests) in [
        (404, "answered 404 not found", 1),
        (401, "set `HF_TOKEN`", 1),
        (403, "answered 403 not allowed", 1),
        (500, "gave up after 3 attempts", 3),
        (429, "too many requests", 3),
        (418, "answered 418", 1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |_| Reply::new(status, b"no"));
        let error = run(&request(&server, dir.path())).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(NAME), "{status}: {error}");
        assert_eq!(server.asked().len(), requests, "{status}");
        assert!(names(dir.path()).is_empty());
    }
}

#[test]
fn a_web_page_in_place_of_a_file_is_named_and_leaves_nothing() {
    let page = b"<!DOCTYPE html>\n<title>Log in</title>";
    for kind in ["text/html; charset=utf-8", "application/octet-stream"] {
        let (error, left) = refusal(move |_| Reply::new(200, page).header("content-type", kind));
        assert!(error.contains("gave a web page") && error.contains("`<!DOCTYPE html>`"), "{kind}: {error}");
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn another_kind_of_file_is_refused_by_its_start() {
    let (error, left) = refusal(|asked| Reply::file(asked, b"PAR1 something else PAR1", ETAG));
    assert!(
        error
            .contains("is not a token shard: it starts with `PAR1 something e`, expected the magic 20240520"),
        "{error}"
    );
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_shard_that_is_shorter_than_its_header_says_never_gets_its_name() {
    let mut bytes = shard_of(100, 0);
    bytes.truncate(1100);
    let (error, left) = refusal(move |asked| Reply::file(asked, &bytes, ETAG));
    assert!(
        error.contains("promises 100 tokens, that is 1224 bytes, but the file ends at byte 1100"),
        "{error}"
    );
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_connection_that_is_always_cut_is_given_up_with_what_came() {
    let (error, left) = refusal(|asked| Reply::file(asked, &shard_of(100_000, 0), ETAG).cut_after(2000));
    assert!(
        error.contains("after 3 attempts") && error.contains("cut after 6000 of 201024 bytes"),
        "{error}"
    );
    assert_eq!(left, PART);
}

#[test]
fn attempts_that_bring_enough_do_not_count_as_failures() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = shard_of(100_000, 0);
    let served = bytes.clone();
    let server = Server::start(move |asked| Reply::file(asked, &served, ETAG).cut_after(20_000));
    let request = FetchRequest {
        patience: Patience { progress_bytes: 20_000, ..patience() },
        ..request(&server, dir.path())
    };
    run(&request).unwrap();
    assert_eq!(server.asked().len(), 11);
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), bytes);
}

#[test]
fn a_length_other_than_the_published_one_is_refused() {
    let (error, left) =
        refusal(|asked| Reply::file(asked, &shard_of(100, 0), ETAG).header("x-linked-size", 1300));
    assert!(error.contains("has 1224 bytes, expected 1300, as the hub says"), "{error}");
    assert!(left.is_empty(), "{left:?}");
    // A length above the bytes sent is a cut; see above. With a length below them the rest is not read.
    let (error, left) = refusal(|_| Reply::new(200, &shard_of(100, 0)).header("content-length", 1100));
    assert!(error.contains("promises 100 tokens") && left.is_empty(), "{error} {left:?}");
}

#[test]
fn a_file_of_unknown_length_is_refused_unless_its_digest_is_known() {
    let bytes = shard_of(100, 0);
    let digest = sha256(&bytes);
    let served = bytes.clone();
    let (error, _) = refusal(move |asked| Reply { no_length: true, ..Reply::file(asked, &served, ETAG) });
    assert!(error.contains("does not say how long the file is"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(move |asked| Reply {
        no_length: true,
        ..Reply::file(asked, &bytes, ETAG).header("x-linked-etag", &digest)
    });
    assert!(run(&request(&server, dir.path())).unwrap()[0].verified);
}

#[test]
fn a_stalled_and_a_dripping_line_are_given_up_and_go_on_later() {
    let stalled = |asked: &Asked| Reply {
        pause: Some((5000, Duration::from_secs(5))),
        ..Reply::file(asked, &shard_of(100_000, 0), ETAG)
    };
    let (error, left) = refusal(stalled);
    assert!(error.contains("stalled: 0 bytes in 0 s, at byte 15000"), "{error}");
    assert_eq!(left, PART);
    let dripping = |asked: &Asked| Reply {
        drip: Some((100, Duration::from_millis(50))),
        ..Reply::file(asked, &shard_of(100_000, 0), ETAG)
    };
    let (error, left) = refusal(dripping);
    assert!(error.contains("stalled: ") && !error.contains("stalled: 0 bytes"), "{error}");
    assert_eq!(left, PART);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Reply::new(404, b""));
    let endpoints = Endpoints::from_variables(|_| Some(url.clone())).unwrap();
    let error = run(&FetchRequest { endpoints, ..request(&server, dir.path()) }).unwrap_err().to_string();
    assert!(error.contains("cannot reach") && error.contains(&url) && error.contains("efused"), "{error}");
}

#[test]
fn redirects_in_a_circle_and_compressed_files_are_refused() {
    let (error, _) = refusal(|asked| Reply::redirect(&asked.path));
    assert!(error.contains("ten redirects"), "{error}");
    let (error, _) =
        refusal(|asked| Reply::file(asked, &shard_of(9, 0), ETAG).header("content-encoding", "gzip"));
    assert!(error.contains("encoding `gzip`"), "{error}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join(PART[0])).unwrap();
    let server = Server::start(|asked| Reply::file(asked, &shard_of(100, 0), ETAG));
    let error = run(&request(&server, dir.path())).unwrap_err().to_string();
    assert!(error.contains("no space left to write") && error.contains("needs 1224 more bytes"), "{error}");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn what_is_announced_as_larger_than_the_disk_is_refused_before_a_byte_is_written() {
    let (error, _) = refusal(|_| Reply::new(200, b"").header("content-length", 1_u64 << 61));
    assert!(error.contains("no space left to write") && error.contains("2305843009213693952"), "{error}");
}

#[test]
fn a_damaged_file_under_the_name_is_not_taken_for_a_good_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(NAME), &shard_of(100, 0)[..1100]).unwrap();
    let server = Server::start(|asked| Reply::file(asked, &shard_of(100, 0), ETAG));
    let error = run(&request(&server, dir.path())).unwrap_err().to_string();
    assert!(
        error.contains("is there already, but damaged") && error.contains("ends at byte 1100"),
        "{error}"
    );
    assert!(server.asked().is_empty());
}

#[test]
fn one_file_that_does_not_exist_ends_the_others_and_is_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|asked| match asked.path.contains("000003") {
        true => Reply::new(404, b""),
        false => Reply {
            pause: Some((2000, Duration::from_secs(3))),
            ..Reply::file(asked, &shard_of(1000, 0), ETAG)
        },
    });
    let files = DataSet::FineWebEdu100B.files(Some(3)).unwrap();
    let mut request = FetchRequest { files, parallel: 4, ..request(&server, dir.path()) };
    request.patience.stall = Duration::from_secs(10);
    let started = Instant::now();
    let error = run(&request).unwrap_err().to_string();
    assert!(error.contains("000003.bin` answered 404"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2), "the others were waited for");
}

#[test]
fn a_revision_that_would_change_the_address_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Reply::new(404, b""));
    for bad in ["", "../x", "a b", "a/b", "main?x"] {
        let error = run(&FetchRequest { revision: Some(bad.to_owned()), ..request(&server, dir.path()) })
            .unwrap_err();
        assert!(matches!(error, FetchError::Revision { .. }), "{bad}: {error}");
    }
    assert!(server.asked().is_empty());
}
