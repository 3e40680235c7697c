//! Signals sent to leaktrace that are meant for the command it runs.
//!
//! Both are in one process group, so the command gets by itself what a terminal
//! sends (Ctrl-C, a lost connection); what somebody sends to leaktrace alone
//! (`kill`, a service manager) is passed on.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// Signals that `leaktrace run` passes on. SIGUSR1 and SIGUSR2 are leaktrace's own.
pub const PASSED_ON: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals that stop jobs, as a shell's user sees it: Ctrl-Z, and a background
/// job that uses its terminal. Other than SIGSTOP they can be taken.
pub const JOB_STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Signals as things to read instead of interruptions, with their senders
/// (signalfd(2)).
#[derive(Debug)]
pub struct SignalQueue {
    descriptor: OwnedFd,
}

/// One signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// How it was sent: a `SI_*` code, see sigaction(2).
    pub code: i32,
    /// Who sent it; 0 for the kernel.
    pub sender: u32,
}

impl SignalQueue {
    /// Blocks signals and queues them here from now on. Only threads started
    /// later inherit that, so call it before there are any. Blocked signals are
    /// queued also when they are ignored: leave out those for which
    /// [`super::Inherited::ignores`] should hold on.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset makes the set valid; invalid numbers are refused
        // and leave it as it is.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            set.assume_init()
        };
        // SAFETY: the set is valid, and a new descriptor is asked for.
        let raw =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, and nobody else owns what it returned.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: the set is valid, and the old mask isn't asked for.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(Self { descriptor })
    }

    /// The next signal; `None` when none has come.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read(&self) -> io::Result<Option<Received>> {
        // The structure's fields, by linux/signalfd.h: number at 0, code at 8,
        // sender at 12, 32 bits each.
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.descriptor, &mut info)) {
            Ok(length) if length == info.len() => {}
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&info[at..at + 4]);
            bytes
        };
        Ok(Some(Received {
            signal: i32::from_ne_bytes(word(0)),
            code: i32::from_ne_bytes(word(8)),
            sender: u32::from_ne_bytes(word(12)),
        }))
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for SignalQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl Received {
    /// Whether the command, whose process id this is, has to be sent it as well.
    /// Not what comes from the kernel: a terminal sends to the whole foreground
    /// process group. Nor what the command itself sent, which was to its group.
    /// (What somebody else sent to the group arrives twice; nothing tells it
    /// from what was sent to leaktrace alone.)
    #[must_use]
    pub fn is_meant_for(&self, command: u32) -> bool {
        let is_known = PASSED_ON.contains(&self.signal) || JOB_STOPS.contains(&self.signal);
        is_known && self.code != libc::SI_KERNEL && self.sender != command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_s_signal_is_not_passed_on() {
        let kill = Received {
            signal: libc::SIGTERM,
            code: libc::SI_USER,
            sender: 7,
        };
        assert!(kill.is_meant_for(42));
        let terminal = Received {
            signal: libc::SIGINT,
            code: libc::SI_KERNEL,
            sender: 0,
        };
        assert!(!terminal.is_meant_for(42));
        let own_group = Received { sender: 42, ..kill };
        assert!(!own_group.is_meant_for(42));
        let stop = Received {
            signal: libc::SIGTSTP,
            ..kill
        };
        assert!(stop.is_meant_for(42));
        let report = Received {
            signal: libc::SIGUSR1,
            ..kill
        };
        assert!(!report.is_meant_for(42));
    }

    #[test]
    fn signals_are_read_with_their_sender() {
        // Directed at a thread of its own, whose mask ends with it.
        std::thread::spawn(|| {
            let queue = SignalQueue::new(&[libc::SIGUSR2]).unwrap();
            assert_eq!(queue.read().unwrap(), None);
            // SAFETY: sends a signal that this thread has blocked.
            let result = unsafe { libc::raise(libc::SIGUSR2) };
            assert_eq!(result, 0);
            assert_eq!(
                queue.read().unwrap(),
                Some(Received {
                    signal: libc::SIGUSR2,
                    code: libc::SI_TKILL,
                    sender: std::process::id(),
                })
            );
            assert_eq!(queue.read().unwrap(), None);
        })
        .join()
        .unwrap();
    }
}
