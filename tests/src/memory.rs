//! A process's code as it is in memory: breakpoints show there.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// All executable memory of process `pid` that files back: start address and
/// bytes of each mapping.
///
/// # Errors
/// When its memory can't be read.
pub fn code(pid: u32) -> Result<Vec<(u64, Vec<u8>)>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut mappings = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, access) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let path = words.nth(3).unwrap_or("");
        if !access.contains('x') || !path.starts_with('/') {
            continue;
        }
        let (start, end) = range.split_once('-').context("a mapping without a range")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        let mut bytes = vec![0; usize::try_from(end - start)?];
        memory
            .read_exact_at(&mut bytes, start)
            .with_context(|| format!("reading {path} at {start:#x}"))?;
        mappings.push((start, bytes));
    }
    ensure!(!mappings.is_empty(), "process {pid} maps no code");
    Ok(mappings)
}

/// Addresses at which `before` and `after` differ.
#[must_use]
pub fn changed(before: &[(u64, Vec<u8>)], after: &[(u64, Vec<u8>)]) -> Vec<u64> {
    let mut addresses = Vec::new();
    for (start, bytes) in after {
        let Some((_, old)) = before.iter().find(|(old_start, _)| old_start == start) else {
            continue;
        };
        let differing = bytes
            .iter()
            .zip(old)
            .enumerate()
            .filter(|(_, (new, old))| new != old);
        addresses.extend(differing.map(|(offset, _)| start + offset as u64));
    }
    addresses
}

/// How long the kernel may take to take probes out: perf events wait for one
/// another.
pub const RESTORED: Duration = Duration::from_secs(5);

/// Waits until the code of process `pid` is what it was `before`: when leaktrace
/// leaves at once, its probes go a little later.
///
/// # Errors
/// When something else stays there.
pub fn expect_restored(pid: u32, before: &[(u64, Vec<u8>)]) -> Result<()> {
    let deadline = Instant::now() + RESTORED;
    loop {
        let left = changed(before, &code(pid)?);
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "code is changed at {left:x?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
