//! Threads and processes that end, exec or fork.

use aya_ebpf::{
    bindings::bpf_pidns_info,
    helpers::{bpf_get_current_pid_tgid, bpf_get_ns_current_pid_tgid, bpf_ktime_get_ns},
};
use leaktrace_common::{control::Control, counter::Counter};

use crate::{
    counters::count,
    in_flight,
    live::LiveTable,
    maps::{CONTROL, IN_FLIGHT},
};

const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x1_0000;

/// Forgets the thread's record; only threads of the target have one.
#[inline(always)]
pub fn exit<L: LiveTable>() {
    let thread = bpf_get_current_pid_tgid() as u32;
    let Some(record) = IN_FLIGHT.get_ptr_mut(thread) else {
        return;
    };
    // SAFETY: only this thread's own programs use its record.
    let record = unsafe { &mut *record };
    if record.stack_pointer != 0 {
        count(Counter::ExitInCall);
        in_flight::abandon::<L>(record);
    }
    let _ = IN_FLIGHT.remove(thread);
}

/// The target replaced its image: its probes no longer fire.
#[inline(always)]
pub fn exec() {
    if is_target()
        && let Some(control) = CONTROL.get_ptr_mut(0)
    {
        count(Counter::Exec);
        // SAFETY: the array lives as long as the program; the target has one
        // thread left, so that nobody else changes these.
        unsafe {
            if (*control).execs_left > 0 {
                (*control).execs_left -= 1;
            } else if (*control).enabled != 0 {
                (*control).exec_ns = bpf_ktime_get_ns();
                (*control).enabled = 0;
            }
        }
    }
    let _ = IN_FLIGHT.remove(&(bpf_get_current_pid_tgid() as u32));
}

/// A child that shares the target's memory, but is no thread of it: links that
/// are bound to the process do not see what it allocates and frees.
#[inline(always)]
pub fn new_task(clone_flags: u64) {
    if clone_flags & CLONE_VM != 0 && clone_flags & CLONE_THREAD == 0 && is_target() {
        count(Counter::Vfork);
    }
}

#[inline(always)]
fn is_target() -> bool {
    let Some(control) = CONTROL.get_ptr(0) else {
        return false;
    };
    // SAFETY: the array lives as long as the program.
    let control = unsafe { &*control };
    let thread_group = (bpf_get_current_pid_tgid() >> 32) as u32;
    is_current(control, control.target_tgid, thread_group)
}

/// Whether the current thread is of the process `tgid`, an id in the target's
/// PID namespace; `thread_group` is its own in the first one.
#[inline(always)]
pub fn is_current(control: &Control, tgid: u32, thread_group: u32) -> bool {
    if control.namespace_inode == 0 {
        return tgid == thread_group;
    }
    let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the structure is ours, and as long as said.
    let result = unsafe {
        bpf_get_ns_current_pid_tgid(
            control.namespace_device,
            control.namespace_inode,
            &raw mut ids,
            size_of::<bpf_pidns_info>() as u32,
        )
    };
    result == 0 && ids.tgid == tgid
}
