//! What leaktrace changes for itself, undone in a child before it executes
//! something.

use std::{ffi::CString, ptr};

use rustix::process::{Resource, Rlimit};

use super::{
    forked::Step,
    inherited::{Inherited, LAST_SIGNAL},
};
use crate::host::priority::{OOM_SCORE_ADJ, Priority};

/// Everything for that, made before the fork: after it, there may be no
/// allocation, since another thread may have held the allocator's lock.
pub(super) struct Undo {
    inherited: Inherited,
    /// Only what differs from what the child has anyway.
    niceness: Option<i32>,
    oom_score_adj: Option<String>,
    oom_score_path: CString,
    limits: Vec<(u32, libc::rlimit)>,
}

impl Undo {
    /// For a child of this thread.
    pub fn of(inherited: &Inherited) -> Self {
        let now = Priority::current();
        let then = inherited.priority;
        Self {
            inherited: inherited.clone(),
            niceness: (now.niceness != then.niceness).then_some(then.niceness),
            oom_score_adj: then
                .oom_score_adj
                .filter(|_| now.oom_score_adj != then.oom_score_adj)
                .map(|score| score.to_string()),
            // It has no null byte.
            oom_score_path: CString::new(OOM_SCORE_ADJ).unwrap_or_default(),
            limits: changed_limits(inherited),
        }
    }

    /// Signals that are ignored and blocked.
    ///
    /// # Safety
    /// Only for the child of a fork.
    pub unsafe fn signals(&self) {
        // SAFETY: system calls on memory that lives in `self`; no code of ours is
        // to run for a signal.
        unsafe {
            for signal in 1..=LAST_SIGNAL {
                let disposition = if self.inherited.ignores(signal) {
                    libc::SIG_IGN
                } else {
                    libc::SIG_DFL
                };
                libc::signal(signal, disposition);
            }
            libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const self.inherited.signal_mask,
                ptr::null_mut(),
            );
        }
    }

    /// Priority and limits. `Err` leaves the reason in `errno`.
    ///
    /// # Safety
    /// Only for the child of a fork.
    pub unsafe fn attributes(&self) -> Result<(), Step> {
        let check = |result: i64, step| if result < 0 { Err(step) } else { Ok(()) };
        // SAFETY: system calls on memory that lives in `self`.
        unsafe {
            if let Some(niceness) = self.niceness {
                check(
                    libc::setpriority(libc::PRIO_PROCESS, 0, niceness).into(),
                    Step::Niceness,
                )?;
            }
            if let Some(score) = &self.oom_score_adj {
                let file = libc::open(
                    self.oom_score_path.as_ptr(),
                    libc::O_WRONLY | libc::O_CLOEXEC,
                );
                check(file.into(), Step::OomScore)?;
                check(
                    libc::write(file, score.as_ptr().cast(), score.len()) as i64,
                    Step::OomScore,
                )?;
            }
            for (number, limit) in &self.limits {
                check(libc::setrlimit(*number, limit).into(), Step::Limits)?;
            }
        }
        Ok(())
    }
}

fn changed_limits(inherited: &Inherited) -> Vec<(u32, libc::rlimit)> {
    let raw = |limit: Rlimit| libc::rlimit {
        rlim_cur: limit.current.unwrap_or(libc::RLIM_INFINITY),
        rlim_max: limit.maximum.unwrap_or(libc::RLIM_INFINITY),
    };
    [
        (
            Resource::Memlock,
            libc::RLIMIT_MEMLOCK,
            &inherited.locked_memory,
        ),
        (Resource::Nofile, libc::RLIMIT_NOFILE, &inherited.open_files),
    ]
    .into_iter()
    .filter(|(resource, _, then)| rustix::process::getrlimit(*resource) != **then)
    .map(|(_, number, then)| (number, raw(*then)))
    .collect()
}
