//! `ip`: who may call, by address.

use crate::support::Gateway;

#[test]
fn deny_wins_and_allow_excludes_the_rest() {
    let yaml = "
        server: { workers: 1, trusted_proxies: [127.0.0.1] }
        defaults: { ip: { deny: [6.6.6.6] } }
        routes:
          - { match: /inherited, respond: { status: 200 } }
          - { match: /off, ip: off, respond: { status: 200 } }
          - { match: /own, ip: { allow: [10.0.0.0/8, '2001:db8::/32'], deny: [10.6.0.0/16] }, respond: { status: 200 } }
    ";
    let gateway = Gateway::new(yaml, &[]);
    let from = |address: &str, path: &str| gateway.request("GET", path, &[("X-Forwarded-For", address)], "");
    from("6.6.6.6", "/inherited").refused(403, "ip_denied");
    from("::ffff:6.6.6.6", "/inherited").refused(403, "ip_denied");
    assert_eq!(from("6.6.6.7", "/inherited").status, 200);
    assert_eq!(from("6.6.6.6", "/off").status, 200);
    for (address, allowed) in
        [("10.1.2.3", true), ("10.6.1.1", false), ("11.0.0.1", false), ("2001:db8::1", true), ("2001:db9::1", false), ("6.6.6.6", false)]
    {
        let answer = from(address, "/own");
        assert_eq!(answer.status == 200, allowed, "{address}: {answer:?}");
    }
}

#[test]
fn a_denied_address_learns_nothing_not_even_the_cors_rules() {
    let yaml = "
        routes:
          - { match: /*, ip: { deny: [127.0.0.1] }, cors: { origins: ['https://a.example'] }, respond: { status: 200 } }
    ";
    let gateway = Gateway::new(yaml, &[]);
    let preflight = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "GET")];
    gateway.request("OPTIONS", "/", &preflight, "").refused(403, "ip_denied");
}

#[test]
fn a_header_of_an_untrusted_peer_does_not_get_around_a_rule() {
    let gateway = Gateway::new("routes: [{ match: /*, ip: { allow: [10.0.0.0/8] }, respond: { status: 200 } }]", &[]);
    for header in ["X-Forwarded-For", "X-Real-IP", "Forwarded", "X_Forwarded_For", "True-Client-IP"] {
        gateway.request("GET", "/", &[(header, "10.0.0.1")], "").refused(403, "ip_denied");
    }
}
