//! From what DWARF says about a row to the rule that is kept of it.

use gimli::{
    Encoding, EndianSlice, Expression, LittleEndian, Operation, Register, UnwindExpression,
    UnwindSection,
};
use leaktrace_common::{
    arch::signal_frame,
    unwind::{Rule, cfa, fp},
};

use crate::arch::dwarf;

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// What is in force at an instruction, as far as it is of use: the call frame
/// information of other registers is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) cfa: Cfa,
    pub(super) fp: Saved,
    pub(super) ra: Saved,
    /// Other than the CFA only where code switches stacks.
    pub(super) sp: Saved,
}

/// Where the canonical frame address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cfa {
    Unknown,
    Offset(Register, i64),
    Expression(UnwindExpression<usize>),
}

/// Where a caller's register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    Unspecified,
    Undefined,
    Same,
    /// At this offset from the CFA.
    AtCfa(i64),
    /// Where this says.
    At(UnwindExpression<usize>),
    /// In another register, or computed.
    Elsewhere,
}

impl State {
    pub(super) const UNKNOWN: Self = Self {
        cfa: Cfa::Unknown,
        fp: Saved::Unspecified,
        ra: Saved::Unspecified,
        sp: Saved::Unspecified,
    };

    /// The place of a register's rule, if it is one of those followed.
    pub(super) fn saved(&mut self, register: Register) -> Option<&mut Saved> {
        match register {
            dwarf::FP => Some(&mut self.fp),
            dwarf::SP => Some(&mut self.sp),
            dwarf::RA => Some(&mut self.ra),
            _ => None,
        }
    }
}

/// Why a rule is not supported; its number is [`Rule::cfa_offset`].
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unsupported {
    /// The CFA is relative to another register than `rsp` or `rbp`, or unknown.
    CfaRegister = 1,
    /// The CFA is computed in an unknown way.
    CfaExpression = 2,
    /// The return address is not on the stack at the CFA.
    ReturnAddress = 3,
    /// The caller's stack pointer is not the CFA: code that switches stacks.
    StackPointer = 4,
    /// A signal's frame of an unknown form.
    SignalFrame = 5,
    /// An offset that does not fit.
    Offset = 6,
    /// The information can't be read.
    Damaged = 7,
}

impl Unsupported {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 7] = [
        Self::CfaRegister,
        Self::CfaExpression,
        Self::ReturnAddress,
        Self::StackPointer,
        Self::SignalFrame,
        Self::Offset,
        Self::Damaged,
    ];

    /// The reason of a rule, if it is not supported.
    #[must_use]
    pub fn of(rule: &Rule) -> Option<Self> {
        let number = rule.cfa_offset;
        let is_it = |reason: &Self| *reason as i32 == number;
        (rule.cfa_kind == cfa::UNSUPPORTED)
            .then(|| Self::ALL.into_iter().find(is_it))
            .flatten()
    }

    /// The rule that says so.
    #[must_use]
    pub const fn rule(self) -> Rule {
        Rule {
            cfa_kind: cfa::UNSUPPORTED,
            cfa_offset: self as i32,
            ..Rule::GAP
        }
    }
}

/// Reads the expressions of one entry's rows.
#[derive(Clone, Copy)]
pub(super) struct Expressions<'s, S> {
    pub(super) section: &'s S,
    pub(super) encoding: Encoding,
}

impl<'a, S: UnwindSection<Slice<'a>>> Expressions<'_, S> {
    /// The rule for a row.
    pub(super) fn rule(&self, state: &State, is_signal: bool) -> Rule {
        let rule = if is_signal {
            self.signal(state)
        } else {
            self.ordinary(state)
        };
        rule.unwrap_or_else(Unsupported::rule)
    }

    fn ordinary(&self, state: &State) -> Result<Rule, Unsupported> {
        // Whatever the rest says (nothing, as a rule).
        if state.ra == Saved::Undefined {
            return Ok(Rule::END);
        }
        if !matches!(state.sp, Saved::Unspecified | Saved::Same) {
            return Err(Unsupported::StackPointer);
        }
        let Saved::AtCfa(ra_offset) = state.ra else {
            return Err(Unsupported::ReturnAddress);
        };
        let (cfa_kind, a, b) = match state.cfa {
            Cfa::Offset(dwarf::SP, offset) => (cfa::SP, offset, 0),
            Cfa::Offset(dwarf::FP, offset) => (cfa::FP, offset, 0),
            Cfa::Offset(..) | Cfa::Unknown => return Err(Unsupported::CfaRegister),
            Cfa::Expression(expression) => self
                .operations(expression)
                .and_then(|operations| computed_cfa(&operations))
                .ok_or(Unsupported::CfaExpression)?,
        };
        let (fp_kind, c) = self.frame_pointer(state.fp);
        let fits = |offset: i64| i32::try_from(offset).map_err(|_| Unsupported::Offset);
        Ok(Rule {
            cfa_kind,
            fp_kind,
            ra_offset: i16::try_from(ra_offset).map_err(|_| Unsupported::Offset)?,
            cfa_offset: fits(a)?,
            cfa_addend: fits(b)?,
            fp_offset: fits(c)?,
        })
    }

    fn frame_pointer(&self, saved: Saved) -> (u8, i64) {
        let lost = (fp::LOST, 0);
        match saved {
            Saved::Unspecified | Saved::Same => (fp::SAME, 0),
            Saved::AtCfa(offset) => (fp::CFA, offset),
            Saved::At(expression) => match self.place(expression) {
                Some((dwarf::FP, offset)) => (fp::FP, offset),
                Some((dwarf::SP, offset)) => (fp::SP, offset),
                _ => lost,
            },
            Saved::Undefined | Saved::Elsewhere => lost,
        }
    }

    /// The one form that there is, of the C library's `__restore_rt`.
    fn signal(&self, state: &State) -> Result<Rule, Unsupported> {
        let at = |saved: Saved, expected: u64| {
            matches!(saved, Saved::At(expression) if self.place(expression)
            .is_some_and(|(register, offset)| {
                register == dwarf::SP && u64::try_from(offset) == Ok(expected)
            }))
        };
        let cfa_is_sp = match state.cfa {
            Cfa::Expression(expression) => {
                let expected = i64::try_from(signal_frame::SP).ok();
                self.operations(expression)
                    .and_then(|operations| computed_cfa(&operations))
                    .is_some_and(|(kind, a, b)| {
                        kind == cfa::SP_DEREF && Some(a) == expected && b == 0
                    })
            }
            _ => false,
        };
        let known = cfa_is_sp
            && at(state.fp, signal_frame::FP)
            && at(state.ra, signal_frame::IP)
            && (state.sp == Saved::Unspecified || at(state.sp, signal_frame::SP));
        known
            .then_some(Rule::SIGNAL)
            .ok_or(Unsupported::SignalFrame)
    }

    /// A place that is relative to a register.
    fn place(&self, expression: UnwindExpression<usize>) -> Option<(Register, i64)> {
        match self.operations(expression)?[..] {
            [
                Operation::RegisterOffset {
                    register, offset, ..
                },
            ] => Some((register, offset)),
            _ => None,
        }
    }

    /// The operations of an expression, unless there are more than in any that
    /// is known.
    fn operations(&self, expression: UnwindExpression<usize>) -> Option<Vec<Operation<Slice<'a>>>> {
        const MOST: usize = 9;
        let expression: Expression<Slice<'a>> = expression.get(self.section).ok()?;
        let mut operations = expression.operations(self.encoding);
        let mut found = Vec::with_capacity(MOST);
        while let Some(operation) = operations.next().ok()? {
            if found.len() == MOST {
                return None;
            }
            found.push(operation);
        }
        Some(found)
    }
}

/// Kind, `a` and `b` of a computed CFA.
fn computed_cfa(operations: &[Operation<Slice<'_>>]) -> Option<(u8, i64, i64)> {
    use Operation::{And, Deref, Ge, Plus, PlusConstant, RegisterOffset, Shl, UnsignedConstant};
    let (
        RegisterOffset {
            register,
            offset: a,
            ..
        },
        rest,
    ) = operations.split_first()?
    else {
        return None;
    };
    let kinds = match *register {
        dwarf::SP => (cfa::SP, cfa::SP_DEREF),
        dwarf::FP => (cfa::FP, cfa::FP_DEREF),
        _ => return None,
    };
    match *rest {
        [] => Some((kinds.0, *a, 0)),
        [PlusConstant { value }] => Some((kinds.0, a.checked_add_unsigned(value)?, 0)),
        [
            Deref {
                size: 8,
                space: false,
                ..
            },
        ] => Some((kinds.1, *a, 0)),
        [
            Deref {
                size: 8,
                space: false,
                ..
            },
            PlusConstant { value },
        ] => Some((kinds.1, *a, value.try_into().ok()?)),
        // As linkers write it for `.plt`.
        [
            RegisterOffset {
                register: dwarf::RA,
                offset: 0,
                ..
            },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant { value: b @ 0..=15 },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] if kinds.0 == cfa::SP => Some((cfa::PLT, *a, b.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use leaktrace_common::unwind::{Rule, cfa, fp};

    use super::Unsupported;
    use crate::unwind::tests::frames::{
        DEF_CFA, DEF_CFA_OFFSET, DEF_CFA_REGISTER, RA, RBP, REGISTER, RSP, Section, TEXT,
        UNDEFINED, computed_cfa, offset, saved_at,
    };

    const BREG: u8 = 0x70;
    const BREG_RA: u8 = BREG + RA;
    const DEREF: u8 = 0x06;
    const PLUS_CONSTANT: u8 = 0x23;

    /// The rule that a function's instructions lead to.
    fn rule_in(augmentation: &str, instructions: &[u8]) -> Rule {
        let mut section = Section::default();
        section.common(augmentation);
        section.function(TEXT, 16, instructions);
        let rules = section.rules();
        assert_eq!(rules[1], (16, Rule::GAP));
        rules[0].1
    }

    fn rule(instructions: &[u8]) -> Rule {
        rule_in("zR", instructions)
    }

    fn usual() -> Rule {
        rule(&[])
    }

    #[test]
    fn offsets_from_registers() {
        let entry = Rule {
            cfa_kind: cfa::SP,
            cfa_offset: 8,
            ra_offset: -8,
            ..Rule::GAP
        };
        assert_eq!(usual(), entry);
        let framed = Rule {
            cfa_kind: cfa::FP,
            fp_kind: fp::CFA,
            cfa_offset: 16,
            fp_offset: -16,
            ..entry
        };
        let instructions = [DEF_CFA_OFFSET, 16, offset(RBP), 2, DEF_CFA_REGISTER, RBP];
        assert_eq!(rule(&instructions), framed);
    }

    #[test]
    fn realigned_frames() {
        // gcc: push -8(%r10); push %rbp; mov %rsp,%rbp; push %r10.
        let cfa = computed_cfa(&[BREG + RBP, 0x78, DEREF]);
        let instructions = [cfa, saved_at(RBP, &[BREG + RBP, 0])].concat();
        let realigned = Rule {
            cfa_kind: cfa::FP_DEREF,
            fp_kind: fp::FP,
            cfa_offset: -8,
            ..usual()
        };
        assert_eq!(rule(&instructions), realigned);
        // As libcrypto's assembly writes it.
        let cfa = computed_cfa(&[BREG + RSP, 0xc0, 0, DEREF, PLUS_CONSTANT, 8]);
        let instructions = [cfa, saved_at(RBP, &[BREG + RSP, 0x30])].concat();
        let saved = Rule {
            cfa_kind: cfa::SP_DEREF,
            fp_kind: fp::SP,
            cfa_offset: 64,
            cfa_addend: 8,
            fp_offset: 0x30,
            ..usual()
        };
        assert_eq!(rule(&instructions), saved);
    }

    #[test]
    fn linkage_tables() {
        let plt = |limit: u8| {
            let (and, ge, shl, plus) = (0x1a, 0x2a, 0x24, 0x22);
            let lit = |value: u8| 0x30 + value;
            let compare = [BREG_RA, 0, lit(15), and, lit(limit), ge];
            let add = [lit(3), shl, plus];
            rule(&computed_cfa(
                &[&[BREG + RSP, 8], &compare[..], &add].concat(),
            ))
        };
        for limit in [10, 11] {
            let expected = Rule {
                cfa_kind: cfa::PLT,
                cfa_addend: limit.into(),
                ..usual()
            };
            assert_eq!(plt(limit), expected);
        }
    }

    /// As glibc's `__restore_rt`, with offsets in two bytes.
    fn restore(sp: [u8; 2], fp: [u8; 2], ip: [u8; 2]) -> Vec<u8> {
        [
            computed_cfa(&[BREG + RSP, sp[0], sp[1], DEREF]),
            saved_at(RBP, &[BREG + RSP, fp[0], fp[1]]),
            saved_at(RA, &[BREG + RSP, ip[0], ip[1]]),
        ]
        .concat()
    }

    #[test]
    fn signal_frames() {
        let (sp, fp, ip) = ([0xa0, 1], [0xf8, 0], [0xa8, 1]);
        assert_eq!(rule_in("zRS", &restore(sp, fp, ip)), Rule::SIGNAL);
        // Not as the kernel writes it.
        for other in [
            restore(ip, fp, ip),
            restore(sp, sp, ip),
            restore(sp, fp, fp),
        ] {
            assert_eq!(rule_in("zRS", &other), Unsupported::SignalFrame.rule());
        }
        assert_eq!(rule_in("zRS", &[]), Unsupported::SignalFrame.rule());
        // And not marked as one.
        let unmarked = rule(&restore(sp, fp, ip));
        assert_eq!(unmarked, Unsupported::ReturnAddress.rule());
    }

    #[test]
    fn the_end_of_the_stack() {
        assert_eq!(rule(&[UNDEFINED, RA]), Rule::END);
    }

    #[test]
    fn a_frame_pointer_that_is_not_saved_on_the_stack_is_lost() {
        let lost = Rule {
            fp_kind: fp::LOST,
            ..usual()
        };
        assert_eq!(rule(&[UNDEFINED, RBP]), lost);
        assert_eq!(rule(&[REGISTER, RBP, 11]), lost);
        assert_eq!(rule(&saved_at(RBP, &[BREG + 3, 0])), lost);
    }

    #[test]
    fn what_is_not_supported_says_why() {
        let other_register = computed_cfa(&[BREG + 3, 0]);
        let twice = computed_cfa(&[BREG + RSP, 8, DEREF, DEREF]);
        let far = [DEF_CFA_OFFSET, 0x80, 0x80, 0x80, 0x80, 0x08];
        let cases = [
            (&[DEF_CFA, 10, 0][..], Unsupported::CfaRegister),
            (&other_register, Unsupported::CfaExpression),
            (&twice, Unsupported::CfaExpression),
            (&[REGISTER, RA, 2], Unsupported::ReturnAddress),
            (&[REGISTER, RSP, 8], Unsupported::StackPointer),
            (&far, Unsupported::Offset),
        ];
        for (instructions, reason) in cases {
            let found = rule(instructions);
            assert_eq!(Unsupported::of(&found), Some(reason), "{instructions:x?}");
        }
        assert_eq!(Unsupported::of(&usual()), None);
    }
}
