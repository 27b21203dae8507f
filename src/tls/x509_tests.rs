use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, KeyPair, date_time_ymd};

use super::*;

fn der(params: &CertificateParams) -> Vec<u8> {
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn subject(parts: &[(DnType, DnValue)]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in parts {
        params.distinguished_name.push(kind.clone(), value.clone());
    }
    parse(&der(&params)).unwrap().subject
}

fn text(value: &str) -> DnValue {
    DnValue::Utf8String(value.to_owned())
}

#[test]
fn subjects_are_written_as_rfc_4514_says() {
    assert_eq!(subject(&[]), "");
    let parts = [(DnType::CountryName, text("DE")), (DnType::OrganizationName, text("Ex")), (DnType::CommonName, text("me"))];
    assert_eq!(subject(&parts), "CN=me,O=Ex,C=DE");
    for (value, written) in [
        ("a,b+c\"d\\e<f>g;h", r#"a\,b\+c\"d\\e\<f\>g\;h"#),
        (" # ", "\\ #\\ "),
        ("#1 ", "\\#1\\ "),
        ("Jürgen=ok", "Jürgen=ok"),
        ("a\r\nb\0", "a\\0d\\0ab\\00"),
        (" ", "\\ "),
    ] {
        assert_eq!(subject(&[(DnType::CommonName, text(value))]), format!("CN={written}"), "{value:?}");
    }
}

#[test]
fn attribute_types_without_a_name_are_written_as_numbers() {
    let custom = DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 311, 20, 2]);
    assert_eq!(subject(&[(custom, text("x"))]), "1.3.6.1.4.1.311.20.2=#0c0178");
    let uid = DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 1]);
    assert_eq!(subject(&[(uid, text("u7"))]), "UID=u7");
    assert_eq!(oid(&[0x88, 0x37, 0x03]).as_deref(), Some("2.999.3"));
    assert_eq!(oid(&[0x2a, 0x80 | 1]), None, "a number that does not end");
    assert_eq!(oid(&[]), None);
}

#[test]
fn times_are_read_in_both_forms() {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(2100, 3, 1);
    let summary = parse(&der(&params)).unwrap();
    assert_eq!((summary.not_before, summary.not_after), (0, 4_107_542_400));
    let read = |tag, text: &str| time(Element { tag, value: text.as_bytes(), whole: b"" });
    assert_eq!(read(UTC_TIME, "491231235959Z"), Some(2_524_607_999));
    assert_eq!(read(UTC_TIME, "500101000000Z"), Some(-631_152_000));
    assert_eq!(read(GENERALIZED_TIME, "20000229120000Z"), Some(951_825_600));
    for wrong in ["", "Z", "4912312359Z", "491331235959Z", "491231245959Z", "4912312359590", "49123123595+Z", "491231235959+0100"] {
        assert_eq!(read(UTC_TIME, wrong), None, "{wrong}");
    }
}

#[test]
fn serial_numbers_are_hex_without_the_sign_byte() {
    for (bytes, text) in [(vec![0x7f], "7f"), (vec![0x80, 1], "8001"), (vec![0x0a], "0a")] {
        let mut params = CertificateParams::default();
        params.serial_number = Some(bytes.into());
        assert_eq!(parse(&der(&params)).unwrap().serial, text);
    }
    assert_eq!(serial(&[0]), "00");
}

#[test]
fn names_with_a_nul_or_a_line_break_are_no_names() {
    let mut names = Vec::new();
    for (tag, name) in
        [(0x82u8, "good.test"), (0x82, "good.test\0.evil.test"), (0x81, "a@b\r\nx"), (0x86, ""), (0x87, "\x7f\0\0\x01"), (0x86, "urn:x")]
    {
        names.extend([tag, u8::try_from(name.len()).unwrap()]);
        names.extend(name.bytes());
    }
    let content = [&[0x30, u8::try_from(names.len()).unwrap()], &names[..]].concat();
    let mut params = CertificateParams::default();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], content)];
    let summary = parse(&der(&params)).unwrap();
    assert_eq!((summary.dns_names, summary.emails, summary.uris), (vec!["good.test".to_owned()], vec![], vec!["urn:x".to_owned()]));
}

#[test]
fn lengths_that_lie_are_refused() {
    for bytes in [
        &[0x30u8][..],
        &[0x30, 0x80],
        &[0x30, 0x81, 0x05, 1, 2, 3, 4, 5],
        &[0x30, 0x82, 0x00, 0x80],
        &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        &[0x30, 0x89, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        &[0x1f, 0x81, 0x00, 0x00],
        &[0x30, 0x02, 0x00],
    ] {
        assert!(Der(bytes).next().is_none(), "{bytes:x?}");
    }
}

#[test]
fn every_prefix_of_a_certificate_is_refused() {
    let whole = der(&CertificateParams::new(vec!["a.test".to_owned()]).unwrap());
    assert!(parse(&whole).is_some());
    for end in 0..whole.len() {
        assert_eq!(parse(&whole[..end]), None, "{end}");
    }
}

proptest::proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn flipped_bytes_never_panic(
        flips in proptest::collection::vec((proptest::num::usize::ANY, proptest::num::u8::ANY), 1..6),
    ) {
        static WHOLE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| der(&CertificateParams::new(vec!["a.test".to_owned()]).unwrap()));
        let mut bytes = WHOLE.clone();
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = parse(&bytes);
    }
}
