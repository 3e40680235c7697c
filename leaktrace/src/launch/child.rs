//! The child that waits until probes are set and then becomes the command.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    pipe::PipeFlags,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions},
};

use super::{
    command::{Command, LaunchError},
    forked::{Plan, Step, fork},
    inherited::Inherited,
};
use crate::target::is_loaded;

/// A child of leaktrace's own. Dropped before [`Self::go`], it ends without
/// having run anything, as it does when leaktrace dies; afterwards it goes on.
#[derive(Debug)]
pub struct Child {
    command: Command,
    pid: Pid,
    pidfd: OwnedFd,
    go: Option<OwnedFd>,
    errors: File,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl Outcome {
    /// As shells show it, and `leaktrace run` ends: 128 + the signal's number.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        let code = match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => 128 + signal,
        };
        code.to_le_bytes()[0]
    }
}

impl Child {
    /// Starts a child that waits. The descriptors that are open now without
    /// `O_CLOEXEC`, among them standard input and output, become the command's.
    /// Best called early: everything open now stays open until [`Self::go`].
    ///
    /// # Errors
    /// When there can be no child, or the command can't be passed on to one.
    pub fn spawn(command: Command, inherited: &Inherited) -> Result<Self, LaunchError> {
        let failed = |step| {
            let program = command.program.to_string_lossy().into_owned();
            move |source: io::Error| LaunchError::Failed {
                program,
                step,
                source,
            }
        };
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (go_read, go_write) = pipe().map_err(failed("pipe"))?;
        let (errors_read, errors_write) = pipe().map_err(failed("pipe"))?;
        // Everything that allocates comes before the fork.
        let mut plan = Plan::new(
            &command,
            inherited,
            [
                go_read.as_raw_fd(),
                go_write.as_raw_fd(),
                errors_write.as_raw_fd(),
            ],
        )?;
        collect_children();
        let pid = fork(&mut plan).map_err(failed("fork"))?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| failed("pidfd_open")(error.into()))?;
        Ok(Self {
            command,
            pid,
            pidfd,
            go: Some(go_write),
            errors: errors_read.into(),
        })
    }

    /// Its process id, which the command keeps.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Becomes readable when it ends.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Lets it become the command. Returns when it has.
    ///
    /// # Errors
    /// When the command can't be executed, leaktrace's own state not undone, or
    /// the child was ended before it began.
    pub fn go(&mut self) -> Result<(), LaunchError> {
        if let Some(go) = self.go.take() {
            // An error means that it was ended while it waited: then it has
            // reported nothing.
            let _ = rustix::io::retry_on_intr(|| rustix::io::write(&go, &[1]));
        }
        let mut report = Vec::new();
        let program = || self.command.program.to_string_lossy().into_owned();
        self.errors
            .read_to_end(&mut report)
            .map_err(|source| LaunchError::Failed {
                program: program(),
                step: "reading from the child",
                source,
            })?;
        match (report.last_chunk::<5>(), report.first()) {
            // The pipe was closed by the child's end.
            (None, None) => Err(
                match self.wait(WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                    Ok(Some(outcome)) => LaunchError::NeverBegan(outcome),
                    other => LaunchError::Failed {
                        program: program(),
                        step: "waiting for the child",
                        source: other.err().unwrap_or(io::ErrorKind::Other.into()),
                    },
                },
            ),
            // The pipe was closed by exec.
            (None, Some(_)) => {
                self.wait_until_loaded();
                Ok(())
            }
            (Some([step, errno @ ..]), _) => {
                let errno = i32::from_ne_bytes(*errno);
                let step = Step::ALL.into_iter().find(|known| *known as u8 == *step);
                let source = io::Error::from_raw_os_error(errno);
                Err(match step.map(Step::description) {
                    Some(Some(step)) => LaunchError::Failed {
                        program: program(),
                        step,
                        source,
                    },
                    _ => self.command.exec_error(errno),
                })
            }
        }
    }

    /// Waits until its `/proc` entries show the command, but not for ever: there
    /// is nothing wrong with a command whose file system is slow.
    fn wait_until_loaded(&self) {
        let start = Instant::now();
        while !is_loaded(self.pid()) && start.elapsed() < Duration::from_secs(1) {
            if !matches!(self.outcome(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Sends it a signal, such as one of [`super::signals::PASSED_ON`]. Nothing
    /// happens when it has ended.
    pub fn signal(&self, number: i32) {
        if let Some(signal) = Signal::from_named_raw(number) {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
        }
    }

    /// How it ended, `None` while it runs. It stays a zombie, with what is left
    /// of its `/proc` entries, until [`Self::reap`].
    ///
    /// # Errors
    /// Those of `waitid`.
    pub fn outcome(&self) -> io::Result<Option<Outcome>> {
        outcome(self.pidfd())
    }

    /// Waits until it ends and takes notice of that: the process id is free
    /// for others now.
    ///
    /// # Errors
    /// Those of `waitid`.
    pub fn reap(&mut self) -> io::Result<Outcome> {
        self.wait(WaitIdOptions::EXITED)?
            .ok_or_else(|| io::Error::other("the child ended in no known way"))
    }

    fn wait(&self, options: WaitIdOptions) -> io::Result<Option<Outcome>> {
        wait(self.pidfd(), options)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.go.take().is_some() {
            // The pipe is closed: it ends at once, and leaves no zombie.
            let _ = self.wait(WaitIdOptions::EXITED);
        }
    }
}

/// How a child ended, `None` while it runs; it stays a zombie.
///
/// # Errors
/// Those of `waitid`.
pub fn outcome(pidfd: BorrowedFd<'_>) -> io::Result<Option<Outcome>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    wait(pidfd, options)
}

fn wait(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> io::Result<Option<Outcome>> {
    let status =
        rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd), options))?;
    Ok(status.and_then(|status| {
        let exited = status.exit_status().map(Outcome::Exited);
        exited.or_else(|| status.terminating_signal().map(Outcome::Signaled))
    }))
}

/// With SIGCHLD ignored, which is inherited, children vanish without a status.
pub fn collect_children() {
    // SAFETY: the default disposition runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests;
