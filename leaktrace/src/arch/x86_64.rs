//! x86-64: what its files are like, its registers and instructions, and what the
//! kernel does with them under a probe (`arch/x86/kernel/uprobes.c`; checked
//! against the behaviour of 6.18).

use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, FlowControl, Formatter as _, GasFormatter,
    Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use crate::probe_site::{Branches, KernelAbility, LIMIT, NopAbility, Step, Treatment};

/// Its name, as people write it.
pub const NAME: &str = "x86-64";

/// `e_machine` of its ELF files.
pub const ELF_MACHINE: u16 = object::elf::EM_X86_64;

/// DWARF's numbers of the registers that unwinding follows (x86-64 psABI,
/// "DWARF Definition").
pub mod dwarf {
    use gimli::{Register, X86_64};

    /// The stack pointer.
    pub const SP: Register = X86_64::RSP;
    /// The frame pointer.
    pub const FP: Register = X86_64::RBP;
    /// The return address.
    pub const RA: Register = X86_64::RA;
}

/// What the kernel puts over a probed instruction: `int3`.
pub const BREAKPOINT: &[u8] = &[0xcc];

/// The system call through which a no-operation that the kernel replaced enters
/// it: `uprobe` in `arch/x86/entry/syscalls/syscall_64.tbl`.
pub const UPROBE_SYSTEM_CALL: Option<libc::c_long> = Some(336);

/// Whether the kernel lets processes have a shadow stack of their own.
pub fn has_shadow_stacks() -> bool {
    /// `ARCH_SHSTK_STATUS` of `asm/prctl.h`.
    const STATUS: libc::c_long = 0x5005;
    let mut features = 0_u64;
    // SAFETY: the kernel writes to the variable, or fails.
    unsafe { libc::syscall(libc::SYS_arch_prctl, STATUS, &raw mut features) == 0 }
}

/// The line of `/proc/PID/status` that tells of a thread's shadow stack, and the
/// word in it.
pub const SHADOW_STACK_STATUS: (&[u8], &[u8]) = (b"x86_Thread_features", b"shstk");

/// Of entries of `/etc/ld.so.cache`: `FLAG_ELF_LIBC6 | FLAG_X8664_LIB64`.
pub const LD_CACHE_FLAGS: u32 = 0x0303;

/// `$PLATFORM` in the paths of libraries.
pub const LD_PLATFORM: &str = "x86_64";

/// Where Debian has libraries of this architecture.
pub const MULTIARCH_DIRECTORY: &str = "lib/x86_64-linux-gnu";

/// The levels of the psABI that this processor has, best first.
pub fn processor_levels() -> Vec<&'static str> {
    macro_rules! has {
        ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    let v2 = has!("cmpxchg16b", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3");
    let v3 = v2
        && has!(
            "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"
        );
    let v4 = v3 && has!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl");
    let mut levels = Vec::new();
    levels.extend(v4.then_some("x86-64-v4"));
    levels.extend(v3.then_some("x86-64-v3"));
    levels.extend(v2.then_some("x86-64-v2"));
    levels
}

/// Most bytes of a call: with an index, a 32-bit displacement, a prefix for more
/// registers and one for indirect branches.
pub const LONGEST_CALL: usize = 9;

/// Whether code ends with a call.
#[must_use]
pub fn ends_with_call(code: &[u8]) -> bool {
    (2..=LONGEST_CALL.min(code.len())).any(|length| {
        let last = &code[code.len() - length..];
        let instruction = Decoder::new(64, last, DecoderOptions::NONE).decode();
        instruction.len() == length
            && (instruction.is_call_near() || instruction.is_call_near_indirect())
    })
}

/// How many bytes from a program's entry point on are surely of the code there, which
/// never returns. It ends with a jump to somewhere that only the processor knows, or
/// halts. Where the straight way meets something else, the last call may not have come
/// back either, and the rest may be another function: then only the first call counts.
#[must_use]
pub fn entry_code(bytes: &[u8]) -> usize {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let (mut first_call, mut farthest_jump) = (None, 0);
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let end = decoder.position();
        let begins_function = instruction.mnemonic() == Mnemonic::Push
            && SAVED.contains(&instruction.op0_register())
            && first_call.is_some();
        match (instruction.mnemonic(), instruction.flow_control()) {
            // Another function, what lies between functions, or no code.
            _ if begins_function || instruction.is_invalid() => break,
            (Mnemonic::Nop | Mnemonic::Int3, _) => break,
            (Mnemonic::Hlt | Mnemonic::Ud2, _) | (_, FlowControl::IndirectBranch)
                if farthest_jump < end =>
            {
                return end;
            }
            (_, FlowControl::ConditionalBranch) => {
                // Back to the entry, or before it, wraps.
                match usize::try_from(instruction.near_branch_target()) {
                    Ok(target) if (end..bytes.len()).contains(&target) => {
                        farthest_jump = farthest_jump.max(target);
                    }
                    _ => break,
                }
            }
            (_, FlowControl::Call | FlowControl::IndirectCall) => {
                // So are system calls.
                if instruction.is_call_near() || instruction.is_call_near_indirect() {
                    first_call = first_call.or(Some(end));
                }
            }
            (_, FlowControl::Next) => {}
            _ => break,
        }
    }
    first_call.unwrap_or(0)
}

/// Where signal handlers return to: `mov $15, %rax; syscall` (`rt_sigreturn`), in
/// exactly this form, by which unwinders know it.
pub const SIGNAL_RETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];

/// What a function that starts threads does when the thread's own function
/// returns: it passes the result to the system call `exit` (60).
pub const THREAD_EXITS: [&[u8]; 3] = [
    // glibc, clone.S: mov %eax,%edi or mov %rax,%rdi; mov $60,%eax; syscall
    b"\x89\xc7\xb8\x3c\x00\x00\x00\x0f\x05",
    b"\x48\x89\xc7\xb8\x3c\x00\x00\x00\x0f\x05",
    // musl, clone.s: mov %eax,%edi; xor %eax,%eax; mov $60,%al; syscall
    b"\x89\xc7\x31\xc0\xb0\x3c\x0f\x05",
];

/// Argument registers of the psABI, in order.
const ARGUMENTS: [Register; 6] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

/// Registers that a function gives back as it found them, by saving them.
const SAVED: [Register; 6] = [
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Of a function whose size is nonsense no more than this is decoded.
const LONGEST_FUNCTION: usize = 1 << 20;

/// Longest instruction, bytes.
const LONGEST_INSTRUCTION: usize = 15;

/// The no-operations that compilers and assemblers write (Intel's manual,
/// "NOP"), by length - 1: the kernel knows them by these very bytes.
const NOPS: [&[u8]; 8] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/// The instructions from the entry up to and including the first that may lead
/// elsewhere, at most `limit`.
pub(crate) fn straight_way(
    bytes: &[u8],
    address: u64,
    ability: KernelAbility,
    limit: usize,
) -> Vec<Step> {
    let window = &bytes[..bytes.len().min(limit * LONGEST_INSTRUCTION)];
    let mut decoder = Decoder::with_ip(64, window, address, DecoderOptions::NONE);
    let mut facts = InstructionInfoFactory::new();
    let mut formatter = GasFormatter::new();
    formatter.options_mut().set_uppercase_hex(false);
    formatter.options_mut().set_branch_leading_zeros(false);
    let mut steps = Vec::new();
    while steps.len() < limit && decoder.can_decode() {
        let offset = decoder.position();
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let raw = &window[offset..offset + instruction.len()];
        let step = step(
            &instruction,
            raw,
            offset,
            &mut facts,
            &mut formatter,
            ability,
        );
        let leaves = step.leaves;
        steps.push(step);
        if leaves {
            break;
        }
    }
    steps
}

fn step(
    instruction: &Instruction,
    raw: &[u8],
    offset: usize,
    facts: &mut InstructionInfoFactory,
    formatter: &mut GasFormatter,
    ability: KernelAbility,
) -> Step {
    let info = facts.info(instruction);
    let written = |register: Register| {
        info.used_registers()
            .iter()
            .any(|used| used.register().full_register() == register && writes(used.access()))
    };
    let writes_arguments = ARGUMENTS
        .iter()
        .enumerate()
        .filter(|(_, register)| written(**register))
        .fold(0, |mask, (argument, _)| mask | 1 << argument);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    Step {
        offset: u32::try_from(offset).unwrap_or(u32::MAX),
        length: u32::try_from(raw.len()).unwrap_or(u32::MAX),
        treatment: treatment(instruction, raw, ability),
        writes_arguments,
        writes_frame_pointer: written(Register::RBP),
        writes_memory: info.used_memory().iter().any(|used| writes(used.access())),
        saves_register: instruction.mnemonic() == Mnemonic::Push
            && SAVED.contains(&instruction.op0_register()),
        lowers_stack: lowers_stack(instruction, written(Register::RSP)),
        leaves: instruction.flow_control() != FlowControl::Next,
        // The formatter aligns operands with several spaces.
        text: text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// By how many bytes an instruction lowers the stack pointer; `None` when it
/// depends on more than the instruction.
fn lowers_stack(instruction: &Instruction, writes_stack_pointer: bool) -> Option<i32> {
    if !writes_stack_pointer {
        return Some(0);
    }
    let on_stack_pointer =
        instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP;
    let amount = || {
        let immediate = matches!(
            instruction.op1_kind(),
            OpKind::Immediate8to64 | OpKind::Immediate32to64
        );
        immediate.then(|| i32::try_from(instruction.immediate(1) as i64).ok())?
    };
    match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pushfq => Some(-instruction.stack_pointer_increment()),
        Mnemonic::Pop if !on_stack_pointer => Some(-instruction.stack_pointer_increment()),
        Mnemonic::Sub if on_stack_pointer => amount(),
        Mnemonic::Add if on_stack_pointer => amount()?.checked_neg(),
        Mnemonic::Lea
            if on_stack_pointer
                && instruction.memory_base() == Register::RSP
                && instruction.memory_index() == Register::None =>
        {
            i32::try_from(instruction.memory_displacement64() as i64)
                .ok()?
                .checked_neg()
        }
        _ => None,
    }
}

/// What the kernel does with an instruction under a probe. What is not known
/// to be emulated counts as single-stepped.
fn treatment(instruction: &Instruction, raw: &[u8], ability: KernelAbility) -> Treatment {
    // The kernel looks at the opcode byte alone and takes `vzeroupper` (VEX,
    // 0x77) for `ja`, `vpor` (0xeb) for `jmp`: the instruction would be lost.
    if instruction.encoding() != EncodingKind::Legacy {
        return Treatment::Unusable("is encoded in a way that the kernel mistakes for another");
    }
    if let Some(why) = harmful(instruction) {
        return Treatment::Unusable(why);
    }
    let encoding = Encoding::of(raw);
    if encoding.refused_prefix {
        return Treatment::Unusable("has a prefix that the kernel refuses");
    }
    if let Some(treatment) = nop_treatment(raw, &encoding, ability.nops) {
        return treatment;
    }
    match *encoding.opcode {
        [0x50..=0x57, ..] if raw.len() == 1 || (raw.len() == 2 && raw[0] == 0x41) => {
            Treatment::Emulated
        }
        [0xe8, ..] if ability.shadow_stack => {
            Treatment::Unusable("is a call, and the target has a shadow stack")
        }
        [0x70..=0x7f | 0xe8 | 0xe9 | 0xeb, ..] | [0x0f, 0x80..=0x8f, ..] => {
            if encoding.operand_size {
                Treatment::Unusable("has a prefix that the kernel refuses")
            } else {
                Treatment::Emulated
            }
        }
        _ => Treatment::SingleStepped,
    }
}

/// Opcode 0x90 and the longer no-operations; `None` for anything else.
fn nop_treatment(raw: &[u8], encoding: &Encoding<'_>, nops: NopAbility) -> Option<Treatment> {
    let fast = nops == NopAbility::FastFiveByte;
    if encoding.opcode.first() == Some(&0x90) {
        return Some(if encoding.rex & 1 != 0 {
            // `xchg %r8, %rax`, which the kernel takes for `nop`.
            Treatment::Unusable("is one that the kernel mistakes for another")
        } else if !encoding.operand_size || (fast && raw == NOPS[1]) {
            Treatment::Emulated
        } else {
            Treatment::Unusable("has a prefix that the kernel refuses")
        });
    }
    if !fast || !NOPS.contains(&raw) {
        return None;
    }
    Some(if raw.len() == 5 {
        Treatment::EmulatedByCall
    } else {
        Treatment::Emulated
    })
}

/// Why an instruction must not be run out of its place, though the kernel may
/// allow it.
fn harmful(instruction: &Instruction) -> Option<&'static str> {
    match instruction.mnemonic() {
        // Single-stepping would be seen in the saved flags and later trap.
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => Some("saves the trap flag"),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => Some("sets the trap flag"),
        Mnemonic::Syscall
        | Mnemonic::Sysenter
        | Mnemonic::Int
        | Mnemonic::Int1
        | Mnemonic::Int3
        | Mnemonic::Hlt
        | Mnemonic::Iret
        | Mnemonic::Iretd
        | Mnemonic::Iretq
        | Mnemonic::Xbegin
        | Mnemonic::Xabort => Some("can't be single-stepped"),
        _ if matches!(
            instruction.code(),
            Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16
        ) =>
        {
            Some("can't be single-stepped")
        }
        // The probe would be hit in every round.
        _ if instruction.is_string_instruction()
            && (instruction.has_rep_prefix() || instruction.has_repne_prefix()) =>
        {
            Some("repeats itself")
        }
        _ => None,
    }
}

/// An instruction's bytes as the kernel reads them.
struct Encoding<'a> {
    /// lock, or a segment other than fs and gs (so also `notrack`).
    refused_prefix: bool,
    /// The prefix 0x66.
    operand_size: bool,
    /// The REX prefix or 0.
    rex: u8,
    /// From the opcode on.
    opcode: &'a [u8],
}

impl<'a> Encoding<'a> {
    fn of(raw: &'a [u8]) -> Self {
        let prefix = |byte: &u8| {
            matches!(
                byte,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3
            )
        };
        let count = raw.iter().take_while(|byte| prefix(byte)).count();
        let (prefixes, rest) = raw.split_at(count);
        let (rex, opcode) = match rest {
            [rex @ 0x40..=0x4f, opcode @ ..] => (*rex, opcode),
            opcode => (0, opcode),
        };
        Self {
            refused_prefix: prefixes
                .iter()
                .any(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0xf0)),
            operand_size: prefixes.contains(&0x66),
            rex,
            opcode,
        }
    }
}

/// Where the jumps inside a function lead, as far as it concerns its first
/// instructions.
pub(crate) fn branches_inside(bytes: &[u8]) -> Branches {
    let window = LIMIT * LONGEST_INSTRUCTION;
    let bytes = &bytes[..bytes.len().min(LONGEST_FUNCTION)];
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut branches = Branches::default();
    // How many instructions ago memory was read at a scaled index.
    let mut since_index = usize::MAX;
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let indexed =
            instruction.memory_index() != Register::None && instruction.memory_index_scale() >= 4;
        since_index = if indexed {
            0
        } else {
            since_index.saturating_add(1)
        };
        match instruction.flow_control() {
            FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::XbeginXabortXend => {
                let target = instruction.near_branch_target();
                // A target is a full 64-bit address; before the entry it wraps.
                if let Ok(target) = u32::try_from(target)
                    && (target as usize) < window
                    && instruction.op0_kind() == OpKind::NearBranch64
                {
                    branches.targets.push(target);
                }
            }
            // A tail call through a pointer has no index near it.
            FlowControl::IndirectBranch if since_index < 8 => branches.by_table = true,
            _ => {}
        }
    }
    branches.targets.sort_unstable();
    branches.targets.dedup();
    branches
}

/// Addresses that some jump in `code` (at virtual address `address`) leads to
/// and that lie behind a function's entry but close to it.
///
/// Parts that the compiler splits off a function (`.cold`) lie in another
/// section and jump back by 32-bit displacements only, so it suffices to look
/// at each place that could be such a jump, without decoding all code. A few
/// bytes that only look like one make the choice of sites more careful, never
/// wrong.
#[must_use]
pub fn branches_into(code: &[u8], address: u64, entries: &[u64]) -> Vec<u64> {
    let window = (LIMIT * LONGEST_INSTRUCTION) as u64;
    let (Some(lowest), Some(highest)) = (entries.iter().min(), entries.iter().max()) else {
        return Vec::new();
    };
    let range = *lowest..highest.saturating_add(window);
    let mut found = Vec::new();
    let mut before = 0;
    for (index, bytes) in code.windows(5).enumerate() {
        let opcode = bytes[0];
        let jump = opcode == 0xe9 || (opcode & 0xf0 == 0x80 && before == 0x0f);
        before = opcode;
        if !jump {
            continue;
        }
        let displacement = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        let target = address
            .wrapping_add(index as u64 + 5)
            .wrapping_add_signed(displacement.into());
        if range.contains(&target)
            && entries
                .iter()
                .any(|entry| target > *entry && target - *entry < window)
        {
            found.push(target);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_every_length_are_found() {
        let calls: [&[u8]; 9] = [
            &[0xff, 0xd0],                               // call *%rax
            &[0x41, 0xff, 0xd4],                         // call *%r12
            &[0xff, 0x50, 0x18],                         // call *24(%rax)
            &[0x3e, 0xff, 0xd0],                         // notrack call *%rax
            &[0xe8, 0, 0, 0, 0],                         // call
            &[0xff, 0x15, 1, 2, 3, 0],                   // call *0x30201(%rip)
            &[0x66, 0x66, 0x48, 0xe8, 0, 0, 0, 0],       // of __tls_get_addr
            &[0x42, 0xff, 0x94, 0xe8, 0, 1, 0, 0],       // call *256(%rax,%r13,8)
            &[0x3e, 0x42, 0xff, 0x94, 0xe8, 0, 1, 0, 0], // notrack, the same
        ];
        for call in calls {
            assert!(ends_with_call(call), "{call:x?}");
            let nops = vec![0x90; LONGEST_CALL - call.len()];
            assert!(ends_with_call(&[&nops[..], call].concat()), "{call:x?}");
            assert!(!ends_with_call(&[call, &[0x90][..]].concat()), "{call:x?}");
        }
    }

    #[test]
    fn other_code_is_no_call() {
        let others: [&[u8]; 7] = [
            &[],
            &[0xe8],
            &[0x90; LONGEST_CALL],
            &[0xe9, 0, 0, 0, 0], // jmp
            &[0xff, 0xe0],       // jmp *%rax
            &[0xff, 0x58, 0x18], // lcall *24(%rax)
            &SIGNAL_RETURN,
        ];
        for code in others {
            assert!(!ends_with_call(code), "{code:x?}");
        }
    }

    /// `mov %rsp, %rdi; call 0; mov %rax, %r12; and $-16, %rsp; call 0`.
    const BEGIN: &[u8] = b"\x48\x89\xe7\xe8\0\0\0\0\x49\x89\xc4\x48\x83\xe4\xf0\xe8\0\0\0\0";
    /// Where the first call ends.
    const FIRST_CALL: usize = 8;

    #[test]
    fn code_at_an_entry_ends_where_it_leaves_for_good() {
        let ends: [&[u8]; 4] = [
            b"\x4c\x89\xec\x41\xff\xe4",     // mov %r13, %rsp; jmp *%r12
            b"\x5a\x52\xf4",                 // pop %rdx; push %rdx; hlt
            b"\x0f\x0b",                     // ud2
            b"\x74\x02\x89\xc0\x41\xff\xe4", // je over mov; jmp *%r12
        ];
        for end in ends {
            let code = [BEGIN, end].concat();
            let followed = [&code, &b"\x53\xc3"[..]].concat();
            assert_eq!(entry_code(&followed), code.len(), "{end:x?}");
        }
    }

    /// Each is followed by something that looks like an end.
    #[test]
    fn what_may_be_another_function_is_not_code_of_the_entry() {
        let others: [&[u8]; 9] = [
            b"\x90",             // nop
            b"\x0f\x1f\x40\x00", // a longer one
            b"\xcc",             // int3
            b"\xc3",             // ret
            b"\x53",             // push %rbx
            b"\x41\x57",         // push %r15
            b"\xeb\x00",         // jmp
            b"\x74\xf0",         // je backwards
            b"\x06",             // no instruction
        ];
        for other in others {
            let code = [BEGIN, other, b"\xf4"].concat();
            assert_eq!(entry_code(&code), FIRST_CALL, "{other:x?}");
        }
        assert_eq!(entry_code(BEGIN), FIRST_CALL, "the end of the text");
        let jump_over_the_end = [BEGIN, b"\x74\x01\xf4\x90"].concat();
        assert_eq!(entry_code(&jump_over_the_end), FIRST_CALL);
        assert_eq!(entry_code(b"\x31\xed\xc3"), 0, "nothing is called");
    }
}
