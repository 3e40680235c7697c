//! Numbers as a person reads them: at most three digits and a unit.
//!
//! Values never round into something untrue: shares between 0 and 1 never show
//! as `0 %` or `100 %`, and a value is never shown as `1024.0 KiB`.

use std::time::Duration;

use leaktrace_common::counter::Counter;

use crate::model::{CompleteShare, Trend, Verdict};

const BYTE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const COUNT_UNITS: [&str; 5] = ["", "k", "M", "G", "T"];

/// Bytes with at most one decimal: `4.9 MiB`, `36.0 MiB`, `410 KiB`, `0`.
#[must_use]
pub fn bytes(value: u64) -> String {
    scaled_bytes(value, |scaled| usize::from(scaled < 99.95))
}

/// Bytes with three digits: `8.24 GiB`, `41.2 MiB`.
#[must_use]
pub fn bytes_fine(value: u64) -> String {
    scaled_bytes(value, |scaled| match scaled {
        _ if scaled < 9.995 => 2,
        _ if scaled < 99.95 => 1,
        _ => 0,
    })
}

/// Bytes as short as can be: `44 MiB`, `8.3 GiB`, `12 GiB`.
#[must_use]
pub fn bytes_short(value: u64) -> String {
    let text = scaled_bytes(value, |scaled| usize::from(scaled < 9.95));
    text.replace(".0 ", " ")
}

fn scaled_bytes(value: u64, decimals: impl Fn(f64) -> usize) -> String {
    if value == 0 {
        return "0".to_owned();
    }
    if value < 1000 {
        return format!("{value} B");
    }
    let (scaled, unit) = scale(value as f64, 1024.0, &BYTE_UNITS);
    format!("{scaled:.*} {unit}", decimals(scaled))
}

/// Divides by `base` until less than 1000 would be shown.
fn scale<'a>(value: f64, base: f64, units: &[&'a str]) -> (f64, &'a str) {
    let mut scaled = value;
    let mut index = 0;
    while scaled >= 999.5 && index + 1 < units.len() {
        scaled /= base;
        index += 1;
    }
    (scaled, units[index])
}

/// A change of bytes since the start: `+44 MiB`, `-3.2 MiB`, `+0`.
#[must_use]
pub fn bytes_change(from: u64, to: u64) -> String {
    let sign = if to < from { '-' } else { '+' };
    format!("{sign}{}", bytes_short(to.abs_diff(from)))
}

/// A change of a count: `+2`, `-1`, `+0`.
#[must_use]
pub fn count_change(from: u64, to: u64) -> String {
    let sign = if to < from { '-' } else { '+' };
    format!("{sign}{}", count(to.abs_diff(from)))
}

/// Part and whole, the unit only once where it is the same: `8.3 of 12 GiB`,
/// `640 KiB of 12 GiB`.
#[must_use]
pub fn bytes_of(part: u64, whole: u64) -> String {
    let (part, whole) = (bytes_short(part), bytes_short(whole));
    let part = match (part.split_once(' '), whole.split_once(' ')) {
        (Some((number, unit)), Some((_, other))) if unit == other => number,
        _ => &part,
    };
    format!("{part} of {whole}")
}

/// Growth per minute: `+36.1 MiB/min`, `+0`.
#[must_use]
pub fn growth(bytes_per_minute: f64) -> String {
    // `as` saturates and turns NaN into 0.
    let rounded = bytes_per_minute.abs().round() as u64;
    match rounded {
        0 => "+0".to_owned(),
        _ if bytes_per_minute < 0.0 => format!("-{}/min", bytes(rounded)),
        _ => format!("+{}/min", bytes(rounded)),
    }
}

/// A count, digits grouped by three: `52 310`; from a million on `2.1 M`.
#[must_use]
pub fn count(value: u64) -> String {
    if value < 1_000_000 {
        return grouped(value);
    }
    let (scaled, unit) = scale(value as f64, 1000.0, &COUNT_UNITS);
    format!("{scaled:.*} {unit}", usize::from(scaled < 99.95))
}

/// A count of things, `noun` in the singular: `1 block`, `52 310 blocks`.
#[must_use]
pub fn things(value: u64, noun: &str) -> String {
    let plural = if value == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(value))
}

/// What a counter counted, in words: `1 thread that ended inside a call`.
#[must_use]
pub fn events(counter: Counter, value: u64) -> String {
    format!("{} {}", grouped(value), counter.text(value))
}

/// CPUs that are used on average: `3.8 CPUs`, `1.0 CPU`, `less than 0.1 CPU`.
#[must_use]
pub fn cpus(value: f64) -> String {
    match value {
        _ if value.is_nan() || value < 0.05 => "less than 0.1 CPU".to_owned(),
        _ if value < 1.05 => format!("{value:.1} CPU"),
        _ => format!("{value:.1} CPUs"),
    }
}

/// A count to the last digit: `2 104 377`.
#[must_use]
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Events per second, without the unit's name: `38.1 k`, `912`, `0.3`, `0`.
#[must_use]
pub fn rate(per_second: f64) -> String {
    // Also NaN is no rate.
    if per_second.is_nan() || per_second < 0.05 {
        return "0".to_owned();
    }
    let (scaled, unit) = scale(per_second, 1000.0, &COUNT_UNITS);
    let decimals = match unit {
        "" => usize::from(scaled < 9.95),
        _ => usize::from(scaled < 99.95),
    };
    let text = format!("{scaled:.decimals$} {unit}");
    text.trim_end().to_owned()
}

/// A share of 1: `0 %`, `<0.1 %`, `2.3 %`, `57 %`, `99.98 %`, `100 %`. From
/// 99 % on it is cut, not rounded.
#[must_use]
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        _ if percent.is_nan() || percent <= 0.0 => "0 %".to_owned(),
        _ if percent < 0.1 => "<0.1 %".to_owned(),
        _ if percent < 9.95 => format!("{percent:.1} %"),
        _ if (99.9..100.0).contains(&percent) => {
            format!("{:.2} %", (percent * 100.0).floor() / 100.0)
        }
        _ if (99.0..100.0).contains(&percent) => {
            format!("{:.1} %", (percent * 10.0).floor() / 10.0)
        }
        _ => format!("{percent:.0} %"),
    }
}

/// How many stacks are complete: `99.93 % (98.7 % of bytes)`, or one figure when
/// there is no other; `None` without any.
#[must_use]
pub fn complete(share: CompleteShare) -> Option<String> {
    let calls = percent(share.calls?);
    Some(match share.bytes.map(percent) {
        Some(bytes) if bytes != calls => format!("{calls} ({bytes} of bytes)"),
        _ => calls,
    })
}

/// A share of 1 within a sentence: as [`percent`], but `under 0.1 %`.
#[must_use]
pub fn percent_in_words(share: f64) -> String {
    percent(share).replace('<', "under ")
}

/// A share of 1 in whole percent, for a column: `0 %`, `<1 %`, `12 %`,
/// `>99 %`, `100 %`.
#[must_use]
pub fn percent_whole(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        _ if percent.is_nan() || percent <= 0.0 => "0 %".to_owned(),
        _ if percent < 1.0 => "<1 %".to_owned(),
        _ if percent > 99.0 && percent < 100.0 => ">99 %".to_owned(),
        _ => format!("{percent:.0} %"),
    }
}

/// A duration in its two largest units: `40 ms`, `0.3 s`, `60 s`, `10 min 12 s`,
/// `1 h 40 min`, `6 d`.
#[must_use]
pub fn duration(value: Duration) -> String {
    let seconds = value.as_secs();
    if value < Duration::from_millis(100) {
        return format!("{} ms", value.as_millis());
    }
    if seconds < 10 {
        let text = format!("{:.1} s", value.as_secs_f64());
        return text.replace(".0 ", " ");
    }
    let (large, large_unit, small, small_unit) = match seconds {
        0..120 => return format!("{seconds} s"),
        120..3_600 => (seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => (seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => (seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    };
    match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    }
}

/// A duration in its largest unit, rounded down: `40 s`, `8 min`, `3 h`.
#[must_use]
pub fn duration_short(value: Duration) -> String {
    let seconds = value.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A site's verdict, with what belongs to it: `GROWING`, `flat 40 s`,
/// `sawtooth 20 s`.
#[must_use]
pub fn verdict(trend: Option<Trend>) -> String {
    let Some(trend) = trend else {
        return String::new();
    };
    let name = trend.verdict.name();
    let time = match trend.verdict {
        Verdict::Flat | Verdict::OneOff => trend.steady,
        Verdict::Sawtooth => trend.period,
        _ => None,
    };
    match time {
        Some(time) => format!("{name} {}", duration_short(time)),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn bytes_have_a_unit_and_at_most_three_digits_before_it() {
        assert_eq!(bytes(0), "0");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.0 KiB");
        assert_eq!(bytes(36 * MIB), "36.0 MiB");
        assert_eq!(bytes(410 * KIB), "410 KiB");
        assert_eq!(bytes_fine(8 * GIB + 246 * MIB), "8.24 GiB");
        assert_eq!(bytes_fine(41 * MIB + 200 * KIB), "41.2 MiB");
        assert_eq!(bytes_short(44 * MIB), "44 MiB");
        assert_eq!(bytes_short(12 * GIB), "12 GiB");
        assert_eq!(bytes_short(GIB), "1 GiB");
        assert_eq!(bytes_short(10 * KIB), "10 KiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn no_value_is_shown_as_a_thousand_of_its_unit() {
        let shown = |value| [bytes(value), bytes_fine(value), bytes_short(value)];
        for exponent in 0..54 {
            for offset in -600..600_i64 {
                let value = (1_u64 << exponent) * 1000;
                let Some(value) = value.checked_add_signed(offset << (exponent / 2)) else {
                    continue;
                };
                for text in shown(value) {
                    let number = text.split(' ').next().unwrap().parse::<f64>().unwrap();
                    assert!(number < 1000.0, "{value} is shown as {text}");
                }
            }
        }
    }

    #[test]
    fn changes_always_have_a_sign() {
        assert_eq!(bytes_change(MIB, 45 * MIB), "+44 MiB");
        assert_eq!(bytes_change(45 * MIB, MIB), "-44 MiB");
        assert_eq!(bytes_change(7, 7), "+0");
        assert_eq!(count_change(48, 46), "-2");
        assert_eq!(growth(36.1 * MIB as f64), "+36.1 MiB/min");
        assert_eq!(growth(-0.4), "+0");
        assert_eq!(growth(-3.0), "-3 B/min");
        assert_eq!(growth(f64::NAN), "+0");
    }

    #[test]
    fn a_part_repeats_the_unit_only_when_it_differs() {
        assert_eq!(bytes_of(8 * GIB + 300 * MIB, 12 * GIB), "8.3 of 12 GiB");
        assert_eq!(bytes_of(640 * KIB, 12 * GIB), "640 KiB of 12 GiB");
        assert_eq!(bytes_of(0, 12 * GIB), "0 of 12 GiB");
    }

    #[test]
    fn counts_are_grouped_and_rates_are_short() {
        assert_eq!(count(999), "999");
        assert_eq!(count(52_310), "52 310");
        assert_eq!(count(2_104_377), "2.1 M");
        assert_eq!(count(999_999_999), "1.0 G");
        assert_eq!(grouped(2_104_377), "2 104 377");
        assert_eq!(things(1, "block"), "1 block");
        assert_eq!(things(52_310, "block"), "52 310 blocks");
        assert_eq!(cpus(0.0), "less than 0.1 CPU");
        assert_eq!(cpus(0.06), "0.1 CPU");
        assert_eq!(cpus(1.04), "1.0 CPU");
        assert_eq!(cpus(3.8), "3.8 CPUs");
        assert_eq!(rate(38_123.0), "38.1 k");
        assert_eq!(rate(912.4), "912");
        assert_eq!(rate(999.9), "1.0 k");
        assert_eq!(rate(0.31), "0.3");
        assert_eq!(rate(f64::NAN), "0");
    }

    #[test]
    fn a_share_is_whole_or_nothing_only_when_it_is() {
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(percent(0.000_01), "<0.1 %");
        assert_eq!(percent(0.023), "2.3 %");
        assert_eq!(percent(0.57), "57 %");
        assert_eq!(percent(0.9998), "99.98 %");
        assert_eq!(percent(0.999_999_9), "99.99 %");
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent_in_words(0.000_01), "under 0.1 %");
        assert_eq!(percent_whole(0.004), "<1 %");
        assert_eq!(percent_whole(0.12), "12 %");
        assert_eq!(percent_whole(0.999_999), ">99 %");
        assert_eq!(percent_whole(1.0), "100 %");
    }

    #[test]
    fn a_second_share_is_shown_where_it_differs() {
        let shown = |calls, bytes| complete(CompleteShare { calls, bytes });
        assert_eq!(shown(None, Some(1.0)), None);
        assert_eq!(shown(Some(0.5), None).unwrap(), "50 %");
        assert_eq!(shown(Some(1.0), Some(1.0)).unwrap(), "100 %");
        assert_eq!(
            shown(Some(0.9993), Some(0.5)).unwrap(),
            "99.93 % (50 % of bytes)"
        );
    }

    #[test]
    fn durations_show_two_units() {
        let shown = |seconds| duration(Duration::from_secs_f64(seconds));
        assert_eq!(shown(0.0), "0 ms");
        assert_eq!(shown(0.31), "0.3 s");
        assert_eq!(shown(60.9), "60 s");
        assert_eq!(shown(612.0), "10 min 12 s");
        assert_eq!(shown(6000.0), "1 h 40 min");
        assert_eq!(shown(6.0 * 86_400.0 + 59.0), "6 d");
    }

    #[test]
    fn one_event_is_told_in_the_singular() {
        assert_eq!(
            events(Counter::FreeNull, 1),
            "1 free of NULL, which does nothing"
        );
        assert_eq!(
            events(Counter::FreeNull, 2104),
            "2 104 frees of NULL, which do nothing"
        );
        for counter in Counter::ALL {
            assert_ne!(counter.text(1), counter.text(2), "{counter:?}");
            assert_eq!(counter.text(0), counter.text(2));
        }
    }
}
