//! JSON as text: values are found and cut out, never rebuilt, so numbers keep their digits and strings their escapes.

/// Longest scalar that is looked at: `\u0000` is the longest way to write a character, and no path has more than 65535.
const LONGEST: usize = 6 * 65_536;

/// The text of a scalar: a string without its quotes, a number as it is written, `true`, `false`. `None` for null, arrays and objects, and
/// for what is too long for any path.
pub(super) fn scalar(value: &[u8]) -> Option<String> {
    match value.first()? {
        _ if value.len() > LONGEST => None,
        b'"' => serde_json::from_slice(value).ok(),
        b'{' | b'[' | b'n' => None,
        _ => std::str::from_utf8(value).ok().map(str::to_owned),
    }
}

/// What a string with escapes says; `quoted` has its quotes. In bytes, because half a surrogate pair is legal JSON and no UTF-8.
pub(super) fn unescaped(quoted: &[u8]) -> Option<Vec<u8>> {
    struct Text;
    impl serde::de::Visitor<'_> for Text {
        type Value = Vec<u8>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string")
        }
        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            Ok(bytes.to_vec())
        }
    }
    let mut parser = serde_json::Deserializer::from_slice(quoted);
    serde::Deserializer::deserialize_bytes(&mut parser, Text).ok()
}

/// `text` as a JSON string.
pub(super) fn quoted(text: &str) -> Vec<u8> {
    serde_json::Value::from(text).to_string().into_bytes()
}

/// An array index: decimal digits.
pub(super) fn index(step: &str) -> Option<usize> {
    step.bytes().all(|b| b.is_ascii_digit()).then(|| step.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_text_and_nothing_else_is() {
        let cases = [("\"a\\n\\u00e9\"", "a\né"), ("1.50", "1.50"), ("true", "true"), ("false", "false")];
        for (value, text) in cases {
            assert_eq!(scalar(value.as_bytes()).as_deref(), Some(text));
        }
        for value in ["null", "{}", "[1]", "\"\\ud800\"", ""] {
            assert_eq!(scalar(value.as_bytes()), None, "{value}");
        }
        let digits = |count| "1".repeat(count).into_bytes();
        assert_eq!((scalar(&digits(LONGEST)).is_some(), scalar(&digits(LONGEST + 1))), (true, None));
    }

    #[test]
    fn strings_are_read_and_written() {
        assert_eq!(quoted("a\"é\n"), b"\"a\\\"\xc3\xa9\\n\"");
        assert_eq!(unescaped(br#""a\"\u00e9\n""#).as_deref(), Some("a\"é\n".as_bytes()));
        assert!(unescaped(br#""\ud800""#).is_some_and(|half| half.len() == 3));
    }

    #[test]
    fn only_decimal_digits_are_an_index() {
        assert_eq!(index("10"), Some(10));
        for wrong in ["-1", "+1", "x", "1x", "18446744073709551616"] {
            assert_eq!(index(wrong), None, "{wrong}");
        }
    }
}
