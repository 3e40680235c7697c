//! What leaktrace is allowed to do here, as plain data: its capabilities, the
//! kernel's lockdown, the sysctls that restrict tracing.

use std::{fs, io};

use rustix::{
    process::{Resource, Rlimit},
    thread::CapabilitySet,
};

/// leaktrace's rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Privilege {
    /// Effective user id 0.
    pub root: bool,
    /// Effective capabilities.
    pub capabilities: CapabilitySet,
    /// The kernel's lockdown; `None` when it has none.
    pub lockdown: Option<Lockdown>,
    /// The sysctl `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i64>,
    /// The sysctl `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<i64>,
}

/// How far the kernel protects itself from root (kernel_lockdown(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Off.
    None,
    /// The kernel can't be changed; tracing still works.
    Integrity,
    /// Nor can the kernel's memory be read: BPF may not read memory.
    Confidentiality,
}

/// What tracing a process needs. `CAP_SYS_ADMIN` stands for the first two, and
/// is the only form in which kernels before 5.8 know them.
pub const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
];

/// leaktrace may not trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrivilegeError {
    /// It doesn't run as root.
    #[error("not permitted: tracing needs root, and leaktrace runs as an ordinary user; use: sudo leaktrace {}", .arguments.join(" "))]
    NotRoot {
        /// What leaktrace was called with.
        arguments: Vec<String>,
    },
    /// It is a root without these capabilities.
    #[error(
        "not permitted: leaktrace runs as root, but without {}; run it outside the container, or \
         give the container these capabilities", .missing.join(", ")
    )]
    Lacks {
        /// Names of the missing ones.
        missing: Vec<&'static str>,
    },
    /// The kernel forbids BPF to read memory, to root too.
    #[error(
        "not permitted: the kernel is locked down (confidentiality), so that BPF programs may not \
         read memory; boot with lockdown=integrity or without lockdown"
    )]
    LockedDown,
}

impl Privilege {
    /// leaktrace's own rights at this moment.
    #[must_use]
    pub fn current() -> Self {
        Self {
            root: rustix::process::geteuid().is_root(),
            capabilities: rustix::thread::capabilities(None)
                .map_or(CapabilitySet::empty(), |sets| sets.effective),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
                .ok()
                .and_then(|text| parse_lockdown(&text)),
            perf_event_paranoid: sysctl("perf_event_paranoid"),
            unprivileged_bpf_disabled: sysctl("unprivileged_bpf_disabled"),
        }
    }

    /// Names of those of [`NEEDED`] that are missing.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let by_admin = CapabilitySet::BPF | CapabilitySet::PERFMON;
        let admin = self.capabilities.contains(CapabilitySet::SYS_ADMIN);
        NEEDED
            .iter()
            .filter(|(capability, _)| {
                let by_admin = admin && by_admin.contains(*capability);
                !by_admin && !self.capabilities.contains(*capability)
            })
            .map(|(_, name)| *name)
            .collect()
    }

    /// Whether leaktrace may trace; `arguments` are those it was called with,
    /// for the command that mends it.
    ///
    /// # Errors
    /// When it may not, with what to do.
    pub fn check(&self, arguments: Vec<String>) -> Result<(), PrivilegeError> {
        let missing = self.missing();
        if !missing.is_empty() {
            return Err(if self.root {
                PrivilegeError::Lacks { missing }
            } else {
                PrivilegeError::NotRoot { arguments }
            });
        }
        if self.lockdown == Some(Lockdown::Confidentiality) {
            return Err(PrivilegeError::LockedDown);
        }
        Ok(())
    }
}

/// Raises the limit of locked memory, which kernels before 5.11 charge BPF maps
/// to.
///
/// # Errors
/// Without `CAP_SYS_RESOURCE`; newer kernels don't mind.
pub fn raise_locked_memory_limit() -> io::Result<()> {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    Ok(rustix::process::setrlimit(Resource::Memlock, unlimited)?)
}

/// The word in brackets of `[none] integrity confidentiality`.
fn parse_lockdown(text: &str) -> Option<Lockdown> {
    match text.split_once('[')?.1.split_once(']')?.0 {
        "none" => Some(Lockdown::None),
        "integrity" => Some(Lockdown::Integrity),
        "confidentiality" => Some(Lockdown::Confidentiality),
        _ => None,
    }
}

fn sysctl(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/kernel/{name}"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn privilege(root: bool, capabilities: CapabilitySet) -> Privilege {
        Privilege {
            root,
            capabilities,
            lockdown: None,
            perf_event_paranoid: Some(2),
            unprivileged_bpf_disabled: Some(2),
        }
    }

    #[test]
    fn lockdown_is_the_word_in_brackets() {
        assert_eq!(
            parse_lockdown("none [integrity] confidentiality\n"),
            Some(Lockdown::Integrity)
        );
        assert_eq!(
            parse_lockdown("[none] integrity confidentiality\n"),
            Some(Lockdown::None)
        );
        assert_eq!(
            parse_lockdown("none integrity [confidentiality]\n"),
            Some(Lockdown::Confidentiality)
        );
        assert_eq!(parse_lockdown("none"), None);
    }

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon_but_not_for_ptrace() {
        let admin = CapabilitySet::SYS_ADMIN;
        assert_eq!(privilege(true, admin).missing(), ["CAP_SYS_PTRACE"]);
        assert_eq!(
            privilege(true, admin | CapabilitySet::SYS_PTRACE).check(vec![]),
            Ok(())
        );
    }

    #[test]
    fn an_ordinary_user_is_told_to_use_sudo() {
        let error = privilege(false, CapabilitySet::empty())
            .check(vec!["attach".into(), "42".into()])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "not permitted: tracing needs root, and leaktrace runs as an ordinary user; use: sudo \
             leaktrace attach 42"
        );
    }

    #[test]
    fn a_root_without_capabilities_is_told_which() {
        let error = privilege(true, CapabilitySet::SYS_PTRACE)
            .check(vec![])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "not permitted: leaktrace runs as root, but without CAP_BPF, CAP_PERFMON; \
             run it outside the container, or give the container these capabilities"
        );
    }

    #[test]
    fn confidentiality_refuses_root_too() {
        let privilege = Privilege {
            lockdown: Some(Lockdown::Confidentiality),
            ..privilege(true, CapabilitySet::all())
        };
        assert_eq!(
            privilege.check(vec![]).unwrap_err().to_string(),
            "not permitted: the kernel is locked down (confidentiality), so that BPF programs may \
             not read memory; boot with lockdown=integrity or without lockdown"
        );
    }

    #[test]
    fn our_own_rights_are_read() {
        let privilege = Privilege::current();
        assert_eq!(privilege.root, rustix::process::geteuid().is_root());
        assert!(privilege.perf_event_paranoid.is_some());
        assert_eq!(privilege.root, !privilege.capabilities.is_empty());
    }
}
