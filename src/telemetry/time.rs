//! The calendar: what it says at an instant, and times as RFC 3339 text in UTC, to the millisecond.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

/// What the calendar says at `now`. It is read once in a second; between, the other clock tells how far it has gone.
pub fn since_1970(now: Instant) -> Duration {
    thread_local! {
        static READ: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
    }
    if let Some((read, unix)) = READ.get() {
        let gone = now.saturating_duration_since(read);
        if gone < Duration::from_secs(1) {
            return unix.saturating_add(gone);
        }
    }
    // The calendar tells the present, from which `now` may be away.
    let (read, unix) = (Instant::now(), SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    READ.set(Some((read, unix)));
    unix.saturating_add(now.saturating_duration_since(read)).saturating_sub(read.saturating_duration_since(now))
}

/// `2026-11-21T02:05:00.123Z`. Times before 1970 and after 9999 are shown as the nearest time in between.
pub fn rfc3339(time: SystemTime) -> String {
    let mut text = Vec::with_capacity(24);
    Stamp::default().write(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(), &mut text);
    String::from_utf8(text).unwrap_or_default()
}

/// Writes times one after the other, and works out date and hour only once a second.
#[derive(Debug, Default)]
pub struct Stamp {
    second: Option<u64>,
    text: [u8; 19],
}

/// The last second of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

impl Stamp {
    /// Appends a time since 1970.
    pub fn write(&mut self, since: Duration, out: &mut Vec<u8>) {
        let second = since.as_secs().min(LAST_SECOND);
        if self.second != Some(second) {
            self.second = Some(second);
            self.text = date_and_hour(second);
        }
        out.extend_from_slice(&self.text);
        let mut millis = *b".000Z";
        digits(&mut millis[1..4], u64::from(since.subsec_millis()));
        out.extend_from_slice(&millis);
    }
}

fn date_and_hour(second: u64) -> [u8; 19] {
    let (year, month, day) = civil(second / 86_400);
    let in_day = second % 86_400;
    let mut text = *b"0000-00-00T00:00:00";
    for (range, number) in
        [(0..4, year), (5..7, month), (8..10, day), (11..13, in_day / 3600), (14..16, in_day / 60 % 60), (17..19, in_day % 60)]
    {
        digits(&mut text[range], number);
    }
    text
}

/// Fills `text` with the decimal digits of `number`, zeros first.
fn digits(text: &mut [u8], mut number: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month, day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn civil(day: u64) -> (u64, u64, u64) {
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_told_by_the_calendar() {
        let (now, calendar) = (Instant::now(), SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
        // However long this thread is kept waiting, it is not for an hour.
        for hours in [0, 2, 4, 0] {
            let span = Duration::from_secs(hours * 3600);
            assert!(since_1970(now + span).abs_diff(calendar + span) < Duration::from_secs(3600), "{hours}");
        }
    }

    fn at(second: u64, millis: u64) -> String {
        rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(second * 1000 + millis))
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_709_251_199, 999), "2024-02-29T23:59:59.999Z");
        assert_eq!(at(1_709_251_200, 0), "2024-03-01T00:00:00.000Z");
        assert_eq!(at(4_102_444_799, 50), "2099-12-31T23:59:59.050Z");
        assert_eq!(at(LAST_SECOND, 0), "9999-12-31T23:59:59.000Z");
        assert_eq!(at(LAST_SECOND + 5, 0), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn a_stamp_follows_the_seconds_in_both_directions() {
        let mut stamp = Stamp::default();
        let mut text = Vec::new();
        for (second, millis) in [(59, 999), (60, 0), (59, 1)] {
            stamp.write(Duration::from_millis(second * 1000 + millis), &mut text);
        }
        assert_eq!(text, b"1970-01-01T00:00:59.999Z1970-01-01T00:01:00.000Z1970-01-01T00:00:59.001Z");
    }

    #[test]
    fn days_count_up_without_gaps() {
        let mut before = civil(0);
        for day in 1..150_000 {
            let date = civil(day);
            let next_day = (before.0, before.1, before.2 + 1);
            let next_month = (before.0, before.1 + 1, 1);
            assert!(
                date == next_day
                    || date == next_month && before.2 >= 28
                    || date == (before.0 + 1, 1, 1) && before.1 == 12 && before.2 == 31
            );
            before = date;
        }
    }
}
