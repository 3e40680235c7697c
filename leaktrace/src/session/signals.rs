//! Signals that end a trace, make it write its files, or stop its job.
//!
//! A task hears them at any time, also while the main thread is busy.

use crate::{
    launch::{
        Child, LaunchError, Outcome, child,
        signals::{JOB_STOPS, PASSED_ON, Received, SignalQueue},
    },
    say,
};
use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, pidfd_send_signal},
};
use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End with the final report; the signal's name.
    End(&'static str),
    /// Write the outputs now and go on.
    Write,
    /// Growth counts from here.
    Mark,
}

/// Signals that end a trace. Stopping (Ctrl-Z) would leave probes in a target
/// that nobody watches, so it ends as well.
const ENDING: [(&str, i32); 4] = [
    ("SIGINT", libc::SIGINT),
    ("SIGTERM", libc::SIGTERM),
    ("SIGHUP", libc::SIGHUP),
    ("SIGTSTP", libc::SIGTSTP),
];

/// Signals that ask for something while the trace goes on.
const REQUESTS: [(i32, Request); 2] = [
    (libc::SIGUSR1, Request::Write),
    (libc::SIGUSR2, Request::Mark),
];

fn request_of(signal: i32) -> Option<Request> {
    let mut requests = REQUESTS.into_iter();
    requests.find_map(|(number, request)| (number == signal).then_some(request))
}

/// A command that ends this soon after a signal has ended because of it.
const SOON: Duration = Duration::from_secs(10);

/// Where requests come from.
pub struct Signals {
    requests: UnboundedReceiver<Request>,
    state: Arc<Mutex<State>>,
}

/// How far the trace is; decides what a signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No event counts yet.
    Preparing,
    /// Nothing will: leaktrace is about to end.
    Leaving,
    Tracing,
    /// Events no longer count; the last report is made.
    Ending,
    /// There is nothing left to do but to wait for the command.
    Over,
}

struct State {
    stage: Stage,
    /// The signal by which the command's job was to be stopped meanwhile.
    stop: Option<i32>,
}

impl Signals {
    /// The next request; waits for it.
    pub async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            // The listeners live as long as the runtime.
            None => std::future::pending().await,
        }
    }

    /// From here on a signal ends with a report. Does not come back when one
    /// came before, and leaktrace is ending because of it.
    pub fn tracing(&self) {
        if !lock(&self.state).moves_on(Stage::Tracing) {
            loop {
                std::thread::park();
            }
        }
    }

    /// The last report is being made.
    pub fn ending(&self) {
        lock(&self.state).stage = Stage::Ending;
    }

    /// The trace is over, and from here on leaktrace is a job like any other
    /// that waits for its command. Stops now if that was asked for meanwhile.
    pub fn over(&self, child: &Child) {
        let stop = {
            let mut state = lock(&self.state);
            state.stage = Stage::Over;
            state.stop.take()
        };
        if let Some(signal) = stop
            && matches!(child.outcome(), Ok(None))
        {
            stop_as_asked(signal);
            child.signal(libc::SIGCONT);
        }
    }
}

impl State {
    /// From preparing to another stage; false when something else is under way.
    fn moves_on(&mut self, to: Stage) -> bool {
        let is_first = self.stage == Stage::Preparing;
        if is_first {
            self.stage = to;
        }
        is_first
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn channel() -> (UnboundedSender<Request>, Signals) {
    let (sender, requests) = unbounded_channel();
    let state = Arc::new(Mutex::new(State {
        stage: Stage::Preparing,
        stop: None,
    }));
    (sender, Signals { requests, state })
}

/// Signals to leaktrace that stand for its command.
pub struct CommandSignals {
    queue: SignalQueue,
    pidfd: OwnedFd,
    pid: u32,
}

/// Takes the signals that stand for a command. To be called before there are
/// other threads: they inherit what is blocked.
///
/// # Errors
/// When signals can't be taken.
pub fn of_command(child: &Child) -> Result<CommandSignals> {
    let mut taken = PASSED_ON.to_vec();
    taken.extend(JOB_STOPS);
    taken.extend(REQUESTS.map(|(signal, _)| signal));
    Ok(CommandSignals {
        queue: SignalQueue::new(&taken).context("taking signals for the command")?,
        pidfd: child.pidfd().try_clone_to_owned()?,
        pid: child.pid(),
    })
}

impl CommandSignals {
    /// Begins to listen, inside the runtime.
    ///
    /// # Errors
    /// When the queue can't be waited for.
    pub fn listen(self) -> Result<Signals> {
        let (sender, signals) = channel();
        let own = self.queue.as_fd().try_clone_to_owned()?;
        // SAFETY: the registration owns the descriptor.
        let ready = unsafe { AsyncFd::register(own) }.context("waiting for signals")?;
        let listener = Listener {
            command: Arc::new(self),
            sender,
            state: Arc::clone(&signals.state),
            asked: None,
            asked_after_end: false,
        };
        tokio::spawn(listener.run(ready));
        Ok(signals)
    }
}

/// Hears signals that stand for a command.
struct Listener {
    command: Arc<CommandSignals>,
    sender: UnboundedSender<Request>,
    state: Arc<Mutex<State>>,
    /// When a signal that ends came last.
    asked: Option<Instant>,
    /// Whether one came after the command's end.
    asked_after_end: bool,
}

impl Listener {
    async fn run(mut self, ready: AsyncFd<OwnedFd>) {
        while let Ok(mut guard) = ready.readable().await {
            match self.command.queue.read() {
                Ok(Some(received)) => self.hear(received),
                Ok(None) => guard.clear_ready(),
                Err(_) => break,
            }
        }
    }

    fn hear(&mut self, received: Received) {
        match received.signal {
            signal if let Some(request) = request_of(signal) => {
                let _ = self.sender.send(request);
            }
            stop if JOB_STOPS.contains(&stop) => self.stop(received),
            _ if self.command.has_ended() => self.leave(received.signal),
            _ => {
                self.asked = Some(Instant::now());
                self.pass_on(received);
                if lock(&self.state).stage == Stage::Preparing {
                    self.leave_with_command();
                }
            }
        }
    }

    /// The command waits for its beginning; when it dies instead, there is
    /// nothing left to prepare for.
    fn leave_with_command(&self) {
        let (command, state) = (Arc::clone(&self.command), Arc::clone(&self.state));
        tokio::spawn(async move {
            while lock(&state).stage == Stage::Preparing {
                if let Ok(Some(outcome)) = child::outcome(command.pidfd.as_fd())
                    && lock(&state).moves_on(Stage::Leaving)
                {
                    let reason = LaunchError::NeverBegan(outcome);
                    leave_early(reason.to_string(), reason.exit_code());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    /// While there are probes, stopping has to wait.
    fn stop(&self, received: Received) {
        self.pass_on(received);
        let mut state = lock(&self.state);
        match state.stage {
            Stage::Tracing => {
                state.stop = Some(received.signal);
                let name = match received.signal {
                    libc::SIGTTIN => "SIGTTIN",
                    libc::SIGTTOU => "SIGTTOU",
                    _ => "SIGTSTP",
                };
                let _ = self.sender.send(Request::End(name));
            }
            Stage::Ending if !self.command.has_ended() => state.stop = Some(received.signal),
            _ => {
                drop(state);
                stop_as_asked(received.signal);
                self.command.send(Signal::CONT);
            }
        }
    }

    /// The command has ended, and its report is being made: the first signal
    /// may have been meant for the command and comes too late, a second one
    /// means leaktrace.
    fn leave(&mut self, signal: i32) {
        let is_second =
            self.asked_after_end || self.asked.is_some_and(|asked| asked.elapsed() < SOON);
        if is_second {
            std::process::exit(128 + signal);
        }
        self.asked_after_end = true;
    }

    fn pass_on(&self, received: Received) {
        if received.is_meant_for(self.command.pid)
            && let Some(signal) = Signal::from_named_raw(received.signal)
        {
            self.command.send(signal);
        }
    }
}

impl CommandSignals {
    fn send(&self, signal: Signal) {
        // It may just have ended.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// Blocks a signal for this thread, or lets it through.
fn block(signal: i32, blocked: bool) {
    let how = if blocked {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    // SAFETY: a set of our own, filled in before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Stops as a signal asked for, unless nobody could make us go on (in an
/// orphaned process group, where the kernel ignores these signals).
fn stop_as_asked(signal: i32) {
    // SAFETY: sends a signal to ourselves.
    unsafe { libc::raise(signal) };
    block(signal, false);
    block(signal, true);
}

/// Begins to listen to signals to leaktrace. A terminal that stops background
/// jobs when they write would leave probes that nobody watches: such signals
/// are ignored.
///
/// # Errors
/// When handlers can't be set.
pub fn own() -> Result<Signals> {
    let (sender, signals) = channel();
    // SAFETY: sets dispositions to be ignored.
    unsafe {
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        libc::signal(libc::SIGTTIN, libc::SIG_IGN);
    }
    for (name, number) in ENDING {
        // Under nohup a lost connection is no reason to end.
        if number == libc::SIGHUP && is_ignored(number) {
            continue;
        }
        forward(&sender, &signals.state, number, Request::End(name))?;
    }
    for (number, request) in REQUESTS {
        forward(&sender, &signals.state, number, request)?;
    }
    Ok(signals)
}

/// Before events count, a signal that ends does so at once; so does a second
/// one. The kernel takes out what probes there are.
fn forward(
    sender: &UnboundedSender<Request>,
    state: &Arc<Mutex<State>>,
    number: i32,
    request: Request,
) -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static ENDING_ALREADY: AtomicBool = AtomicBool::new(false);

    let mut signals = signal(SignalKind::from_raw(number))
        .with_context(|| format!("handling signal {number}"))?;
    let (sender, state) = (sender.clone(), Arc::clone(state));
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            if let Request::End(name) = request {
                if lock(&state).moves_on(Stage::Leaving) {
                    let reason =
                        format!("ended by {name} before anything was traced; there is no report");
                    leave_early(reason, Outcome::Signaled(number).exit_code());
                }
                if ENDING_ALREADY.swap(true, Ordering::Relaxed) {
                    std::process::exit(128 + number);
                }
            }
            if sender.send(request).is_err() {
                break;
            }
        }
    });
    Ok(())
}

/// Ends before anything was traced.
fn leave_early(reason: String, code: u8) -> ! {
    // A blocked terminal must not keep us.
    let (sender, written) = mpsc::channel();
    std::thread::spawn(move || {
        say!("leaktrace: {reason}");
        let _ = sender.send(());
    });
    let _ = written.recv_timeout(Duration::from_millis(500));
    std::process::exit(code.into())
}

fn is_ignored(number: i32) -> bool {
    // SAFETY: zeros are a valid `sigaction` to be filled in.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks; the pointer is to our own structure.
    let result = unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}
