//! leaktrace gives way to everything else: the first to die when memory is
//! short, and polite with the CPU.

use std::{
    fs,
    sync::{Mutex, PoisonError},
};

use rustix::process::{Pid, getpriority_process, setpriority_process};

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
/// The `oom_score_adj` of what is never killed.
const OOM_SCORE_LAST: i32 = -1000;

/// Threads that do not give way.
static KEEPING_UP: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

impl Priority {
    /// leaktrace's own at this moment.
    #[must_use]
    pub fn current() -> Self {
        Self {
            niceness: getpriority_process(None).unwrap_or(0),
            oom_score_adj: fs::read_to_string(OOM_SCORE_ADJ)
                .ok()
                .and_then(|text| text.trim().parse().ok()),
        }
    }
}

/// Makes leaktrace the first choice when memory is short; to be called before it
/// takes much. Where the kernel refuses, nothing depends on it. Commands that
/// leaktrace runs get [`Priority::current`] of before back.
pub fn die_first() {
    let _ = fs::write(OOM_SCORE_ADJ, OOM_SCORE.to_string());
}

/// Makes this process the last choice when memory is short, as far as the kernel
/// allows that: one that takes little, and that must not be killed in the middle.
pub fn die_last() {
    // Without CAP_SYS_RESOURCE, at most what was raised can be taken back.
    for score in [OOM_SCORE_LAST, 0] {
        if fs::write(OOM_SCORE_ADJ, score.to_string()).is_ok() {
            return;
        }
    }
}

/// Makes leaktrace nicer (10, if it is not nicer already); as for [`die_first`],
/// it may be refused, and does not stay with commands.
pub fn give_way() {
    let keeping_up = KEEPING_UP.lock().unwrap_or_else(PoisonError::into_inner);
    // A niceness belongs to a thread, and later threads inherit it.
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    let ids = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for thread in ids.filter_map(Pid::from_raw) {
        let is_less_nice =
            || getpriority_process(Some(thread)).is_ok_and(|niceness| niceness < NICENESS);
        if !keeping_up.contains(&thread) && is_less_nice() {
            let _ = setpriority_process(Some(thread), NICENESS);
        }
    }
}

/// Makes this thread as important as others are, where the kernel allows it:
/// one that does little, but has to do it at once. It will not [`give_way`], either.
pub fn keep_up() {
    let own = rustix::thread::gettid();
    let _ = setpriority_process(Some(own), 0);
    let mut keeping_up = KEEPING_UP.lock().unwrap_or_else(PoisonError::into_inner);
    keeping_up.push(own);
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        process::{Command, Stdio},
    };

    use super::*;

    /// Set in the test's own child, which alone may spoil its priority.
    const CHILD: &str = "LEAKTRACE_TEST_GIVE_WAY";

    #[test]
    fn all_threads_give_way_and_what_was_before_is_known() {
        if std::env::var_os(CHILD).is_some() {
            let (stop, wait) = std::sync::mpsc::channel::<()>();
            let early = std::thread::spawn(move || {
                let _ = wait.recv();
                Priority::current()
            });
            die_first();
            give_way();
            drop(stop);
            let seen = [early.join().unwrap(), Priority::current()];
            std::io::stderr()
                .write_all(format!("{seen:?}").as_bytes())
                .unwrap();
            return;
        }
        let before = Priority::current();
        let mut child = Command::new("/proc/self/exe")
            .args(["--exact", "--nocapture"])
            .arg("host::priority::tests::all_threads_give_way_and_what_was_before_is_known")
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut seen = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut seen)
            .unwrap();
        assert!(child.wait().unwrap().success());
        let expected = Priority {
            niceness: before.niceness.max(NICENESS),
            oom_score_adj: before.oom_score_adj.map(|_| OOM_SCORE),
        };
        assert!(seen.contains(&format!("{:?}", [expected; 2])), "{seen}");
        assert_eq!(Priority::current(), before);
    }
}
