//! CPU time of the target and of leaktrace itself.

use std::{fs::File, io, os::unix::fs::FileExt as _, time::Duration};

use rustix::time::ClockId;

use super::{Process, status::Stat, ticks};

/// CPU time that a process has used since it started, all threads together,
/// those that ended too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// All of it.
    pub total: Duration,
    /// In the kernel, where probes run; the kernel shows hundredths of a second.
    pub system: Duration,
}

/// Reads a process's CPU time again and again. The file stays open: reading it
/// fails once the process is gone, and never shows another one's.
#[derive(Debug)]
pub struct CpuClock {
    stat: File,
    /// The process's CPU-time clock, exact where `stat` has hundredths.
    clock: Option<libc::clockid_t>,
}

impl CpuClock {
    /// The clock of a process.
    ///
    /// # Errors
    /// When the process has ended, or `/proc` can't be read.
    pub fn open(process: &Process) -> io::Result<Self> {
        // The main thread's entry has the times of all threads, and stays when
        // that thread ends before the others.
        let stat = File::open(format!("/proc/{}/stat", process.pid()))?;
        if process.is_alive() {
            let mut clock = 0;
            // SAFETY: writes one clock id into a variable of ours.
            let found = unsafe { libc::clock_getcpuclockid(process.pid() as i32, &raw mut clock) };
            Ok(Self {
                stat,
                clock: (found == 0).then_some(clock),
            })
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    }

    /// CPU time until now. Still works for a zombie.
    ///
    /// # Errors
    /// `ESRCH` once the process is gone.
    pub fn read(&self) -> io::Result<CpuTime> {
        let mut text = [0; 1024];
        let length = self.stat.read_at(&mut text, 0)?;
        let stat = Stat::parse(&text[..length]).ok_or(io::ErrorKind::InvalidData)?;
        let system = ticks(stat.system_ticks);
        let total = self.exact_total();
        Ok(CpuTime {
            total: total.unwrap_or(ticks(stat.user_ticks) + system),
            system,
        })
    }

    /// What the clock shows; it is gone with the process.
    fn exact_total(&self) -> Option<Duration> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: writes one time into a variable of ours.
        let result = unsafe { libc::clock_gettime(self.clock?, &raw mut time) };
        (result == 0).then(|| {
            Duration::new(
                u64::try_from(time.tv_sec).unwrap_or(0),
                u32::try_from(time.tv_nsec).unwrap_or(0),
            )
        })
    }
}

/// CPU time of leaktrace itself, all threads.
#[must_use]
pub fn own_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{
        super::test_process::{Running, wait_until},
        *,
    };

    #[test]
    fn a_busy_process_s_time_grows_and_stops_with_it() {
        let mut child = Running::start(Command::new("sh").args(["-c", "while :; do :; done"]));
        let process = Process::open(child.pid()).unwrap();
        let clock = CpuClock::open(&process).unwrap();
        let before = clock.read().unwrap();
        wait_until("it has run for 50 ms", || {
            clock.read().unwrap().total >= before.total + Duration::from_millis(50)
        });
        child.0.kill().unwrap();
        wait_until("it has ended", || !process.is_alive());
        assert!(clock.read().unwrap().total >= before.total + Duration::from_millis(50));
        child.0.wait().unwrap();
        assert_eq!(clock.read().unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(CpuClock::open(&process).is_err());
    }

    #[test]
    fn our_own_time_grows_with_work() {
        let before = own_cpu_time();
        let mut sum = 0_u64;
        while own_cpu_time() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(own_cpu_time() > before);
    }
}
