//! leaktrace gives way to everything else: the first to die when memory is
//! short, and polite with the CPU.

use std::{fs, io};

/// How a process stands among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    /// Niceness, -20 (first) to 19 (last).
    pub niceness: i32,
    /// `oom_score_adj`, -1000 (never killed) to 1000 (killed first); `None`
    /// when it can't be read.
    pub oom_score_adj: Option<i32>,
}

/// Where a process's own `oom_score_adj` is.
pub(crate) const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// leaktrace's niceness while it traces.
const NICENESS: i32 = 10;
/// leaktrace's `oom_score_adj` while it traces.
const OOM_SCORE: i32 = 1000;

impl Priority {
    /// leaktrace's own at this moment.
    #[must_use]
    pub fn current() -> Self {
        Self {
            niceness: rustix::process::getpriority_process(None).unwrap_or(0),
            oom_score_adj: fs::read_to_string(OOM_SCORE_ADJ)
                .ok()
                .and_then(|text| text.trim().parse().ok()),
        }
    }
}

/// Makes leaktrace nicer (10, if it is not nicer already) and the first choice
/// when memory is short. A niceness belongs to a thread: call it before any are
/// started, and take [`Priority::current`] before, for those that leaktrace runs.
///
/// # Errors
/// When the kernel refuses; nothing depends on it.
pub fn give_way() -> io::Result<()> {
    let before = Priority::current();
    if before.niceness < NICENESS {
        rustix::process::setpriority_process(None, NICENESS)?;
    }
    fs::write(OOM_SCORE_ADJ, OOM_SCORE.to_string())
}
