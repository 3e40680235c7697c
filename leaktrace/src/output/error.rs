//! Why an output could not be written, in words.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// An output that is not there; says which, why, and what helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot write {}: {reason}", path.display())]
pub struct WriteError {
    /// What should have been written.
    pub path: PathBuf,
    /// Why it was not.
    pub reason: String,
}

impl WriteError {
    /// The kernel refused.
    #[must_use]
    pub fn new(path: &Path, errno: Errno) -> Self {
        let advice = match errno {
            Errno::NOSPC | Errno::DQUOT => "; free some space, or name another place with -o",
            Errno::ROFS | Errno::ACCESS | Errno::PERM => "; name another place with -o",
            Errno::NOENT => "; make its directory first",
            _ => "",
        };
        Self::because(path, format!("{}{advice}", text(errno)))
    }

    /// Any other reason.
    #[must_use]
    pub fn because(path: &Path, reason: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// The C library's text for an error, without its number.
fn text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_path_and_what_helps() {
        assert_eq!(
            WriteError::new("/x/y.json".as_ref(), Errno::NOSPC).to_string(),
            "cannot write /x/y.json: No space left on device; free some space, or name another place with -o"
        );
    }
}
