//! The ledger that a fixture keeps of its own calls (`fixtures/ledger.h`): one
//! file a thread, mapped while it is written, so that it survives whatever
//! happens to the fixture.
//!
//! A file is a page of header (`u64` magic, `u32` bytes a record, `u32` thread,
//! `u64` capacity, `u64` finished records, `u64` whether it overflowed), then
//! records of 48 bytes; all little endian.

use std::{
    fs::{self, File},
    io::{BufReader, ErrorKind, Read},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};

const MAGIC: u64 = u64::from_le_bytes(*b"ledger01");
const HEADER: usize = 4096;
const RECORD: usize = 48;

/// What a call does, as far as the ledger must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Asks for `size` bytes; `address` is the block, 0 when refused.
    Alloc,
    /// Gives `old` back.
    Free,
    /// Resizes `old` to `size` bytes at `address`; 0 with a `size` of 0 gave
    /// `old` back, 0 otherwise kept it.
    Realloc,
}

/// One call of the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// `CLOCK_MONOTONIC` before the call.
    pub start_ns: u64,
    /// After it; `u64::MAX` when it did not return.
    pub end_ns: u64,
    /// What it returned, 0 for nothing.
    pub address: u64,
    /// The block it was given, 0 for none.
    pub old: u64,
    /// Requested bytes.
    pub size: u64,
    /// The site that made the call.
    pub site: u16,
    /// What it did.
    pub kind: Kind,
}

/// The calls of one thread, in their order.
pub struct ThreadLog {
    /// The fixture's number of the thread.
    pub thread: u32,
    records: BufReader<File>,
    finished: u64,
    read: u64,
}

/// Opens the ledgers of all threads in `directory`.
///
/// # Errors
/// When there are none, one can't be read, or one overflowed: then what it says
/// is not the truth.
pub fn open(directory: &Path) -> Result<Vec<ThreadLog>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(directory).context("listing the ledger")? {
        let path = entry?.path();
        logs.push(ThreadLog::open(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    ensure!(!logs.is_empty(), "no ledger in {}", directory.display());
    logs.sort_by_key(|log| log.thread);
    Ok(logs)
}

impl ThreadLog {
    fn open(path: &Path) -> Result<Self> {
        let mut records = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut header = [0; HEADER];
        records.read_exact(&mut header)?;
        ensure!(u64_at(&header, 0) == MAGIC, "not a ledger");
        ensure!(
            u32_at(&header, 8) as usize == RECORD,
            "records of another size"
        );
        ensure!(
            u64_at(&header, 32) == 0,
            "the ledger is full: the fixture needs a larger one"
        );
        Ok(Self {
            thread: u32_at(&header, 12),
            records,
            finished: u64_at(&header, 24),
            read: 0,
        })
    }
}

impl Iterator for ThreadLog {
    type Item = Result<Call>;

    fn next(&mut self) -> Option<Self::Item> {
        // One more than the finished ones: a call that did not return.
        if self.read > self.finished {
            return None;
        }
        let mut bytes = [0; RECORD];
        match self.records.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error)
                if error.kind() == ErrorKind::UnexpectedEof && self.read == self.finished =>
            {
                return None;
            }
            Err(error) => return Some(Err(error.into())),
        }
        let is_unfinished = self.read == self.finished;
        self.read += 1;
        if is_unfinished && u64_at(&bytes, 0) == 0 {
            return None;
        }
        Some(parse(&bytes, is_unfinished))
    }
}

fn parse(bytes: &[u8; RECORD], is_unfinished: bool) -> Result<Call> {
    let kind = match bytes[42] {
        0 => Kind::Alloc,
        1 => Kind::Free,
        2 => Kind::Realloc,
        other => bail!("a call of kind {other}"),
    };
    Ok(Call {
        start_ns: u64_at(bytes, 0),
        end_ns: if is_unfinished {
            u64::MAX
        } else {
            u64_at(bytes, 8)
        },
        address: if is_unfinished { 0 } else { u64_at(bytes, 16) },
        old: u64_at(bytes, 24),
        size: u64_at(bytes, 32),
        site: u16::from_le_bytes([bytes[40], bytes[41]]),
        kind,
    })
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(value)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(value)
}
