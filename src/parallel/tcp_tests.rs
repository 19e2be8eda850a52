//! Ranks over loopback, each a thread with connections of its own.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::super::exchange::{all_gather, barrier};
use super::super::handshake::KeySource;
use super::super::rendezvous::{Meeting, RendezvousError, meet};
use super::super::wire::{Greeting, Purpose};
use super::*;

const SOON: Duration = Duration::from_secs(20);

fn place(rank: usize, size: usize, run: &str, meeting: Meeting) -> RankPlace {
    let key = KeySource::Given("a key of the run".into());
    RankPlace { rank, size, local_rank: rank, local_size: size, run: run.into(), meeting, key }
}

fn never() -> LastResort {
    Box::new(|error| panic!("no rank of this test is stuck: {error}"))
}

/// Joins `size` ranks that meet in a folder and lets each do `work` on a thread of its own.
fn run<R: Send>(size: usize, folder: &Path, timeout: Duration, work: impl Fn(Tcp) -> R + Sync) -> Vec<R> {
    let work = &work;
    thread::scope(|scope| {
        let start = |rank: usize| {
            let place = place(rank, size, "a run", Meeting::Folder(folder.into()));
            let connections = meet(&place, "job", SOON).expect("the ranks meet");
            Tcp::start(&place, connections, timeout, never()).expect("threads")
        };
        let ranks: Vec<_> = (0..size).map(|rank| scope.spawn(move || work(start(rank)))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("the rank does not panic")).collect()
    })
}

#[test]
fn ranks_meet_in_a_folder_and_gather_and_the_notice_is_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    for size in [1, 2, 4, 8] {
        let all = run(size, folder.path(), SOON, |mut link| {
            let mine = vec![link.rank() as u8; 100_000 + link.rank()];
            let all = all_gather(&mut link, "test", mine).expect("a gather");
            link.finish();
            all.iter().map(Vec::len).collect::<Vec<_>>()
        });
        let expected: Vec<usize> = (0..size).map(|rank| 100_000 + rank).collect();
        assert!(all.iter().all(|lens| *lens == expected), "{size} ranks: {all:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[test]
fn swaps_larger_than_any_buffer_do_not_block_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let lens = run(2, folder.path(), SOON, |mut link| {
        let peer = link.rank() ^ 1;
        let len = link.swap(peer, "test", vec![7; 64 << 20]).expect("a swap").len();
        link.finish();
        len
    });
    assert_eq!(lens, [64 << 20, 64 << 20]);
}

#[test]
fn a_rank_that_ends_early_is_named_by_all_also_by_those_it_never_talks_to() {
    let folder = tempfile::tempdir().expect("a folder");
    // A rank may leave a barrier while others are still in it; here no rank ends before all have left.
    let left = std::sync::Barrier::new(8);
    let errors = run(8, folder.path(), SOON, |mut link| {
        barrier(&mut link, "the first").expect("all are here");
        left.wait();
        link.mark(3);
        if link.rank() == 5 {
            return None;
        }
        Some(barrier(&mut link, "the second").expect_err("one is gone"))
    });
    for (rank, error) in errors.iter().enumerate().filter(|(rank, _)| *rank != 5) {
        let text = error.as_ref().expect("an error").to_string();
        assert!(
            text.contains("rank 5 on ") && text.contains("stopped on an error of its own"),
            "rank {rank}: {text}"
        );
    }
}

#[test]
fn a_reason_given_by_one_rank_reaches_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let errors = run(4, folder.path(), SOON, |mut link| {
        if link.rank() == 2 {
            link.fail("the disk is full");
        }
        barrier(&mut link, "a barrier").expect_err("one has failed").to_string()
    });
    assert!(
        errors.iter().all(|text| text.contains("rank 2 on ") && text.contains("the disk is full")),
        "{errors:?}"
    );
}

#[test]
fn a_rank_that_comes_no_further_is_named_and_not_those_who_wait_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let timeout = Duration::from_millis(800);
    let began = Instant::now();
    let errors = run(4, folder.path(), timeout, |mut link| {
        link.mark(9);
        if link.rank() == 3 {
            // Alive, but busy with something without end.
            while lock(&link.shared.failure).is_none() && began.elapsed() < SOON {
                thread::sleep(LOOK);
            }
        }
        barrier(&mut link, "a barrier").expect_err("one hangs").to_string()
    });
    assert!(
        errors.iter().all(|text| text.contains("rank 3 on ") && text.contains("no further")),
        "{errors:?}"
    );
}

/// What ranks report of the first failure while each is in a call that never returns, as a device call that
/// waits for other ranks would be. Each does `first` before.
fn stuck(size: usize, timeout: Duration, first: impl Fn(&Tcp) + Sync) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let began = Instant::now();
    run(size, folder.path(), timeout, |mut link| {
        link.mark(9);
        first(&link);
        while lock(&link.shared.failure).is_none() && began.elapsed() < SOON {
            thread::sleep(LOOK);
        }
        let failure = lock(&link.shared.failure).clone();
        link.finish();
        failure.map_or("nobody failed".into(), |failure| failure.error().to_string())
    })
}

#[test]
fn a_rank_that_falls_silent_is_named_also_when_its_peers_wait_in_a_call_of_the_device() {
    let texts = stuck(4, Duration::from_millis(800), |link| {
        // The heartbeat thread ends; the connections stay.
        link.shared.closing.store(link.rank() == 3, Ordering::SeqCst);
    });
    // Rank 0 has no connection to rank 3; the failure is reported to it, and to rank 3 too.
    assert!(
        texts.iter().all(|text| text.contains("rank 3 on ") && text.contains("no sign of life")),
        "{texts:?}"
    );
}

/// Of one that fell silent and was cut off by this rank, its silence is told, not that it lives.
#[test]
fn the_end_of_a_connection_is_no_sign_of_life() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let clock = Clock::new(SOON);
    let last = Mutex::new(Sign {
        operation: "test".into(),
        step: 0,
        seen: Duration::ZERO,
        waiting: None,
        progress: 0,
        since: Duration::ZERO,
        ended: false,
    });
    let stream = listener.accept().expect("a peer").0;
    let mut noted = Noted { stream, last: &last, clock: &clock };
    peer.write_all(&[7]).expect("connected");
    assert_eq!(noted.read(&mut [0; 8]).expect("a byte"), 1);
    let seen = lock(&last).seen;
    assert!(seen > Duration::ZERO);
    drop(peer);
    assert_eq!(noted.read(&mut [0; 8]).expect("the end"), 0);
    assert_eq!(lock(&last).seen, seen);
}

#[test]
fn ranks_that_are_all_stuck_in_calls_of_their_devices_end() {
    let texts = stuck(2, Duration::from_millis(400), |_| {});
    assert!(
        texts.iter().all(|text| text.contains("come no further") && text.contains("step 9")),
        "{texts:?}"
    );
}

#[test]
fn a_stale_notice_is_passed_over_and_an_alien_or_another_run_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    // A port on which no process listens any more.
    let dead = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let stale = format!("a run\n{}\n{dead}\n", super::super::rendezvous::host_name());
    std::fs::write(folder.path().join("a_run.rank0"), &stale).expect("a file");
    let soon = Duration::from_millis(400);
    let late = meet(&place(1, 2, "a run", Meeting::Folder(folder.path().into())), "job", soon)
        .expect_err("nobody is there");
    let text = late.to_string();
    assert!(
        text.contains("did not find rank 0 of run `a run`") && text.contains(&dead.to_string()),
        "{text}"
    );
    // With a rank 0 the stale notice is replaced, and the ranks meet.
    run(2, folder.path(), SOON, |mut link| {
        barrier(&mut link, "a barrier").expect("both are here");
        link.finish();
    });

    let alien = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = alien.local_addr().expect("an address").to_string();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let (mut stream, _) = alien.accept().expect("a caller");
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        });
        let error = meet(&place(1, 2, "a run", Meeting::Tcp(at)), "job", soon).expect_err("an alien");
        over.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(alien.local_addr().expect("an address"));
        assert!(error.to_string().contains("not this program"), "{error}");
    });

    // Rank 0 of one run; callers of another run, size, job and number.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").to_string();
    let at = || Meeting::Tcp(free.clone());
    thread::scope(|scope| {
        let zero = scope.spawn(|| meet(&place(0, 2, "a run", at()), "job", SOON).map(|_| ()));
        for (rank, size, run, job, says) in [
            (1, 2, "an older run", "job", "this is run `a run`, not `an older run`"),
            (1, 4, "a run", "job", "this run has 2 ranks, not 4"),
            (1, 2, "a run", "another", "another experiment"),
            (3, 2, "a run", "job", "no place for a rank 3 of 2"),
        ] {
            let error = meet(&place(rank, size, run, at()), job, SOON).expect_err("refused");
            assert!(
                matches!(error, RendezvousError::Refused { .. }) && error.to_string().contains(says),
                "{error}"
            );
        }
        meet(&place(1, 2, "a run", at()), "job", SOON).expect("the right one is taken");
        zero.join().expect("no panic").expect("the ranks met");
    });
}

/// What a stranger gets who sends `bytes` to `at` and then waits.
fn knock(at: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = loop {
        match TcpStream::connect(at) {
            Ok(stream) => break stream,
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut got = Vec::new();
    // The other end may hang up while this one still writes.
    let _ = stream.write_all(bytes).and_then(|()| stream.read_to_end(&mut got));
    got
}

#[test]
fn a_stranger_who_connects_learns_nothing_changes_nothing_and_keeps_nobody_waiting() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").to_string();
    let at = free.as_str();
    let greeting = Greeting {
        purpose: Purpose::Register,
        run: "a run".into(),
        job: "job".into(),
        rank: 1,
        size: 2,
        host: "a stranger".into(),
        port: 9,
    };
    let mut claim = Vec::new();
    greeting.write(&mut claim).expect("memory takes it");
    let mut number = b"runner/ranks/v3\n".to_vec();
    number.extend_from_slice(&[7; 32]);
    // Silent; another program; a rank of before there were keys; one that guesses a code; one that has heard
    // the beginning and stops.
    let guess = [number.as_slice(), &[9; 32], &claim].concat();
    let strangers: [&[u8]; 5] = [b"", b"GET / HTTP/1.1\r\n\r\n", &claim, &guess, &number];
    let began = Instant::now();
    thread::scope(|scope| {
        let come = |rank| meet(&place(rank, 2, "a run", Meeting::Tcp(at.into())), "job", SOON);
        let zero = scope.spawn(move || come(0).expect("the ranks meet"));
        let heard: Vec<_> = strangers.map(|bytes| scope.spawn(move || knock(at, bytes))).into();
        // All of them are there before the rank is.
        thread::sleep(Duration::from_millis(100));
        let one = come(1).expect("its place is free");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(4), "nobody waits for a silent one: {took:?}");
        assert_eq!(zero.join().expect("no panic").hosts, one.hosts);
        assert!(!one.hosts.iter().any(|host| host == "a stranger"), "{:?}", one.hosts);
        for (got, sent) in heard.into_iter().zip(strangers) {
            let got = got.join().expect("no panic");
            assert!(got.is_empty() || got.len() == 48 && got.starts_with(b"runner/ranks/v3\n"), "{sent:?}");
        }
    });
    // Of another run, with a key of its own.
    thread::scope(|scope| {
        let (short, longer) = (Duration::from_millis(500), Duration::from_secs(3));
        let zero = scope.spawn(move || meet(&place(0, 2, "a run", Meeting::Tcp(at.into())), "job", longer));
        let mut other = place(1, 2, "a run", Meeting::Tcp(at.into()));
        other.key = KeySource::Given("a key of another run".into());
        let error = meet(&other, "job", short).expect_err("no rank of this run").to_string();
        assert!(error.contains("has another key"), "{error}");
        assert!(zero.join().expect("no panic").expect_err("alone").to_string().contains("did not register"));
    });
}

/// More of them than are asked at a time, and none is ever silent for long.
#[test]
fn strangers_who_send_a_byte_now_and_then_are_hung_up_on_and_keep_no_rank_out() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").to_string();
    let at = free.as_str();
    let bytes = [b"runner/ranks/v3\n".as_slice(), &[7; 64]].concat();
    let come = |rank, most| meet(&place(rank, 2, "a run", Meeting::Tcp(at.into())), "job", most);
    // Rank 0 waits in vain, and for longer than a greeting may take.
    thread::scope(|scope| {
        let zero = scope.spawn(move || come(0, Duration::from_secs(9)).expect_err("alone"));
        let mut stream = loop {
            match TcpStream::connect(at) {
                Ok(stream) => break stream,
                Err(_) => thread::sleep(Duration::from_millis(2)),
            }
        };
        let began = Instant::now();
        let mut sent = bytes.iter();
        // Who hangs up answers the next byte with a reset.
        while sent.next().is_some_and(|byte| stream.write_all(&[*byte]).is_ok()) {
            thread::sleep(Duration::from_millis(200));
        }
        let took = began.elapsed();
        assert!(took > Duration::from_secs(4) && took < Duration::from_secs(8), "hung up after {took:?}");
        zero.join().expect("no panic");
    });
    thread::scope(|scope| {
        let zero = scope.spawn(move || come(0, SOON).expect("the ranks meet"));
        while TcpStream::connect(at).is_err() {
            thread::sleep(Duration::from_millis(2));
        }
        let strangers: Vec<_> = (0..300).map(|_| TcpStream::connect(at).expect("it listens")).collect();
        assert_eq!(come(1, SOON).expect("its place is free").hosts, zero.join().expect("no panic").hosts);
        drop(strangers);
    });
}

#[test]
fn ranks_that_never_come_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let soon = Duration::from_millis(100);
    let error =
        meet(&place(0, 4, "a run", Meeting::Folder(folder.path().into())), "job", soon).expect_err("alone");
    assert!(
        error.to_string().contains("of 4 ranks of run `a run` ranks 1, 2, 3 did not register"),
        "{error}"
    );
}

#[test]
fn who_has_come_learns_who_has_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let soon = Duration::from_millis(500);
    let come = |rank| meet(&place(rank, 4, "a run", Meeting::Folder(folder.path().into())), "job", soon);
    let (zero, two) = thread::scope(|scope| {
        let two = scope.spawn(|| come(2).expect_err("alone"));
        (come(0).expect_err("alone"), two.join().expect("no panic"))
    });
    for error in [zero, two] {
        assert!(
            error.to_string().contains("of 4 ranks of run `a run` ranks 1, 3 did not register"),
            "{error}"
        );
    }
}
