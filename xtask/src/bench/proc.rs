//! What the kernel says about the processes of the benchmark.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// CPU time of a process that is alive, all its threads, in steps of 10 ms.
///
/// # Errors
/// It is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    parse_cpu(&stat, UTIME).with_context(|| format!("/proc/{pid}/stat has no CPU time"))
}

/// CPU time of this process's children that have ended, and of theirs.
///
/// # Errors
/// /proc can't be read.
pub fn cpu_time_of_ended_children() -> Result<Duration> {
    let stat = read("/proc/self/stat")?;
    parse_cpu(&stat, CHILDREN_UTIME).context("/proc/self/stat has no CPU time")
}

/// Peak of a process's resident memory, bytes.
///
/// # Errors
/// It is gone.
pub fn peak_rss(pid: u32) -> Result<u64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    parse_kib(&status, "VmHWM:").with_context(|| format!("/proc/{pid}/status has no VmHWM"))
}

/// Memory charged for the BPF maps that a process has open, bytes, by the map's
/// id. Of a map whose elements are taken on demand, what it has taken so far.
///
/// # Errors
/// The process is gone.
pub fn map_bytes(pid: u32) -> Result<BTreeMap<u64, u64>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))?;
    // A descriptor may be closed meanwhile.
    let infos = entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok());
    Ok(infos.filter_map(|info| parse_map(&info)).collect())
}

/// Kernel memory in slabs that can't be given back, where the elements of maps
/// are, bytes; of the whole machine.
///
/// # Errors
/// /proc can't be read.
pub fn slab_bytes() -> Result<u64> {
    parse_kib(&read("/proc/meminfo")?, "SUnreclaim:").context("/proc/meminfo has no SUnreclaim")
}

/// What the processor calls itself.
pub fn cpu_model() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// Place of `utime` in `/proc/PID/stat` behind the name; `stime` follows.
const UTIME: usize = 11;
/// Place of `cutime`; `cstime` follows.
const CHILDREN_UTIME: usize = 13;

fn parse_cpu(stat: &str, place: usize) -> Option<Duration> {
    // The name in parentheses may have spaces and parentheses of its own.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(place);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_secs_f64(
        (user + system) as f64 / ticks_per_second as f64,
    ))
}

/// The value of a line such as `VmHWM:   1234 kB`, bytes.
fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The id and memory of a descriptor's map; `None` when it is no map's.
fn parse_map(info: &str) -> Option<(u64, u64)> {
    let value = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Some((value("map_id:")?, value("memlock:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 99 98 97 96 150 50 300 100 20 0 1 0 5 6";
        let second = rustix::param::clock_ticks_per_second() as f64;
        let seconds = |place| parse_cpu(stat, place).unwrap().as_secs_f64() * second;
        assert!((seconds(UTIME) - 200.0).abs() < 1e-6);
        assert!((seconds(CHILDREN_UTIME) - 400.0).abs() < 1e-6);
        assert_eq!(parse_cpu("7 (a) S 1", UTIME), None);
    }

    #[test]
    fn a_map_is_told_from_links_and_programs() {
        let map = "pos:\t0\nflags:\t02\nmap_type:\t1\nkey_size:\t16\nvalue_size:\t24\n\
                   max_entries:\t1048576\nmap_flags:\t0x1\nmemlock:\t16778112\nmap_id:\t46\n";
        assert_eq!(parse_map(map), Some((46, 16_778_112)));
        assert_eq!(
            parse_map("prog_type:\t2\nmemlock:\t4096\nprog_id:\t3\n"),
            None
        );
    }

    #[test]
    fn sizes_of_proc_are_in_kib() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(parse_kib(status, "VmHWM:"), Some(2048 * 1024));
        assert_eq!(parse_kib(status, "VmSwap:"), None);
    }
}
