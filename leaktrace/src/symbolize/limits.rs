//! How much memory and time symbols may take.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::elf_image::DebugSize;

/// What symbolizing may cost. The defaults keep leaktrace below 500 MiB of
/// anonymous memory.
///
/// Measured with blazesym 0.2.7 (release build), as MiB of anonymous memory for
/// MiB of debug sections, of which `.debug_info` and `.debug_line`:
///
/// | debug information | opened | 10 000 addresses | every function |
/// | --- | --- | --- | --- |
/// | C, gcc -O2, 47 (29) | 2 | 43 | 54 |
/// | C, gcc -O2, 92 (58) | 2 | 79 | 107 |
/// | C, gcc -O2, 279 (176) | 3 | 228 | 275 |
/// | C++, gcc -O1, 95 (69) | 1 | 76 | 95 |
/// | C++, gcc -O1, 236 (174) | 1 | 117 | 238 |
/// | C++, clang -O1, 47 (33), without `.debug_aranges` | 6 | 67 | 92 |
///
/// Time: 10 000 addresses in 500 stacks, spread over every unit, take 0.3 s with
/// 92 MiB of C, 0.4 to 0.6 s with 95 MiB of C++ (0.8 s when compressed), and
/// 5 to 8 s with 500 MiB, where everything is dropped and begun anew twice.
///
/// A unit once touched stays in memory, at up to 2.8 times its share of
/// `.debug_info` and `.debug_line`. So memory is watched while addresses are
/// looked up, and everything is dropped and begun anew when it grew too much;
/// what must be avoided beforehand is a single unit that is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most memory of the process that reads symbols, bytes of stack and heap.
    /// Beyond, the kernel gives it none, and it dies.
    pub memory: u64,
    /// Growth of leaktrace's anonymous memory after which the debug information
    /// read so far is dropped, bytes.
    pub growth: u64,
    /// Growth that may stay when nothing is asked for a while, to make the next
    /// look-ups faster, bytes.
    pub kept: u64,
    /// Largest `.debug_info` and `.debug_line` of one file that are used, bytes.
    /// Bounds the time.
    pub info_and_line: u64,
    /// Most compressed debug information of one file that is used, bytes when
    /// unpacked.
    pub unpacked: u64,
    /// Largest `.gnu_debugdata` that is used, bytes, packed or unpacked.
    pub mini_debug_info: u64,
    /// Largest unit of `.debug_info` that is used, bytes. With `growth`, bounds
    /// the memory: 256 + 2.8 × 64 MiB.
    pub unit: u64,
    /// How often one file's debug information may be dropped and begun anew.
    pub restarts: u32,
    /// How long a few addresses of one file may take.
    pub patience: Duration,
    /// How long all of one file's addresses may take; a tenth of the time that
    /// goes by comes back, so that in a long trace it is a limit for each report.
    pub file: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            memory: 456 * MIB,
            growth: 256 * MIB,
            kept: 64 * MIB,
            info_and_line: 512 * MIB,
            unpacked: 160 * MIB,
            mini_debug_info: 64 * MIB,
            unit: 64 * MIB,
            restarts: 3,
            patience: Duration::from_secs(10),
            file: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// Why debug information of this size is not used; `None` when it is.
    #[must_use]
    pub fn objection(&self, size: &DebugSize) -> Option<String> {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        if size.info_and_line > self.info_and_line {
            return Some(format!(
                "{} MiB of debug information (at most {} are read)",
                mib(size.info_and_line),
                mib(self.info_and_line)
            ));
        }
        if size.unpacked > self.unpacked {
            return Some(format!(
                "{} MiB of compressed debug information (at most {} are unpacked)",
                mib(size.unpacked),
                mib(self.unpacked)
            ));
        }
        (size.largest_unit > self.unit).then(|| {
            format!(
                "a unit of {} MiB of debug information (at most {} are read)",
                mib(size.largest_unit),
                mib(self.unit)
            )
        })
    }
}

/// The time that one file's look-ups may still take.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    most: Duration,
    left: Duration,
    since: Instant,
}

impl Allowance {
    /// How much of the time that goes by comes back: one in so many.
    const RETURN: u32 = 10;

    /// All of it.
    #[must_use]
    pub fn new(most: Duration) -> Self {
        Self {
            most,
            left: most,
            since: Instant::now(),
        }
    }

    /// What is left at this time.
    #[must_use]
    pub fn left(&mut self, now: Instant) -> Duration {
        let back = now.saturating_duration_since(self.since) / Self::RETURN;
        self.left = self.most.min(self.left.saturating_add(back));
        self.since = now;
        self.left
    }

    /// Takes what a look-up took.
    pub fn spend(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }
}

/// Watches leaktrace's own anonymous memory.
pub struct MemoryWatch {
    start: u64,
}

impl MemoryWatch {
    /// From now on.
    #[must_use]
    pub fn new() -> Self {
        Self {
            start: anonymous_memory(),
        }
    }

    /// How much more there is than at the start, bytes.
    #[must_use]
    pub fn growth(&self) -> u64 {
        anonymous_memory().saturating_sub(self.start)
    }
}

/// Leaktrace's resident anonymous memory, bytes: resident less shared pages in
/// `/proc/self/statm` (proc_pid_statm(5)); 0 when it can't be read.
fn anonymous_memory() -> u64 {
    let pages = || {
        let text = fs::read_to_string("/proc/self/statm").ok()?;
        let mut fields = text.split_ascii_whitespace().skip(1);
        let resident: u64 = fields.next()?.parse().ok()?;
        let shared: u64 = fields.next()?.parse().ok()?;
        resident.checked_sub(shared)
    };
    pages().unwrap_or(0) * rustix::param::page_size() as u64
}

/// Gives freed memory back to the kernel, which glibc's allocator would keep.
pub fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objection_names_the_limit_that_is_exceeded() {
        let limits = Limits::default();
        let fits = DebugSize {
            info_and_line: 500 << 20,
            unpacked: 0,
            largest_unit: 1 << 20,
        };
        assert_eq!(limits.objection(&fits), None);
        let objection = |size: DebugSize| limits.objection(&size).unwrap();
        assert_eq!(
            objection(DebugSize {
                info_and_line: 2 << 30,
                ..fits
            }),
            "2048 MiB of debug information (at most 512 are read)"
        );
        assert!(
            objection(DebugSize {
                unpacked: 200 << 20,
                ..fits
            })
            .contains("compressed")
        );
        assert!(
            objection(DebugSize {
                largest_unit: 65 << 20,
                ..fits
            })
            .starts_with("a unit of 65")
        );
    }

    #[test]
    fn time_that_was_spent_comes_back_slowly_and_never_more() {
        let seconds = Duration::from_secs;
        let mut allowance = Allowance::new(seconds(30));
        let start = allowance.since;
        allowance.spend(seconds(25));
        assert_eq!(allowance.left(start), seconds(5));
        assert_eq!(allowance.left(start + seconds(100)), seconds(15));
        allowance.spend(seconds(100));
        assert_eq!(allowance.left(start + seconds(100)), Duration::ZERO);
        assert_eq!(allowance.left(start + seconds(9999)), seconds(30));
    }

    #[test]
    fn memory_that_is_touched_is_seen_to_grow() {
        // Other tests of this program may give memory back meanwhile.
        let is_seen = (0..10).any(|_| {
            let watch = MemoryWatch::new();
            let block = std::hint::black_box(vec![1_u8; 64 << 20]);
            let growth = watch.growth();
            drop(block);
            growth > 32 << 20
        });
        assert!(is_seen);
    }
}
