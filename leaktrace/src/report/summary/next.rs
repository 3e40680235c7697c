//! What to do next: one command, and what it is good for.

use super::verdict;
use crate::model::{EndReason, Report};

/// A command, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// To be pasted into a shell.
    pub command: String,
    /// What it will tell.
    pub why: &'static str,
}

/// The next step after this report; `None` when the process is gone, or nothing is
/// left to be found out.
#[must_use]
pub fn next(report: &Report) -> Option<Next> {
    let pid = report.process.pid;
    let (command, why) = match report.end {
        Some(EndReason::TargetExit | EndReason::TargetExec) => return None,
        Some(EndReason::Overhead { .. }) => (
            format!("sudo leaktrace attach {pid} --max-overhead 100% --duration 10s"),
            "the same without the limit, for ten seconds",
        ),
        _ if report.totals.alloc_blocks == 0 => (
            format!("sudo leaktrace doctor {pid}"),
            "which allocators it has, and what can be seen of it",
        ),
        _ if !report.growing.is_empty() => (
            format!("sudo leaktrace attach {pid} --since mark"),
            "then `kill -USR2` leaktrace, not the process, and make some requests: it shows what they \
             leave behind",
        ),
        _ if verdict::is_unexplained(report) => (
            format!("leaktrace doctor {pid} --watch 60s"),
            "which of its mappings grow",
        ),
        _ if verdict::is_early(report) => (
            format!("sudo leaktrace attach {pid} --duration 5m"),
            "longer, so that it can tell what grows",
        ),
        _ => return None,
    };
    Some(Next { command, why })
}
