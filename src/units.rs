//! Values as users write them: durations, sizes, rates, percentages, status ranges, selectors.
//!
//! Every type parses from the text that users write (`docs/configuration.md`) with [`std::str::FromStr`],
//! prints back in the same form, and says in its error what would have been right.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Implements `Deserialize` from a string, `Serialize` to a string and `JsonSchema` for a type with `FromStr` and `Display`.
macro_rules! text_form {
    ($type:ty, $name:literal, $pattern:literal, $about:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($about)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                // A status is a number by itself, a duration is none without its unit.
                let number = "204".parse::<$type>().is_ok();
                let types: &[&str] = if number { &["string", "integer"] } else { &["string"] };
                // What a variable will be is not known.
                let pattern = format!("{}|\\$\\{{", $pattern);
                schemars::json_schema!({ "type": types, "pattern": pattern, "description": $about })
            }
        }
    };
}

mod decimal;
mod selector;

pub use decimal::push_decimal;
pub use selector::Selector;

/// A span of time such as `500ms`, `5s`, `2m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

impl Duration {
    /// A duration of whole milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(std::time::Duration::from_millis(ms))
    }
    /// A duration of whole seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(std::time::Duration::from_secs(s))
    }
    /// The standard library's form.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a duration: write a whole number with ms, s, m or h, like 500ms or 5s");
        let (number, unit) = split_number(text).ok_or_else(wrong)?;
        let ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        // A century is beyond every use and keeps `Instant + Duration` from overflowing.
        let total = number
            .checked_mul(ms)
            .filter(|ms| *ms <= 100 * 366 * 24 * 3_600_000)
            .ok_or_else(|| format!("`{text}` is longer than a century"))?;
        Ok(Self::from_millis(total))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            0 => f.write_str("0s"),
            _ if ms.is_multiple_of(3_600_000) => write!(f, "{}h", ms / 3_600_000),
            _ if ms.is_multiple_of(60_000) => write!(f, "{}m", ms / 60_000),
            _ if ms.is_multiple_of(1_000) => write!(f, "{}s", ms / 1_000),
            _ => write!(f, "{ms}ms"),
        }
    }
}
text_form!(Duration, "Duration", r"^[0-9]+(ms|s|m|h)$", "a duration such as 500ms, 5s, 2m or 1h");

/// A number of bytes such as `512B`, `64KiB`, `10MiB`, `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size: write a whole number with B, KiB, MiB or GiB, like 64KiB or 10MiB");
        let (number, unit) = split_number(text).ok_or_else(wrong)?;
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(1 << shift).filter(|bytes| *bytes < 1 << 62).map(Self).ok_or_else(|| format!("`{text}` is too large"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n != 0 && n % (1 << 30) == 0 => write!(f, "{}GiB", n >> 30),
            n if n != 0 && n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n != 0 && n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}B"),
        }
    }
}
text_form!(Size, "Size", r"^[0-9]+(B|KiB|MiB|GiB)$", "a size such as 512B, 64KiB, 10MiB or 1GiB");

/// A number of events per time such as `100/s`, `1000/m`, `5000/h`, `10000/d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Events per [`Rate::per`]; never 0.
    pub count: u64,
    /// The unit of time: a second, minute, hour or day.
    pub per: std::time::Duration,
}

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a rate: write a whole number per s, m, h or d, like 100/s or 5000/h");
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let count: u64 = whole_number(count).ok_or_else(wrong)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        if count == 0 {
            return Err(format!("a rate of 0 (`{text}`) would refuse every request: write at least 1"));
        }
        if count > 1_000_000_000 {
            return Err(format!("`{text}` is more than 1000000000, which no gateway serves: leave the limit out"));
        }
        Ok(Self { count, per: std::time::Duration::from_secs(seconds) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "m",
            3_600 => "h",
            _ => "d",
        };
        write!(f, "{}/{unit}", self.count)
    }
}
text_form!(Rate, "Rate", r"^[0-9]+/(s|m|h|d)$", "a rate such as 100/s, 1000/m, 5000/h or 10000/d");

/// A data rate such as `1KiB/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRate(pub u64);

impl FromStr for ByteRate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a data rate: write a size per second, like 1KiB/s");
        let size: Size = text.strip_suffix("/s").ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
        if size.0 == 0 { Err(format!("`{text}` demands nothing: write `off`")) } else { Ok(Self(size.0)) }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
    }
}
text_form!(ByteRate, "ByteRate", r"^[0-9]+(B|KiB|MiB|GiB)/s$", "a data rate such as 1KiB/s");

/// A share such as `50%`; decimals are allowed.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Percent(pub f64);

impl Percent {
    /// The share between 0.0 and 1.0.
    pub fn fraction(self) -> f64 {
        self.0 / 100.0
    }
}

impl FromStr for Percent {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a percentage: write a number from 0 to 100 with %, like 50%");
        let number = text.strip_suffix('%').ok_or_else(wrong)?;
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(wrong());
        }
        let value: f64 = number.parse().map_err(|_| wrong())?;
        if (0.0..=100.0).contains(&value) { Ok(Self(value)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}
text_form!(Percent, "Percent", r"^[0-9]+(\.[0-9]+)?%$", "a percentage such as 50%");

/// A range of HTTP status codes such as `200-399`, or one such as `204`; both ends are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusRange {
    /// First status in the range.
    pub from: u16,
    /// Last status in the range.
    pub to: u16,
}

impl StatusRange {
    /// Whether `status` lies in the range.
    pub fn contains(&self, status: u16) -> bool {
        (self.from..=self.to).contains(&status)
    }
}

impl FromStr for StatusRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a status or a range of statuses: write one like 204 or 200-399");
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let parse = |s: &str| whole_number(s.trim()).filter(|n| (100..=999).contains(n)).and_then(|n| u16::try_from(n).ok());
        let (from, to) = (parse(from).ok_or_else(wrong)?, parse(to).ok_or_else(wrong)?);
        if from > to { Err(wrong()) } else { Ok(Self { from, to }) }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to { write!(f, "{}", self.from) } else { write!(f, "{}-{}", self.from, self.to) }
    }
}
text_form!(StatusRange, "StatusRange", r"^[0-9]{3}( *- *[0-9]{3})?$", "a status or a range of statuses such as 204 or 200-399");

/// A secret from the config. It prints as `***` everywhere.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The secret itself; never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { "***" })
    }
}

impl schemars::JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::json_schema(generator)
    }
}

/// A value that `off` (or `false`) switches off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting<T> {
    /// `off` or `false`.
    Off,
    /// A value.
    On(T),
}

impl<T> Setting<T> {
    /// The value, unless switched off.
    pub fn on(&self) -> Option<&T> {
        match self {
            Self::Off => None,
            Self::On(value) => Some(value),
        }
    }
}

impl<T: Serialize> Serialize for Setting<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::On(value) => value.serialize(serializer),
        }
    }
}

fn whole_number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|b| !b.is_ascii_digit())?;
    Some((whole_number(&text[..end])?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Display};

    use proptest::prelude::*;

    use super::*;

    fn round_trip<T: FromStr<Err = String> + Display + Debug + PartialEq>(value: &T) {
        let text = value.to_string();
        assert_eq!(text.parse::<T>().as_ref(), Ok(value), "{text}");
    }

    fn refused<T: FromStr<Err = String> + Debug>(texts: &[&str]) {
        for text in texts {
            let error = text.parse::<T>().expect_err(text);
            assert!(error.len() > 20, "{text}: {error}");
        }
    }

    #[test]
    fn durations_sizes_and_rates_mean_what_the_contract_says() {
        assert_eq!("500ms".parse(), Ok(Duration::from_millis(500)));
        assert_eq!("2m".parse(), Ok(Duration::from_secs(120)));
        assert_eq!("1h".parse(), Ok(Duration::from_secs(3600)));
        assert_eq!("0s".parse(), Ok(Duration::from_secs(0)));
        assert_eq!("64KiB".parse(), Ok(Size(65_536)));
        assert_eq!("1GiB".parse(), Ok(Size(1 << 30)));
        assert_eq!("10000/d".parse(), Ok(Rate { count: 10_000, per: std::time::Duration::from_secs(86_400) }));
        assert_eq!("1KiB/s".parse(), Ok(ByteRate(1024)));
        assert_eq!("12.5%".parse(), Ok(Percent(12.5)));
        assert_eq!("204".parse(), Ok(StatusRange { from: 204, to: 204 }));
    }

    #[test]
    fn what_is_not_a_value_is_refused_with_an_example() {
        refused::<Duration>(&["", "5", "s", "5 s", "-5s", "+5s", "1.5s", "5S", "5d", "99999999999999999999s", "900001h"]);
        refused::<Size>(&["", "5", "5KB", "5 KiB", "-1B", "5kib", "18446744073709551615GiB"]);
        refused::<Rate>(&["", "5", "/s", "5/", "0/s", "5/w", "1.5/s", "2000000000/s"]);
        refused::<ByteRate>(&["", "1KiB", "0B/s", "1KiB/m"]);
        refused::<Percent>(&["", "5", "%", "101%", "-1%", "1e1%", "nan%", "1.2.3%"]);
        refused::<StatusRange>(&["", "99", "1000", "300-200", "2xx", "200-", "-200"]);
        refused::<Selector>(&["", "IP", "header:", "header:a b", "cookie", "claim:x"]);
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
    }

    proptest! {
        #[test]
        fn durations_round_trip(ms in 0_u64..3_000_000_000_000) { round_trip(&Duration::from_millis(ms)); }
        #[test]
        fn sizes_round_trip(bytes in 0_u64..1 << 62) { round_trip(&Size(bytes)); }
        #[test]
        fn round_sizes_round_trip(count in 0_u64..1 << 20, unit in 0_u32..4) { round_trip(&Size(count << (unit * 10))); }
        #[test]
        fn rates_round_trip(count in 1_u64..=1_000_000_000, unit in 0_usize..4) {
            round_trip(&Rate { count, per: std::time::Duration::from_secs([1, 60, 3_600, 86_400][unit]) });
        }
        #[test]
        fn data_rates_round_trip(bytes in 1_u64..1 << 62) { round_trip(&ByteRate(bytes)); }
        #[test]
        fn percents_round_trip(share in 0_u32..=10_000) { round_trip(&Percent(f64::from(share) / 100.0)); }
        #[test]
        fn status_ranges_round_trip(from in 100_u16..=999, more in 0_u16..900) {
            round_trip(&StatusRange { from, to: (from + more).min(999) });
        }
        #[test]
        fn selectors_round_trip(kind in 0_usize..9, name in "[a-z][a-z0-9-]{0,20}") {
            let all = [
                Selector::Ip, Selector::User, Selector::Global, Selector::Path, Selector::Host,
                Selector::Header(name.parse().unwrap()), Selector::Cookie(name.clone()), Selector::Query(name.clone()), Selector::Param(name),
            ];
            round_trip(&all[kind]);
        }
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,20}") {
            let _ = (text.parse::<Duration>(), text.parse::<Size>(), text.parse::<Rate>(), text.parse::<ByteRate>());
            let _ = (text.parse::<Percent>(), text.parse::<StatusRange>(), text.parse::<Selector>());
        }
    }

    #[test]
    fn schemas_take_bare_numbers_only_where_reading_does_and_variables_everywhere() {
        use schemars::JsonSchema as _;
        let mut generator = schemars::SchemaGenerator::default();
        let mut schema = |of: fn(&mut schemars::SchemaGenerator) -> schemars::Schema| of(&mut generator).to_value();
        let (duration, status) = (schema(Duration::json_schema), schema(StatusRange::json_schema));
        assert_eq!(duration["type"], serde_json::json!(["string"]));
        assert_eq!(status["type"], serde_json::json!(["string", "integer"]));
        let pattern = regex::Regex::new(duration["pattern"].as_str().unwrap()).unwrap();
        for (text, fits) in [("5s", true), ("${T:-5s}", true), ("5", false), ("5 s", false)] {
            assert_eq!(pattern.is_match(text), fits, "{text}");
        }
    }
}
