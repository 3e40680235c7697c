//! What tracing needs of the machine.

use super::{AS_ROOT, Check};
use crate::{
    bpf::{MOUNT_SYSFS, OLDEST_KERNEL, possible_cpus},
    host::{
        jit,
        privilege::{Lockdown, Privilege},
    },
    model::{FeatureInfo, WhyNot, Without},
};

/// What was found on the machine, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    privilege: Privilege,
    /// The kernel's release: `6.1.0-18-amd64`.
    release: String,
    /// BPF programs are compiled and not interpreted; `None` when unknown.
    jit: Option<bool>,
    /// `None` when unknown.
    possible_cpus: Option<usize>,
}

impl Facts {
    fn gather() -> Self {
        Self {
            privilege: Privilege::current(),
            release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            jit: jit::is_on(),
            possible_cpus: possible_cpus().ok(),
        }
    }
}

/// Looks at everything that tracing needs of this machine, kernel features that
/// are found by probing excepted: see [`feature_checks`].
#[must_use]
pub fn host_checks() -> Vec<Check> {
    judge(&Facts::gather())
}

fn judge(facts: &Facts) -> Vec<Check> {
    vec![
        privileges(&facts.privilege),
        kernel(&facts.release),
        bpf_jit(facts.jit),
        cpus(facts.possible_cpus),
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
        (Some(major), Some(minor)) if (major, minor) < OLDEST_KERNEL => {
            let (major, minor) = OLDEST_KERNEL;
            Check::warning(
                "kernel",
                format!("{release} is older than any that leaktrace is tested on"),
                format!("boot Linux {major}.{minor} or a newer one"),
            )
        }
        _ => Check::ok("kernel", release),
    }
}

fn bpf_jit(enabled: Option<bool>) -> Check {
    match enabled {
        Some(false) => Check::failed(
            "BPF JIT",
            "switched off, and leaktrace's programs can't be interpreted",
            jit::SWITCH_ON,
        ),
        Some(true) => Check::ok("BPF JIT", "on"),
        None => Check::ok(
            "BPF JIT",
            "unknown (net.core.bpf_jit_enable cannot be read)",
        ),
    }
}

fn cpus(possible: Option<usize>) -> Check {
    match possible {
        Some(possible) => Check::ok("CPUs", format!("at most {possible}")),
        None => Check::failed(
            "CPUs",
            "unknown, and the kernel keeps values for each (/sys/devices/system/cpu/possible \
             cannot be read)",
            format!("if /sys is not mounted: {MOUNT_SYSFS}"),
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

/// Kernel features, as they were found by probing, with what is done instead.
#[must_use]
pub fn feature_checks(features: &[FeatureInfo]) -> Vec<Check> {
    features.iter().map(feature).collect()
}

fn feature(feature: &FeatureInfo) -> Check {
    let Some(why_not) = feature.why_not else {
        return Check::ok(
            feature.name,
            match feature.without {
                Without::Unneeded => "the kernel has it; nothing uses it yet",
                _ => "the kernel has it",
            },
        );
    };
    let (state, mend) = match why_not {
        WhyNot::Missing => {
            let built = feature
                .config
                .map(|option| format!(", built with {option}=y"))
                .unwrap_or_default();
            (
                "the kernel does not have it".to_owned(),
                format!("Linux {} has it{built}", feature.since),
            )
        }
        WhyNot::SwitchedOff => (
            "switched off by LEAKTRACE_DISABLE_FEATURES".to_owned(),
            "unset LEAKTRACE_DISABLE_FEATURES".to_owned(),
        ),
        WhyNot::Broken => (
            "the kernel's does not work".to_owned(),
            "update the kernel".to_owned(),
        ),
        WhyNot::Without(needed) => (
            format!("not used without {needed}"),
            format!("see {needed}"),
        ),
    };
    match feature.without {
        Without::Instead(what) => {
            Check::warning(feature.name, format!("{state}; instead, {what}"), mend)
        }
        Without::Impossible(lack) => {
            let text = format!("{state}: {lack}, and leaktrace can't do without");
            Check::failed(feature.name, text, mend)
        }
        Without::Unneeded => Check::ok(feature.name, format!("{state}; nothing uses it yet")),
    }
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
            jit: Some(true),
            possible_cpus: Some(2),
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
        assert_eq!(
            with(|facts| facts.privilege.lockdown = Some(Lockdown::Confidentiality)),
            ["lockdown"]
        );
        assert_eq!(with(|facts| facts.jit = Some(false)), ["BPF JIT"]);
        assert_eq!(with(|facts| facts.possible_cpus = None), ["CPUs"]);
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
    fn a_kernel_that_nobody_tried_is_no_reason_to_give_up() {
        for (release, warns) in [("5.9.16", true), ("5.10.0", false), ("strange", false)] {
            let check = kernel(release);
            assert_eq!(
                matches!(&check.outcome, Outcome::Warning { mend, .. } if mend.contains("5.10")),
                warns,
                "{check:?}"
            );
        }
    }

    fn found(without: Without, available: bool, why_not: Option<WhyNot>) -> Check {
        feature(&FeatureInfo {
            name: "it",
            since: "6.6",
            config: Some("CONFIG_IT"),
            available,
            used: why_not.is_none(),
            without,
            why_not,
        })
    }

    #[test]
    fn a_feature_that_is_missing_says_what_is_done_instead() {
        let instead = Without::Instead("it takes longer");
        assert_eq!(
            found(instead, true, None),
            Check::ok("it", "the kernel has it")
        );
        assert_eq!(
            found(instead, false, Some(WhyNot::Missing)),
            Check::warning(
                "it",
                "the kernel does not have it; instead, it takes longer",
                "Linux 6.6 has it, built with CONFIG_IT=y"
            )
        );
        let off = found(instead, true, Some(WhyNot::SwitchedOff));
        assert!(matches!(&off.outcome, Outcome::Warning { mend, .. }
            if mend.contains("LEAKTRACE_DISABLE_FEATURES")));
    }

    #[test]
    fn an_essential_feature_that_is_missing_fails() {
        assert_eq!(
            found(
                Without::Impossible("it has no loops"),
                false,
                Some(WhyNot::Missing)
            ),
            Check::failed(
                "it",
                "the kernel does not have it: it has no loops, and leaktrace can't do without",
                "Linux 6.6 has it, built with CONFIG_IT=y"
            )
        );
        assert!(!found(Without::Unneeded, false, Some(WhyNot::Missing)).has_failed());
    }

    #[test]
    fn this_machine_is_looked_at() {
        let checks = host_checks();
        assert_eq!(checks.len(), 7);
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        assert!(checks.contains(&Check::ok("kernel", release)));
    }
}
