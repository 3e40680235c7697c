//! Executes call frame instructions, one row after the other.
//!
//! Format: DWARF 5, section 6.4.2.

use gimli::{CallFrameInstruction, CallFrameInstructionIter, CommonInformationEntry};

use crate::{
    arch::dwarf,
    unwind::rule::{Cfa, Saved, Slice, State},
};

/// Most states remembered at once; compilers remember one.
const MAX_REMEMBERED: usize = 32;

/// The instructions can't be followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Damaged;

/// How the next row is reached.
#[derive(Clone, Copy, Debug)]
pub(super) enum Advance {
    /// This many bytes further.
    By(u64),
    /// At this address of the text.
    To(u64),
}

/// Executes the instructions of an entry.
pub(super) struct Machine {
    /// What holds now.
    pub state: State,
    initial: State,
    remembered: Vec<State>,
    code_factor: u64,
    data_factor: i64,
}

impl Machine {
    /// Before the first instruction of an entry.
    pub fn new(common: &CommonInformationEntry<Slice<'_>>, initial: State) -> Self {
        Self {
            state: initial,
            initial,
            remembered: Vec::new(),
            code_factor: common.code_alignment_factor(),
            data_factor: common.data_alignment_factor(),
        }
    }

    /// Executes to where the next row begins; `None` at the end.
    pub fn run_to_next_row(
        &mut self,
        instructions: &mut CallFrameInstructionIter<'_, Slice<'_>>,
    ) -> Result<Option<Advance>, Damaged> {
        use CallFrameInstruction as I;
        while let Some(instruction) = instructions.next().map_err(|_| Damaged)? {
            match instruction {
                I::AdvanceLoc { delta } => {
                    return Ok(Some(Advance::By(
                        u64::from(delta).saturating_mul(self.code_factor),
                    )));
                }
                I::SetLoc { address } => return Ok(Some(Advance::To(address))),
                I::DefCfa { register, offset } => {
                    self.state.cfa = Cfa::Offset(register, offset.cast_signed());
                }
                I::DefCfaSf {
                    register,
                    factored_offset,
                } => self.state.cfa = Cfa::Offset(register, self.factored(factored_offset)),
                I::DefCfaRegister { register } => {
                    self.state.cfa = Cfa::Offset(register, self.cfa_offset()?.1);
                }
                I::DefCfaOffset { offset } => {
                    self.state.cfa = Cfa::Offset(self.cfa_offset()?.0, offset.cast_signed());
                }
                I::DefCfaOffsetSf { factored_offset } => {
                    let offset = self.factored(factored_offset);
                    self.state.cfa = Cfa::Offset(self.cfa_offset()?.0, offset);
                }
                I::DefCfaExpression { expression } => self.state.cfa = Cfa::Expression(expression),
                I::Undefined { register } => self.set(register, Saved::Undefined),
                I::SameValue { register } => self.set(register, Saved::Same),
                I::Offset {
                    register,
                    factored_offset,
                } => {
                    let offset = self.factored(factored_offset.cast_signed());
                    self.set(register, Saved::AtCfa(offset));
                }
                I::OffsetExtendedSf {
                    register,
                    factored_offset,
                } => {
                    let offset = self.factored(factored_offset);
                    self.set(register, Saved::AtCfa(offset));
                }
                I::Expression {
                    register,
                    expression,
                } => self.set(register, Saved::At(expression)),
                I::ValOffset {
                    register,
                    factored_offset,
                } => self.value(register, factored_offset.cast_signed()),
                I::ValOffsetSf {
                    register,
                    factored_offset,
                } => self.value(register, factored_offset),
                I::Register {
                    dest_register: register,
                    ..
                }
                | I::ValExpression { register, .. } => self.set(register, Saved::Elsewhere),
                I::Restore { register } => {
                    if let Some(initial) = self.initial.saved(register).copied() {
                        self.set(register, initial);
                    }
                }
                I::RememberState => {
                    if self.remembered.len() >= MAX_REMEMBERED {
                        return Err(Damaged);
                    }
                    self.remembered.push(self.state);
                }
                I::RestoreState => self.state = self.remembered.pop().ok_or(Damaged)?,
                I::ArgsSize { .. } | I::Nop => {}
                // Of another architecture.
                _ => return Err(Damaged),
            }
        }
        Ok(None)
    }

    fn factored(&self, offset: i64) -> i64 {
        offset.wrapping_mul(self.data_factor)
    }

    fn cfa_offset(&self) -> Result<(gimli::Register, i64), Damaged> {
        match self.state.cfa {
            Cfa::Offset(register, offset) => Ok((register, offset)),
            _ => Err(Damaged),
        }
    }

    fn set(&mut self, register: gimli::Register, saved: Saved) {
        if let Some(place) = self.state.saved(register) {
            *place = saved;
        }
    }

    /// A register's value is the CFA plus an offset. For `rsp` and 0 that is
    /// what holds anyway.
    fn value(&mut self, register: gimli::Register, offset: i64) {
        let is_usual = register == dwarf::SP && offset == 0;
        let saved = if is_usual {
            Saved::Same
        } else {
            Saved::Elsewhere
        };
        self.set(register, saved);
    }
}
