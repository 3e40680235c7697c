//! Which CPUs there are.

use std::{fs, io};

/// The CPUs that are online, by number.
///
/// # Errors
/// When sysfs can't be read or understood.
pub fn online() -> io::Result<Vec<u32>> {
    let file = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(file)?;
    parse(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{file} is no list of CPUs"),
        )
    })
}

/// Reads a list such as `0-3,8` (the kernel's `cputopology.rst`). Never longer
/// than the kernel can have CPUs.
fn parse(list: &str) -> Option<Vec<u32>> {
    const MOST: u32 = 8192;
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_single_cpus_are_listed() {
        assert_eq!(parse("0\n"), Some(vec![0]));
        assert_eq!(parse("0-2,5,7-8\n"), Some(vec![0, 1, 2, 5, 7, 8]));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for list in ["", "x", "3-1", "1-", "0-4294967295"] {
            assert_eq!(parse(list), None, "{list:?}");
        }
    }

    #[test]
    fn this_machine_has_some() {
        assert!(!online().unwrap().is_empty());
    }
}
