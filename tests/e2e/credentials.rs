//! Credentials in number and in motion: floods of passwords, and keys that come and go in a watched file.

use std::future::poll_fn;
use std::pin::Pin;
use std::process::Command;
use std::task::Poll;
use std::time::Duration;

use ::h2::RecvStream;
use ::h2::client::ResponseFuture;
use http::Response;

use crate::support::client::request;
use crate::support::process::Process;
use crate::support::{Gateway, block_on, eventually, h2};
use crate::tokens::{basic, sha256};

/// Connections and streams of a flood: more distinct credentials than may wait (4096).
const CONNECTIONS: usize = 34;
const STREAMS: usize = 128;

fn staff(cost: u32) -> (tempfile::TempDir, &'static str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("users"), format!("ada:{}\n", bcrypt::hash("lovelace", cost).unwrap())).unwrap();
    let yaml = "
        server: { workers: 1, timeouts: { drain: 200ms } }
        authenticators: { staff: { basic: { users_file: users, realm: staff } } }
        routes: [{ match: /staff, auth: staff, respond: { status: 200 } }, { match: /open, respond: { status: 200 } }]
    ";
    (dir, yaml)
}

/// The first answer that is there, taken out.
async fn first_of(attempts: &mut Vec<ResponseFuture>) -> Response<RecvStream> {
    let (index, answer) = poll_fn(|context| {
        let ready = attempts.iter_mut().enumerate().find_map(|(index, attempt)| match Pin::new(attempt).poll(context) {
            Poll::Ready(answer) => Some((index, answer)),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await;
    drop(attempts.swap_remove(index));
    answer.unwrap()
}

#[test]
fn a_flood_of_passwords_stalls_nobody_and_has_a_bound() {
    let (dir, yaml) = staff(13);
    let gateway = Gateway::in_dir(dir, yaml, &[]);
    block_on(async {
        let mut clients = Vec::new();
        let mut attempts = Vec::new();
        for connection in 0..CONNECTIONS {
            let mut client = h2::Client::connect(gateway.address()).await;
            for stream in 0..STREAMS {
                let credential = basic(&format!("nobody-{connection}-{stream}"), "x");
                let attempt = client.start(h2::request("GET", "/staff", &[("authorization", &credential)]), b"").await.unwrap();
                attempts.push(attempt.0);
            }
            clients.push(client);
        }
        // Those that find the queue full are told so at once, while those before them wait for their turn.
        let refused = loop {
            let answer = first_of(&mut attempts).await;
            if answer.status() == 503 {
                break answer;
            }
        };
        assert_eq!(refused.headers()["retry-after"], "5");
        let reply = h2::whole(refused).await.unwrap();
        assert!(reply.text().contains("auth_unavailable"), "{}", reply.text());
        // Nobody else notices.
        let mut other = h2::Client::connect(gateway.address()).await;
        for _ in 0..20 {
            assert_eq!(other.get("/open").await.status, 200);
        }
        while let Ok(answer) = tokio::time::timeout(Duration::ZERO, first_of(&mut attempts)).await {
            assert!([401, 503].contains(&answer.status().as_u16()));
        }
        assert!(attempts.len() > 4_000, "the queue has not been worked off meanwhile: {}", attempts.len());
        // Who leaves is not worked for: then there is room for the one who knows the password.
        drop((attempts, clients));
        loop {
            let reply = other.ask(h2::request("GET", "/staff", &[("authorization", &basic("ada", "lovelace"))]), b"").await.unwrap();
            match reply.status {
                200 => break,
                status => assert_eq!(status, 503),
            }
        }
    });
}

#[test]
fn an_unknown_name_and_a_wrong_password_get_the_same_answer() {
    let (dir, yaml) = staff(4);
    let gateway = Gateway::in_dir(dir, yaml, &[]);
    let answer = |name: &str| {
        let fields = [("Authorization", &*basic(name, "wrong")), ("X-Request-Id", "same")];
        let answer = gateway.request("GET", "/staff", &fields, "");
        let headers: Vec<_> = answer.headers.into_iter().filter(|(name, _)| name != "date").collect();
        (answer.status, headers, answer.body)
    };
    let known = answer("ada");
    assert_eq!(known.0, 401);
    assert_eq!(known, answer("eve"));
}

/// `tollgate key new ID …`: the key, and the entry as it is to be pasted.
fn key_new(arguments: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate")).args(["key", "new"]).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let line = |start: &str| text.lines().map(str::trim).find(|line| line.starts_with(start)).unwrap().to_owned();
    (line("tg_"), line("- {"))
}

#[test]
fn keys_come_and_go_with_their_file_while_the_program_runs() {
    let (first, first_entry) = key_new(&["acme", "--scope", "orders:read", "--expires", "2999-12-31"]);
    let (second, second_entry) = key_new(&["globex"]);
    assert!(!first_entry.contains(&first) && first_entry.contains(&sha256(&first)));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.yaml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(&format!("{first_entry}\n"));
    let yaml = "
listeners: [{ address: '127.0.0.1:@LISTEN' }]
admin: { address: '127.0.0.1:@ADMIN' }
server: { workers: 1 }
log: { level: info, format: json, access: { output: access.log } }
authenticators: { partners: { api_key: { keys_file: keys.yaml } } }
routes:
  - { match: /any, auth: partners, respond: { status: 200 } }
  - { match: /orders, auth: { any: [partners], scopes: ['orders:read'] }, respond: { status: 200 } }
";
    let process = Process::start(dir, yaml, &[]);
    let ask = |path: &str, key: &str| process.ask(0, &request("GET", path, &[("X-Api-Key", key)], "")).status;
    let becomes = |key: &str, status: u16| eventually("the file is read", || (ask("/any", key) == status).then_some(()));
    assert_eq!((ask("/orders", &first), ask("/any", &second)), (200, 401));

    write(&format!("{first_entry}\n{second_entry}\n"));
    becomes(&second, 200);
    assert_eq!((ask("/any", &first), ask("/orders", &second)), (200, 403), "added, without the scope");

    write(&format!("{first_entry}\n- {{ id: x, sha256: nonsense }}\n"));
    eventually("the broken file is reported", || process.output().contains("keeps what it had").then_some(()));
    assert_eq!((ask("/any", &first), ask("/any", &second)), (200, 200), "a broken file changes nothing");

    write(&format!("{}\n{second_entry}\n", first_entry.replace("2999-12-31", "2020-01-01")));
    becomes(&first, 401);
    assert_eq!(ask("/any", &second), 200, "expired, the other not");

    write("[]\n");
    becomes(&second, 401);
}
