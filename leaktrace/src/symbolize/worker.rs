//! The reader of symbols, seen from leaktrace: another process, which may die or
//! be left behind.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    process::Child,
    time::Instant,
};

use super::{
    limits::{Allowance, Limits},
    protocol::{Answer, Request, Setup},
    reader::SERVICE,
};
use crate::companion::Channel;

/// Why no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The process died.
    Died,
    /// It took longer than [`Limits::patience`] or, all in all, [`Limits::file`].
    Late,
}

/// The process. After a [`Failure`] it must not be used again; it is killed when
/// this is dropped.
#[derive(Debug)]
pub struct Worker {
    process: Child,
    channel: Channel,
    limits: Limits,
    /// The time that each file may still take.
    allowances: HashMap<u16, Allowance>,
    /// The file that was asked about.
    file: u16,
}

impl Worker {
    /// Starts the process, which looks for debug files under `root` and in
    /// `fetched`, too.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(
        setup: &Setup,
        root: Option<BorrowedFd>,
        fetched: Option<BorrowedFd>,
    ) -> io::Result<Self> {
        let (process, channel) = SERVICE.start()?;
        let mut worker = Self {
            process,
            channel,
            limits: setup.limits,
            allowances: HashMap::new(),
            file: 0,
        };
        let deadline = Instant::now() + setup.limits.patience;
        worker.channel.set_deadline(Some(deadline));
        let directories: Vec<BorrowedFd> = root.into_iter().chain(fetched).collect();
        worker.channel.send(setup, &directories)?;
        Ok(worker)
    }

    /// Asks for look-ups; answers come from [`Self::answer`].
    ///
    /// # Errors
    /// When the process is dead, or does not listen.
    pub fn ask(&mut self, request: &Request, file: impl AsFd) -> Result<(), Failure> {
        self.file = request.file;
        self.in_time(|channel| channel.send(request, &[file.as_fd()]))
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// When the process died, or does not answer.
    pub fn answer(&mut self) -> Result<Answer, Failure> {
        self.in_time(|channel| channel.receive().map(|(answer, _)| answer))
    }

    /// Limits the time that something takes, and takes it from the file's.
    fn in_time<T>(
        &mut self,
        step: impl FnOnce(&mut Channel) -> io::Result<T>,
    ) -> Result<T, Failure> {
        let allowance = self
            .allowances
            .entry(self.file)
            .or_insert_with(|| Allowance::new(self.limits.file));
        let start = Instant::now();
        let most = self.limits.patience.min(allowance.left(start));
        self.channel.set_deadline(Some(start + most));
        let result = step(&mut self.channel);
        allowance.spend(start.elapsed());
        result.map_err(|error| Failure::of(&error))
    }

    /// Whether the process is gone.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Its id.
    #[cfg(test)]
    pub fn process_id(&self) -> i32 {
        self.process.id().cast_signed()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::Late,
            _ => Self::Died,
        }
    }
}
