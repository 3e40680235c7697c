//! The limits that a process runs into when it grows, and how far they are.

use std::fs;

use super::{
    Process,
    available::parse_field,
    cgroup::{Allowance, CgroupMounts},
    resource_limits::ResourceLimits,
    status::Status,
};
use crate::model::{Limit, LimitKind, Resource};

/// All limits of a resource that are known now. Some 0.1 ms; for threads of a
/// process that is not root's, as long as it takes to look at every process
/// (30 us each).
#[must_use]
pub fn read(process: &Process, resource: Resource) -> Vec<Limit> {
    let own = process
        .read("limits")
        .map(|text| ResourceLimits::parse(&text))
        .unwrap_or_default();
    match resource {
        Resource::Memory => memory(process, &own),
        Resource::Descriptors => descriptors(process, &own),
        Resource::Threads => threads(process, &own),
        Resource::Mappings => mappings(process),
    }
}

fn limit(kind: LimitKind, most: Option<u64>, used: Option<u64>) -> Option<Limit> {
    let (most, used) = (most?, used?);
    Some(Limit {
        kind,
        most,
        room: most.saturating_sub(used),
    })
}

fn allowed(kind: LimitKind, allowance: Option<Allowance>) -> Option<Limit> {
    let Allowance { most, room } = allowance?;
    Some(Limit { kind, most, room })
}

fn memory(process: &Process, own: &ResourceLimits) -> Vec<Limit> {
    let status = status(process);
    let cgroup = process
        .read("cgroup")
        .ok()
        .and_then(|text| CgroupMounts::own().ok()?.locate(&text));
    let cgroup = cgroup.as_ref();
    let high = cgroup.and_then(|cgroup| cgroup.allowance_at_full_speed());
    [
        allowed(
            LimitKind::CgroupMemory,
            cgroup.and_then(|cgroup| cgroup.allowance()),
        ),
        allowed(LimitKind::CgroupHigh, high),
        limit(LimitKind::AddressSpace, own.address_space, status.vm_size),
        limit(LimitKind::Data, own.data, status.vm_data),
        fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| machine(&text)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the machine has, from the text of `/proc/meminfo`.
fn machine(meminfo: &str) -> Option<Limit> {
    let field = |name| parse_field(meminfo, name);
    Some(Limit {
        kind: LimitKind::Machine,
        most: field("MemTotal")?.saturating_add(field("SwapTotal").unwrap_or(0)),
        room: field("MemAvailable")?.saturating_add(field("SwapFree").unwrap_or(0)),
    })
}

fn descriptors(process: &Process, own: &ResourceLimits) -> Vec<Limit> {
    let open = super::memory::descriptors(process);
    limit(LimitKind::Descriptors, own.descriptors, open)
        .into_iter()
        .collect()
}

fn threads(process: &Process, own: &ResourceLimits) -> Vec<Limit> {
    let cgroup = process
        .read("cgroup")
        .ok()
        .and_then(|text| CgroupMounts::own().ok()?.locate_pids(&text)?.allowance());
    // Nothing of the kind holds for root (getrlimit(2)).
    let of_user = match (own.threads, status(process).user) {
        (Some(most), Some(user)) if user != 0 => {
            limit(LimitKind::UserThreads, Some(most), user_threads(user))
        }
        _ => None,
    };
    let setting = |name| setting(&format!("kernel/{name}"));
    let most = [setting("threads-max"), setting("pid_max")];
    let machine = limit(
        LimitKind::MachineThreads,
        most.into_iter().flatten().min(),
        fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|text| threads_of_machine(&text)),
    );
    [allowed(LimitKind::CgroupThreads, cgroup), of_user, machine]
        .into_iter()
        .flatten()
        .collect()
}

fn mappings(process: &Process) -> Vec<Limit> {
    let count = |text: Vec<u8>| text.iter().filter(|byte| **byte == b'\n').count() as u64;
    let there = process.read("maps").ok().map(count);
    limit(LimitKind::Mappings, setting("vm/max_map_count"), there)
        .into_iter()
        .collect()
}

fn status(process: &Process) -> Status {
    process
        .read("status")
        .map(|text| Status::parse(&text))
        .unwrap_or_default()
}

/// All threads of a user's processes.
fn user_threads(user: u32) -> Option<u64> {
    let processes = fs::read_dir("/proc").ok()?;
    Some(
        processes
            .filter_map(|entry| {
                let entry = entry.ok()?;
                entry.file_name().to_str()?.parse::<u32>().ok()?;
                let status = Status::parse(&fs::read(entry.path().join("status")).ok()?);
                (status.user == Some(user)).then_some(status.threads?)
            })
            .sum(),
    )
}

/// `0.20 0.18 0.12 1/80 11206`: the number after the slash (proc_loadavg(5)).
fn threads_of_machine(loadavg: &str) -> Option<u64> {
    let (_, all) = loadavg.split_ascii_whitespace().nth(3)?.split_once('/')?;
    all.parse().ok()
}

fn setting(path: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{super::test_process::Running, *};

    fn limited(options: &[&str]) -> (Running, Process) {
        let mut command = Command::new("prlimit");
        command.args(options).args(["sleep", "1000"]);
        let child = Running::start(&mut command);
        let process = Process::open(child.pid()).unwrap();
        super::super::test_process::wait_until_asleep(&process);
        (child, process)
    }

    fn find(limits: &[Limit], kind: LimitKind) -> Option<Limit> {
        limits.iter().copied().find(|limit| limit.kind == kind)
    }

    #[test]
    fn limits_of_the_process_are_found_with_what_it_uses() {
        let (_child, process) =
            limited(&["--as=1073741824:", "--data=536870912:", "--nofile=100:"]);
        let status = status(&process);
        let memory = read(&process, Resource::Memory);
        assert_eq!(
            find(&memory, LimitKind::AddressSpace),
            limit(LimitKind::AddressSpace, Some(1 << 30), status.vm_size)
        );
        assert_eq!(
            find(&memory, LimitKind::Data),
            limit(LimitKind::Data, Some(1 << 29), status.vm_data)
        );
        let open = super::super::memory::descriptors(&process);
        assert_eq!(
            read(&process, Resource::Descriptors),
            [limit(LimitKind::Descriptors, Some(100), open).unwrap()]
        );
        let maps = crate::target::mapping::read_mappings(&process).unwrap();
        let mappings = read(&process, Resource::Mappings)[0];
        assert_eq!(mappings.most - mappings.room, maps.len() as u64);
    }

    #[test]
    fn the_machine_has_limits() {
        let process = Process::own().unwrap();
        let memory = find(&read(&process, Resource::Memory), LimitKind::Machine).unwrap();
        assert!(memory.room > 0 && memory.room < memory.most);
        let threads = find(
            &read(&process, Resource::Threads),
            LimitKind::MachineThreads,
        );
        let threads = threads.unwrap();
        assert!(threads.room > 0 && threads.room < threads.most);
    }

    #[test]
    fn memory_and_swap_of_the_machine_are_one() {
        let text = "MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 50 kB\nSwapTotal: 20 kB\nSwapFree: 10 kB\n";
        assert_eq!(
            machine(text),
            Some(Limit {
                kind: LimitKind::Machine,
                most: 120 << 10,
                room: 60 << 10,
            })
        );
        assert_eq!(machine("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn threads_of_the_machine_are_after_the_slash() {
        assert_eq!(threads_of_machine("0.20 0.18 0.12 1/80 11206\n"), Some(80));
        assert_eq!(threads_of_machine(""), None);
    }

    #[test]
    fn threads_of_this_user_are_counted() {
        // SAFETY: it only reads the caller's credentials.
        let user = unsafe { libc::getuid() };
        let own = status(&Process::own().unwrap());
        assert!(user_threads(user).unwrap() >= own.threads.unwrap());
    }
}
