//! Who owns what is written: the user behind sudo.

use std::env;

use rustix::process::{Gid, Uid};

/// User and group that files are given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
}

impl Owner {
    /// The user behind sudo, from `SUDO_UID` and `SUDO_GID`; `None` when we are
    /// not root or nobody is behind us.
    #[must_use]
    pub fn behind_sudo() -> Option<Self> {
        let variable = |name| env::var(name).ok();
        Self::from_variables(
            rustix::process::geteuid().is_root(),
            variable("SUDO_UID").as_deref(),
            variable("SUDO_GID").as_deref(),
        )
    }

    fn from_variables(root: bool, uid: Option<&str>, gid: Option<&str>) -> Option<Self> {
        // -1 means "do not change" to chown, and 0 is who we are already.
        let id = |text: Option<&str>| text?.parse().ok().filter(|id| *id != u32::MAX);
        let (uid, gid) = (id(uid)?, id(gid)?);
        (root && uid != 0).then(|| Self {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_behind_sudo_gives_files_away() {
        let from = Owner::from_variables;
        let owner = from(true, Some("1000"), Some("100")).unwrap();
        assert_eq!((owner.uid.as_raw(), owner.gid.as_raw()), (1000, 100));
        assert_eq!(from(false, Some("1000"), Some("100")), None);
        assert_eq!(from(true, Some("0"), Some("0")), None);
        assert_eq!(from(true, Some("4294967295"), Some("100")), None);
        assert_eq!(from(true, Some("1000; rm"), Some("100")), None);
        assert_eq!(from(true, Some("1000"), None), None);
    }
}
