//! Putting records in order; [`super::super::mapping_watch`] tests against real
//! processes.

use super::{
    record::tests::{PID, comm, mmap2},
    *,
};

const EXEC: u16 = 1 << 13;

fn mapped(name: &str, time: u64) -> Vec<u8> {
    mmap2(PID, 0x1000, (8, 1, 5), name, time)
}

/// What two CPUs have recorded.
fn records(cpus: [&[Vec<u8>]; 2]) -> Vec<Record> {
    cpus.iter()
        .flat_map(|cpu| record::parse(&cpu.concat(), PID))
        .collect()
}

fn paths(drained: &Drained) -> Vec<&str> {
    drained
        .mappings
        .iter()
        .map(|mapping| mapping.path.to_str().unwrap())
        .collect()
}

#[test]
fn records_of_several_cpus_are_put_in_order_of_time() {
    let records = records([
        &[mapped("/a", 1), mapped("/d", 4)],
        &[mapped("/b", 2), mapped("/c", 3)],
    ]);
    let (drained, later) = in_order(records, 100);
    assert_eq!(paths(&drained), ["/a", "/b", "/c", "/d"]);
    assert!(later.is_empty() && !drained.exec);
}

#[test]
fn an_exec_on_another_cpu_drops_only_what_was_before_it() {
    let records = records([
        &[mapped("/old", 1), mapped("/new", 3)],
        &[comm(PID, EXEC, 2), mapped("/libc", 4)],
    ]);
    let (drained, _) = in_order(records, 100);
    assert!(drained.exec);
    assert_eq!(paths(&drained), ["/new", "/libc"]);
}

#[test]
fn what_came_after_the_moment_of_looking_waits_for_the_next_time() {
    // The buffer of the first CPU was read before the exec was written to it,
    // that of the second one after the new program was mapped.
    let (drained, later) = in_order(records([&[], &[mapped("/new", 12)]]), 10);
    assert_eq!(drained, Drained::default());
    let mut next = later;
    next.extend(records([&[comm(PID, EXEC, 11)], &[]]));
    let (drained, later) = in_order(next, 20);
    assert!(drained.exec && later.is_empty());
    assert_eq!(paths(&drained), ["/new"]);
}
