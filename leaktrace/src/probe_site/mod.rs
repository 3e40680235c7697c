//! On which instruction of a function a probe goes.
//!
//! The instruction under a probe decides what the probe costs: the kernel
//! *emulates* some in the trap it takes anyway, and *single-steps* the rest
//! with a second trap, ten times as dear. So the probe goes on the first
//! emulated instruction that every call runs exactly once, with everything
//! that the programs read still as it was at the entry.
//!
//! Here is the choice, from facts about the instructions; [`crate::arch`] has
//! the facts.

mod kernel;
#[cfg(test)]
mod tests;

use leaktrace_common::function::{Argument, NO_ARGUMENT, Signature};

use crate::arch;

pub use crate::arch::branches_into;
pub use kernel::{KernelAbility, NopAbility};

/// How many instructions from the entry on are looked at.
pub(crate) const LIMIT: usize = 16;

/// A function's code.
#[derive(Clone, Copy, Debug)]
pub struct FunctionCode<'a> {
    /// Its bytes from the entry to its end. When the end is unknown, some
    /// kilobytes: code after it only makes the choice more careful.
    pub bytes: &'a [u8],
    /// The entry's virtual address.
    pub address: u64,
    /// Addresses that are jumped to from outside of `bytes` (from the parts
    /// that a compiler splits off), see [`branches_into`].
    pub branched_to: &'a [u64],
}

/// What must still be as at the entry when the probe is hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Bit n: the register of argument n.
    pub arguments: u8,
    /// The stack pointer and the frame pointer: there is a return probe (the
    /// kernel changes what the stack pointer points to), or the stack is read.
    pub stack: bool,
}

impl Need {
    /// What the programs need at the entry of a function. Allocating functions
    /// have their stack read and get the return probe on the same instruction.
    #[must_use]
    pub fn of(signature: &Signature) -> Self {
        let read = [
            signature.size,
            signature.count,
            signature.block,
            signature.out,
        ];
        Self {
            arguments: read
                .into_iter()
                .filter(|argument| *argument != NO_ARGUMENT)
                .fold(0, |mask, argument| mask | argument_bit(argument)),
            stack: signature.role.needs_return(),
        }
    }
}

/// The bit of an argument that comes in a register, else none.
fn argument_bit(argument: Argument) -> u8 {
    1_u8.checked_shl(argument.into()).unwrap_or(0)
}

/// An instruction to put a probe on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSite {
    /// Bytes from the function's entry.
    pub offset: u32,
    /// The kernel emulates the instruction; otherwise it single-steps it.
    pub emulated: bool,
    /// How many bytes lower the stack pointer is here than at the entry. 0
    /// wherever [`Need::stack`] is set.
    pub stack_shift: i32,
    /// The instruction, in AT&T's notation.
    pub instruction: String,
    /// Why here, for a person.
    pub reason: String,
}

/// What the kernel does with an instruction under a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Treatment {
    Emulated,
    /// Replaced by a call, which writes below the stack pointer.
    EmulatedByCall,
    SingleStepped,
    /// Refused by the kernel, or by us since the kernel gets it wrong.
    Unusable(&'static str),
}

/// One instruction on the straight way from the entry.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub offset: u32,
    pub length: u32,
    pub treatment: Treatment,
    /// Bit n: it writes the register of argument n.
    pub writes_arguments: u8,
    pub writes_frame_pointer: bool,
    /// It may write to memory.
    pub writes_memory: bool,
    /// It saves a register that belongs to the caller, as only prologues do.
    pub saves_register: bool,
    /// By how many bytes it lowers the stack pointer, if that is known.
    pub lowers_stack: Option<i32>,
    /// What follows it in memory need not be what runs next.
    pub leaves: bool,
    pub text: String,
}

/// Jumps inside a function.
#[derive(Clone, Debug, Default)]
pub(crate) struct Branches {
    /// Where to, bytes from the entry, the first few hundred bytes only.
    pub targets: Vec<u32>,
    /// There is a jump by a table, whose targets are not known.
    pub by_table: bool,
}

/// Why no instruction further on can be a site.
enum Barrier {
    WritesArgument(u32),
    WritesFramePointer(u32),
    ChangesStack(u32),
    Branch(u32),
    BranchedTo(u32),
    ByTable(u32),
    Unknown(u32),
    Limit,
    End,
}

/// The sites for a probe on a function, best first; the kernel may refuse one,
/// then the next is to be tried. The entry itself is the last, unless nothing
/// at all may be probed: then the reason comes back.
///
/// # Errors
/// A sentence why the function can't be probed.
pub fn candidates(
    code: &FunctionCode<'_>,
    need: Need,
    ability: KernelAbility,
) -> Result<Vec<ProbeSite>, String> {
    let steps = arch::straight_way(code.bytes, code.address, ability, LIMIT);
    let mut branches = arch::branches_inside(code.bytes);
    branches.targets.extend(
        code.branched_to
            .iter()
            .filter_map(|target| u32::try_from(target.checked_sub(code.address)?).ok()),
    );
    select(&steps, &branches, need)
}

/// The choice, over facts alone.
fn select(steps: &[Step], branches: &Branches, need: Need) -> Result<Vec<ProbeSite>, String> {
    let Some(entry) = steps.first() else {
        return Err("its code can't be decoded".to_owned());
    };
    let (admissible, barrier) = admissible(steps, branches, need);
    let mut emulated = Vec::new();
    let mut stepped = Vec::new();
    let mut memory_written = false;
    for (step, stack_shift) in admissible {
        let treatment = match step.treatment {
            // What the call writes over may hold the function's own data.
            Treatment::EmulatedByCall if memory_written => {
                Treatment::Unusable("its replacement would overwrite data below the stack pointer")
            }
            other => other,
        };
        memory_written |= step.writes_memory;
        let site = |emulated: bool, reason: String| ProbeSite {
            offset: step.offset,
            emulated,
            stack_shift,
            instruction: step.text.clone(),
            reason,
        };
        match treatment {
            Treatment::Emulated | Treatment::EmulatedByCall => {
                let reason = match emulated.len() {
                    0 => "first instruction that the kernel emulates",
                    _ => "another instruction that the kernel emulates",
                };
                emulated.push(site(true, reason.to_owned()));
            }
            Treatment::SingleStepped => {
                let reason = format!("nothing is emulated before {}", describe(&barrier, steps));
                stepped.push(site(false, reason));
            }
            Treatment::Unusable(_) => {}
        }
    }
    finish(entry, branches, emulated, stepped)
}

/// Orders the sites: emulated ones, then the entry. Other single-stepped ones
/// only if the entry can't be had.
fn finish(
    entry: &Step,
    branches: &Branches,
    emulated: Vec<ProbeSite>,
    stepped: Vec<ProbeSite>,
) -> Result<Vec<ProbeSite>, String> {
    let mut sites = emulated;
    match entry.treatment {
        Treatment::SingleStepped => {
            let others = !sites.is_empty();
            sites.extend(
                stepped
                    .into_iter()
                    .filter(|site| site.offset == 0)
                    .map(|mut site| {
                        if others {
                            site.reason =
                                "the entry, should the kernel refuse the others".to_owned();
                        }
                        site
                    }),
            );
        }
        Treatment::Unusable(_) => sites.extend(stepped),
        // Last resort as well, if another instruction was emulated and refused.
        Treatment::Emulated | Treatment::EmulatedByCall => {}
    }
    if branches.targets.contains(&0) {
        for site in &mut sites {
            site.reason
                .push_str("; the function jumps back to its entry, each time counts");
        }
    }
    match (sites.is_empty(), entry.treatment) {
        (true, Treatment::Unusable(why)) => Err(format!(
            "no instruction at its entry can be probed: {} {why}",
            entry.text
        )),
        (true, _) => Err("no instruction at its entry can be probed".to_owned()),
        (false, _) => Ok(sites),
    }
}

/// The steps that every call runs exactly once with everything needed intact,
/// each with the bytes that the stack pointer is lower, and what ends them.
fn admissible<'s>(
    steps: &'s [Step],
    branches: &Branches,
    need: Need,
) -> (Vec<(&'s Step, i32)>, Barrier) {
    let mut found = Vec::new();
    let mut stack_shift = 0;
    for (index, step) in steps.iter().enumerate() {
        let end = step.offset + step.length;
        // A jump to anywhere behind the entry up to here would run this
        // instruction a second time in one call.
        let branched_to = |target: &u32| *target > 0 && *target < end;
        if step.offset > 0 && branches.targets.iter().any(branched_to) {
            return (found, Barrier::BranchedTo(step.offset));
        }
        // Where the table leads is unknown, but never before a register is
        // saved: each round would lower the stack.
        let before_save = || steps[index..].iter().any(|later| later.saves_register);
        if step.offset > 0 && branches.by_table && !before_save() {
            return (found, Barrier::ByTable(step.offset));
        }
        found.push((step, stack_shift));
        if step.leaves {
            return (found, Barrier::Branch(step.offset));
        }
        if step.writes_arguments & need.arguments != 0 {
            return (found, Barrier::WritesArgument(step.offset));
        }
        if need.stack && step.writes_frame_pointer {
            return (found, Barrier::WritesFramePointer(step.offset));
        }
        match step.lowers_stack {
            None => return (found, Barrier::Unknown(step.offset)),
            Some(bytes) if bytes != 0 && need.stack => {
                return (found, Barrier::ChangesStack(step.offset));
            }
            Some(bytes) => match stack_shift.checked_add(bytes) {
                Some(sum) => stack_shift = sum,
                None => return (found, Barrier::Unknown(step.offset)),
            },
        }
    }
    let barrier = if steps.len() == LIMIT {
        Barrier::Limit
    } else {
        Barrier::End
    };
    (found, barrier)
}

fn describe(barrier: &Barrier, steps: &[Step]) -> String {
    let at = |offset: u32| {
        let text = steps
            .iter()
            .find(|step| step.offset == offset)
            .map_or("", |step| &step.text);
        format!("{text} at +{offset}")
    };
    match *barrier {
        Barrier::WritesArgument(offset) => format!("{}, which writes an argument", at(offset)),
        Barrier::WritesFramePointer(offset) => {
            format!("{}, which writes the frame pointer", at(offset))
        }
        Barrier::ChangesStack(offset) => format!("{}, which moves the stack pointer", at(offset)),
        Barrier::Branch(offset) => format!("{}, which may lead elsewhere", at(offset)),
        Barrier::BranchedTo(offset) => format!("{}, which is jumped to", at(offset)),
        Barrier::ByTable(offset) => format!("{}, which a jump by table might reach", at(offset)),
        Barrier::Unknown(offset) => {
            format!("{}, after which the stack pointer is unknown", at(offset))
        }
        Barrier::Limit => format!("the {LIMIT} instructions looked at end"),
        Barrier::End => "its code ends".to_owned(),
    }
}
