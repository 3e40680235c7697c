//! How a stack is unwound, in plain Rust: what the kernel's programs follow,
//! and what tests compare with other unwinders.

use leaktrace_common::{
    arch::signal_frame,
    stack::{MAX_FRAMES, StackEnd},
    unwind::{KEEPS_FRAME_POINTERS, Mapping, NO_FILE, Rule, cfa, fp},
};

use crate::unwind::tables::{Tables, mapping_of};

/// The registers that unwinding needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// `rip`.
    pub ip: u64,
    /// `rsp`.
    pub sp: u64,
    /// `rbp`.
    pub fp: u64,
}

/// Where the first frame is in its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At its first instruction: the return address is at `rsp`, which needs
    /// no tables.
    Entry,
    /// Anywhere: the instruction at `rip` is about to be executed.
    Inside,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The instruction to be executed next in this frame; a return address,
    /// except in the first frame and where a signal interrupted.
    pub ip: u64,
    /// Its file ([`NO_FILE`]: none) and the offset there, the same wherever the
    /// file is mapped.
    pub place: (u32, u64),
    /// It was found by a frame pointer where nothing better was known, or its
    /// callees were.
    pub is_guessed: bool,
}

/// Unwinds a stack in a process with these mappings. Every frame is given to
/// `visit`, the first one's own included; `read` reads a word of the process's
/// memory.
pub fn walk(
    tables: &Tables,
    mappings: &[Mapping],
    start: Start,
    mut registers: Registers,
    mut read: impl FnMut(u64) -> Option<u64>,
    mut visit: impl FnMut(Frame),
) -> StackEnd {
    let mut is_entry = start == Start::Entry;
    // A return address may be that of the next function, when the call never
    // returns; so what is looked up is the call. Code that was interrupted has
    // not called.
    let mut is_call = false;
    // How it ends instead of well.
    let mut doubt = None;
    for _ in 0..MAX_FRAMES {
        let looked_up = registers.ip.wrapping_sub(is_call.into());
        let mapping = mapping_of(mappings, looked_up);
        let place = mapping.map_or((NO_FILE, registers.ip), |mapping| {
            (mapping.file, registers.ip.wrapping_sub(mapping.bias))
        });
        visit(Frame {
            ip: registers.ip,
            place,
            is_guessed: doubt == Some(StackEnd::Guessed),
        });
        let step = if is_entry {
            is_entry = false;
            if mapping.is_none() {
                // Its caller is known all the same, but it may be in any file.
                doubt = Some(StackEnd::NoMapping);
            }
            caller(&Rule::ENTRY, registers, &mut read)
        } else {
            let Some(mapping) = mapping else {
                return StackEnd::NoMapping;
            };
            let offset = looked_up.wrapping_sub(mapping.bias);
            let (file, rule) = tables.rule_at(mapping.file, offset);
            match rule.cfa_kind {
                cfa::END => return doubt.unwrap_or(StackEnd::Complete),
                cfa::UNSUPPORTED => return StackEnd::UnsupportedRule,
                cfa::GAP if file.flags == 0 => return StackEnd::NotReady,
                cfa::GAP if file.flags & KEEPS_FRAME_POINTERS == 0 => return StackEnd::Gap,
                cfa::GAP if registers.fp == 0 => return doubt.unwrap_or(StackEnd::Gap),
                cfa::GAP => {
                    doubt = Some(StackEnd::Guessed);
                    caller(&Rule::FRAME_POINTER, registers, &mut read).map_err(|end| match end {
                        StackEnd::BadStackPointer => StackEnd::BadFramePointer,
                        end => end,
                    })
                }
                _ => caller(&rule, registers, &mut read),
            }
        };
        (registers, is_call) = match step {
            Ok(step) => step,
            Err(end) => return end,
        };
        if registers.ip == 0 {
            return doubt.unwrap_or(StackEnd::ChainEnd);
        }
    }
    StackEnd::TooDeep
}

/// The caller's registers by a rule of the kinds that lead to one, and whether
/// it has called (or was interrupted).
fn caller(
    rule: &Rule,
    registers: Registers,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<(Registers, bool), StackEnd> {
    let Registers { ip, sp, fp: rbp } = registers;
    let mut word = |address: u64| read(address).ok_or(StackEnd::Unreadable);
    let (a, b) = (i64::from(rule.cfa_offset), i64::from(rule.cfa_addend));
    let cfa = match rule.cfa_kind {
        cfa::SP => sp.wrapping_add_signed(a),
        cfa::FP => rbp.wrapping_add_signed(a),
        cfa::PLT => {
            let has_pushed = (ip & 15).cast_signed() >= b;
            sp.wrapping_add_signed(a + 8 * i64::from(has_pushed))
        }
        cfa::SP_DEREF => word(sp.wrapping_add_signed(a))?.wrapping_add_signed(b),
        cfa::FP_DEREF => word(rbp.wrapping_add_signed(a))?.wrapping_add_signed(b),
        cfa::SIGNAL => {
            // A handler may have a stack of its own: nothing is known about the
            // interrupted one's address.
            let interrupted = Registers {
                ip: word(sp.wrapping_add(signal_frame::IP))?,
                sp: word(sp.wrapping_add(signal_frame::SP))?,
                fp: word(sp.wrapping_add(signal_frame::FP))?,
            };
            return Ok((interrupted, false));
        }
        // END, GAP and UNSUPPORTED have no caller, and there are no others.
        _ => return Err(StackEnd::UnsupportedRule),
    };
    // Stacks grow downwards, by whole words.
    if cfa <= sp || cfa & 7 != 0 {
        return Err(StackEnd::BadStackPointer);
    }
    let c = i64::from(rule.fp_offset);
    let fp = match rule.fp_kind {
        fp::SAME => rbp,
        fp::CFA => word(cfa.wrapping_add_signed(c))?,
        fp::FP => word(rbp.wrapping_add_signed(c))?,
        fp::SP => word(sp.wrapping_add_signed(c))?,
        _ => 0,
    };
    let ip = word(cfa.wrapping_add_signed(rule.ra_offset.into()))?;
    Ok((Registers { ip, sp: cfa, fp }, true))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::unwind::{
        evaluate::{CodeRow, Functions},
        file_table::FileTable,
        page::page,
    };

    /// Where the file of the tests is mapped.
    const BASE: u64 = 0x7f00_0000_0000;
    const STACK: u64 = 0x7ffe_0000_0000;

    /// A file whose function number `n`, of 16 bytes, has this rule.
    struct Scene {
        rules: Vec<Rule>,
        framed: u32,
        begins: u64,
        memory: HashMap<u64, u64>,
    }

    impl Scene {
        fn new(rules: &[Rule]) -> Self {
            Self {
                rules: rules.to_vec(),
                framed: 0,
                begins: code(0),
                memory: HashMap::new(),
            }
        }

        /// Words of the stack, by their index from [`STACK`] on.
        fn word(mut self, index: u64, value: u64) -> Self {
            self.memory.insert(STACK + 8 * index, value);
            self
        }

        /// Frames by address (guessed ones negative) and how it ended.
        fn walk(&self, start: Start, fp: u64) -> (Vec<(u64, bool)>, StackEnd) {
            let rows: Vec<CodeRow> = (0..=self.rules.len() as u16)
                .map(|number| CodeRow {
                    offset: 16 * u32::from(number),
                    rule: if usize::from(number) == self.rules.len() {
                        0
                    } else {
                        number + 1
                    },
                })
                .collect();
            let paged = page(&rows);
            let mut tables = Tables::new(u32::MAX);
            let file = FileTable {
                first_page: paged.first_page,
                pages: paged.pages,
                rows: paged.rows,
                rules: [&[Rule::GAP], &self.rules[..]].concat(),
                functions: Functions {
                    total: 1,
                    with_frame_pointer: self.framed,
                    damaged: 0,
                },
            };
            let mapping = Mapping {
                start: BASE,
                end: BASE + 0x1000,
                bias: BASE,
                file: tables.add(&file).unwrap(),
                padding: 0,
            };
            let mut frames = Vec::new();
            let registers = Registers {
                ip: self.begins,
                sp: STACK,
                fp,
            };
            let read = |address| self.memory.get(&address).copied();
            let end = walk(&tables, &[mapping], start, registers, read, |frame| {
                if frame.ip >= BASE && frame.ip < BASE + 0x1000 {
                    assert_eq!(frame.place, (1, frame.ip - BASE));
                }
                frames.push((frame.ip, frame.is_guessed));
            });
            (frames, end)
        }
    }

    /// In the middle of a function.
    const fn code(function: u64) -> u64 {
        BASE + 16 * function + 8
    }

    /// Behind the last instruction of a function, a call that does not return.
    const fn behind(function: u64) -> u64 {
        BASE + 16 * function + 16
    }

    const fn sp(offset: i32) -> Rule {
        Rule {
            cfa_offset: offset,
            ..Rule::ENTRY
        }
    }

    fn known(ips: &[u64]) -> Vec<(u64, bool)> {
        ips.iter().map(|ip| (*ip, false)).collect()
    }

    #[test]
    fn from_the_entry_to_the_end_of_the_stack() {
        // Function 0 needs no rule at its entry.
        let scene = Scene::new(&[Rule::GAP, sp(24), Rule::FRAME_POINTER, Rule::END])
            .word(0, code(1))
            .word(3, behind(2))
            .word(10, 0)
            .word(11, code(3));
        let (frames, end) = scene.walk(Start::Entry, STACK + 80);
        assert_eq!(frames, known(&[code(0), code(1), behind(2), code(3)]));
        assert_eq!(end, StackEnd::Complete);
        assert_eq!(scene.walk(Start::Inside, STACK + 80).1, StackEnd::Gap);
    }

    #[test]
    fn a_function_that_is_nowhere_makes_no_complete_stack() {
        let mut scene = Scene::new(&[Rule::END]).word(0, code(0));
        assert_eq!(scene.walk(Start::Entry, 0).1, StackEnd::Complete);
        scene.begins = BASE - 8;
        let (frames, end) = scene.walk(Start::Entry, 0);
        assert_eq!(frames, known(&[BASE - 8, code(0)]));
        assert_eq!(end, StackEnd::NoMapping);
    }

    #[test]
    fn each_kind_of_frame() {
        let realigned = Rule {
            cfa_kind: cfa::FP_DEREF,
            cfa_offset: -8,
            fp_kind: fp::FP,
            ..Rule::ENTRY
        };
        let saved = Rule {
            cfa_kind: cfa::SP_DEREF,
            cfa_offset: 16,
            cfa_addend: 8,
            fp_kind: fp::SP,
            fp_offset: 24,
            ..Rule::ENTRY
        };
        // `code` is 8 of 16 bytes into an entry.
        let plt = |limit| Rule {
            cfa_kind: cfa::PLT,
            cfa_addend: limit,
            ..sp(8)
        };
        let scene = Scene::new(&[
            realigned,
            saved,
            plt(8),
            plt(9),
            Rule::FRAME_POINTER,
            Rule::END,
        ])
        // Function 0: CFA at word 10, rbp at word 5.
        .word(4, STACK + 80)
        .word(5, 77)
        .word(9, code(1))
        // Function 1, rsp at word 10: the CFA is above what word 12 points
        // to, rbp is in word 13.
        .word(12, STACK + 8 * 19)
        .word(13, STACK + 8 * 30)
        .word(19, code(2))
        // Function 2, rsp at word 20: a word was pushed.
        .word(21, code(3))
        // Function 3, rsp at word 22: none was.
        .word(22, code(4))
        .word(30, 99)
        .word(31, code(5));
        let (frames, end) = scene.walk(Start::Inside, STACK + 40);
        assert_eq!(frames, known(&[0, 1, 2, 3, 4, 5].map(code)));
        assert_eq!(end, StackEnd::Complete);
    }

    #[test]
    fn interrupted_code_is_looked_up_where_it_was_interrupted() {
        let other_stack = STACK - 0x10_000;
        let first_instruction = BASE + 32;
        let mut scene = Scene::new(&[sp(8), Rule::SIGNAL, sp(8), Rule::END])
            .word(0, code(1))
            // `ucontext` at word 1: rbp, rsp, rip.
            .word(1 + 15, 5)
            .word(1 + 20, other_stack)
            .word(1 + 21, first_instruction);
        scene.memory.insert(other_stack, code(3));
        let (frames, end) = scene.walk(Start::Inside, 0);
        assert_eq!(
            frames,
            known(&[code(0), code(1), first_instruction, code(3)])
        );
        assert_eq!(end, StackEnd::Complete);
    }

    #[test]
    fn every_other_end() {
        let lost = Rule {
            fp_kind: fp::LOST,
            ..sp(8)
        };
        let unsupported = crate::unwind::rule::Unsupported::CfaRegister.rule();
        let end_of = |rules: &[Rule], words: &[u64]| {
            let words = words.iter().enumerate();
            let scene = words.fold(Scene::new(rules), |it, (index, word)| {
                it.word(index as u64, *word)
            });
            scene.walk(Start::Inside, STACK).1
        };
        assert_eq!(end_of(&[unsupported], &[]), StackEnd::UnsupportedRule);
        assert_eq!(end_of(&[sp(8)], &[]), StackEnd::Unreadable);
        assert_eq!(end_of(&[sp(8)], &[0]), StackEnd::ChainEnd);
        assert_eq!(end_of(&[sp(8)], &[0x1234]), StackEnd::NoMapping);
        assert_eq!(end_of(&[sp(0)], &[0]), StackEnd::BadStackPointer);
        assert_eq!(end_of(&[sp(12)], &[0, 0]), StackEnd::BadStackPointer);
        assert_eq!(
            end_of(&[lost, Rule::FRAME_POINTER], &[code(1)]),
            StackEnd::BadStackPointer
        );
        assert_eq!(end_of(&[sp(8), Rule::GAP], &[code(1), 0, 0]), StackEnd::Gap);
        let endless = vec![code(0); 200];
        assert_eq!(end_of(&[sp(8)], &endless), StackEnd::TooDeep);
    }

    #[test]
    fn frames_above_a_guess_are_guessed_and_never_complete() {
        let mut scene = Scene::new(&[sp(8), Rule::GAP, sp(8), Rule::END])
            .word(0, code(1))
            .word(4, 0)
            .word(5, code(2))
            .word(6, code(3));
        assert_eq!(scene.walk(Start::Inside, STACK + 32).1, StackEnd::Gap);
        scene.framed = 1;
        let (frames, end) = scene.walk(Start::Inside, STACK + 32);
        assert_eq!(
            frames,
            [
                (code(0), false),
                (code(1), false),
                (code(2), true),
                (code(3), true)
            ]
        );
        assert_eq!(end, StackEnd::Guessed);
        assert_eq!(scene.walk(Start::Inside, 0).1, StackEnd::Gap);
        assert_eq!(
            scene.walk(Start::Inside, STACK - 8).1,
            StackEnd::BadFramePointer
        );
    }
}
