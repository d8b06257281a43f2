//! RFC 3339 time stamps with nanoseconds, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length of `2016-10-06T00:17:09.669794202Z`.
pub(crate) const LENGTH: usize = 30;

/// `time` as text. A clock before 1970 is taken for 1970, one after 9999 for its last second.
pub(crate) fn format(time: SystemTime) -> [u8; LENGTH] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs().min(253_402_300_799);
    let (days, in_day) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let fields = [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, in_day / 3600),
        (14, 2, in_day / 60 % 60),
        (17, 2, in_day % 60),
        (20, 9, u64::from(since.subsec_nanos())),
    ];
    for (start, width, mut value) in fields {
        for digit in text[start..start + width].iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
    text
}

/// Year, month and day of a day counted from 1970. Years are taken to begin in March, so that the leap day is the
/// last of its year, and are counted in eras of 400 years, which all have 146097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days from 0000-03-01 to 1970-01-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 1, "2000-02-28T23:59:59.000000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000000Z"),
            (1_475_713_029, 669_794_202, "2016-10-06T00:17:09.669794202Z"),
            (4_107_542_399, 999_999_999, "2100-02-28T23:59:59.999999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(std::str::from_utf8(&format(UNIX_EPOCH + Duration::new(seconds, nanos))).unwrap(), text);
        }
    }

    #[test]
    fn a_clock_before_1970_is_no_reason_to_fail() {
        let before = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(&format(before)[..19], b"1970-01-01T00:00:00");
    }
}
