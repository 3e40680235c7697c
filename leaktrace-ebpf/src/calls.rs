//! What happens at the entry and at the return of a watched function.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use leaktrace_common::{
    control::Control,
    counter::Counter,
    function::{Cookie, Role},
    in_flight::InFlight,
    live::{LiveValue, MAX_SIZE},
};

use crate::{
    arch::{Arguments, RETURN_ADDRESS_SIZE, Registers},
    counters::count,
    in_flight,
    live::LiveTable,
    maps::{CONTROL, IN_FLIGHT},
    stacks,
    threads::is_current,
    user_memory,
};

/// A product of count and size that no allocator can give.
const IMPOSSIBLE_SIZE: u64 = u64::MAX;

/// The control record, if events of this thread group count now.
#[inline(always)]
fn control(thread_group: u32) -> Option<&'static Control> {
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: the array lives as long as the program; userspace changes single
    // aligned fields.
    let control = unsafe { &*control };
    // SAFETY: as above; volatile since userspace writes it.
    if unsafe { (&raw const control.enabled).read_volatile() } == 0 {
        return None;
    }
    if control.only_tgid != 0 && !is_current(control, control.only_tgid, thread_group) {
        return None;
    }
    Some(control)
}

/// Entry of a watched function.
#[inline(always)]
pub fn enter<L: LiveTable>(registers: Registers, cookie: Cookie) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(control) = control((pid_tgid >> 32) as u32) else {
        return;
    };
    if u32::from(cookie.generation()) != control.generation {
        return;
    }
    let thread = pid_tgid as u32;
    if cookie.role() == Role::Free as u8 {
        free::<L>(registers, cookie, thread, control);
    } else {
        allocate::<L>(registers, cookie, thread, control);
    }
}

/// A block is given back: it leaves the table now, before the allocator can
/// hand its address out to another thread.
#[inline(always)]
fn free<L: LiveTable>(registers: Registers, cookie: Cookie, thread: u32, control: &Control) {
    let address = registers.arguments().get(cookie.block());
    if address == 0 {
        count(Counter::FreeNull);
        return;
    }
    if let Some(value) = L::take(address) {
        stacks::subtract(&value);
        count(Counter::FreeCalls);
        debug_log!(&registers, "freed {:x}, {} bytes", address, value.size());
        return;
    }
    if let Some(record) = IN_FLIGHT.get_ptr(thread) {
        // SAFETY: only this thread's own programs use its record.
        let record = unsafe { &*record };
        if record.stack_pointer >= registers.stack_pointer()
            && in_flight::is_pending(record, control.trampoline)
        {
            in_flight::nested(record, cookie, registers.instruction_pointer());
            return;
        }
    }
    count(Counter::FreeCalls);
    count(Counter::UnknownFree);
}

/// Whether calls of this role give back one block and get another.
#[inline(always)]
fn is_resize(role: u8) -> bool {
    role == Role::Realloc as u8 || role == Role::ReallocArray as u8
}

/// Requested bytes of a call, multiplied out.
#[inline(always)]
fn requested_size(arguments: Arguments, cookie: Cookie) -> u64 {
    let size = arguments.get(cookie.size());
    let role = cookie.role();
    if role != Role::AllocArray as u8 && role != Role::ReallocArray as u8 {
        return size;
    }
    let elements = arguments.get(cookie.count());
    if (size | elements) >> 32 == 0 {
        return size * elements;
    }
    // Hidden from the compiler, which would make a 128-bit product of this;
    // the target has none.
    if size != 0 && elements > core::hint::black_box(u64::MAX) / size {
        return IMPOSSIBLE_SIZE;
    }
    size.wrapping_mul(elements)
}

/// Memory is asked for: what the call wants is kept until it returns.
#[inline(always)]
fn allocate<L: LiveTable>(registers: Registers, cookie: Cookie, thread: u32, control: &Control) {
    let role = cookie.role();
    let resizes = is_resize(role);
    let arguments = registers.arguments();
    let size = requested_size(arguments, cookie);
    let Some(record) = in_flight::slot(thread) else {
        return;
    };
    // SAFETY: only this thread's own programs use its record.
    let record = unsafe { &mut *record };
    let stack_pointer = registers.stack_pointer();
    let function_ip = registers.instruction_pointer();
    let trampoline = control.trampoline;
    if in_flight::is_part_of_outer::<L>(record, cookie, function_ip, stack_pointer, trampoline) {
        return;
    }
    if !resizes && (size < control.min_size || size > control.max_size) {
        count(Counter::Filtered);
        return;
    }
    count(Counter::AllocCalls);

    record.function_ip = function_ip;
    if !stacks::capture::<L>(record, thread, control, registers) {
        count(Counter::TailCall);
        return;
    }
    record.cookie = cookie.0;
    record.size = size;
    record.old.time_ns = 0;
    if resizes {
        let block = arguments.get(cookie.block());
        record.pointer = block;
        if block != 0
            && let Some(old) = L::take(block)
        {
            record.old = old;
        }
    } else if role == Role::AllocOut as u8 {
        record.pointer = arguments.get(cookie.out());
    }
    record.stack_pointer = stack_pointer;
}

/// Return of a watched function that gives out memory.
#[inline(always)]
pub fn leave<L: LiveTable>(registers: Registers) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(control) = control((pid_tgid >> 32) as u32) else {
        return;
    };
    let thread = pid_tgid as u32;
    let Some(record) = IN_FLIGHT.get_ptr_mut(thread) else {
        return;
    };
    // SAFETY: only this thread's own programs use its record.
    let record = unsafe { &mut *record };
    // A nested call returns at another place, an unknown one finds the record
    // empty.
    if record.stack_pointer == 0
        || record.stack_pointer + RETURN_ADDRESS_SIZE != registers.stack_pointer()
    {
        return;
    }
    record.stack_pointer = 0;

    let role = Cookie(record.cookie).role();
    let result = registers.result();
    let mut block = result;
    if role == Role::AllocOut as u8 {
        // An int: the upper half of the register is undefined.
        if result as u32 != 0 {
            count(Counter::FailedAlloc);
            return;
        }
        match user_memory::read::<u64>(record.pointer) {
            Some(address) => block = address,
            None => {
                count(Counter::BadOutPointer);
                return;
            }
        }
    }
    if record.old.time_ns != 0 {
        let old = record.old;
        record.old.time_ns = 0;
        if block == 0 && record.size != 0 {
            // Failed: the old block is as it was.
            count(Counter::FailedAlloc);
            in_flight::put_back::<L>(record.pointer, &old);
            return;
        }
        stacks::subtract(&old);
    } else if is_resize(role) && record.pointer != 0 && (block != 0 || record.size == 0) {
        // It gave back a block that was not recorded.
        count(Counter::UnknownFree);
    }
    if block == 0 {
        if record.size != 0 {
            count(Counter::FailedAlloc);
        }
        return;
    }
    if record.size < control.min_size || record.size > control.max_size {
        count(Counter::Filtered);
        return;
    }
    record_block::<L>(record, block, registers);
}

/// Enters a new block into the table and into its stack's sums.
#[inline(always)]
fn record_block<L: LiveTable>(record: &mut InFlight, block: u64, registers: Registers) {
    let mut size = record.size;
    if size > MAX_SIZE {
        count(Counter::SizeTooLarge);
        size = MAX_SIZE;
    }
    let (stack_id, sums) = stacks::sums_for(record);
    let Some(sums) = sums else {
        count(Counter::SumMissing);
        return;
    };
    let value = LiveValue {
        size_and_flags: size | u64::from(Cookie(record.cookie).role()) << 48,
        stack_id,
        // SAFETY: no arguments, no preconditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
    };
    if L::insert(block, &value) {
        stacks::add_block(sums, size);
        debug_log!(
            &registers,
            "allocated {:x}, {} bytes, stack {:x}",
            block,
            size,
            stack_id
        );
    }
}
