//! The process that is traced, apart from BPF: finding it, whether it can be
//! traced, what it maps, how much memory and CPU time it uses.

pub mod available;
pub mod cgroup;
pub mod code_files;
pub mod code_mappings;
pub mod cpu;
pub mod error;
pub mod limits;
pub mod mapped_file;
pub mod mapping;
pub mod mapping_events;
pub mod mapping_watch;
pub mod memory;
pub mod memory_map;
pub mod pagemap;
pub mod process_id;
pub mod resource_limits;
pub mod select;
pub mod status;
pub mod user_memory;
pub(crate) mod vdso;

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags},
    thread::CapabilitySet,
    time::ClockId,
};

use crate::model::ProcessInfo;
pub use error::{Denial, TargetError};
use status::{Stat, Status};

/// Bytes of a process's name that the kernel keeps (`TASK_COMM_LEN` less the 0).
const LONGEST_NAME: usize = 15;

/// A process that leaktrace looks into. It holds a descriptor of the process,
/// so that another one that gets the same id later is not mistaken for it.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    pid: u32,
    name: String,
    exe: PathBuf,
    start_ticks: u64,
    started: jiff::Zoned,
    seccomp: u32,
    shadow_stack: bool,
}

impl Process {
    /// Opens a process to trace it.
    ///
    /// # Errors
    /// When there is none, or it can't be traced; the error says why.
    pub fn open(pid: u32) -> Result<Self, TargetError> {
        if pid == std::process::id() {
            return Err(TargetError::Itself { pid });
        }
        let process = Self::examine(pid)?;
        if process.is_32_bit()? {
            let (name, exe) = (process.name, process.exe);
            return Err(TargetError::ThirtyTwoBit { pid, name, exe });
        }
        if process.is_alive() {
            Ok(process)
        } else {
            Err(TargetError::Ended {
                pid,
                name: process.name,
            })
        }
    }

    /// leaktrace itself, as a process to look into.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn own() -> Result<Self, TargetError> {
        Self::examine(std::process::id())
    }

    /// A child of leaktrace's own that executes `exe` and is not waited for
    /// yet. It may have ended already, even before this is called.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn of_child(pid: u32, exe: &Path) -> Result<Self, TargetError> {
        match Self::examine(pid) {
            Err(TargetError::Zombie { .. } | TargetError::Ended { .. }) => {}
            examined => return examined,
        }
        let pidfd = open_pidfd(pid)?;
        let stat = read_stat(pid)?;
        Ok(Self {
            pidfd,
            pid,
            name: stat.name,
            exe: exe.to_path_buf(),
            start_ticks: stat.start_ticks,
            started: wall_clock(stat.start_ticks),
            seccomp: 0,
            shadow_stack: false,
        })
    }

    /// As this file's execution has named it, `program` being the executable (the
    /// interpreter, if the file is a script): by the time it is looked at, it may
    /// have executed another.
    #[must_use]
    pub fn as_executed(mut self, file: &Path, program: &Path) -> Self {
        if let Some(name) = file.file_name() {
            let name = name.as_bytes();
            let name = &name[..name.len().min(LONGEST_NAME)];
            self.name = String::from_utf8_lossy(name).into_owned();
        }
        if let Ok(program) = program.canonicalize() {
            self.exe = program;
        }
        self
    }

    fn examine(pid: u32) -> Result<Self, TargetError> {
        let status = match fs::read(format!("/proc/{pid}/status")) {
            Ok(text) => Status::parse(&text),
            Err(error) => return Err(no_status(pid, error)),
        };
        let stat = read_stat(pid)?;
        let name = stat.name.clone();
        match status.tgid {
            Some(tgid) if tgid != pid => {
                return Err(TargetError::Thread {
                    tid: pid,
                    name,
                    pid: tgid,
                });
            }
            _ => {}
        }
        if stat.is_kernel_thread() {
            return Err(TargetError::KernelThread { pid, name });
        }
        let pidfd = open_pidfd(pid)?;
        let Some(thread) = living_thread(pid, &stat) else {
            let parent = status.parent.unwrap_or(0);
            return Err(TargetError::Zombie { pid, name, parent });
        };
        let link = format!("/proc/{pid}/task/{thread}/exe");
        let exe = fs::read_link(&link).map_err(|error| refused(pid, &name, &link, error))?;
        Ok(Self {
            pidfd,
            pid,
            name,
            exe,
            start_ticks: stat.start_ticks,
            started: wall_clock(stat.start_ticks),
            seccomp: status.seccomp.unwrap_or(0),
            shadow_stack: status.shadow_stack,
        })
    }

    /// Process id (thread group id).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Command name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The executable, as `/proc/PID/exe` showed it.
    #[must_use]
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// When it started, wall clock.
    #[must_use]
    pub fn started(&self) -> &jiff::Zoned {
        &self.started
    }

    /// When it started, clock ticks since boot: with the pid, an identity.
    #[must_use]
    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Seccomp mode when it was opened: 0 off, 1 strict, 2 filter.
    #[must_use]
    pub fn seccomp(&self) -> u32 {
        self.seccomp
    }

    /// Whether its main thread had a user shadow stack when it was opened.
    #[must_use]
    pub fn has_shadow_stack(&self) -> bool {
        self.shadow_stack
    }

    /// What a report says about it.
    #[must_use]
    pub fn info(&self) -> ProcessInfo {
        ProcessInfo {
            pid: self.pid,
            name: self.name.clone(),
            exe: self.exe.clone(),
            started: self.started.clone(),
        }
    }

    /// Whether any thread of it still lives. A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Readable once the last thread has ended.
        !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1..))
    }

    /// Becomes readable when the process ends (all of its threads).
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the main thread has ended (`pthread_exit`) while others go on.
    #[must_use]
    pub fn main_thread_ended(&self) -> bool {
        read_stat(self.pid).is_ok_and(|stat| stat.has_ended()) && self.is_alive()
    }

    /// Reads `/proc/PID/NAME`, or that of a living thread: the main thread's
    /// entries are empty once it has ended.
    ///
    /// # Errors
    /// `ESRCH` when the process has ended, or any other of reading.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let text = fs::read(self.directory()?.join(name))?;
        // Had it ended, and had its id been given away, this would be another's.
        if self.is_alive() {
            Ok(text)
        } else {
            Err(ended())
        }
    }

    /// `/proc/PID/task/TID` of a thread that lives.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn directory(&self) -> io::Result<PathBuf> {
        let thread = self.thread()?;
        Ok(PathBuf::from(format!("/proc/{}/task/{thread}", self.pid)))
    }

    /// A thread that lives, the main one if possible.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn thread(&self) -> io::Result<u32> {
        read_stat(self.pid)
            .ok()
            .and_then(|stat| living_thread(self.pid, &stat))
            .ok_or_else(ended)
    }

    fn is_32_bit(&self) -> Result<bool, TargetError> {
        let path = match self.directory() {
            Ok(directory) => directory.join("exe"),
            Err(_) => {
                return Err(TargetError::Ended {
                    pid: self.pid,
                    name: self.name.clone(),
                });
            }
        };
        let mut ident = [0; 5];
        File::open(&path)
            .and_then(|mut file| file.read_exact(&mut ident))
            .map_err(|error| refused(self.pid, &self.name, &path, error))?;
        Ok(is_32_bit_elf(ident))
    }
}

/// Whether a process has taken on its program: `exec` closes descriptors, and
/// lets the parent of a `vfork` go on, before the program is mapped.
#[must_use]
pub(crate) fn is_loaded(pid: u32) -> bool {
    match fs::read(format!("/proc/{pid}/auxv")) {
        // The vector is written when all else of `exec` is done.
        Ok(vector) => vector.iter().take(8).any(|byte| *byte != 0),
        // It has ended already, or does not let itself be looked into.
        Err(_) => true,
    }
}

/// Whether the first bytes of a file are those of an `ELFCLASS32` file.
fn is_32_bit_elf(ident: [u8; 5]) -> bool {
    ident == *b"\x7fELF\x01"
}

fn ended() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

/// Why `/proc/PID/status` can't be read.
fn no_status(pid: u32, error: io::Error) -> TargetError {
    match open_pidfd(pid) {
        // Mounted with `hidepid`, /proc hides other users' processes.
        Ok(_) if Path::new("/proc/self/stat").exists() => TargetError::NotPermitted {
            pid,
            name: "?".into(),
            why: denial(pid),
        },
        Ok(_) => TargetError::Unreadable {
            pid,
            name: "?".into(),
            file: format!("/proc/{pid}/status").into(),
            source: error,
        },
        Err(error) => error,
    }
}

fn open_pidfd(pid: u32) -> Result<OwnedFd, TargetError> {
    let none = TargetError::NoSuchProcess { pid };
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Err(none);
    };
    match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(pidfd),
        // The last two: a thread that is no process (kernels differ).
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {
            Err(none)
        }
        Err(error) => Err(TargetError::Unreadable {
            pid,
            name: "?".into(),
            file: "its pidfd".into(),
            source: error.into(),
        }),
    }
}

/// What an error from `/proc/PID/…` means for tracing.
fn refused(pid: u32, name: &str, file: impl Into<PathBuf>, source: io::Error) -> TargetError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => TargetError::NotPermitted {
            pid,
            name,
            why: denial(pid),
        },
        Some(libc::ENOENT | libc::ESRCH) => TargetError::Ended { pid, name },
        _ => TargetError::Unreadable {
            pid,
            name,
            file: file.into(),
            source,
        },
    }
}

/// What leaktrace lacks, given that it was refused.
fn denial(pid: u32) -> Denial {
    if !rustix::process::geteuid().is_root() {
        return Denial::NotRoot { pid };
    }
    match rustix::thread::capabilities(None) {
        Ok(sets) if !sets.effective.contains(CapabilitySet::SYS_PTRACE) => {
            Denial::Lacks("CAP_SYS_PTRACE")
        }
        _ => Denial::Refused,
    }
}

/// Reads `/proc/PID/stat`: of the main thread, with the times of all.
fn read_stat(pid: u32) -> Result<Stat, TargetError> {
    let file = format!("/proc/{pid}/stat");
    let unreadable = |source| TargetError::Unreadable {
        pid,
        name: "?".into(),
        file: PathBuf::from(&file),
        source,
    };
    match fs::read(&file) {
        Ok(text) => Stat::parse(&text).ok_or_else(|| unreadable(io::ErrorKind::InvalidData.into())),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Err(TargetError::NoSuchProcess { pid }),
            _ => Err(unreadable(error)),
        },
    }
}

/// A thread that has not ended: the main one, whose `stat` this is, or else any.
fn living_thread(pid: u32, main: &Stat) -> Option<u32> {
    if !main.has_ended() {
        return Some(pid);
    }
    fs::read_dir(format!("/proc/{pid}/task"))
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .find(|thread| {
            fs::read(format!("/proc/{pid}/task/{thread}/stat"))
                .ok()
                .and_then(|text| Stat::parse(&text))
                .is_some_and(|stat| !stat.has_ended())
        })
}

/// A clock tick of `/proc/PID/stat`.
fn ticks(count: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let rest = count % per_second;
    Duration::from_secs(count / per_second)
        + Duration::from_nanos(rest.saturating_mul(1_000_000_000) / per_second)
}

/// The wall-clock time of a moment given in ticks since boot. Counted back
/// from now: `btime` of `/proc/stat` has whole seconds only.
fn wall_clock(start_ticks: u64) -> jiff::Zoned {
    let now = jiff::Zoned::now();
    let since_boot = rustix::time::clock_gettime(ClockId::Boottime);
    let since_boot = Duration::new(
        u64::try_from(since_boot.tv_sec).unwrap_or(0),
        u32::try_from(since_boot.tv_nsec).unwrap_or(0),
    );
    let age = since_boot.saturating_sub(ticks(start_ticks));
    now.checked_sub(age).unwrap_or(now)
}

#[cfg(test)]
pub(crate) mod test_process;
#[cfg(test)]
mod tests;
