//! What is being done, shown on stderr when it takes long enough to wonder.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{output::terminal::fitted_to_stderr, say};

/// How long nothing is said.
const PATIENCE: Duration = Duration::from_millis(500);

/// Tells what is going on until it is dropped.
pub struct Progress {
    phase: Arc<Mutex<String>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins with this phase ("reading symbols").
    pub fn start(phase: &str) -> Self {
        let phase = Arc::new(Mutex::new(phase.to_owned()));
        let (stop, stopped) = mpsc::channel::<()>();
        let shown = Arc::clone(&phase);
        let thread = std::thread::Builder::new()
            .name("progress".into())
            .spawn(move || {
                let mut last = String::new();
                let terminal = std::io::stderr().is_terminal();
                while stopped.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    let now = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    if now != last {
                        let end = if terminal { "\x1b[K\r" } else { "\n" };
                        let _ = write!(std::io::stderr(), "{now} …{end}");
                        last = now;
                    }
                }
                if terminal && !last.is_empty() {
                    let _ = write!(std::io::stderr(), "\x1b[K");
                }
            })
            .ok();
        Self {
            phase,
            stop: Some(stop),
            thread,
        }
    }

    /// Goes on with another phase.
    pub fn phase(&self, phase: impl Into<String>) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase.into();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Give it the time to clean its line, but do not wait for a terminal
        // that is blocked: probes may be in.
        let Some(thread) = self.thread.take() else {
            return;
        };
        for _ in 0..20 {
            if thread.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Writes to stderr without waiting for it: probes are in, and a blocked
/// terminal must not keep the brake and signals from working. The receiver is
/// told when it is written.
pub fn say_aside(text: String) -> Receiver<()> {
    let (sender, written) = mpsc::channel();
    std::thread::spawn(move || {
        say!("{}", fitted_to_stderr(&text));
        let _ = sender.send(());
    });
    written
}
