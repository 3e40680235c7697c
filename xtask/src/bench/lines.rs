//! What a program of the benchmark writes, line by line, as it comes.

use std::io::{BufRead as _, BufReader, Read};
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Lines of both output streams of a process, each with the time at which it
/// came. Reading goes on in threads of its own, so that a pipe is never full.
pub struct Lines {
    name: String,
    receiver: Receiver<(Instant, String)>,
    /// The last lines, for messages.
    last: Vec<String>,
}

/// How many of the last lines a message shows.
const SHOWN: usize = 5;

impl Lines {
    /// Takes what is piped of a process's outputs.
    pub fn of(name: &str, child: &mut Child) -> Self {
        let (sender, receiver) = channel();
        if let Some(stream) = child.stdout.take() {
            forward(stream, sender.clone());
        }
        if let Some(stream) = child.stderr.take() {
            forward(stream, sender);
        }
        Self {
            name: name.to_owned(),
            receiver,
            last: Vec::new(),
        }
    }

    /// The first line to come that `take` makes something of, and when it came.
    ///
    /// # Errors
    /// The program ends or `patience` does before there is such a line.
    pub fn wait_for<T>(
        &mut self,
        patience: Duration,
        take: impl Fn(&str) -> Option<T>,
    ) -> Result<(Instant, T)> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok((at, line)) => {
                    if let Some(taken) = take(&line) {
                        return Ok((at, taken));
                    }
                    self.remember(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} says nothing expected; {}", self.name, self.shown())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{} ended unexpectedly; {}", self.name, self.shown())
                }
            }
        }
    }

    /// How many of the lines that came since the last look are such.
    pub fn count(&mut self, is_such: impl Fn(&str) -> bool) -> usize {
        let mut count = 0;
        while let Ok((_, line)) = self.receiver.try_recv() {
            count += usize::from(is_such(&line));
            self.remember(line);
        }
        count
    }

    /// The last lines that came, for a message.
    pub fn last(&mut self) -> String {
        self.count(|_| false);
        self.shown()
    }

    fn remember(&mut self, line: String) {
        if self.last.len() == SHOWN {
            self.last.remove(0);
        }
        self.last.push(line);
    }

    fn shown(&self) -> String {
        if self.last.is_empty() {
            return "it wrote nothing".to_owned();
        }
        format!("it wrote:\n{}", self.last.join("\n"))
    }
}

fn forward(stream: impl Read + Send + 'static, sender: Sender<(Instant, String)>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send((Instant::now(), text)).is_err() {
                // Nobody listens; what is written is taken all the same.
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                return;
            }
            line.clear();
        }
    });
}
