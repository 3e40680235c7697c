//! What `leaktrace run` executes, found as the shell would (execvp(3)).

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{child::Outcome, user::User};

/// A command, its arguments, and as whom it runs.
#[derive(Clone, Debug)]
pub struct Command {
    /// Name or path of the program; also its argument 0.
    pub program: OsString,
    /// Arguments 1 and on.
    pub arguments: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Who runs it; `None` for who runs leaktrace.
    pub user: Option<User>,
}

/// The command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It does not exist.
    #[error("cannot run `{program}`: {why}")]
    NotFound {
        /// Its name.
        program: String,
        /// What was looked for where.
        why: String,
    },
    /// It exists, and can't be executed.
    #[error("cannot run `{program}`: {path} cannot be executed: {source}; {mend}", mend = mend(.source))]
    NotExecutable {
        /// Its name.
        program: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in an argument that can't be passed on.
    #[error("cannot run `{program}`: {what} contains a null byte, which no program can be given")]
    NullByte {
        /// Its name.
        program: String,
        /// An argument or a variable.
        what: &'static str,
    },
    /// leaktrace failed before the command could begin.
    #[error("cannot start `{program}`: {step} failed: {source}{hint}", hint = hint(.step, .source))]
    Failed {
        /// Its name.
        program: String,
        /// What failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Its process was ended while it waited.
    #[error("the command was ended before it began; there is no report")]
    NeverBegan(Outcome),
}

impl LaunchError {
    /// The exit status of `leaktrace run`, as env(1), timeout(1) and the shells
    /// have it: 127 not found, 126 not executable, 125 leaktrace's own failure.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            Self::NullByte { .. } | Self::Failed { .. } => 125,
            Self::NeverBegan(outcome) => outcome.exit_code(),
        }
    }
}

/// The step that changes the ids.
pub(super) const BECOME_USER: &str = "becoming the user of --user";

fn hint(step: &str, source: &io::Error) -> &'static str {
    if step == BECOME_USER && source.raw_os_error() == Some(libc::EPERM) {
        "; --user needs root: use sudo"
    } else {
        ""
    }
}

fn mend(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EACCES) => "it needs to be executable (chmod +x) for the user who runs it",
        Some(libc::E2BIG) => "give it fewer or shorter arguments",
        Some(libc::ENOENT) => "the interpreter or loader that it names does not exist",
        _ => "check that it is a program for this machine (file)",
    }
}

/// Where programs are searched without PATH, as execvp(3) does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

impl Command {
    /// A command with leaktrace's own environment.
    #[must_use]
    pub fn new(program: OsString, arguments: Vec<OsString>) -> Self {
        Self {
            program,
            arguments,
            environment: std::env::vars_os().collect(),
            user: None,
        }
    }

    /// A variable of its environment.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_os_str())
    }

    /// The paths to try one after the other.
    #[must_use]
    pub fn candidates(&self) -> Vec<PathBuf> {
        if self.program.is_empty() {
            return Vec::new();
        }
        if self.program.as_bytes().contains(&b'/') {
            return vec![PathBuf::from(&self.program)];
        }
        let path = self.variable("PATH").unwrap_or(OsStr::new(DEFAULT_PATH));
        // An empty entry is the current directory.
        std::env::split_paths(path)
            .map(|directory| match directory.as_os_str().is_empty() {
                true => Path::new(".").join(&self.program),
                false => directory.join(&self.program),
            })
            .collect()
    }

    /// The file that will be executed; `None` when there is none.
    #[must_use]
    pub fn resolve(&self) -> Option<PathBuf> {
        self.candidates().into_iter().find(|path| {
            fs::metadata(path).is_ok_and(|metadata| {
                metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
            })
        })
    }

    /// What it means that `exec` failed with all candidates; `error` is the
    /// errno that execvp(3) would give.
    pub(super) fn exec_error(&self, error: i32) -> LaunchError {
        let program = self.program.to_string_lossy().into_owned();
        let existing = self.candidates().into_iter().find(|path| path.exists());
        match existing {
            Some(path) => LaunchError::NotExecutable {
                program,
                path,
                source: io::Error::from_raw_os_error(error),
            },
            None if self.program.as_bytes().contains(&b'/') => LaunchError::NotFound {
                program,
                why: "there is no such file; check the path".into(),
            },
            None => {
                let mut why =
                    "no directory of PATH has it; check the name, or give its path".to_owned();
                if self.variable("SUDO_UID").is_some() {
                    why.push_str(" (sudo has a PATH of its own)");
                }
                LaunchError::NotFound { program, why }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(program: &str, path: Option<&str>) -> Command {
        Command {
            environment: path
                .map(|path| ("PATH".into(), path.into()))
                .into_iter()
                .collect(),
            ..Command::new(program.into(), vec![])
        }
    }

    #[test]
    fn programs_are_searched_in_path_unless_they_are_paths() {
        assert_eq!(
            command("x", Some("/a::/b")).candidates(),
            ["/a/x", "./x", "/b/x"].map(PathBuf::from)
        );
        assert_eq!(
            command("./x", Some("/a")).candidates(),
            [PathBuf::from("./x")]
        );
        assert_eq!(
            command("x", None).candidates(),
            ["/bin/x", "/usr/bin/x"].map(PathBuf::from)
        );
        assert!(command("", Some("/a")).candidates().is_empty());
    }

    #[test]
    fn directories_and_plain_files_are_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let at = |part: &str| directory.path().join(part);
        for part in ["1/x", "2", "3"] {
            fs::create_dir_all(at(part)).unwrap();
        }
        fs::write(at("2/x"), "").unwrap();
        fs::copy("/bin/true", at("3/x")).unwrap();
        let path = std::env::join_paths([at("1"), at("2"), at("3")]).unwrap();
        assert_eq!(command("x", path.to_str()).resolve(), Some(at("3/x")));
    }
}
