//! How much memory a process uses, from what the kernel counts anyway. Never
//! `smaps` or `smaps_rollup`: these walk the page tables under the target's
//! lock, 6 ms per GiB.

use std::{fs, os::unix::fs::MetadataExt as _};

use super::{Process, cgroup::CgroupMounts, status::Status};
use crate::model::MemorySample;

/// Looks at a process's memory, descriptors, threads and cgroup now (some
/// 0.1 ms). What can't be read is `None`, all of it once the process has ended.
#[must_use]
pub fn sample(process: &Process) -> MemorySample {
    let status = process
        .read("status")
        .map(|text| Status::parse(&text))
        .unwrap_or_default();
    let cgroup = process
        .read("cgroup")
        .ok()
        .and_then(|text| CgroupMounts::own().ok()?.locate(&text));
    MemorySample {
        rss: status.rss,
        rss_anon: status.rss_anon,
        rss_file: status.rss_file,
        rss_shmem: status.rss_shmem,
        swap: status.swap,
        vm_size: status.vm_size,
        threads: status.threads,
        descriptors: descriptors(process),
        cgroup_usage: cgroup.as_ref().and_then(|cgroup| cgroup.usage()),
        cgroup_limit: cgroup.as_ref().and_then(|cgroup| cgroup.limit()),
    }
}

/// How many descriptors are open.
pub(super) fn descriptors(process: &Process) -> Option<u64> {
    let directory = process.directory().ok()?.join("fd");
    // Since 6.2 the directory's size is their number; before, it is 0.
    let count = match fs::metadata(&directory).ok()?.size() {
        0 => fs::read_dir(&directory).ok()?.count() as u64,
        count => count,
    };
    process.is_alive().then_some(count)
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, process::Command};

    use super::{
        super::test_process::{Running, sleep, wait_until, wait_until_asleep},
        *,
    };

    #[test]
    fn growth_of_our_own_memory_is_seen() {
        let process = Process::own().unwrap();
        let before = sample(&process);
        let block = vec![1_u8; 64 << 20];
        let file = fs::File::open("/proc/self/exe").unwrap();
        let after = sample(&process);
        let growth = after.rss_anon.unwrap().abs_diff(before.rss_anon.unwrap());
        assert!(growth > 32 << 20, "{growth}");
        assert!(after.vm_size.unwrap() > after.rss.unwrap());
        assert_eq!(
            after.rss.unwrap(),
            after.rss_anon.unwrap() + after.rss_file.unwrap() + after.rss_shmem.unwrap()
        );
        assert!(after.threads.unwrap() >= 2);
        // Other tests open and close files at the same time.
        assert!(after.descriptors.unwrap() >= 4);
        drop((block, file));
    }

    #[test]
    fn descriptors_are_counted() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "exec 7</dev/null 8</dev/null 9</dev/null; exec sleep 1000",
        ]);
        let child = Running::start(&mut command);
        let process = Process::open(child.pid()).unwrap();
        wait_until_asleep(&process);
        // It has also what the test itself inherited.
        let listed = fs::read_dir(format!("/proc/{}/fd", child.pid()))
            .unwrap()
            .count();
        assert!(listed >= 6);
        assert_eq!(sample(&process).descriptors, Some(listed as u64));
    }

    #[test]
    fn nothing_is_known_of_a_process_that_ended() {
        let mut child = sleep();
        let process = Process::open(child.pid()).unwrap();
        assert!(sample(&process).rss.is_some());
        child.0.kill().unwrap();
        wait_until("it has ended", || !process.is_alive());
        assert_eq!(sample(&process), MemorySample::default());
    }

    /// A cgroup for one test.
    struct Cgroup(PathBuf);

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let mut removed = false;
            // Those that were in it may not be gone quite yet.
            for _ in 0..500 {
                removed = fs::remove_dir(&self.0).is_ok();
                if removed {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            assert!(removed, "{} is left behind", self.0.display());
        }
    }

    #[test]
    fn the_cgroup_s_use_and_limit_are_the_kernel_s() {
        const LIMIT: u64 = 48 << 20;
        let name = format!("leaktrace-test-{}", std::process::id());
        let version_1 = PathBuf::from("/sys/fs/cgroup/memory").join(&name);
        let version_2 = PathBuf::from("/sys/fs/cgroup").join(&name);
        let v1 = version_1
            .parent()
            .is_some_and(|top| top.join("memory.limit_in_bytes").exists());
        let (path, limit_file) = if v1 {
            (version_1, "memory.limit_in_bytes")
        } else {
            (version_2, "memory.max")
        };
        if fs::create_dir(&path).is_err() {
            crate::testing::not_run(
                module_path!(),
                "the_cgroup_s_use_and_limit_are_the_kernel_s",
                "may not create a cgroup here",
            );
            return;
        }
        let cgroup = Cgroup(path);
        if fs::write(cgroup.0.join(limit_file), LIMIT.to_string()).is_err() {
            crate::testing::not_run(
                module_path!(),
                "the_cgroup_s_use_and_limit_are_the_kernel_s",
                "the memory controller is not available here",
            );
            return;
        }
        let child = sleep();
        fs::write(cgroup.0.join("cgroup.procs"), child.pid().to_string()).unwrap();
        let process = Process::open(child.pid()).unwrap();
        let seen = sample(&process);
        assert_eq!(seen.cgroup_limit, Some(LIMIT));
        assert!(seen.cgroup_usage.unwrap() < LIMIT);
        let text = process.read("cgroup").unwrap();
        let located = CgroupMounts::own().unwrap().locate(&text).unwrap();
        assert!(located.room().unwrap() <= LIMIT);
        drop(child);
    }
}
