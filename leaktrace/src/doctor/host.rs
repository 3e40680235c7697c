//! What tracing needs of the machine.

use std::{fs, path::Path};

use super::{AS_ROOT, Check};
use crate::{
    host::{
        privilege::{Lockdown, Privilege},
        tracefs,
    },
    model::FeatureInfo,
};

/// What was found on the machine, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    privilege: Privilege,
    /// The kernel's release: `6.1.0-18-amd64`.
    release: String,
    /// The kernel offers uprobes as perf events.
    uprobes: bool,
    /// The kernel describes its own types.
    btf: bool,
    /// BPF programs are compiled and not interpreted; `None` when unknown.
    jit: Option<bool>,
    tracefs: Tracefs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Tracefs {
    Mounted(String),
    CanBeMounted,
    Missing,
}

impl Facts {
    fn gather() -> Self {
        let exists = |path: &str| Path::new(path).exists();
        Self {
            privilege: Privilege::current(),
            release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            uprobes: exists("/sys/bus/event_source/devices/uprobe/type"),
            btf: exists("/sys/kernel/btf/vmlinux"),
            jit: fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
                .ok()
                .map(|text| text.trim() != "0"),
            tracefs: match tracefs::mounted() {
                Some(place) => Tracefs::Mounted(place.display().to_string()),
                None if exists("/sys/kernel/tracing") => Tracefs::CanBeMounted,
                None => Tracefs::Missing,
            },
        }
    }
}

/// Looks at everything that tracing needs of this machine, kernel features that
/// are found by probing excepted: see [`feature_checks`].
#[must_use]
pub fn host_checks() -> Vec<Check> {
    judge(&Facts::gather())
}

/// The oldest kernel that leaktrace knows to work on.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

fn judge(facts: &Facts) -> Vec<Check> {
    vec![
        privileges(&facts.privilege),
        kernel(&facts.release),
        if facts.uprobes {
            Check::ok("uprobes", "the kernel has them")
        } else {
            Check::failed(
                "uprobes",
                "the kernel has none (/sys/bus/event_source/devices/uprobe is missing)",
                "boot a kernel built with CONFIG_UPROBE_EVENTS=y; if /sys is not mounted: \
                 sudo mount -t sysfs none /sys",
            )
        },
        if facts.btf {
            Check::ok("BTF", "/sys/kernel/btf/vmlinux")
        } else {
            Check::warning(
                "BTF",
                "the kernel does not describe its types (/sys/kernel/btf/vmlinux is missing): \
                 tables take their full memory at once",
                "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            )
        },
        jit(facts.jit),
        match &facts.tracefs {
            Tracefs::Mounted(place) => Check::ok("tracefs", place),
            Tracefs::CanBeMounted => Check::ok(
                "tracefs",
                "not mounted; leaktrace mounts it for itself alone where it needs it",
            ),
            Tracefs::Missing => Check::failed(
                "tracefs",
                "the kernel has none (/sys/kernel/tracing does not exist)",
                "boot a kernel built with CONFIG_TRACING=y",
            ),
        },
        lockdown(facts.privilege.lockdown),
        perf_event_paranoid(&facts.privilege),
        unprivileged_bpf(&facts.privilege),
    ]
}

fn privileges(privilege: &Privilege) -> Check {
    let missing = privilege.missing().join(", ");
    match (missing.is_empty(), privilege.root) {
        (true, true) => Check::ok("privileges", "root, with the capabilities needed"),
        (true, false) => Check::ok("privileges", "not root, but with the capabilities needed"),
        (false, true) => Check::failed(
            "privileges",
            format!("root, but without {missing}"),
            "run leaktrace outside the container, or give the container these capabilities",
        ),
        (false, false) => Check::failed(
            "privileges",
            format!("an ordinary user, without {missing}"),
            AS_ROOT,
        ),
    }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    match (number(), number()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST_KERNEL => Check::failed(
            "kernel",
            format!("{release} is older than the oldest that works, 5.10"),
            "boot a newer kernel",
        ),
        _ => Check::ok("kernel", release),
    }
}

fn jit(enabled: Option<bool>) -> Check {
    match enabled {
        Some(false) => Check::warning(
            "BPF JIT",
            "switched off: BPF programs are interpreted, and tracing costs several times as much",
            "sudo sysctl net.core.bpf_jit_enable=1",
        ),
        Some(true) => Check::ok("BPF JIT", "on"),
        None => Check::ok(
            "BPF JIT",
            "unknown (net.core.bpf_jit_enable cannot be read)",
        ),
    }
}

fn lockdown(lockdown: Option<Lockdown>) -> Check {
    match lockdown {
        None | Some(Lockdown::None) => Check::ok("lockdown", "off"),
        Some(Lockdown::Integrity) => Check::ok("lockdown", "integrity, which allows tracing"),
        Some(Lockdown::Confidentiality) => Check::failed(
            "lockdown",
            "confidentiality: BPF programs may not read memory",
            "boot with lockdown=integrity or without lockdown",
        ),
    }
}

fn perf_event_paranoid(privilege: &Privilege) -> Check {
    const NAME: &str = "perf_event_paranoid";
    let Some(value) = privilege.perf_event_paranoid else {
        return Check::failed(
            NAME,
            "cannot be read: the kernel has no perf events",
            "boot a kernel built with CONFIG_PERF_EVENTS=y; if /proc is not mounted: sudo mount \
             -t proc none /proc",
        );
    };
    if !privilege.missing().contains(&"CAP_PERFMON") {
        Check::ok(
            NAME,
            format!("{value}, which does not bind leaktrace: it has CAP_PERFMON"),
        )
    } else {
        Check::failed(
            NAME,
            format!("{value}; CAP_PERFMON is missing, without which no value is enough"),
            AS_ROOT,
        )
    }
}

fn unprivileged_bpf(privilege: &Privilege) -> Check {
    const NAME: &str = "unprivileged_bpf_disabled";
    let Some(value) = privilege.unprivileged_bpf_disabled else {
        return Check::failed(
            NAME,
            "cannot be read: the kernel has no BPF",
            "boot a kernel built with CONFIG_BPF_SYSCALL=y",
        );
    };
    if !privilege.missing().contains(&"CAP_BPF") {
        Check::ok(
            NAME,
            format!("{value}, which does not bind leaktrace: it has CAP_BPF"),
        )
    } else {
        Check::failed(
            NAME,
            format!("{value}; CAP_BPF is missing, without which no value is enough"),
            AS_ROOT,
        )
    }
}

/// Kernel features, as they were found by probing.
#[must_use]
pub fn feature_checks(features: &[FeatureInfo]) -> Vec<Check> {
    features
        .iter()
        .map(|feature| match (feature.available, feature.used) {
            (true, true) => Check::ok(feature.name, "the kernel has it"),
            (true, false) => Check::warning(
                feature.name,
                "the kernel has it, but it is not used",
                "remove it from LEAKTRACE_DISABLE_FEATURES, if that names it",
            ),
            (false, _) => Check::warning(
                feature.name,
                "the kernel does not have it; leaktrace does without, at a higher cost",
                "boot a newer kernel",
            ),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use rustix::thread::CapabilitySet;

    use super::{super::Outcome, *};

    fn good() -> Facts {
        Facts {
            privilege: Privilege {
                root: true,
                capabilities: CapabilitySet::all(),
                lockdown: Some(Lockdown::None),
                perf_event_paranoid: Some(4),
                unprivileged_bpf_disabled: Some(2),
            },
            release: "6.1.0-18-amd64".into(),
            uprobes: true,
            btf: true,
            jit: Some(true),
            tracefs: Tracefs::CanBeMounted,
        }
    }

    fn failures(facts: &Facts) -> Vec<String> {
        let checks = judge(facts);
        checks
            .into_iter()
            .filter(Check::has_failed)
            .map(|check| check.name)
            .collect()
    }

    #[test]
    fn a_good_machine_passes() {
        let checks = judge(&good());
        assert!(
            checks
                .iter()
                .all(|check| matches!(check.outcome, Outcome::Ok(_))),
            "{checks:?}"
        );
    }

    #[test]
    fn each_condition_fails_alone() {
        let with = |change: fn(&mut Facts)| {
            let mut facts = good();
            change(&mut facts);
            failures(&facts)
        };
        assert_eq!(with(|facts| facts.uprobes = false), ["uprobes"]);
        assert_eq!(with(|facts| facts.release = "5.9.16".into()), ["kernel"]);
        assert_eq!(
            with(|facts| facts.release = "5.10.0".into()),
            Vec::<String>::new()
        );
        assert_eq!(with(|facts| facts.tracefs = Tracefs::Missing), ["tracefs"]);
        assert_eq!(
            with(|facts| facts.privilege.lockdown = Some(Lockdown::Confidentiality)),
            ["lockdown"]
        );
        assert_eq!(
            with(|facts| facts.privilege.perf_event_paranoid = None),
            ["perf_event_paranoid"]
        );
        assert_eq!(
            with(|facts| {
                facts.privilege.root = false;
                facts.privilege.capabilities = CapabilitySet::empty();
            }),
            [
                "privileges",
                "perf_event_paranoid",
                "unprivileged_bpf_disabled"
            ]
        );
    }

    #[test]
    fn what_only_costs_more_is_a_warning_with_its_command() {
        let facts = Facts {
            jit: Some(false),
            ..good()
        };
        let check = judge(&facts)
            .into_iter()
            .find(|check| check.name == "BPF JIT")
            .unwrap();
        assert_eq!(
            check,
            Check::warning(
                "BPF JIT",
                "switched off: BPF programs are interpreted, and tracing costs several times as \
                 much",
                "sudo sysctl net.core.bpf_jit_enable=1"
            )
        );
    }

    #[test]
    fn features_say_whether_they_are_there_and_used() {
        let feature = |available, used| FeatureInfo {
            name: "uprobe_multi",
            available,
            used,
        };
        let checks = feature_checks(&[
            feature(true, true),
            feature(true, false),
            feature(false, false),
        ]);
        assert_eq!(checks[0], Check::ok("uprobe_multi", "the kernel has it"));
        assert!(matches!(&checks[1].outcome, Outcome::Warning { mend, .. }
            if mend.contains("LEAKTRACE_DISABLE_FEATURES")));
        assert!(matches!(&checks[2].outcome, Outcome::Warning { .. }));
    }

    #[test]
    fn this_machine_is_looked_at() {
        let checks = host_checks();
        assert_eq!(checks.len(), 9);
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        assert!(checks.contains(&Check::ok("kernel", release)));
    }
}
