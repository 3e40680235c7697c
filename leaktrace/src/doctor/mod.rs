//! `leaktrace doctor`: every condition that tracing needs, each with what was
//! found and, where something is wrong, what mends it.

pub mod allocators;
pub mod host;
pub mod symbols;
pub mod target;
mod unwinding;
pub mod watch;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anyhow::Result;

use crate::{
    bpf::Features,
    exit,
    host::privilege::{Privilege, raise_locked_memory_limit},
    target::Process,
};
pub use host::{feature_checks, host_checks};
pub use target::{target_checks, target_error_check};

/// One condition and whether it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, a word or two.
    pub name: String,
    /// What was found.
    pub outcome: Outcome,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Ok(String),
    /// Tracing works, with less to see or at a higher cost.
    Warning {
        /// What is wrong.
        text: String,
        /// What mends it, a command where there is one.
        mend: String,
    },
    /// Tracing does not work.
    Failed {
        /// What is wrong.
        text: String,
        /// What mends it, a command where there is one.
        mend: String,
    },
}

impl Check {
    fn ok(name: &str, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            outcome: Outcome::Ok(text.into()),
        }
    }

    fn warning(name: &str, text: impl Into<String>, mend: impl Into<String>) -> Self {
        let outcome = Outcome::Warning {
            text: text.into(),
            mend: mend.into(),
        };
        Self {
            name: name.into(),
            outcome,
        }
    }

    fn failed(name: &str, text: impl Into<String>, mend: impl Into<String>) -> Self {
        let outcome = Outcome::Failed {
            text: text.into(),
            mend: mend.into(),
        };
        Self {
            name: name.into(),
            outcome,
        }
    }

    /// What mends it, if something is wrong.
    fn cure(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Ok(_) => None,
            Outcome::Warning { mend, .. } | Outcome::Failed { mend, .. } => Some(mend),
        }
    }

    /// Whether tracing can't work because of it.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. })
    }
}

/// The cure of all that root alone can do.
const AS_ROOT: &str = "sudo leaktrace doctor";

/// Looks at the machine, and at a process if one is given, and prints what was
/// found. [`exit::Outcome::Failed`] when tracing can't work.
///
/// # Errors
/// When stdout can't be written; that nobody reads it any more is none.
pub fn print(pid: Option<u32>) -> Result<exit::Outcome> {
    let mut checks = host_checks();
    if Privilege::current().missing().is_empty() {
        // As tracing does before it tries what the kernel has.
        let _ = raise_locked_memory_limit();
        checks.extend(feature_checks(&Features::from_environment()?.list()));
    } else {
        // The kernel would answer that it has none.
        checks.push(Check::warning(
            "kernel features",
            "not probed: that needs the privileges",
            AS_ROOT,
        ));
    }
    match pid.map(Process::open) {
        None => {}
        Some(Ok(process)) => checks.extend(target_checks(&process)),
        Some(Err(error)) => checks.push(target_error_check(&error)),
    }
    if let Some(pid) = pid {
        name_process(&mut checks, pid);
    }
    match io::stdout().write_all(render(&checks).as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    Ok(if checks.iter().any(Check::has_failed) {
        exit::Outcome::Failed
    } else {
        exit::Outcome::Reported
    })
}

/// Makes the cure for the whole command line of the one for the machine alone.
fn name_process(checks: &mut [Check], pid: u32) {
    for check in checks {
        if let Outcome::Warning { mend, .. } | Outcome::Failed { mend, .. } = &mut check.outcome
            && mend == AS_ROOT
        {
            *mend = format!("{AS_ROOT} {pid}");
        }
    }
}

/// The checks as text, a line each; what mends a failing one is on the next.
/// What mends several is said once, at the end.
#[must_use]
pub fn render(checks: &[Check]) -> String {
    let mut cures: Vec<(&str, Vec<&str>)> = Vec::new();
    for check in checks {
        let Some(cure) = check.cure() else { continue };
        match cures.iter_mut().find(|(known, _)| *known == cure) {
            Some((_, names)) => names.push(&check.name),
            None => cures.push((cure, vec![&check.name])),
        }
    }
    cures.retain(|(_, names)| names.len() > 1);
    let width = checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for Check { name, outcome } in checks {
        let (mark, found, mend) = match outcome {
            Outcome::Ok(found) => ("ok  ", found, None),
            Outcome::Warning { text, mend } => ("warn", text, Some(mend)),
            Outcome::Failed { text, mend } => ("FAIL", text, Some(mend)),
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{mark}  {name:width$}  {found}");
        if let Some(mend) = mend.filter(|mend| !cures.iter().any(|(cure, _)| cure == mend)) {
            let _ = writeln!(text, "      {:width$}  -> {mend}", "");
        }
    }
    for (cure, mut names) in cures {
        names.dedup();
        let _ = writeln!(text, "\nTo mend {}:\n  {cure}", names.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_fails_is_followed_by_what_mends_it() {
        let checks = [
            Check::ok("BTF", "found"),
            Check::warning("symbols", "stripped", "install them"),
            Check::failed("privileges", "not root", "sudo leaktrace doctor"),
        ];
        assert_eq!(
            render(&checks),
            "ok    BTF         found\n\
             warn  symbols     stripped\n                  -> install them\n\
             FAIL  privileges  not root\n                  -> sudo leaktrace doctor\n"
        );
        assert_eq!(checks.iter().filter(|check| check.has_failed()).count(), 1);
        assert_eq!(render(&[]), "");
    }

    #[test]
    fn what_mends_several_is_said_once_at_the_end() {
        let checks = [
            Check::failed("privileges", "not root", "become root"),
            Check::warning("symbols", "a is stripped", "install them"),
            Check::failed("process", "hidden", "become root"),
            Check::warning("symbols", "b is stripped", "install them"),
            Check::warning("BTF", "missing", "boot another kernel"),
        ];
        assert_eq!(
            render(&checks),
            "FAIL  privileges  not root\n\
             warn  symbols     a is stripped\n\
             FAIL  process     hidden\n\
             warn  symbols     b is stripped\n\
             warn  BTF         missing\n                  -> boot another kernel\n\n\
             To mend privileges, process:\n  become root\n\n\
             To mend symbols:\n  install them\n"
        );
    }
}
