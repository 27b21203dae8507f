use std::sync::Arc;

use http::HeaderValue;
use http::uri::PathAndQuery;
use serde_json::{Value, json};

use super::*;
use crate::error::Reason;
use crate::telemetry::access_log::tests::entry;

fn label(name: &str) -> Option<Text> {
    Some(Text::from(&Arc::from(name)))
}

fn value(bytes: &[u8]) -> Option<Text> {
    Some(Text::from(&HeaderValue::from_bytes(bytes).unwrap()))
}

fn target(bytes: &[u8]) -> Text {
    Text::from(&PathAndQuery::try_from(bytes).unwrap())
}

fn line(entry: &Entry, format: Format) -> String {
    let mut out = Vec::new();
    write(entry, format, &mut Stamp::default(), &mut out);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    assert!(text.ends_with('\n'));
    text
}

fn full() -> Entry {
    Entry {
        time: Duration::from_millis(1_763_690_700_123),
        host: value(b"api.example.com"),
        target: target(b"/a%20b?x=1&Key=s3cret&key=&k%65y=s3cret&other"),
        protocol: Version::HTTP_2,
        status: 502,
        reason: Some(Reason::AggregateFailed),
        route: label("GET /a"),
        user: label("ann"),
        auth_error: Some("expired"),
        rate_limit: Some("user".into()),
        upstream: label("users"),
        endpoint: label("http://127.0.0.1:8081"),
        attempts: 2,
        duration: Duration::from_nanos(12_345_999),
        upstream_time: Some(Duration::from_micros(1_001)),
        bytes_in: 0,
        bytes_out: u64::MAX,
        parts: Some(HeaderValue::from_static("user=200, ads=timeout")),
        grpc_status: Some(14),
        tls: Some("TLSv1.3"),
        user_agent: value(b"curl/8.5.0"),
        referer: value(b"https://x/?key=s3cret&a=1"),
        secret_query: Some(Arc::from(["key".to_owned()])),
        ..entry()
    }
}

#[test]
fn json_has_every_field_of_the_contract() {
    let text = line(&full(), Format::Json);
    let expected = concat!(
        r#"{"time":"2025-11-21T02:05:00.123Z","request_id":"id-1","client_ip":"203.0.113.9","peer":"[::1]:4711","method":"GET","#,
        r#""scheme":"https","host":"api.example.com","path":"/a%20b","query":"x=1&Key=***&key=***&k%65y=***&other","#,
        r#""protocol":"HTTP/2","status":502,"reason":"aggregate_failed","route":"GET /a","user":"ann","auth_error":"expired","#,
        r#""rate_limit":"user","upstream":"users","endpoint":"http://127.0.0.1:8081","attempts":2,"duration_ms":12.345,"#,
        r#""upstream_ms":1.001,"bytes_in":0,"bytes_out":18446744073709551615,"complete":false,"parts":"user=200, ads=timeout","#,
        r#""grpc_status":14,"tls":"TLSv1.3","user_agent":"curl/8.5.0","referer":"https://x/?key=***&a=1"}"#,
        "\n"
    );
    assert_eq!(text, expected);
    serde_json::from_str::<Value>(&text).unwrap();
}

#[test]
fn text_has_the_same_fields_after_time_method_path_and_status() {
    assert_eq!(
        line(&full(), Format::Text),
        concat!(
            r#"2025-11-21T02:05:00.123Z GET /a%20b 502 request_id=id-1 client_ip=203.0.113.9 peer=[::1]:4711 scheme=https "#,
            r#"host=api.example.com query="x=1&Key=***&key=***&k%65y=***&other" protocol=HTTP/2 reason=aggregate_failed route="GET /a" "#,
            r#"user=ann auth_error=expired rate_limit=user upstream=users endpoint=http://127.0.0.1:8081 attempts=2 duration_ms=12.345 "#,
            r#"upstream_ms=1.001 bytes_in=0 bytes_out=18446744073709551615 complete=false parts="user=200, ads=timeout" grpc_status=14 "#,
            r#"tls=TLSv1.3 user_agent=curl/8.5.0 referer="https://x/?key=***&a=1""#,
            "\n"
        )
    );
}

#[test]
fn absent_values_are_left_out() {
    let value: Value = serde_json::from_str(&line(&entry(), Format::Json)).unwrap();
    let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [
        "time",
        "request_id",
        "client_ip",
        "peer",
        "method",
        "scheme",
        "path",
        "protocol",
        "status",
        "attempts",
        "duration_ms",
        "bytes_in",
        "bytes_out",
        "complete",
    ];
    expected.sort_unstable();
    let mut keys = keys;
    keys.sort_unstable();
    assert_eq!(keys, expected);
}

#[test]
fn hostile_values_stay_one_line_and_decode_to_what_was_sent() {
    let hostile = "x\u{1b}[2Ja\" \\\u{2028}\u{202e}=ü";
    let entry = Entry {
        user: label(&format!("{hostile}\r\n")),
        user_agent: value(hostile.replace('\u{1b}', "\t").as_bytes()),
        host: value(b"a\xff\tb"),
        target: target("/\u{2028}\"?q={\u{9b}".as_bytes()),
        ..entry()
    };
    let value: Value = serde_json::from_str(&line(&entry, Format::Json)).unwrap();
    assert_eq!(value["user"], json!(format!("{hostile}\r\n")));
    assert_eq!(value["user_agent"], json!(hostile.replace('\u{1b}', "\t")));
    assert_eq!(value["host"], json!("a\\xff\tb"));
    assert_eq!(value["path"], json!("/\u{2028}\""));
    assert_eq!(value["query"], json!("q={\u{9b}"));
    let text = line(&entry, Format::Text);
    assert!(!text.trim_end().contains(|c: char| c.is_control() || c == '\u{2028}' || c == '\u{202e}'), "{text}");
    assert!(text.contains(r#"user="x\u001b[2Ja\" \\\u2028\u202e=ü\r\n""#), "{text}");
}

#[test]
fn only_the_named_parameters_are_hidden() {
    let hidden = |query: &str, secrets: &[&str]| {
        let secrets: Vec<String> = secrets.iter().map(|s| (*s).to_owned()).collect();
        let mut out = Vec::new();
        scrub(query.as_bytes(), &secrets, |piece| out.extend_from_slice(piece));
        String::from_utf8(out).unwrap()
    };
    assert_eq!(hidden("key=1&a=2", &[]), "key=1&a=2");
    assert_eq!(hidden("key=1&akey=2&keya=3&key", &["key"]), "key=***&akey=2&keya=3&key");
    assert_eq!(hidden("a+b=1&a%20b=2&a%2=3&&=4", &["a b", "%"]), "a+b=***&a%20b=***&a%2=3&&=4");
    assert_eq!(hidden("key=a=b", &["key"]), "key=***");
    assert_eq!(hidden("x=1#f&%6b%65%79=2", &["key", "token"]), "x=1#f&%6b%65%79=***");
}

#[test]
fn addresses_are_written_as_the_standard_library_does() {
    for text in ["127.0.0.1:80", "255.10.0.9:65535", "[::1]:1", "[2001:db8::ff00:42:8329]:443", "[::ffff:1.2.3.4]:5"] {
        let (address, mut out): (SocketAddr, _) = (text.parse().unwrap(), Vec::new());
        socket(address, None, &mut out);
        assert_eq!(out, text.as_bytes());
        out.clear();
        ip(address.ip(), &mut out);
        let known = 0..out.len();
        socket(address, Some(known.clone()), &mut out);
        assert_eq!(out.split_off(known.end), text.as_bytes());
    }
}
