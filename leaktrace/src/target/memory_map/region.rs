//! The lines of `/proc/PID/maps` and `smaps` (proc_pid_maps(5),
//! proc_pid_smaps(5)), as far as the kinds of mappings need them. Pure.

use super::super::mapping::{Mapping, parse_line};
use crate::model::Used;

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where, and of which file.
    pub mapping: Mapping,
    /// It may be read, written or executed.
    pub accessible: bool,
    /// It may be written.
    pub writable: bool,
    /// What is written is seen by all who map it.
    pub shared: bool,
    /// What is used of it, from `smaps`.
    pub used: Option<Used>,
}

impl Region {
    /// How large it is, bytes.
    pub fn len(&self) -> u64 {
        self.mapping.end - self.mapping.start
    }

    /// Whether it is private memory without a file or a name.
    pub fn is_plain(&self) -> bool {
        !self.shared && self.mapping.inode == 0 && self.mapping.path.as_os_str().is_empty()
    }
}

/// Reads the text of either file; lines that make no sense are left out.
pub fn parse(text: &[u8]) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(region) = parse_region(line) {
            regions.push(region);
        } else if let Some(region) = regions.last_mut() {
            let mut used = region.used.unwrap_or_default();
            match field(line) {
                Some((b"Rss", bytes)) => used.resident = bytes,
                Some((b"Swap", bytes)) => used.swapped = bytes,
                _ => continue,
            }
            region.used = Some(used);
        }
    }
    regions
}

fn parse_region(line: &[u8]) -> Option<Region> {
    let mapping = parse_line(line)?;
    let permissions = line.split(|byte| *byte == b' ').nth(1)?;
    let has = |letter| permissions.contains(&letter);
    Some(Region {
        accessible: has(b'r') || has(b'w') || has(b'x'),
        writable: has(b'w'),
        shared: has(b's'),
        mapping,
        used: None,
    })
}

/// `Rss:      12 kB`, in bytes.
fn field(line: &[u8]) -> Option<(&[u8], u64)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let number = line[colon + 1..].trim_ascii().strip_suffix(b" kB")?;
    let number: u64 = std::str::from_utf8(number).ok()?.trim().parse().ok()?;
    Some((&line[..colon], number.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMAPS: &[u8] = b"\
7f5d6c000000-7f5d6c021000 rw-p 00000000 00:00 0 
Size:                132 kB
KernelPageSize:        4 kB
Rss:                  12 kB
Pss:                  12 kB
Pss_Dirty:            12 kB
Swap:                  8 kB
SwapPss:               8 kB
THPeligible:           0
VmFlags: rd wr mr mw me nr sd 
7f5d6c021000-7f5d70000000 ---p 00000000 00:00 0 
Size:              65404 kB
Rss:                   0 kB
VmFlags: mr mw me nr sd 
7f5d71000000-7f5d71001000 rw-s 00000000 00:01 1027                       /memfd:a-b c (deleted)
Rss:                   4 kB
";

    #[test]
    fn smaps_tells_what_is_used() {
        let regions = parse(SMAPS);
        assert_eq!(regions.len(), 3);
        let used = |resident, swapped| Some(Used { resident, swapped });
        assert_eq!(regions[0].used, used(12 << 10, 8 << 10));
        assert!(regions[0].is_plain() && regions[0].writable);
        assert_eq!(regions[1].used, used(0, 0));
        assert!(regions[1].is_plain() && !regions[1].accessible);
        assert!(regions[2].shared && !regions[2].is_plain());
        assert_eq!(regions[2].used, used(4 << 10, 0));
    }

    #[test]
    fn maps_does_not() {
        let maps: Vec<&[u8]> = SMAPS
            .split(|byte| *byte == b'\n')
            .filter(|line| line.starts_with(b"7f"))
            .collect();
        let regions = parse(&maps.join(&b'\n'));
        assert_eq!(regions.len(), 3);
        assert!(regions.iter().all(|region| region.used.is_none()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
