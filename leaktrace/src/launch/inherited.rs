//! What leaktrace got from whoever started it and changes for itself; the
//! command that it runs gets it as it was.

use std::{fs, io, mem::MaybeUninit, os::unix::process::CommandExt as _, process};

use rustix::process::{Resource, Rlimit};

use super::undo::Undo;
use crate::host::priority::Priority;

/// Attributes of a process that go through `exec` and that leaktrace changes.
#[derive(Clone, Debug)]
pub struct Inherited {
    pub(super) priority: Priority,
    pub(super) signal_mask: libc::sigset_t,
    ignored: u64,
    pub(super) locked_memory: Rlimit,
    pub(super) open_files: Rlimit,
}

/// Highest signal number, real-time ones included.
pub(super) const LAST_SIGNAL: i32 = 64;

impl Inherited {
    /// Takes note of them; to be called first in `main`. Whether SIGPIPE was
    /// ignored is not known: Rust's runtime has changed it by then. It is given
    /// to commands in its default form, as Rust's own `Command` does.
    ///
    /// # Errors
    /// Those of `sigprocmask`, which don't happen.
    pub fn capture() -> io::Result<Self> {
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: with a null set the mask is only read, into valid memory.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        let ignored = (1..=LAST_SIGNAL)
            .filter(|signal| *signal != libc::SIGPIPE && is_ignored(*signal))
            .fold(0, |set, signal| set | bit(signal));
        Ok(Self {
            priority: Priority::current(),
            // SAFETY: the call succeeded and has filled it.
            signal_mask: unsafe { mask.assume_init() },
            ignored,
            locked_memory: rustix::process::getrlimit(Resource::Memlock),
            open_files: rustix::process::getrlimit(Resource::Nofile),
        })
    }

    /// Whether leaktrace was started with this signal ignored, as `nohup` does
    /// with SIGHUP, and a shell with SIGINT for a command in the background of
    /// a script.
    #[must_use]
    pub fn ignores(&self, signal: i32) -> bool {
        (1..=LAST_SIGNAL).contains(&signal) && self.ignored & bit(signal) != 0
    }
}

impl Inherited {
    /// Has another command get all of it, as the command of `run` does.
    pub fn give_back(&self, command: &mut process::Command) {
        let undo = Undo::of(self);
        let restore = move || {
            // SAFETY: this runs in the child of a fork.
            unsafe {
                undo.signals();
                undo.attributes().map_err(|_| io::Error::last_os_error())
            }
        };
        // SAFETY: `restore` makes system calls only.
        unsafe { command.pre_exec(restore) };
    }
}

/// Keeps descriptors that leaktrace was started with, but standard input and
/// output, from commands that it starts from now on. All others are its own and
/// kept from them anyway.
pub fn keep_descriptors() {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten();
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number > libc::STDERR_FILENO) {
        // SAFETY: changes no memory. Whose descriptor it is does not matter.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with a null action the disposition is only read, into valid
    // memory, which is looked at only after success.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
