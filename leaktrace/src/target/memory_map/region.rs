//! The lines of `/proc/PID/maps` (proc_pid_maps(5)), as far as the kinds of mappings
//! need them. Pure.

use super::super::mapping::{Mapping, parse_line};

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

/// Reads the text of a maps file; lines that make no sense are left out.
pub fn parse(text: &[u8]) -> Vec<Region> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_region)
        .collect()
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
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn permissions_are_read() {
        let regions = parse(
            b"7f5d6c000000-7f5d6c021000 rw-p 00000000 00:00 0 \n\
              7f5d6c021000-7f5d70000000 ---p 00000000 00:00 0 \n\
              7f5d71000000-7f5d71001000 rw-s 00000000 00:01 1027   /memfd:a-b c (deleted)\n\
              7f5d72000000-7f5d72001000 r--p 00000000 00:00 0   [vvar]\n",
        );
        let seen: Vec<_> = regions
            .iter()
            .map(|region| {
                (
                    region.is_plain(),
                    region.accessible,
                    region.writable,
                    region.shared,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (true, true, true, false),
                (true, false, false, false),
                (false, true, true, true),
                (false, true, false, false),
            ]
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
