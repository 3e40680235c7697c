//! Sizes, durations and rates as people write them: `4k`, `1.5MiB`, `300ms`,
//! `10s`, `1MiB/min`.

use std::time::Duration;

/// Splits `1.5MiB` into its number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// A size in bytes. `k`, `m`, `g`, `t`, with or without `B` or `iB`, are
/// powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let problem = || format!("`{text}` is no size; write it like 4096, 4k, 1.5MiB");
    let (number, unit) = split(text).ok_or_else(problem)?;
    let unit = unit.to_ascii_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(problem()),
    };
    let bytes = number * 1024_f64.powi(power);
    if bytes > u64::MAX as f64 {
        return Err(format!("`{text}` is more bytes than can be counted"));
    }
    Ok(bytes as u64)
}

/// Any number of things: `2M` blocks are 2 × 2^20.
pub fn number(text: &str) -> Result<u64, String> {
    size(text).map_err(|_| format!("`{text}` is no number; write it like 1000000, 500k, 2M"))
}

/// A number of things that there is to be room for.
pub fn count(text: &str) -> Result<u32, String> {
    u32::try_from(number(text)?)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("`{text}` is out of range: at least 1 and below 4G"))
}

/// A century: what is added to a clock's reading must not overflow.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86400);

/// A duration; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("`{text}` is no duration; write it like 300ms, 10s, 5min, 1h");
    let (number, unit) = split(text).ok_or_else(problem)?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(problem()),
    };
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| format!("`{text}` is longer than can be waited for"))
}

/// Bytes per minute, written as a size in a unit of time.
pub fn rate(text: &str) -> Result<f64, String> {
    let problem = || format!("`{text}` is no rate; write it like 100k/s, 1MiB/min, 2GiB/h");
    let (bytes, unit) = text.split_once('/').ok_or_else(problem)?;
    let per_minute = match unit.trim() {
        "s" | "sec" => 60.0,
        "m" | "min" => 1.0,
        "h" => 1.0 / 60.0,
        _ => return Err(problem()),
    };
    Ok(size(bytes).map_err(|_| problem())? as f64 * per_minute)
}

/// A duration after which something happens again: not zero.
pub fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(10) {
        return Err(format!("`{text}` is too short; at least 10ms"));
    }
    Ok(interval)
}

/// A share of the target's CPU time, or no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Overhead {
    /// No limit, and nothing is measured beforehand.
    Off,
    /// At most this share, 0 to 1.
    Limit(f64),
}

/// `50%`, `50`, or `off`.
pub fn overhead(text: &str) -> Result<Overhead, String> {
    if text == "off" {
        return Ok(Overhead::Off);
    }
    let percent: f64 = text
        .trim_end_matches('%')
        .trim()
        .parse()
        .map_err(|_| format!("`{text}` is no share; write it like 50%, or off"))?;
    if !(percent > 0.0 && percent <= 100.0) {
        return Err(format!(
            "`{text}` is out of range: more than 0%, at most 100%, or off"
        ));
    }
    Ok(Overhead::Limit(percent / 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("4k"), Ok(4096));
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("1.5MiB"), Ok(1_572_864));
        assert_eq!(size("1 GB"), Ok(1 << 30));
        assert_eq!(size("17"), Ok(17));
        assert_eq!(size("17B"), Ok(17));
    }

    #[test]
    fn what_is_no_size_is_named() {
        for text in ["", "k", "4q", "-1", "1e400", "4 k k", "0x10"] {
            let error = size(text).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert!(size("99999999999999T").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1.5min"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(duration("10 parsecs").is_err());
        assert!(duration("99999999999999999999d").is_err());
        // Fits a `Duration`, but not the time until which to wait.
        assert!(duration("110000000000000d").is_err());
        assert!(interval("0").is_err());
    }

    #[test]
    fn rates_are_per_minute() {
        assert_eq!(rate("1MiB/min"), Ok(1_048_576.0));
        assert_eq!(rate("1k / s"), Ok(61_440.0));
        assert_eq!(rate("60k/h"), Ok(1024.0));
        for text in ["1MiB", "1MiB/day", "/min", "x/min", "1/s/s"] {
            let error = rate(text).unwrap_err();
            assert!(
                error.starts_with(&format!("`{text}` is no rate;")),
                "{error}"
            );
        }
    }

    #[test]
    fn overheads() {
        assert_eq!(overhead("off"), Ok(Overhead::Off));
        assert_eq!(overhead("25%"), Ok(Overhead::Limit(0.25)));
        assert_eq!(overhead("100"), Ok(Overhead::Limit(1.0)));
        assert!(overhead("0%").is_err());
        assert!(overhead("101%").is_err());
        assert!(overhead("NaN").is_err());
    }

    #[test]
    fn counts() {
        assert_eq!(count("2M"), Ok(2 << 20));
        assert_eq!(count("1000"), Ok(1000));
        assert!(count("0").is_err());
        assert!(count("9G").is_err());
    }
}
