//! When to look at the mappings again.

use std::{
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bpf::{ControlPage, Maps};

/// How often it is looked whether there is something new to look for.
const GLANCE: Duration = Duration::from_millis(20);
/// How long mappings are taken for what they were.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When to look at the mappings again.
pub(super) struct Wait {
    wakers: Vec<OwnedFd>,
    loader_changes: u32,
    unmapped: u32,
    looked: Instant,
    /// How long not to look although there is an unknown address: longer each
    /// time that nothing was found, since some are no code.
    pause: Duration,
}

impl Wait {
    pub fn new(wakers: Vec<OwnedFd>, control: &ControlPage) -> Self {
        Self {
            wakers,
            loader_changes: control.loader_changes(),
            unmapped: control.unmapped(),
            looked: Instant::now(),
            pause: GLANCE,
        }
    }

    /// Waits for a moment; true when it is time to look.
    pub fn for_news(&mut self, maps: &Maps) -> bool {
        let is_told = self.is_told();
        let unmapped = maps.control().unmapped();
        let loader_changes = maps.control().loader_changes();
        let since = self.looked.elapsed();
        let is_missed = unmapped != self.unmapped && since >= self.pause;
        let has_loaded = loader_changes != self.loader_changes;
        if !is_told && !has_loaded && !is_missed && since < LOOK_EVERY {
            return false;
        }
        self.unmapped = unmapped;
        self.loader_changes = loader_changes;
        true
    }

    pub fn looked(&mut self, is_new: bool) {
        self.looked = Instant::now();
        self.pause = if is_new {
            GLANCE
        } else {
            (self.pause * 2).min(LOOK_EVERY)
        };
    }

    /// Whether the kernel has recorded something, now or soon.
    fn is_told(&mut self) -> bool {
        if self.wakers.is_empty() {
            thread::sleep(GLANCE);
            return false;
        }
        let mut fds: Vec<PollFd<'_>> = self
            .wakers
            .iter()
            .map(|waker| PollFd::new(waker, PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: GLANCE.subsec_nanos().into(),
        };
        if poll(&mut fds, Some(&timeout)).is_err() {
            thread::sleep(GLANCE);
            return false;
        }
        let is_told = fds.iter().any(|fd| fd.revents().contains(PollFlags::IN));
        // Of a process that has ended, that is told for ever.
        let is_over: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR))
            .collect();
        let mut is_over = is_over.into_iter();
        self.wakers.retain(|_| !is_over.next().unwrap_or_default());
        is_told
    }
}
