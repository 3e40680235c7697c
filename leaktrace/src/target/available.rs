//! How much memory leaktrace may take without pushing others out.

use std::{fs, io};

use super::cgroup::CgroupMounts;

/// Memory that is available to leaktrace, bytes: what the machine has
/// (`MemAvailable`), and not more than fits into leaktrace's own cgroup.
///
/// # Errors
/// When `/proc/meminfo` can't be read or understood.
pub fn available_memory() -> io::Result<u64> {
    let machine = parse_available(&fs::read_to_string("/proc/meminfo")?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "/proc/meminfo has no MemAvailable",
        )
    })?;
    let room = fs::read("/proc/self/cgroup")
        .ok()
        .and_then(|text| CgroupMounts::own().ok()?.locate(&text)?.room());
    Ok(room.map_or(machine, |room| room.min(machine)))
}

/// All memory of the machine, bytes.
#[must_use]
pub fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit)
}

/// `MemAvailable` of the text of `/proc/meminfo`, bytes.
fn parse_available(meminfo: &str) -> Option<u64> {
    parse_field(meminfo, "MemAvailable")
}

/// A field of the text of `/proc/meminfo`, bytes.
pub(super) fn parse_field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kibibytes() {
        assert_eq!(
            parse_available("MemFree: 1 kB\nMemAvailable:   12 kB\n"),
            Some(12 << 10)
        );
        assert_eq!(parse_available("MemFree: 1 kB\n"), None);
        assert_eq!(
            parse_available("MemAvailable: 18446744073709551615 kB\n"),
            None
        );
    }

    #[test]
    fn this_machine_has_some_and_not_more_than_all() {
        let available = available_memory().unwrap();
        assert!(available > 0);
        assert!(available <= machine_memory());
    }
}
