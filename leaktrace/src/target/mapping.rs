//! The mappings of a process: `/proc/PID/maps` (format: proc_pid_maps(5)).

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use super::Process;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Offset in the file of the byte at `start`.
    pub offset: u64,
    /// Code may run in it.
    pub executable: bool,
    /// Device of the file. On btrfs and overlayfs not what `stat` says.
    pub device: Device,
    /// Inode of the file, 0 without one.
    pub inode: u64,
    /// Path of the file in the target's mount namespace, without the
    /// `(deleted)` mark; `[stack]`, `[vdso]`, `[uprobes]`, … for special
    /// mappings; empty for anonymous memory.
    pub path: PathBuf,
    /// The file is no longer at that path: deleted or replaced.
    pub deleted: bool,
}

/// What a mapping tells of its file. Two files of btrfs may have everything but
/// the path in common, and one file has another path when it is renamed:
/// [`FileIdentity`](super::mapped_file::FileIdentity) tells them apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShownFile {
    /// See [`Mapping::device`].
    pub device: Device,
    /// See [`Mapping::inode`].
    pub inode: u64,
    /// See [`Mapping::path`].
    pub path: PathBuf,
}

/// Device number of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Mapping {
    /// Whether a file with a path backs it (and not `[vdso]`, anonymous
    /// memory, or an `anon_inode:`).
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.path.as_os_str().as_bytes().starts_with(b"/")
    }

    /// What it tells of its file.
    #[must_use]
    pub fn shown_file(&self) -> ShownFile {
        ShownFile {
            device: self.device,
            inode: self.inode,
            path: self.path.clone(),
        }
    }

    /// Whether it is the special mapping of this name, with its brackets.
    #[must_use]
    pub fn is_special(&self, name: &str) -> bool {
        self.path == Path::new(name)
    }

    /// The offset in the file of an address of the target; `None` outside.
    #[must_use]
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        (self.start..self.end)
            .contains(&address)
            .then(|| (address - self.start).checked_add(self.offset))
            .flatten()
    }
}

/// Reads the mappings of a process, ordered by address.
///
/// # Errors
/// When the process has ended, or may not be looked into.
pub fn read_mappings(process: &Process) -> io::Result<Vec<Mapping>> {
    Ok(parse(&process.read("maps")?))
}

/// Reads the text of a maps file; lines that make no sense are left out.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Mapping> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

pub(super) fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let end = rest
            .iter()
            .position(|byte| *byte == b' ')
            .unwrap_or(rest.len());
        let (field, after) = rest.split_at(end);
        rest = after.strip_prefix(b" ").unwrap_or(after);
        std::str::from_utf8(field).ok()
    };
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?;
    let offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?;
    // The path is padded on its left only; blanks at its end are its own.
    let path = rest.trim_ascii_start();
    let (path, deleted) = match path.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    };
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    (start <= end).then_some(Mapping {
        start,
        end,
        offset: u64::from_str_radix(offset, 16).ok()?,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        device: Device {
            major: u32::from_str_radix(major, 16).ok()?,
            minor: u32::from_str_radix(minor, 16).ok()?,
        },
        inode: inode.parse().ok()?,
        path: unescape(path),
        deleted,
    })
}

/// The kernel writes a newline in a path as `\012`, and nothing else so.
fn unescape(path: &[u8]) -> PathBuf {
    const NEWLINE: &[u8] = b"\\012";
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(NEWLINE) {
            plain.push(b'\n');
            rest = after;
        } else {
            plain.push(byte);
            rest = after;
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAPS: &[u8] = b"\
55a0c0000000-55a0c0002000 r--p 00000000 fe:00 1234                       /usr/bin/orderd
55a0c0002000-55a0c0007000 r-xp 00002000 fe:00 1234                       /usr/bin/orderd
55a0c1000000-55a0c1021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000021000 rw-p 00000000 00:00 0 
7f0000100000-7f0000200000 r-xp 00001000 103:0f 99                        /opt/two words /lib.so  (deleted)
7f0000300000-7f0000301000 r-xp 00000000 00:1b 5                          /tmp/new\\012line
7f0000400000-7f0000401000 rw-s 00000000 00:0f 7                          anon_inode:[perf_event]
7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0                          [vdso]
7fffffffe000-7ffffffff000 --xp 00000000 00:00 0                          [uprobes]
";

    #[test]
    fn every_kind_of_line_is_read() {
        let mappings = parse(MAPS);
        assert_eq!(mappings.len(), 9);
        assert_eq!(
            mappings[1],
            Mapping {
                start: 0x55a0_c000_2000,
                end: 0x55a0_c000_7000,
                offset: 0x2000,
                executable: true,
                device: Device {
                    major: 0xfe,
                    minor: 0
                },
                inode: 1234,
                path: "/usr/bin/orderd".into(),
                deleted: false,
            }
        );
        assert!(!mappings[0].executable);
        assert!(mappings[2].is_special("[heap]") && !mappings[2].is_file());
        assert_eq!(mappings[3].path, Path::new(""));
        assert_eq!(mappings[4].path, Path::new("/opt/two words /lib.so "));
        assert_eq!(
            mappings[4].device,
            Device {
                major: 0x103,
                minor: 0xf
            }
        );
        assert!(mappings[4].deleted && mappings[4].is_file());
        assert_eq!(mappings[5].path, Path::new("/tmp/new\nline"));
        assert!(!mappings[6].is_file());
        assert!(mappings[8].is_special("[uprobes]") && mappings[8].executable);
    }

    #[test]
    fn an_address_becomes_a_file_offset_inside_the_mapping_only() {
        let code = &parse(MAPS)[1];
        assert_eq!(code.file_offset(0x55a0_c000_2010), Some(0x2010));
        assert_eq!(code.file_offset(0x55a0_c000_1fff), None);
        assert_eq!(code.file_offset(0x55a0_c000_7000), None);
    }

    #[test]
    fn lines_that_make_no_sense_are_left_out() {
        let text = b"rubbish\n2000-1000 r-xp 0 0:0 0\n1000-2000 r-xp\n1000-2000 r-xp 0 0:0 0 /a\n";
        let mappings = parse(text);
        assert_eq!(mappings.len(), 1);
        assert_eq!(mappings[0].path, Path::new("/a"));
    }

    #[test]
    fn our_own_code_is_in_our_own_maps() {
        let process = Process::own().unwrap();
        let mappings = read_mappings(&process).unwrap();
        let here = our_own_code_is_in_our_own_maps as fn() as usize as u64;
        let exe = std::env::current_exe().unwrap();
        let code = mappings
            .iter()
            .find(|mapping| mapping.file_offset(here).is_some())
            .unwrap();
        assert!(code.executable && code.is_file());
        assert_eq!(code.path, exe);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
        #[test]
        fn lines_with_arbitrary_paths_are_read(path in "/[^\\\\\n]{0,20}[^) \\\\\n]") {
            let line = format!("1000-2000 r-xp 00000000 fe:00 12                 {path}\n");
            prop_assert_eq!(&parse(line.as_bytes())[0].path, Path::new(&path));
        }
    }
}
