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
mod clock;
mod counters;
mod exchange;
mod in_flight;
mod live;
mod loader;
mod maps;
mod remembered;
mod stack_hash;
mod stacks;
mod tables;
mod threads;
mod user_memory;
mod vma;
mod walk;

use core::ffi::c_void;

use aya_ebpf::{
    helpers::bpf_get_attach_cookie,
    macros::{raw_tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RawTracePointContext, RetProbeContext},
};
use leaktrace_common::function::{Cookie, FIXED};

use crate::arch::Registers;

/// Keeps a program's variables on the stack of the thread that it interrupts.
///
/// Since 6.13 the kernel gives a program with more than 64 bytes of them one
/// stack a CPU, and trusts that no program is entered on a CPU where it already
/// runs. For uprobes nothing sees to that: where the kernel preempts, another
/// thread enters the program while the first one is in the middle of it, both
/// write to the same stack, and the kernel follows wild pointers. A program that
/// contains a tail call has no such stack. This one is never made: no probed
/// instruction is at address 0.
#[inline(always)]
fn keep_to_the_threads_stack(registers: Registers) {
    if registers.instruction_pointer() == 0 {
        // SAFETY: the map is empty, so nothing would be called.
        unsafe { maps::NO_PROGRAMS.tail_call(&registers, 0) };
    }
}

/// The programs that come in two forms, one for each form of the live table.
macro_rules! programs_with {
    ($table:ty, $enter:ident, $leave:ident, $thread_exit:ident) => {
        /// Entry of every watched function; its cookie says what the function
        /// does.
        #[uprobe]
        fn $enter(ctx: ProbeContext) -> u32 {
            // SAFETY: the kernel hands every uprobe program such a context.
            let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast::<c_void>()) };
            let registers = Registers::new(ctx.regs);
            keep_to_the_threads_stack(registers);
            calls::enter::<$table>(registers, Cookie(cookie));
            0
        }

        /// Return of every watched function that gives out memory.
        #[uretprobe]
        fn $leave(ctx: RetProbeContext) -> u32 {
            let registers = Registers::new(ctx.regs);
            keep_to_the_threads_stack(registers);
            calls::leave::<$table>(registers);
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
            let registers = Registers::new(ctx.regs);
            keep_to_the_threads_stack(registers);
            calls::enter::<live::Hash>(registers, COOKIE);
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

/// The loader tells of a change.
#[uprobe]
fn loader_changes(ctx: ProbeContext) -> u32 {
    loader::changes(Registers::new(ctx.regs));
    0
}

/// Called by leaktrace for a file that it maps itself: at which address, and the
/// file's number.
#[raw_tracepoint]
fn learn_file(ctx: RawTracePointContext) -> i32 {
    vma::learn(ctx.arg(0), ctx.arg(1)) as i32
}

/// Called by leaktrace with how long a tick of the kernel takes, nanoseconds.
#[raw_tracepoint]
fn learn_ticks(ctx: RawTracePointContext) -> i32 {
    clock::learn(ctx.arg(0));
    0
}

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
