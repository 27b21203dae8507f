//! A small reader of X.509 certificates: names, validity, subject, serial number.
//!
//! Only what the gateway shows or chooses by is read; whether a certificate is *valid* is decided by webpki alone.
//! Certificates come from clients, so every length is checked and nothing is indexed: bytes that do not fit give `None`.
//! Sources: X.690 (DER), RFC 5280 (certificates), RFC 4514 (subject as text).

use std::fmt::Write as _;

/// What a certificate says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Subject, as RFC 4514 writes it.
    pub subject: String,
    /// The last common name in the subject.
    pub common_name: Option<String>,
    /// URIs in the subject alternative name.
    pub uris: Vec<String>,
    /// DNS names in the subject alternative name, as written.
    pub dns_names: Vec<String>,
    /// E-mail addresses in the subject alternative name.
    pub emails: Vec<String>,
    /// Serial number, lower-case hex, without the sign byte.
    pub serial: String,
    /// First second it is valid, Unix time.
    pub not_before: i64,
    /// Last second it is valid, Unix time.
    pub not_after: i64,
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Attribute types with a registered short name (RFC 4514 section 3, and `emailAddress`).
const ATTRIBUTES: &[(&[u8], &str)] = &[
    (COMMON_NAME, "CN"),
    (&[0x55, 0x04, 0x07], "L"),
    (&[0x55, 0x04, 0x08], "ST"),
    (&[0x55, 0x04, 0x0a], "O"),
    (&[0x55, 0x04, 0x0b], "OU"),
    (&[0x55, 0x04, 0x06], "C"),
    (&[0x55, 0x04, 0x09], "STREET"),
    (&[0x55, 0x04, 0x05], "serialNumber"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19], "DC"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x01], "UID"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x01], "emailAddress"),
];

/// Reads a certificate; `None` if it is not one.
pub fn parse(der: &[u8]) -> Option<Summary> {
    let certificate = Der(der).take(SEQUENCE)?;
    let mut fields = Der(Der(certificate).take(SEQUENCE)?);
    fields.take_if(VERSION)?;
    let serial = serial(fields.take(INTEGER)?);
    fields.take(SEQUENCE)?; // signature algorithm
    fields.take(SEQUENCE)?; // issuer
    let mut validity = Der(fields.take(SEQUENCE)?);
    let not_before = time(validity.next()?)?;
    let not_after = time(validity.next()?)?;
    let (subject, common_name) = name(fields.take(SEQUENCE)?)?;
    fields.take(SEQUENCE)?; // public key
    let mut summary = Summary { subject, common_name, serial, not_before, not_after, ..Summary::default() };
    while let Some(field) = fields.next() {
        if field.tag == EXTENSIONS {
            extensions(Der(field.value).take(SEQUENCE)?, &mut summary)?;
        }
    }
    Some(summary)
}

/// One tag, length and value.
#[derive(Clone, Copy)]
struct Element<'a> {
    tag: u8,
    value: &'a [u8],
    /// Tag and length included.
    whole: &'a [u8],
}

/// What is left to read of a DER value.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element. Tags above 30 and lengths not in their shortest form do not occur in certificates.
    fn next(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        if tag & 0x1f == 0x1f {
            return None;
        }
        let length = if first < 0x80 {
            usize::from(first)
        } else {
            let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            if bytes.is_empty() || bytes.len() > 4 || bytes.first() == Some(&0) {
                return None;
            }
            let length = bytes.iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
            usize::try_from(length).ok().filter(|&length| length >= 0x80)?
        };
        let (value, after) = rest.split_at_checked(length)?;
        let whole = self.0.get(..self.0.len() - after.len())?;
        self.0 = after;
        Some(Element { tag, value, whole })
    }
    /// The value of the next element, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|element| element.tag == tag).map(|element| element.value)
    }
    /// The value of the next element if it has this tag, else nothing is read; `None` for bytes that are not DER.
    #[expect(clippy::option_option, reason = "absent and broken are different")]
    fn take_if(&mut self, tag: u8) -> Option<Option<&'a [u8]>> {
        if self.0.first() == Some(&tag) { self.take(tag).map(Some) } else { Some(None) }
    }
}

fn serial(bytes: &[u8]) -> String {
    hex(match bytes {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    })
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, the only forms RFC 5280 allows, as Unix time.
fn time(element: Element<'_>) -> Option<i64> {
    let (year_digits, century) = match element.tag {
        UTC_TIME => (2, true),
        GENERALIZED_TIME => (4, false),
        _ => return None,
    };
    let digits = element.value.strip_suffix(b"Z")?;
    if digits.len() != year_digits + 10 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (year, rest) = digits.split_at_checked(year_digits)?;
    let number = |bytes: &[u8]| bytes.iter().fold(0i64, |sum, byte| sum * 10 + i64::from(byte - b'0'));
    let mut year = number(year);
    if century {
        year += if year < 50 { 2000 } else { 1900 };
    }
    let mut parts = rest.chunks_exact(2).map(number);
    let (month, day) = (parts.next()?, parts.next()?);
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next()?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// Days since 1970-01-01 in the Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// A distinguished name as RFC 4514 text (last RDN first), and its last common name.
fn name(bytes: &[u8]) -> Option<(String, Option<String>)> {
    let mut rdns = Vec::new();
    let mut common_name = None;
    let mut sequence = Der(bytes);
    while !sequence.0.is_empty() {
        let mut set = Der(sequence.take(SET)?);
        let mut text = String::new();
        while !set.0.is_empty() {
            let mut pair = Der(set.take(SEQUENCE)?);
            let (kind, value) = (pair.take(OID)?, pair.next()?);
            if !text.is_empty() {
                text.push('+');
            }
            attribute(&mut text, kind, value)?;
            if kind == COMMON_NAME {
                common_name = string(value).or(common_name);
            }
        }
        rdns.push(text);
    }
    rdns.reverse();
    Some((rdns.join(","), common_name))
}

fn attribute(out: &mut String, kind: &[u8], value: Element<'_>) -> Option<()> {
    let short = ATTRIBUTES.iter().find(|(oid, _)| *oid == kind).map(|(_, short)| *short);
    match (short, string(value)) {
        (Some(short), Some(text)) => {
            out.push_str(short);
            out.push('=');
            escape(out, &text);
        }
        _ => {
            out.push_str(&oid(kind)?);
            out.push_str("=#");
            out.push_str(&hex(value.whole));
        }
    }
    Some(())
}

/// Characters special in RFC 4514, and control characters (so that the text can stand in a header and in a log line), are escaped.
fn escape(out: &mut String, text: &str) {
    let last = text.chars().count().saturating_sub(1);
    for (index, character) in text.chars().enumerate() {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', character]),
            ' ' if index == 0 || index == last => out.push_str("\\ "),
            '#' if index == 0 => out.push_str("\\#"),
            control if control.is_control() => {
                let mut bytes = [0; 4];
                for byte in control.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(out, "\\{byte:02x}");
                }
            }
            plain => out.push(plain),
        }
    }
}

/// An object identifier in dotted decimals.
fn oid(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut arc = 0u64;
    for byte in bytes {
        arc = arc.checked_mul(128)?.checked_add(u64::from(byte & 0x7f))?;
        if byte & 0x80 != 0 {
            continue;
        }
        if text.is_empty() {
            let top = (arc / 40).min(2);
            let _ = write!(text, "{top}.{}", arc - top * 40);
        } else {
            let _ = write!(text, ".{arc}");
        }
        arc = 0;
    }
    (bytes.last()? & 0x80 == 0).then_some(text)
}

/// The text of a string type; `None` for other types and broken text.
fn string(element: Element<'_>) -> Option<String> {
    let value = element.value;
    match element.tag {
        0x0c => std::str::from_utf8(value).ok().map(str::to_owned),
        0x12 | 0x13 | 0x16 | 0x1a => value.is_ascii().then(|| value.iter().map(|&byte| char::from(byte)).collect()),
        0x14 => Some(value.iter().map(|&byte| char::from(byte)).collect()), // T.61 is Latin-1 in practice
        0x1e if value.len().is_multiple_of(2) => {
            let units = value.chunks_exact(2).map(|pair| pair.iter().fold(0u16, |sum, &byte| sum << 8 | u16::from(byte)));
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        0x1c if value.len().is_multiple_of(4) => {
            value.chunks_exact(4).map(|unit| char::from_u32(unit.iter().fold(0u32, |sum, &byte| sum << 8 | u32::from(byte)))).collect()
        }
        _ => None,
    }
}

fn extensions(bytes: &[u8], summary: &mut Summary) -> Option<()> {
    let mut list = Der(bytes);
    while !list.0.is_empty() {
        let mut extension = Der(list.take(SEQUENCE)?);
        if extension.take(OID)? != SUBJECT_ALT_NAME {
            continue;
        }
        extension.take_if(0x01)?; // critical
        let names = Der(extension.take(OCTET_STRING)?).take(SEQUENCE)?;
        alternative_names(names, summary)?;
    }
    Some(())
}

/// A name with anything but printable ASCII is left out: `good.example\0.evil.example` must not be taken for a name by anybody.
fn alternative_names(bytes: &[u8], summary: &mut Summary) -> Option<()> {
    let mut names = Der(bytes);
    while !names.0.is_empty() {
        let name = names.next()?;
        let list = match name.tag {
            0x81 => &mut summary.emails,
            0x82 => &mut summary.dns_names,
            0x86 => &mut summary.uris,
            _ => continue,
        };
        if !name.value.is_empty() && name.value.iter().all(u8::is_ascii_graphic) {
            list.push(name.value.iter().map(|&byte| char::from(byte)).collect());
        }
    }
    Some(())
}

#[cfg(test)]
#[path = "x509_tests.rs"]
mod tests;
