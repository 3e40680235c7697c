//! Why a process cannot be traced: each message says what failed, why, and
//! what to do.

use std::{fmt, io, path::PathBuf};

use super::Process;

/// A process that can't be traced, or couldn't be found.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No process has this id.
    #[error("there is no process {pid}: it may have ended; `ps -e` lists those that run")]
    NoSuchProcess {
        /// The id asked for.
        pid: u32,
    },
    /// It ended while it was looked at.
    #[error("{pid} ({name}) ended while it was being examined: there is nothing left to trace")]
    Ended {
        /// Its id.
        pid: u32,
        /// Its command name.
        name: String,
    },
    /// The id is a thread's, not a process's.
    #[error(
        "{tid} ({name}) is a thread of process {pid}, and all threads of a process are traced \
         together; use: leaktrace attach {pid}"
    )]
    Thread {
        /// The id asked for.
        tid: u32,
        /// The thread's name.
        name: String,
        /// The process it belongs to.
        pid: u32,
    },
    /// Part of the kernel.
    #[error(
        "{pid} ({name}) is a kernel thread: it has no memory of its own and never calls malloc; \
         choose a process that runs a program"
    )]
    KernelThread {
        /// Its id.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// Every thread of it has ended.
    #[error(
        "{pid} ({name}) is a zombie: it has ended, and its parent {parent} has not taken notice \
         yet; there is nothing left to trace, choose a process that still runs"
    )]
    Zombie {
        /// Its id.
        pid: u32,
        /// Its name.
        name: String,
        /// Its parent's id.
        parent: u32,
    },
    /// Its executable is a 32-bit one.
    #[error(
        "{pid} ({name}) is a 32-bit process ({exe}), and leaktrace understands 64-bit ones only; \
         trace a 64-bit build of the program"
    )]
    ThirtyTwoBit {
        /// Its id.
        pid: u32,
        /// Its name.
        name: String,
        /// Its executable.
        exe: PathBuf,
    },
    /// The kernel lets leaktrace not look into it.
    #[error("not permitted to trace {pid} ({name}): {why}")]
    NotPermitted {
        /// Its id.
        pid: u32,
        /// Its name, `?` when even that is hidden.
        name: String,
        /// What is missing, and what to do.
        why: Denial,
    },
    /// Nothing it maps exports malloc.
    #[error(
        "{pid} ({name}) maps no file with a known allocator, so there is nothing to watch; it \
         maps {maps}. (In a statically linked program it is found by its symbols, which `strip` \
         removes.) `leaktrace doctor {pid}` says more"
    )]
    NoAllocator {
        /// Its id.
        pid: u32,
        /// Its name.
        name: String,
        /// The files it maps for execution.
        maps: FileList,
    },
    /// The name fits several processes.
    #[error("{count} processes are named `{name}`; choose one by its pid:\n{matches}",
        count = .matches.0.len())]
    SeveralMatch {
        /// The name asked for.
        name: String,
        /// Who has it.
        matches: MatchList,
    },
    /// The name fits no process.
    #[error(
        "no process has `{name}` as its command name or as the file name of its executable; \
         `ps -eo pid,comm,args` lists the names"
    )]
    NoneMatches {
        /// The name asked for.
        name: String,
    },
    /// leaktrace was told to trace itself.
    #[error("{pid} is this leaktrace itself, which cannot trace itself; choose another process")]
    Itself {
        /// leaktrace's own id.
        pid: u32,
    },
    /// Something in `/proc` could not be read.
    #[error("cannot examine {pid} ({name}): reading {file} failed: {source}; is /proc mounted?")]
    Unreadable {
        /// Its id.
        pid: u32,
        /// Its name.
        name: String,
        /// What was read.
        file: PathBuf,
        /// The error.
        source: io::Error,
    },
}

impl TargetError {
    /// Nothing that the process maps exports malloc; `files` are those it maps.
    #[must_use]
    pub fn no_allocator(process: &Process, files: Vec<PathBuf>) -> Self {
        let (pid, name) = (process.pid(), process.name().to_owned());
        Self::NoAllocator {
            pid,
            name,
            maps: FileList(files),
        }
    }
}

/// What leaktrace lacks to look into a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It doesn't run as root; the process id is for the command that mends it.
    NotRoot {
        /// The process.
        pid: u32,
    },
    /// It runs as root, without this capability.
    Lacks(&'static str),
    /// It has every capability; a security module or a namespace refuses.
    Refused,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRoot { pid } => {
                write!(
                    f,
                    "leaktrace does not run as root; use: sudo leaktrace attach {pid}"
                )
            }
            Self::Lacks(capability) => write!(
                f,
                "leaktrace runs as root, but without {capability}; run it outside the container, \
                 or give the container that capability"
            ),
            Self::Refused => write!(
                f,
                "the kernel refuses although leaktrace is root, as a security module (SELinux, \
                 AppArmor, Yama) or a user namespace does; run it from the host, and look into \
                 `dmesg` for what refused"
            ),
        }
    }
}

/// Files, as a message shows them: the first few, and how many more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileList(pub Vec<PathBuf>);

/// How many files a message names.
const FILES_SHOWN: usize = 8;

impl fmt::Display for FileList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no file at all");
        }
        for (index, path) in self.0.iter().take(FILES_SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{}", path.display())?;
        }
        match self.0.len().saturating_sub(FILES_SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Processes that a name fits, one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchList(pub Vec<Match>);

/// One process that a name fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its id.
    pub pid: u32,
    /// When it started, wall clock.
    pub started: jiff::Zoned,
    /// Its arguments joined by blanks; its name in brackets when it has none.
    pub command_line: String,
}

/// How much of a command line a message shows, characters.
const COMMAND_LINE_SHOWN: usize = 100;

impl fmt::Display for MatchList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9}  {:19}  COMMAND", "PID", "STARTED")?;
        for entry in &self.0 {
            // A terminal must not obey what a command line contains.
            let mut line: String = entry
                .command_line
                .chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect();
            if let Some((cut, _)) = line.char_indices().nth(COMMAND_LINE_SHOWN) {
                line.truncate(cut);
                line.push('…');
            }
            let started = entry.started.strftime("%Y-%m-%d %H:%M:%S");
            write!(f, "\n{:>9}  {started:19}  {line}", entry.pid)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_fits_several_lists_them_with_start_and_command_line() {
        let started: jiff::Zoned = "2026-11-21T03:14:07+01:00[+01:00]".parse().unwrap();
        let entry = |pid, command_line: &str| Match {
            pid,
            started: started.clone(),
            command_line: command_line.into(),
        };
        let error = TargetError::SeveralMatch {
            name: "worker".into(),
            matches: MatchList(vec![
                entry(4242, "worker --queue a"),
                entry(1_000_001, "evil \x1b[2J name"),
            ]),
        };
        assert_eq!(
            error.to_string(),
            "2 processes are named `worker`; choose one by its pid:\n      \
                   PID  STARTED              COMMAND\n     \
                  4242  2026-11-21 03:14:07  worker --queue a\n  \
               1000001  2026-11-21 03:14:07  evil ?[2J name"
        );
    }

    #[test]
    fn a_long_command_line_is_cut() {
        let entry = Match {
            pid: 1,
            started: jiff::Zoned::now(),
            command_line: "é".repeat(COMMAND_LINE_SHOWN + 1),
        };
        let text = MatchList(vec![entry]).to_string();
        assert!(text.ends_with(&format!("{}…", "é".repeat(COMMAND_LINE_SHOWN))));
    }

    #[test]
    fn no_allocator_names_what_is_mapped() {
        let error = |files: Vec<PathBuf>| {
            let maps = FileList(files);
            TargetError::NoAllocator {
                pid: 7,
                name: "app".into(),
                maps,
            }
            .to_string()
        };
        assert_eq!(
            error(vec!["/usr/bin/app".into(), "/lib/libx.so".into()]),
            "7 (app) maps no file with a known allocator, so there is nothing to watch; it maps \
             /usr/bin/app, /lib/libx.so. (In a statically linked program it is found by its \
             symbols, which `strip` removes.) `leaktrace doctor 7` says more"
        );
        let many = error(
            (0..10)
                .map(|n| PathBuf::from(format!("/lib/{n}")))
                .collect(),
        );
        assert!(many.contains("/lib/7 and 2 more. (In a"), "{many}");
        assert!(error(vec![]).contains("it maps no file at all."));
    }

    #[test]
    fn not_permitted_says_which_kind_of_right_is_missing() {
        let error = |why| {
            TargetError::NotPermitted {
                pid: 7,
                name: "app".into(),
                why,
            }
            .to_string()
        };
        assert_eq!(
            error(Denial::NotRoot { pid: 7 }),
            "not permitted to trace 7 (app): leaktrace does not run as root; use: sudo leaktrace \
             attach 7"
        );
        assert_eq!(
            error(Denial::Lacks("CAP_SYS_PTRACE")),
            "not permitted to trace 7 (app): leaktrace runs as root, but without CAP_SYS_PTRACE; \
             run it outside the container, or give the container that capability"
        );
        assert_eq!(
            error(Denial::Refused),
            "not permitted to trace 7 (app): the kernel refuses although leaktrace is root, as a \
             security module (SELinux, AppArmor, Yama) or a user namespace does; run it from the \
             host, and look into `dmesg` for what refused"
        );
    }

    #[test]
    fn the_other_messages_say_what_why_and_what_to_do() {
        let ended = TargetError::Ended {
            pid: 7,
            name: "app".into(),
        };
        assert_eq!(
            ended.to_string(),
            "7 (app) ended while it was being examined: there is nothing left to trace"
        );
        let unreadable = TargetError::Unreadable {
            pid: 7,
            name: "app".into(),
            file: "/proc/7/stat".into(),
            source: io::Error::from_raw_os_error(libc::EIO),
        };
        assert_eq!(
            unreadable.to_string(),
            "cannot examine 7 (app): reading /proc/7/stat failed: Input/output error (os error \
             5); is /proc mounted?"
        );
    }
}
