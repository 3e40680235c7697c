//! The companion that sets probes, holds them and takes them out.
//!
//! A process with a pending SIGKILL can't do either: the kernel then changes no
//! page of another process any more, and what it meant to take out stays there
//! for good ("failed to unregister, leaking uprobe" in its log; the check is in
//! `__get_user_pages`, mm/gup.c). So leaktrace, which anybody may kill at any
//! time, leaves it to this process, which outlives it for as long as that takes.
//! Descriptors that are closed because a process ends are safe: then the signal
//! is no longer pending, and others are ignored.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
    process::Child,
    thread,
};

use serde::{Deserialize, Serialize};

use super::{
    probes::Scope,
    uprobe_multi::{self, MultiProbe},
    uprobe_perf::{self, Tie},
};
use crate::{
    companion::{Channel, Service},
    host::priority,
};

/// The companion that this is.
pub const SERVICE: Service = Service {
    subcommand: "__hold-probes",
    name: c"leaktrace-hold",
    #[cfg(test)]
    as_a_test: "bpf::holder::tests::serves_another_test",
};

/// What leaktrace asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Probes, of a program in a file, which are passed along in this order.
    Set {
        probes: Probes,
        /// Otherwise they are taken out at once: it was to see whether it works.
        keep: bool,
    },
    /// All are to be taken out.
    Clear,
}

/// Probes that one descriptor holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Probes {
    /// Of a uprobe-multi link.
    Multi {
        probes: Vec<MultiProbe>,
        scope: Scope,
        at_return: bool,
    },
    /// A perf event's.
    Perf {
        offset: u64,
        scope: Scope,
        at_return: bool,
        tie: Tie,
    },
}

/// What the companion answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    /// The kernel's error number if it's one, and the text.
    Failed(Option<i32>, String),
}

/// The companion, seen from leaktrace. Dropping it takes all probes out.
#[derive(Debug)]
pub(super) struct Holder {
    process: Child,
    /// `None` when it was told to end.
    channel: Option<Channel>,
    held: usize,
}

impl Holder {
    /// # Errors
    /// When it can't be started.
    pub fn start() -> io::Result<Self> {
        let (process, channel) = SERVICE.start()?;
        Ok(Self {
            process,
            channel: Some(channel),
            held: 0,
        })
    }

    /// Sets probes, to be held or merely tried, in a file by its path.
    ///
    /// # Errors
    /// The kernel's, or that the companion is dead.
    pub fn set(
        &mut self,
        program: BorrowedFd<'_>,
        path: &Path,
        probes: Probes,
        keep: bool,
    ) -> io::Result<()> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)?;
        let request = Request::Set { probes, keep };
        let channel = self.channel()?;
        channel.send(&request, &[program, file.as_fd()])?;
        match channel.receive()?.0 {
            Answer::Done => {
                self.held += usize::from(keep);
                Ok(())
            }
            Answer::Failed(Some(number), _) => Err(io::Error::from_raw_os_error(number)),
            Answer::Failed(None, text) => Err(io::Error::other(text)),
        }
    }

    /// How many descriptors it holds.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether it still holds them.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Takes all probes out; `progress` is told how many descriptors are closed.
    pub fn clear(mut self, mut progress: impl FnMut(usize, usize)) {
        let held = self.held;
        let Ok(channel) = self.channel() else { return };
        if channel.send(&Request::Clear, &[]).is_err() {
            return;
        }
        for closed in 0..held {
            progress(closed, held);
            if channel.receive::<Answer>().is_err() {
                return;
            }
        }
        progress(held, held);
    }

    fn channel(&mut self) -> io::Result<&mut Channel> {
        self.channel
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends when the line does.
        self.channel = None;
        let _ = self.process.wait();
    }
}

/// The companion: serves who started it until the line ends.
///
/// # Errors
/// When stdin is no such line, or breaks.
pub fn run() -> io::Result<()> {
    // It has leaktrace's, which is killed first; the next one would be this, just
    // while it takes the probes out. Before it ceases to own what is in /proc.
    priority::die_last();
    SERVICE.begin();
    let mut channel = Channel::of_stdin()?;
    let mut held = Vec::new();
    loop {
        let (request, files) = match channel.receive() {
            Ok(message) => message,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        match request {
            Request::Set { probes, keep } => {
                let answer = match set(&probes, &files) {
                    Ok(descriptor) => {
                        held.extend(keep.then_some(descriptor));
                        Answer::Done
                    }
                    Err(error) => Answer::Failed(error.raw_os_error(), error.to_string()),
                };
                channel.send(&answer, &[])?;
            }
            Request::Clear => clear(std::mem::take(&mut held), &mut channel)?,
        }
    }
}

fn set(probes: &Probes, files: &[OwnedFd]) -> io::Result<OwnedFd> {
    let [program, file] = files else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let program = program.as_fd();
    match probes {
        Probes::Multi {
            probes,
            scope,
            at_return,
        } => uprobe_multi::link(program, &path, probes, *scope, *at_return),
        Probes::Perf {
            offset,
            scope,
            at_return,
            tie,
        } => uprobe_perf::set(program, &path, *offset, *at_return, *scope, *tie),
    }
}

/// Closes side by side: multi links take milliseconds so, perf events wait for
/// one another in the kernel anyway.
fn clear(held: Vec<OwnedFd>, channel: &mut Channel) -> io::Result<()> {
    thread::scope(|scope| {
        let (closed, closings) = std::sync::mpsc::channel();
        for descriptor in held {
            let closed = closed.clone();
            scope.spawn(move || {
                drop(descriptor);
                closed.send(())
            });
        }
        drop(closed);
        // If nobody listens any more, they are closed all the same.
        closings
            .iter()
            .try_for_each(|()| channel.send(&Answer::Done, &[]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serves_another_test() {
        crate::companion::tests::serve(&SERVICE, run);
    }

    #[test]
    fn the_kernels_errors_come_back_and_dropping_ends_it() {
        let mut holder = Holder::start().unwrap();
        let no_program = tempfile::tempfile().unwrap();
        for _ in 0..2 {
            let probes = Probes::Multi {
                probes: Vec::new(),
                scope: Scope::Everyone,
                at_return: false,
            };
            let error = holder
                .set(
                    no_program.as_fd(),
                    Path::new("/proc/self/exe"),
                    probes,
                    true,
                )
                .unwrap_err();
            // Which one depends on the rights to use BPF.
            assert!(error.raw_os_error().is_some(), "{error}");
        }
        assert!(holder.is_alive() && holder.held() == 0);
        let process = holder.process.id();
        holder.clear(|_, _| {});
        assert!(!Path::new(&format!("/proc/{process}")).exists());
    }

    #[test]
    fn a_companion_that_died_is_an_error() {
        let mut holder = Holder::start().unwrap();
        holder.process.kill().unwrap();
        holder.process.wait().unwrap();
        assert!(!holder.is_alive());
        let file = tempfile::tempfile().unwrap();
        let probes = Probes::Perf {
            offset: 0,
            scope: Scope::Everyone,
            at_return: false,
            tie: Tie::Ioctl,
        };
        let path = Path::new("/proc/self/exe");
        assert!(holder.set(file.as_fd(), path, probes, true).is_err());
    }
}
