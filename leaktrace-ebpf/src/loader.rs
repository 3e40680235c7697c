//! The target's loader has a function that it calls whenever it has something
//! to tell debuggers: before it adds or removes a file, and afterwards. A probe
//! there costs nothing as long as the target loads nothing.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use leaktrace_common::control::loader;

use crate::{arch::Registers, maps::CONTROL, threads::is_current, user_memory};

/// The loader has something to tell.
#[inline(always)]
pub fn changes(registers: Registers) {
    let Some(control) = CONTROL.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the array lives as long as the program. The loader has a lock, so
    // that no other thread of the target is here.
    let control = unsafe { &mut *control };
    let thread_group = (bpf_get_current_pid_tgid() >> 32) as u32;
    if control.only_tgid != 0 && !is_current(control, control.only_tgid, thread_group) {
        return;
    }
    let state = state(registers, control.loader_state_distance);
    // What is added takes no place that is taken. Anything but this may be the
    // end of code; that, too, of which it is not known what it is.
    let adds =
        state == loader::ADD || state == loader::CONSISTENT && control.loader_state == loader::ADD;
    control.loader_state = state;
    // SAFETY: as above; volatile since userspace and walks read them.
    unsafe {
        if !adds {
            increment(&raw mut control.unloads);
        }
        increment(&raw mut control.loader_changes);
    }
}

/// What the loader is doing.
#[inline(always)]
fn state(registers: Registers, distance: i64) -> u32 {
    if distance == 0 {
        return loader::DELETE;
    }
    let place = registers
        .instruction_pointer()
        .wrapping_add(distance as u64);
    user_memory::read(place).unwrap_or(loader::DELETE)
}

#[inline(always)]
unsafe fn increment(number: *mut u32) {
    // SAFETY: the caller's.
    unsafe { number.write_volatile(number.read_volatile().wrapping_add(1)) };
}
