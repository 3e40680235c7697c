//! Signals that end a trace, or make it write its files.

use crate::launch::{
    Child,
    signals::{PASSED_ON, SignalQueue},
};
use anyhow::{Context as _, Result};
use std::os::fd::{AsFd as _, OwnedFd};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End with the final report; the signal's name and number.
    End(&'static str, i32),
    /// Write the outputs now and go on.
    Write,
}

/// Signals that end a trace. Stopping (Ctrl-Z) would leave probes in a target
/// that nobody watches, so it ends as well.
const ENDING: [(&str, i32); 4] = [
    ("SIGINT", libc::SIGINT),
    ("SIGTERM", libc::SIGTERM),
    ("SIGHUP", libc::SIGHUP),
    ("SIGTSTP", libc::SIGTSTP),
];

/// Where requests come from.
pub enum Signals {
    /// Signals to leaktrace.
    Own(UnboundedReceiver<Request>),
    /// Signals to leaktrace that stand for its command.
    Command {
        /// All of them.
        queue: SignalQueue,
        /// Registered when first waited for, inside the runtime.
        ready: Option<AsyncFd<OwnedFd>>,
        /// The command.
        pidfd: OwnedFd,
        /// Its process id.
        pid: u32,
    },
}

impl Signals {
    /// Whether a signal that ends has come already. Takes requests that have.
    pub fn end_requested(&mut self) -> bool {
        match self {
            Self::Own(receiver) => std::iter::from_fn(|| receiver.try_recv().ok())
                .any(|request| matches!(request, Request::End(..))),
            Self::Command { .. } => false,
        }
    }

    /// Gives signals their usual effect again, once the command has ended and
    /// they are meant for leaktrace.
    pub fn release(&self) {
        if let Self::Command { .. } = self {
            let mut taken = PASSED_ON.to_vec();
            taken.push(libc::SIGTSTP);
            block(&taken, false);
        }
    }

    /// The next request; waits for it. Signals meant for the command are passed
    /// on meanwhile.
    pub async fn next(&mut self) -> Request {
        let request = match self {
            Self::Own(receiver) => receiver.recv().await,
            Self::Command {
                queue,
                ready,
                pidfd,
                pid,
            } => next_of_command(queue, ready, pidfd, *pid).await,
        };
        match request {
            Some(request) => request,
            // The listeners live as long as the runtime.
            None => std::future::pending().await,
        }
    }
}

async fn next_of_command(
    queue: &SignalQueue,
    ready: &mut Option<AsyncFd<OwnedFd>>,
    pidfd: &OwnedFd,
    pid: u32,
) -> Option<Request> {
    if ready.is_none() {
        let own = queue.as_fd().try_clone_to_owned().ok()?;
        // SAFETY: the registration owns the descriptor.
        *ready = Some(unsafe { AsyncFd::register(own) }.ok()?);
    }
    let ready = ready.as_ref()?;
    loop {
        let mut guard = ready.readable().await.ok()?;
        let Some(received) = queue.read().ok()? else {
            guard.clear_ready();
            continue;
        };
        match received.signal {
            libc::SIGUSR1 => return Some(Request::Write),
            libc::SIGTSTP => return Some(Request::End("SIGTSTP", libc::SIGTSTP)),
            signal if received.is_meant_for(pid) => {
                if let Some(signal) = rustix::process::Signal::from_named_raw(signal) {
                    // It may just have ended.
                    let _ = rustix::process::pidfd_send_signal(pidfd, signal);
                }
            }
            _ => {}
        }
    }
}

/// Takes the signals that stand for a command. To be called before there are
/// other threads: they inherit what is blocked.
///
/// # Errors
/// When signals can't be taken.
pub fn of_command(child: &Child) -> Result<Signals> {
    let mut taken = PASSED_ON.to_vec();
    taken.extend([libc::SIGUSR1, libc::SIGTSTP]);
    Ok(Signals::Command {
        queue: SignalQueue::new(&taken).context("taking signals for the command")?,
        ready: None,
        pidfd: child.pidfd().try_clone_to_owned()?,
        pid: child.pid(),
    })
}

/// Blocks signals for this thread, or lets them through.
fn block(signals: &[i32], blocked: bool) {
    let how = if blocked {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    // SAFETY: a set of our own, filled in before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Stops as a Ctrl-Z asked for, unless nobody could make us go on (in an
/// orphaned process group, where the kernel ignores this signal).
pub fn stop_as_asked() {
    // SAFETY: sends a signal to ourselves.
    unsafe { libc::raise(libc::SIGTSTP) };
    block(&[libc::SIGTSTP], false);
    block(&[libc::SIGTSTP], true);
}

/// A terminal that stops background jobs when they write would leave probes
/// that nobody watches.
pub fn never_stop_for_output() {
    // SAFETY: sets a disposition to be ignored.
    unsafe {
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        libc::signal(libc::SIGTTIN, libc::SIG_IGN);
    }
}

/// Begins to listen. After a first signal that ends, a second one ends the
/// process at once: the kernel takes out what probes are left.
///
/// # Errors
/// When handlers can't be set.
pub fn own() -> Result<Signals> {
    let (sender, receiver) = unbounded_channel();
    never_stop_for_output();
    for (name, number) in ENDING {
        // Under nohup a lost connection is no reason to end.
        if number == libc::SIGHUP && is_ignored(number) {
            continue;
        }
        forward(&sender, number, Request::End(name, number))?;
    }
    forward(&sender, libc::SIGUSR1, Request::Write)?;
    Ok(Signals::Own(receiver))
}

fn forward(sender: &UnboundedSender<Request>, number: i32, request: Request) -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static ENDING_ALREADY: AtomicBool = AtomicBool::new(false);

    let mut signals = signal(SignalKind::from_raw(number))
        .with_context(|| format!("handling signal {number}"))?;
    let sender = sender.clone();
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            if let Request::End(..) = request
                && ENDING_ALREADY.swap(true, Ordering::Relaxed)
            {
                std::process::exit(128 + number);
            }
            if sender.send(request).is_err() {
                break;
            }
        }
    });
    Ok(())
}

fn is_ignored(number: i32) -> bool {
    // SAFETY: zeros are a valid `sigaction` to be filled in.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks; the pointer is to our own structure.
    let result = unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}
