use std::io::Read as _;
use std::os::fd::OwnedFd;

use http::{HeaderValue, Method, Version};

use super::*;
use crate::http::exchange::Scheme;
use crate::http::text::Text;

const LONG: Duration = Duration::from_secs(30);

pub(super) fn entry() -> Entry {
    Entry {
        time: Duration::ZERO,
        request_id: Text::from(&HeaderValue::from_static("id-1")),
        client_ip: [203, 0, 113, 9].into(),
        peer: "[::1]:4711".parse().unwrap(),
        method: Method::GET,
        scheme: Scheme::Https,
        host: None,
        target: Text::from(&HeaderValue::from_static("/")),
        protocol: Version::HTTP_11,
        status: 200,
        reason: None,
        route: None,
        user: None,
        auth_error: None,
        rate_limit: None,
        upstream: None,
        endpoint: None,
        attempts: 0,
        duration: Duration::ZERO,
        upstream_time: None,
        bytes_in: 0,
        bytes_out: 0,
        complete: false,
        parts: None,
        grpc_status: None,
        tls: None,
        user_agent: None,
        referer: None,
        secret_query: None,
    }
}

fn numbered(number: usize) -> Entry {
    Entry { request_id: Text::from(&HeaderValue::from(number)), ..entry() }
}

fn options(path: &Path) -> Options {
    Options { format: Format::Json, output: Output::File(path.to_owned()), dropped: Arc::default() }
}

fn ids(text: &str) -> Vec<usize> {
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["request_id"].as_str().unwrap().parse().unwrap();
    text.lines().map(id).collect()
}

#[test]
fn lines_of_all_workers_arrive_in_each_workers_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let log = AccessLog::new(3, options(&path)).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let log = &log;
            // The fourth is no worker: its lines are not lost either.
            scope.spawn(move || (0..2000).for_each(|n| log.write(worker, &numbered(worker * 10_000 + n))));
        }
    });
    assert!(log.flush(LONG));
    let ids = ids(&std::fs::read_to_string(path).unwrap());
    assert_eq!(ids.len(), 8000);
    for worker in 0..4 {
        let own: Vec<_> = ids.iter().filter(|id| **id / 10_000 == worker).map(|id| id % 10_000).collect();
        assert!(own.into_iter().eq(0..2000));
    }
}

#[test]
fn a_single_line_arrives_without_a_flush() {
    let (mut reader, writer) = io::pipe().unwrap();
    let dropped = Arc::<AtomicU64>::default();
    let sink = Sink::new(OwnedFd::from(writer).into(), Arc::clone(&dropped));
    let log = AccessLog::start(1, Options { dropped, ..options(Path::new("")) }, sink).unwrap();
    for number in 0..3 {
        log.write(0, &numbered(number));
        let (mut text, mut byte) = (Vec::new(), [0]);
        while byte != *b"\n" {
            reader.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        assert_eq!(ids(std::str::from_utf8(&text).unwrap()), [number]);
    }
}

#[test]
fn a_blocked_output_never_blocks_a_request_and_lost_lines_are_counted() {
    let (mut reader, writer) = io::pipe().unwrap();
    let dropped = Arc::<AtomicU64>::default();
    let sink = Sink::new(OwnedFd::from(writer).into(), Arc::clone(&dropped));
    let log = AccessLog::start(1, Options { dropped: Arc::clone(&dropped), ..options(Path::new("")) }, sink).unwrap();
    // Nobody reads: this would hang if `write` waited.
    let mut written = 0;
    while dropped.load(Relaxed) < 1000 {
        log.write(0, &numbered(written));
        written += 1;
    }
    assert!(!log.flush(Duration::ZERO));
    drop(log);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let ids = ids(&text);
    assert_eq!(ids.len() as u64 + dropped.load(Relaxed), written as u64);
    assert!(ids.is_sorted());
    assert!(text.len() < 3 * queue::MAX_QUEUED, "{} bytes were kept", text.len());
}

#[test]
fn a_reader_that_left_costs_lines_only() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let dropped = Arc::<AtomicU64>::default();
    let sink = Sink::new(OwnedFd::from(writer).into(), Arc::clone(&dropped));
    let log = AccessLog::start(1, Options { dropped: Arc::clone(&dropped), ..options(Path::new("")) }, sink).unwrap();
    (0..3).for_each(|number| log.write(0, &numbered(number)));
    assert!(log.flush(LONG));
    assert_eq!(dropped.load(Relaxed), 3);
}

#[test]
fn a_full_disk_costs_lines_only() {
    let dropped = Arc::<AtomicU64>::default();
    let log = AccessLog::new(1, Options { dropped: Arc::clone(&dropped), ..options(Path::new("/dev/full")) }).unwrap();
    (0..1000).for_each(|number| log.write(0, &numbered(number)));
    assert!(log.flush(LONG));
    assert_eq!(dropped.load(Relaxed), 1000);
}

#[test]
fn a_renamed_file_is_left_after_reopen() {
    let directory = tempfile::tempdir().unwrap();
    let (path, rotated) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
    let log = AccessLog::new(1, options(&path)).unwrap();
    log.write(0, &numbered(1));
    assert!(log.flush(LONG));
    std::fs::rename(&path, &rotated).unwrap();
    log.write(0, &numbered(2));
    assert!(log.flush(LONG));
    log.reopen();
    assert!(log.flush(LONG));
    log.write(0, &numbered(3));
    assert!(log.flush(LONG));
    assert_eq!(ids(&std::fs::read_to_string(rotated).unwrap()), [1, 2]);
    assert_eq!(ids(&std::fs::read_to_string(path).unwrap()), [3]);
}

#[test]
fn a_file_that_cannot_be_reopened_is_written_on() {
    let directory = tempfile::tempdir().unwrap();
    let (path, moved) = (directory.path().join("logs/access.log"), directory.path().join("moved"));
    std::fs::create_dir(directory.path().join("logs")).unwrap();
    let log = AccessLog::new(1, options(&path)).unwrap();
    std::fs::rename(directory.path().join("logs"), &moved).unwrap();
    log.reopen();
    log.write(0, &numbered(1));
    assert!(log.flush(LONG));
    assert_eq!(ids(&std::fs::read_to_string(moved.join("access.log")).unwrap()), [1]);
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    assert!(AccessLog::new(1, options(&directory.path().join("none/access.log"))).is_err());
}

#[test]
fn a_disabled_log_does_nothing() {
    let log = AccessLog::disabled();
    assert!(!log.enabled());
    log.write(0, &entry());
    log.reopen();
    assert!(log.flush(Duration::ZERO));
}

#[test]
fn options_come_from_the_config() {
    let mut log = Log { format: LogFormat::Json, ..Log::default() };
    let compile = |log: &Log| Options::compile(log, Path::new("/etc/tollgate"), Arc::default());
    assert_eq!(compile(&log).unwrap().output, Output::Stdout);
    log.access.output = "logs/access.log".to_owned();
    log.format = LogFormat::Auto;
    let options = compile(&log).unwrap();
    assert_eq!((&options.output, options.format), (&Output::File("/etc/tollgate/logs/access.log".into()), Format::Json));
    log.format = LogFormat::Text;
    assert!(!options.same(&compile(&log).unwrap()));
    log.access.enabled = false;
    assert!(compile(&log).is_none());
}
