//! Executable mappings as they appear: the kernel writes a record of each into
//! buffers of perf events, so that also those are known that are gone when
//! somebody looks, with the process that had them or before it.

mod attributes;
mod cpus;
mod record;
mod ring;

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::mapping::Mapping;
use crate::perf_event::{self, Request};
use record::{Event, Record};
use ring::Ring;

/// So many descriptors at most for threads that run already; each takes one a
/// CPU.
const MOST_DESCRIPTORS: usize = 512;

/// Watches one process and all threads that it starts.
///
/// Nothing is recorded of vfork children, of CPUs that come online later, and
/// after the process has executed a program that its user may not read or that
/// changes its user: there the kernel ends all events.
///
/// It costs the process a little: 0.3 us a context switch, and for each thread
/// that it starts 2.4 us a CPU (6.18, two CPUs).
#[derive(Debug)]
pub struct MappingEvents {
    pid: u32,
    /// One a CPU.
    rings: Vec<(u32, Ring)>,
    /// Events that write to another one's buffer.
    redirected: Vec<OwnedFd>,
    unwatched_threads: usize,
    /// Records not handed out yet, in order of time.
    later: Vec<Record>,
}

/// What has happened since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Executable mappings, in the order in which they were made. After an exec
    /// only the new program's.
    pub mappings: Vec<Mapping>,
    /// The process has executed another program: what it mapped before is gone.
    pub exec: bool,
    /// Records that were lost since the buffers were full.
    pub lost: u64,
}

impl MappingEvents {
    /// Begins to watch a process.
    ///
    /// # Errors
    /// Those of `perf_event_open`: `EACCES` where `kernel.perf_event_paranoid`
    /// forbids it, `ENOENT` or `ENOSYS` where the kernel has no such events,
    /// `ESRCH` for a process that has ended; or there is no sysfs.
    pub fn open(pid: u32) -> io::Result<Self> {
        let cpus = cpus::online()?;
        let mut events = Self {
            pid,
            rings: Vec::new(),
            redirected: Vec::new(),
            unwatched_threads: 0,
            later: Vec::new(),
        };
        let ended = match events.watch(pid, &cpus) {
            Ok(()) => None,
            // The main thread may have ended while others go on.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Some(error),
            Err(error) => return Err(error),
        };
        events.watch_other_threads(&cpus);
        match ended {
            Some(error) if events.rings.is_empty() => Err(error),
            _ => Ok(events),
        }
    }

    /// Threads that ran already and are not watched, since there are too many.
    #[must_use]
    pub fn unwatched_threads(&self) -> usize {
        self.unwatched_threads
    }

    /// Descriptors that become readable when something was recorded.
    pub fn buffers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().map(|(_, ring)| ring.as_fd())
    }

    #[cfg(test)]
    pub(super) fn descriptors(&self) -> impl Iterator<Item = std::os::fd::RawFd> {
        use std::os::fd::AsRawFd as _;
        let rings = self.rings.iter().map(|(_, ring)| ring.as_fd().as_raw_fd());
        rings.chain(self.redirected.iter().map(|event| event.as_raw_fd()))
    }

    /// Takes out what the kernel has recorded.
    #[must_use]
    pub fn drain(&mut self) -> Drained {
        // A thread that moves between CPUs writes to several buffers. What is
        // stamped before now and not in its buffer yet was written by a thread
        // whose next record is stamped later: nothing up to now can be
        // overtaken.
        let now = monotonic_ns();
        let mut records = std::mem::take(&mut self.later);
        for (_, ring) in &mut self.rings {
            records.extend(record::parse(&ring.take(), self.pid));
        }
        let (drained, later) = in_order(records, now);
        self.later = later;
        drained
    }

    /// Watches the threads that run already: inheritance begins with those that
    /// are watched.
    fn watch_other_threads(&mut self, cpus: &[u32]) {
        let mut seen = BTreeSet::from([self.pid]);
        // Threads not watched yet may start others meanwhile.
        for _ in 0..3 {
            let new: Vec<u32> = threads(self.pid)
                .into_iter()
                .filter(|thread| seen.insert(*thread))
                .collect();
            if new.is_empty() {
                break;
            }
            for thread in new {
                let full = self.redirected.len() + cpus.len() > MOST_DESCRIPTORS;
                let result = if full {
                    Err(io::Error::from_raw_os_error(libc::EMFILE))
                } else {
                    self.watch(thread, cpus)
                };
                if result.is_err_and(|error| error.raw_os_error() != Some(libc::ESRCH)) {
                    self.unwatched_threads += 1;
                }
            }
        }
    }

    /// Watches a thread and those that it starts, wherever they run: to be
    /// inherited, an event with a buffer must belong to one CPU.
    fn watch(&mut self, thread: u32, cpus: &[u32]) -> io::Result<()> {
        for &cpu in cpus {
            let event = match attributes::open(thread, cpu) {
                Ok(event) => event,
                // It went offline.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
                Err(error) => return Err(error),
            };
            match self.rings.iter().find(|(other, _)| *other == cpu) {
                Some((_, ring)) => {
                    perf_event::tell(event.as_fd(), Request::SetOutput, ring.as_fd())?;
                    self.redirected.push(event);
                }
                None => self.rings.push((cpu, Ring::new(event)?)),
            }
        }
        Ok(())
    }
}

/// What the records up to a moment say, and those after it in order.
fn in_order(mut records: Vec<Record>, now: u64) -> (Drained, Vec<Record>) {
    records.sort_by_key(|record| record.time);
    let later = records.split_off(records.partition_point(|record| record.time <= now));
    let mut drained = Drained::default();
    for record in records {
        match record.event {
            Event::Mapped(mapping) if mapping.executable => drained.mappings.push(mapping),
            Event::Mapped(_) => {}
            Event::Executed => {
                drained.exec = true;
                drained.mappings.clear();
            }
            Event::Lost(count) => drained.lost = drained.lost.saturating_add(count),
        }
    }
    (drained, later)
}

fn threads(pid: u32) -> Vec<u32> {
    let Ok(directory) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    directory
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests;
