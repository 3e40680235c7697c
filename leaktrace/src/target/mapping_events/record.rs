//! What the kernel's records say (`linux/perf_event.h`, `enum perf_event_type`).

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::target::mapping::{Device, Mapping};

/// Something that happened to the traced process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, `CLOCK_MONOTONIC`, ns.
    pub time: u64,
    /// What.
    pub event: Event,
}

/// See [`Record`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It mapped something executable, or made it so.
    Mapped(Mapping),
    /// It executed another program: all of its mappings are gone.
    Executed,
    /// So many records did not fit into the buffer.
    Lost(u64),
}

const PERF_RECORD_LOST: u32 = 2;
const PERF_RECORD_COMM: u32 = 3;
const PERF_RECORD_MMAP2: u32 = 10;
const PERF_RECORD_MISC_COMM_EXEC: u16 = 1 << 13;
/// `struct perf_event_header`: type, misc and size of a record with header.
const HEADER: usize = 8;

/// Reads records as the kernel wrote them for events with `sample_id_all` and
/// nothing but the time in `sample_type`. Those of other processes than `pid`
/// (children may be recorded as well) and other kinds are left out; bytes that
/// are no record end the reading and count as a lost one.
#[must_use]
pub fn parse(bytes: &[u8], pid: u32) -> Vec<Record> {
    let mut records = Vec::new();
    let mut rest = bytes;
    let mut latest = 0;
    while !rest.is_empty() {
        let Some((kind, misc, body, after)) = split(rest) else {
            let event = Event::Lost(1);
            records.push(Record {
                time: latest,
                event,
            });
            break;
        };
        rest = after;
        if let Some(record) = read(kind, misc, body, pid) {
            latest = record.time;
            records.push(record);
        }
    }
    records
}

/// Type, misc, body of the first record, and what follows it.
fn split(bytes: &[u8]) -> Option<(u32, u16, &[u8], &[u8])> {
    let mut header = Fields(bytes);
    let (kind, misc, size) = (header.u32()?, header.u16()?, header.u16()?);
    let (record, after) = bytes.split_at_checked(usize::from(size))?;
    Some((kind, misc, record.get(HEADER..)?, after))
}

fn read(kind: u32, misc: u16, body: &[u8], pid: u32) -> Option<Record> {
    let (body, time) = body.split_last_chunk()?;
    let time = u64::from_ne_bytes(*time);
    let mut fields = Fields(body);
    let event = match kind {
        PERF_RECORD_LOST => {
            let _id = fields.u64()?;
            Event::Lost(fields.u64()?)
        }
        PERF_RECORD_COMM if misc & PERF_RECORD_MISC_COMM_EXEC != 0 => {
            (fields.u32()? == pid).then_some(Event::Executed)?
        }
        PERF_RECORD_MMAP2 => {
            (fields.u32()? == pid).then_some(())?;
            Event::Mapped(mapping(fields)?)
        }
        _ => return None,
    };
    Some(Record { time, event })
}

/// An MMAP2 record, from its thread id on.
fn mapping(mut fields: Fields<'_>) -> Option<Mapping> {
    let _tid = fields.u32()?;
    let (start, length, offset) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (major, minor) = (fields.u32()?, fields.u32()?);
    let (inode, _generation) = (fields.u64()?, fields.u64()?);
    let (protection, _flags) = (fields.u32()?, fields.u32()?);
    let name = fields.0;
    // Padded with zeros to a multiple of 8.
    let name = name.split(|byte| *byte == 0).next().unwrap_or(name);
    let (path, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (name, false),
    };
    let device = Device { major, minor };
    let is_file = inode != 0 || device != NO_DEVICE;
    Some(Mapping {
        start,
        end: start.checked_add(length)?,
        // `/proc/PID/maps` shows none without a file.
        offset: if is_file { offset } else { 0 },
        executable: protection & libc::PROT_EXEC.unsigned_abs() != 0,
        device,
        inode,
        path: if path == ANONYMOUS {
            PathBuf::new()
        } else {
            Path::new(OsStr::from_bytes(path)).to_path_buf()
        },
        deleted,
    })
}

const NO_DEVICE: Device = Device { major: 0, minor: 0 };
/// How the kernel calls memory without a file here.
const ANONYMOUS: &[u8] = b"//anon";

/// The rest of a record, read field by field.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn chunk<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(chunk)
    }
    fn u16(&mut self) -> Option<u16> {
        self.chunk().map(|chunk| u16::from_ne_bytes(*chunk))
    }
    fn u32(&mut self) -> Option<u32> {
        self.chunk().map(|chunk| u32::from_ne_bytes(*chunk))
    }
    fn u64(&mut self) -> Option<u64> {
        self.chunk().map(|chunk| u64::from_ne_bytes(*chunk))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub const PID: u32 = 4242;

    /// A record of this body, stamped with the time.
    fn record(kind: u32, misc: u16, body: &[u8], time: u64) -> Vec<u8> {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(8), 0);
        body.extend(time.to_ne_bytes());
        let size = u16::try_from(HEADER + body.len()).unwrap();
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(misc.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    pub fn mmap2(pid: u32, start: u64, device: (u32, u32, u64), name: &str, time: u64) -> Vec<u8> {
        let (major, minor, inode) = device;
        let (length, offset, generation) = (0x3000_u64, 0x26000_u64, 77_u64);
        let (protection, flags) = (5_u32, 2_u32);
        let mut body = [pid, pid + 1]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect::<Vec<_>>();
        body.extend([start, length, offset].iter().flat_map(|w| w.to_ne_bytes()));
        body.extend([major, minor].iter().flat_map(|w| w.to_ne_bytes()));
        body.extend([inode, generation].iter().flat_map(|w| w.to_ne_bytes()));
        body.extend([protection, flags].iter().flat_map(|w| w.to_ne_bytes()));
        body.extend(name.as_bytes());
        body.push(0);
        record(PERF_RECORD_MMAP2, 2, &body, time)
    }

    pub fn comm(pid: u32, misc: u16, time: u64) -> Vec<u8> {
        let mut body = [pid, pid]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect::<Vec<_>>();
        body.extend(b"name\0");
        record(PERF_RECORD_COMM, misc, &body, time)
    }

    fn lost(count: u64, time: u64) -> Vec<u8> {
        let body: Vec<u8> = [9, count].iter().flat_map(|w| w.to_ne_bytes()).collect();
        record(PERF_RECORD_LOST, 0, &body, time)
    }

    #[test]
    fn every_kind_of_record_is_read() {
        let bytes = [
            comm(PID, PERF_RECORD_MISC_COMM_EXEC, 10),
            mmap2(PID, 0x7f00_0000_0000, (0xfe, 1, 99), "/lib/libc.so.6", 20),
            lost(3, 30),
        ]
        .concat();
        let libc = Mapping {
            start: 0x7f00_0000_0000,
            end: 0x7f00_0000_3000,
            offset: 0x26000,
            executable: true,
            device: Device {
                major: 0xfe,
                minor: 1,
            },
            inode: 99,
            path: "/lib/libc.so.6".into(),
            deleted: false,
        };
        let expected = [
            (10, Event::Executed),
            (20, Event::Mapped(libc)),
            (30, Event::Lost(3)),
        ];
        let expected = expected.map(|(time, event)| Record { time, event });
        assert_eq!(parse(&bytes, PID), expected);
    }

    #[test]
    fn other_processes_other_records_and_renamed_threads_are_left_out() {
        let bytes = [
            mmap2(PID + 1, 0x1000, (1, 1, 1), "/a", 1),
            comm(PID + 1, PERF_RECORD_MISC_COMM_EXEC, 2),
            comm(PID, 0, 3),
            record(7, 0, &[0; 24], 4),
        ]
        .concat();
        assert_eq!(parse(&bytes, PID), []);
    }

    fn named(device: (u32, u32, u64), name: &str) -> Mapping {
        match parse(&mmap2(PID, 0x1000, device, name, 1), PID)
            .remove(0)
            .event
        {
            Event::Mapped(mapping) => mapping,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_those_of_proc_maps() {
        let deleted = named((8, 1, 5), "/tmp/two words.so (deleted)");
        assert_eq!(deleted.path, Path::new("/tmp/two words.so"));
        assert!(deleted.deleted && deleted.is_file());
        // Eight bytes: with its zero it needs padding.
        assert_eq!(named((8, 1, 5), "/tmp/abc").path, Path::new("/tmp/abc"));
        let vdso = named((0, 0, 0), "[vdso]");
        assert!(vdso.is_special("[vdso]") && !vdso.is_file());
        assert_eq!(vdso.offset, 0);
        let anonymous = named((0, 0, 0), "//anon");
        assert_eq!((anonymous.path, anonymous.offset), (PathBuf::new(), 0));
    }

    #[test]
    fn what_is_no_record_counts_as_lost() {
        let good = mmap2(PID, 0x1000, (1, 1, 1), "/a", 7);
        let mut too_small = good.clone();
        too_small.extend([1, 0, 0, 0, 0, 0, 4, 0]);
        let mut cut = good.clone();
        cut.extend(&good[..good.len() - 1]);
        for bytes in [too_small, cut] {
            let records = parse(&bytes, PID);
            assert_eq!(records.len(), 2);
            let event = Event::Lost(1);
            assert_eq!(records[1], Record { time: 7, event });
        }
    }

    #[test]
    fn a_mapping_over_the_end_of_memory_is_left_out() {
        let bytes = mmap2(PID, u64::MAX - 1, (1, 1, 1), "/a", 7);
        assert_eq!(parse(&bytes, PID), []);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes, PID);
        }
        #[test]
        fn records_with_arbitrary_bodies_never_panic(
            kind in 0_u32..12,
            misc: u16,
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = record(kind, misc, &body, 5);
            prop_assert!(parse(&bytes, PID).len() <= 1);
        }
        #[test]
        fn damaged_records_never_panic(place in 0_usize..120, byte: u8) {
            let mut bytes = mmap2(PID, 0x1000, (1, 1, 1), "/lib/libc.so.6", 7);
            if let Some(damaged) = bytes.get_mut(place) {
                *damaged = byte;
            }
            let _ = parse(&bytes, PID);
        }
    }
}
