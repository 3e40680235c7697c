//! The user that a command runs as (`--user`).

use std::{ffi::CString, io, mem::MaybeUninit, ptr};

/// Ids of a user: as with strace's `--user`, the environment (HOME, USER) stays
/// the caller's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// The user's primary group.
    pub gid: u32,
    /// All of the user's groups.
    pub groups: Vec<u32>,
}

/// The user can't be looked up.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is none of that name.
    #[error("there is no user named `{name}`; `getent passwd` lists them")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The data base can't be read.
    #[error("cannot look up user `{name}`: {source}; try `getent passwd {name}`")]
    Lookup {
        /// The name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Room for the strings of an entry, and of one so large that something is wrong.
const ENTRY_SIZES: std::ops::RangeInclusive<usize> = 1 << 12..=1 << 24;
/// The kernel's limit (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 1 << 16;

impl User {
    /// Looks a user up by name, in whatever data bases the system uses.
    ///
    /// # Errors
    /// When there is no such user, or looking up fails.
    pub fn look_up(name: &str) -> Result<Self, UserError> {
        let unknown = || UserError::Unknown {
            name: name.to_owned(),
        };
        let failed = |source| UserError::Lookup {
            name: name.to_owned(),
            source,
        };
        let c_name = CString::new(name).map_err(|_| unknown())?;
        let mut buffer: Vec<libc::c_char> = vec![0; *ENTRY_SIZES.start()];
        let (uid, gid) = loop {
            let mut entry = MaybeUninit::<libc::passwd>::uninit();
            let mut found = ptr::null_mut();
            // SAFETY: all pointers are valid for the call, the buffer for the
            // length given.
            let error = unsafe {
                libc::getpwnam_r(
                    c_name.as_ptr(),
                    entry.as_mut_ptr(),
                    buffer.as_mut_ptr(),
                    buffer.len(),
                    &raw mut found,
                )
            };
            match error {
                0 if found.is_null() => return Err(unknown()),
                0 => {
                    // SAFETY: a result that is not null says that the entry is filled.
                    let entry = unsafe { entry.assume_init_ref() };
                    break (entry.pw_uid, entry.pw_gid);
                }
                libc::ERANGE if buffer.len() < *ENTRY_SIZES.end() => {
                    buffer.resize(buffer.len() * 2, 0);
                }
                libc::EINTR => {}
                // Some data bases answer so for a name they don't know.
                libc::ENOENT | libc::ESRCH => return Err(unknown()),
                error => return Err(failed(io::Error::from_raw_os_error(error))),
            }
        };
        Ok(Self {
            uid,
            gid,
            groups: groups(&c_name, gid).map_err(failed)?,
        })
    }
}

/// All groups of a user, the primary one among them.
fn groups(name: &CString, gid: u32) -> io::Result<Vec<u32>> {
    let mut groups = vec![0; 64];
    loop {
        let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `groups` has room for `count` ids, which is updated.
        let result =
            unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
        if result >= 0 {
            groups.truncate(usize::try_from(count).unwrap_or(0));
            return Ok(groups);
        }
        if groups.len() >= MOST_GROUPS {
            return Err(io::Error::other("the user is in too many groups"));
        }
        groups.resize(groups.len() * 2, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_id_0_everywhere() {
        let root = User::look_up("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
    }

    #[test]
    fn an_unknown_user_is_said_to_be_unknown() {
        for name in ["nobody-has-this-name", "a\0b", ""] {
            let error = User::look_up(name).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("there is no user named `{name}`; `getent passwd` lists them")
            );
        }
    }
}
