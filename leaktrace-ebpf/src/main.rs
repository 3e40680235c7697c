//! leaktrace's BPF programs: what runs inside the kernel at each call of a
//! watched function. Every map access here is paid a million times a second.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "core::sync::atomic has no fetch_add for this target"
)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, records would be copied to the program's small stack"
)]

#[macro_use]
mod debug_log;

mod arch;
mod calls;
mod counters;
mod exchange;
mod in_flight;
mod live;
mod maps;
mod remembered;
mod stack_hash;
mod stacks;
mod tables;
mod threads;
mod user_memory;
mod walk;

use core::ffi::c_void;

use aya_ebpf::{
    helpers::bpf_get_attach_cookie,
    macros::{raw_tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RawTracePointContext, RetProbeContext},
};
use leaktrace_common::function::{Cookie, FIXED};

use crate::arch::Registers;

/// The programs that come in two forms, one for each form of the live table.
macro_rules! programs_with {
    ($table:ty, $enter:ident, $leave:ident, $thread_exit:ident) => {
        /// Entry of every watched function; its cookie says what the function
        /// does.
        #[uprobe]
        fn $enter(ctx: ProbeContext) -> u32 {
            // SAFETY: the kernel hands every uprobe program such a context.
            let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast::<c_void>()) };
            calls::enter::<$table>(Registers::new(ctx.regs), Cookie(cookie));
            0
        }

        /// Return of every watched function that gives out memory.
        #[uretprobe]
        fn $leave(ctx: RetProbeContext) -> u32 {
            calls::leave::<$table>(Registers::new(ctx.regs));
            0
        }

        /// A thread ends.
        #[raw_tracepoint(tracepoint = "sched_process_exit")]
        fn $thread_exit(_ctx: RawTracePointContext) -> i32 {
            threads::exit::<$table>();
            0
        }
    };
}

programs_with!(live::Slots, enter, leave, thread_exit);
programs_with!(live::Hash, enter_hash, leave_hash, thread_exit_hash);

/// Entry of the functions with one signature of [`FIXED`].
macro_rules! program_of {
    ($name:ident, $index:literal) => {
        #[uprobe]
        fn $name(ctx: ProbeContext) -> u32 {
            const COOKIE: Cookie = Cookie(FIXED[$index].1.to_cookie());
            calls::enter::<live::Hash>(Registers::new(ctx.regs), COOKIE);
            0
        }
    };
}

program_of!(enter_alloc_0, 0);
program_of!(enter_alloc_1, 1);
program_of!(enter_alloc_array_01, 2);
program_of!(enter_realloc_01, 3);
program_of!(enter_realloc_array_012, 4);
program_of!(enter_alloc_out_02, 5);
program_of!(enter_free_0, 6);

/// Counts calls and nothing else: the estimate before attaching.
#[uprobe]
fn tally(_ctx: ProbeContext) -> u32 {
    counters::tally();
    0
}

/// Does nothing: the floor that no program can be cheaper than.
#[uprobe]
fn empty(_ctx: ProbeContext) -> u32 {
    0
}

/// As `empty`, at returns.
#[uretprobe]
fn empty_return(_ctx: RetProbeContext) -> u32 {
    0
}

/// A process replaces its image.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_exec(_ctx: RawTracePointContext) -> i32 {
    threads::exec();
    0
}

/// A thread or process is made.
#[raw_tracepoint(tracepoint = "task_newtask")]
fn new_task(ctx: RawTracePointContext) -> i32 {
    threads::new_task(ctx.arg(1));
    0
}

/// BPF helpers that read user memory are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Nothing here can panic; the verifier would reject a program that could.
    loop {}
}
