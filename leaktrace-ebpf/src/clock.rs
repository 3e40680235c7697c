//! What time it is, as cheaply as can be.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};

use crate::maps::CONTROL;

/// `CLOCK_MONOTONIC` to two ticks of the kernel (some milliseconds). Its clock for
/// this purpose is closed to programs at probes, but they may count its ticks,
/// which is one load, where reading the precise clock costs 20 to 60 ns.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    if let Some(control) = CONTROL.get_ptr(0) {
        // SAFETY: the array lives as long as the program.
        let (tick_ns, epoch_ns) = unsafe { ((*control).tick_ns, (*control).ticks_epoch_ns) };
        if tick_ns != 0 {
            // SAFETY: no arguments, no preconditions.
            let ticks = unsafe { bpf_jiffies64() };
            return ticks.wrapping_mul(tick_ns).wrapping_add(epoch_ns);
        }
    }
    // SAFETY: as above.
    unsafe { bpf_ktime_get_ns() }
}

/// Learns when ticks began to be counted, given how long one takes.
#[inline(always)]
pub fn learn(tick_ns: u64) {
    let Some(control) = CONTROL.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the array lives as long as the program; no other program writes
    // these. The length of a tick is last: it says that the rest is there.
    unsafe {
        let passed = bpf_jiffies64().wrapping_mul(tick_ns);
        let epoch = bpf_ktime_get_ns().wrapping_sub(passed);
        (&raw mut (*control).ticks_epoch_ns).write_volatile(epoch);
        (&raw mut (*control).tick_ns).write_volatile(tick_ns);
    }
}
