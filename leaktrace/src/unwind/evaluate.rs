//! Second stage: call frame information is evaluated, entry by entry, into the
//! rules of ranges of instructions.
//!
//! Only what concerns the CFA, `rbp`, `rsp` and the return address is followed,
//! which takes a fraction of the time of keeping all registers.
//! Format: DWARF 5, section 6.4; LSB, "Exception Frames".

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, FrameDescriptionEntry,
    LittleEndian, UnwindSection,
};
use leaktrace_common::unwind::{Rule, cfa};

use crate::{
    arch::dwarf,
    elf::CallFrames,
    unwind::{
        Reason,
        intern::Rules,
        machine::{Advance, Damaged, Machine},
        read::Texts,
        rule::{Expressions, Slice, State, Unsupported},
    },
};

/// Most common entries (CIE); linkers leave a few.
const MAX_COMMON: usize = 1 << 16;
/// Most entries of functions (FDE); a browser has about a million.
const MAX_FUNCTIONS: usize = 1 << 22;
/// Most rows; the largest files known have one million.
const MAX_ROWS: usize = 1 << 23;

/// From which instruction of a file on which rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeRow {
    /// Offset in the file.
    pub offset: u32,
    /// Number of the rule.
    pub rule: u16,
}

/// A piece of text that one entry covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the file.
    pub start: u32,
    /// Offset after its last byte.
    pub end: u32,
    /// Its first row in [`Evaluated::rows`]; they go on to that of the next.
    pub first_row: u32,
}

/// What the entries of a section say, in their order.
#[derive(Default)]
pub struct Evaluated {
    /// What each entry covers.
    pub pieces: Vec<Piece>,
    /// Their rows, by offset within each piece; a later one of the same offset
    /// replaces it.
    pub rows: Vec<CodeRow>,
    /// The rules of these rows.
    pub rules: Rules,
    /// How many entries there are, of which kinds.
    pub functions: Functions,
}

/// Counts of functions, or parts of them, that have an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Functions {
    /// With an entry that could be read.
    pub total: u32,
    /// That keep a frame pointer, at least in part.
    pub with_frame_pointer: u32,
    /// With an entry that is damaged.
    pub damaged: u32,
}

impl Evaluated {
    /// Evaluates `.eh_frame`.
    ///
    /// # Errors
    /// When its entries can't be told apart, or there is too much.
    pub fn eh_frame(frames: CallFrames<'_>, texts: &Texts) -> Result<Self, Reason> {
        let section = EhFrame::new(frames.bytes, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame(frames.address);
        Evaluation::new(&section, &bases, texts)
            .run()
            .map_err(|reason| reason.of_section(".eh_frame"))
    }

    /// Evaluates `.debug_frame`.
    ///
    /// # Errors
    /// As with [`Self::eh_frame`].
    pub fn debug_frame(frames: CallFrames<'_>, texts: &Texts) -> Result<Self, Reason> {
        let mut section = DebugFrame::new(frames.bytes, LittleEndian);
        section.set_address_size(8);
        let bases = BaseAddresses::default();
        Evaluation::new(&section, &bases, texts)
            .run()
            .map_err(|reason| reason.of_section(".debug_frame"))
    }
}

impl Evaluated {
    /// Adds that stacks end in the code at these file offsets, unless an entry says
    /// something about its beginning.
    ///
    /// # Errors
    /// When there is too much.
    pub fn add_end(&mut self, start: u32, end: u32) -> Result<(), Reason> {
        let covers = |piece: &Piece| (piece.start..piece.end).contains(&start);
        if self.pieces.iter().any(covers) {
            return Ok(());
        }
        self.begin_piece(start, end)?;
        push(self, start, Rule::END)
    }

    fn begin_piece(&mut self, start: u32, end: u32) -> Result<(), Reason> {
        if self.pieces.len() >= MAX_FUNCTIONS {
            return Err(Reason::TooMuch("functions"));
        }
        let first_row = u32::try_from(self.rows.len()).map_err(|_| Reason::TooMuch("rows"))?;
        self.pieces.push(Piece {
            start,
            end,
            first_row,
        });
        Ok(())
    }
}

/// A common entry with what its instructions lead to.
struct Common<'a> {
    entry: CommonInformationEntry<Slice<'a>>,
    /// `None` when they can't be followed.
    initial: Option<State>,
}

struct Evaluation<'s, 'a, S> {
    section: &'s S,
    bases: &'s BaseAddresses,
    texts: &'s Texts,
    commons: HashMap<usize, Common<'a>>,
    result: Evaluated,
}

impl<'s, 'a, S: UnwindSection<Slice<'a>>> Evaluation<'s, 'a, S> {
    fn new(section: &'s S, bases: &'s BaseAddresses, texts: &'s Texts) -> Self {
        Self {
            section,
            bases,
            texts,
            commons: HashMap::new(),
            result: Evaluated::default(),
        }
    }

    /// Entries do not overlap, and each is read once: the work grows with the
    /// section's size and no faster, whatever is in it.
    fn run(mut self) -> Result<Evaluated, Reason> {
        let mut entries = self.section.entries(self.bases);
        while let Some(entry) = entries.next()? {
            match entry {
                CieOrFde::Cie(entry) => self.common(entry)?,
                CieOrFde::Fde(partial) => {
                    // Common entries come before those that refer to them.
                    let commons = &self.commons;
                    let function = partial.parse(|_, _, offset| {
                        let common = commons.get(&gimli::UnwindOffset::into(offset));
                        common
                            .map(|common| common.entry.clone())
                            .ok_or(gimli::Error::NoEntryAtGivenOffset(0))
                    });
                    match function {
                        Ok(function) => self.function(&function)?,
                        Err(_) => self.result.functions.damaged += 1,
                    }
                }
            }
        }
        Ok(self.result)
    }

    fn common(&mut self, entry: CommonInformationEntry<Slice<'a>>) -> Result<(), Reason> {
        if self.commons.len() >= MAX_COMMON {
            return Err(Reason::TooMuch("common entries"));
        }
        let mut machine = Machine::new(&entry, State::UNKNOWN);
        let mut instructions = entry.instructions(self.section, self.bases);
        let supported = entry.address_size() == 8 && entry.return_address_register() == dwarf::RA;
        // No code goes with these: an advance means nothing.
        let initial = loop {
            match machine.run_to_next_row(&mut instructions) {
                Ok(Some(_)) => {}
                Ok(None) => break supported.then_some(machine.state),
                Err(Damaged) => break None,
            }
        };
        self.commons
            .insert(entry.offset(), Common { entry, initial });
        Ok(())
    }

    fn function(&mut self, entry: &FrameDescriptionEntry<Slice<'a>>) -> Result<(), Reason> {
        let address = entry.initial_address();
        let end = address.saturating_add(entry.len());
        // Functions that the linker has dropped are at address 0.
        let Some((start, end)) = self.texts.offsets(address, end) else {
            return Ok(());
        };
        let result = &mut self.result;
        result.begin_piece(start, end)?;
        result.functions.total += 1;
        let initial = self.commons.get(&entry.cie().offset());
        let Some(initial) = initial.and_then(|common| common.initial) else {
            result.functions.damaged += 1;
            return push(result, start, Unsupported::Damaged.rule());
        };
        let expressions = Expressions {
            section: self.section,
            encoding: entry.cie().encoding(),
        };
        let mut machine = Machine::new(entry.cie(), initial);
        let mut instructions = entry.instructions(self.section, self.bases);
        let is_signal = entry.is_signal_trampoline();
        let (mut at, mut is_framed) = (u64::from(start), false);
        let mut previous = None;
        while at < u64::from(end) {
            let next = machine.run_to_next_row(&mut instructions).and_then(|next| {
                let place = match next {
                    Some(Advance::By(delta)) => Some(at.saturating_add(delta)),
                    // Addresses are the text's, not the file's.
                    Some(Advance::To(place)) => {
                        let into = place.checked_sub(address).ok_or(Damaged)?;
                        Some(u64::from(start).saturating_add(into))
                    }
                    None => None,
                };
                match place {
                    Some(place) if place < at => Err(Damaged),
                    place => Ok(place),
                }
            });
            let rule = match next {
                Ok(_) => expressions.rule(&machine.state, is_signal),
                Err(Damaged) => Unsupported::Damaged.rule(),
            };
            is_framed |= rule.cfa_kind == cfa::FP;
            if previous != Some(rule) {
                // Below `end`, which fits.
                push(result, u32::try_from(at).unwrap_or(u32::MAX), rule)?;
                previous = Some(rule);
            }
            match next {
                Ok(Some(place)) => at = place,
                Ok(None) => break,
                Err(Damaged) => {
                    result.functions.damaged += 1;
                    break;
                }
            }
        }
        result.functions.with_frame_pointer += u32::from(is_framed);
        Ok(())
    }
}

fn push(result: &mut Evaluated, offset: u32, rule: Rule) -> Result<(), Reason> {
    if result.rows.len() >= MAX_ROWS {
        return Err(Reason::TooMuch("rows"));
    }
    let rule = result.rules.number(rule)?;
    result.rows.push(CodeRow { offset, rule });
    Ok(())
}

#[cfg(test)]
mod tests {
    use gimli::{CfaRule, RegisterRule, UnwindContext};
    use leaktrace_common::unwind::fp;

    use super::*;
    use crate::{
        elf::running_libc,
        unwind::{
            compile,
            order::order,
            read,
            tests::frames::{
                DEF_CFA_OFFSET, OFFSET, RBP, REMEMBER, RESTORE_STATE, Section, TEXT, advance,
                offset, restore,
            },
        },
    };

    #[test]
    fn a_function_with_two_ends() {
        let mut section = Section::usual();
        section.function(
            TEXT,
            100,
            &[
                advance(1),
                DEF_CFA_OFFSET,
                16,
                offset(RBP),
                2,
                advance(10),
                REMEMBER,
                restore(RBP),
                advance(0),
                DEF_CFA_OFFSET,
                8,
                advance(1),
                RESTORE_STATE,
                advance(20),
                DEF_CFA_OFFSET,
                8,
            ],
        );
        let rules = section.rules();
        let offsets: Vec<u32> = rules.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, [0, 1, 11, 12, 32, 100]);
        let entry = rules[0].1;
        let pushed = Rule {
            cfa_offset: 16,
            fp_kind: fp::CFA,
            fp_offset: -16,
            ..entry
        };
        let rules: Vec<Rule> = rules.iter().map(|(_, rule)| *rule).collect();
        let last = Rule {
            cfa_offset: 8,
            ..pushed
        };
        assert_eq!(rules, [entry, pushed, entry, pushed, last, Rule::GAP]);
    }

    #[test]
    fn stacks_end_at_an_entry_of_which_nothing_else_is_known() {
        let mut section = Section::usual();
        section.function(TEXT, 16, &[]);
        section.function(TEXT + 40, 16, &[]);
        let usual = section.rules()[0].1;
        let rules = |start, end| {
            let mut evaluated = section.evaluate().unwrap();
            evaluated.add_end(OFFSET + start, OFFSET + end).unwrap();
            let rows = order(&evaluated);
            let mut rules = rows.iter().filter(|row| row.offset >= OFFSET);
            let mut next = || {
                let row = rules.next()?;
                Some((
                    row.offset - OFFSET,
                    evaluated.rules.all()[usize::from(row.rule)],
                ))
            };
            std::iter::from_fn(&mut next).collect::<Vec<_>>()
        };
        let (end, gap) = (Rule::END, Rule::GAP);
        let known = [(0, usual), (16, gap), (40, usual), (56, gap)];
        assert_eq!(rules(8, 20), known, "something is known of its beginning");
        let beside = [&known[..1], &[(16, end), (24, gap)], &known[2..]].concat();
        assert_eq!(rules(16, 24), beside);
        let between = [&known[..2], &[(20, end), (24, gap)], &known[2..]].concat();
        assert_eq!(rules(20, 24), between);
        let before = [&known[..1], &[(16, end)], &known[2..]].concat();
        assert_eq!(rules(16, 50), before, "no more than up to the next entry");
    }

    #[test]
    fn a_damaged_entry_harms_only_itself() {
        let mut section = Section::usual();
        section.function(TEXT, 10, &[advance(4), 0x3e]);
        section.function(TEXT + 10, 10, &[advance(4), RESTORE_STATE]);
        section.function(TEXT + 20, 10, &[]);
        let evaluated = section.evaluate().unwrap();
        let functions = Functions {
            total: 3,
            with_frame_pointer: 0,
            damaged: 2,
        };
        assert_eq!(evaluated.functions, functions);
        let damaged = Unsupported::Damaged.rule();
        let rules = section.rules();
        let entry = rules[0].1;
        assert_eq!(
            rules,
            [
                (0, entry),
                (4, damaged),
                (10, entry),
                (14, damaged),
                (20, entry),
                (30, Rule::GAP)
            ]
        );
    }

    #[test]
    fn rows_outside_of_the_text_are_left_out() {
        let mut section = Section::usual();
        section.function(0, 100, &[]);
        section.function(TEXT - 100, 50, &[]);
        let end = TEXT + 0x10_0000;
        section.function(
            end - 2,
            100,
            &[
                advance(1),
                DEF_CFA_OFFSET,
                16,
                advance(2),
                DEF_CFA_OFFSET,
                8,
            ],
        );
        let evaluated = section.evaluate().unwrap();
        let last = OFFSET + 0x10_0000;
        let pieces = [Piece {
            start: last - 2,
            end: last,
            first_row: 0,
        }];
        assert_eq!(evaluated.pieces, pieces);
        assert_eq!(evaluated.rows.len(), 2);
    }

    #[test]
    fn entries_that_run_beyond_the_section_are_an_error() {
        let mut section = Section::usual();
        section.function(TEXT, 10, &[]);
        let bytes = section.bytes();
        let texts = crate::unwind::tests::frames::texts();
        let cut = CallFrames {
            address: 0,
            bytes: &bytes[..bytes.len() - 4],
        };
        let error = Evaluated::eh_frame(cut, &texts).err().unwrap().to_string();
        assert!(
            error.starts_with("damaged: its .eh_frame can't be read: "),
            "{error}"
        );
    }

    #[test]
    fn there_is_a_limit_of_common_entries() {
        let mut section = Section::default();
        for _ in 0..=MAX_COMMON {
            section.common("zR");
        }
        let error = section.evaluate().err().unwrap().to_string();
        assert_eq!(error, "more common entries than any file should have");
    }

    #[test]
    fn debug_frame_is_read_as_well() {
        // 64-bit addresses, version 4; no augmentation.
        let mut bytes = vec![20, 0, 0, 0, 255, 255, 255, 255, 4, 0, 8, 0, 1, 0x78, 16];
        bytes.extend([0x0c, 7, 8, offset(16), 1, 0, 0, 0, 0]);
        bytes.extend([20, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(TEXT.to_le_bytes());
        bytes.extend(16_u64.to_le_bytes());
        let texts = crate::unwind::tests::frames::texts();
        let frames = CallFrames {
            address: 0,
            bytes: &bytes,
        };
        let evaluated = Evaluated::debug_frame(frames, &texts).unwrap();
        assert_eq!(
            evaluated.pieces,
            [Piece {
                start: OFFSET,
                end: OFFSET + 16,
                first_row: 0
            }]
        );
        assert_eq!(evaluated.rules.all()[1].cfa_offset, 8);
    }

    /// gimli evaluates all registers; here is what it says in terms of a rule,
    /// for rows without expressions.
    fn expected(row: &gimli::UnwindTableRow<usize>) -> Option<Rule> {
        let (cfa_kind, cfa_offset) = match row.cfa() {
            CfaRule::RegisterAndOffset {
                register: dwarf::SP,
                offset,
            } => (cfa::SP, *offset),
            CfaRule::RegisterAndOffset {
                register: dwarf::FP,
                offset,
            } => (cfa::FP, *offset),
            _ => return None,
        };
        let (fp_kind, fp_offset) = match row.register(dwarf::FP) {
            None => (fp::SAME, 0),
            Some(RegisterRule::Offset(offset)) => (fp::CFA, offset),
            _ => return None,
        };
        let Some(RegisterRule::Offset(ra_offset)) = row.register(dwarf::RA) else {
            return None;
        };
        row.register(dwarf::SP).is_none().then_some(Rule {
            cfa_kind,
            fp_kind,
            ra_offset: ra_offset.try_into().ok()?,
            cfa_offset: cfa_offset.try_into().ok()?,
            cfa_addend: 0,
            fp_offset: fp_offset.try_into().ok()?,
        })
    }

    #[test]
    fn rows_of_real_files_are_those_of_gimli() {
        for bytes in [running_libc(), std::fs::read("/proc/self/exe").unwrap()] {
            let table = compile(&bytes).unwrap();
            table.check().unwrap();
            let sources = read::read(&bytes).unwrap();
            let frames = sources.eh_frame.unwrap();
            let bases = BaseAddresses::default().set_eh_frame(frames.address);
            let section = EhFrame::new(frames.bytes, LittleEndian);
            let mut entries = section.entries(&bases);
            let mut context = UnwindContext::new();
            let (mut compared, mut others) = (0, 0);
            while let Some(entry) = entries.next().unwrap() {
                let CieOrFde::Fde(partial) = entry else {
                    continue;
                };
                let function = partial.parse(EhFrame::cie_from_offset).unwrap();
                let mut rows = function.rows(&section, &bases, &mut context).unwrap();
                while let Some(row) = rows.next_row().unwrap() {
                    let (start, end) = (row.start_address(), row.end_address());
                    let Some((start, end)) = sources.texts.offsets(start, end) else {
                        continue;
                    };
                    let Some(expected) = expected(row) else {
                        others += 1;
                        continue;
                    };
                    for offset in [start, end - 1] {
                        assert_eq!(table.rule_at(offset.into()), expected, "at {offset:#x}");
                    }
                    compared += 1;
                }
            }
            assert!(
                compared > 20_000 && others * 500 < compared,
                "{compared} rows, {others} others"
            );
        }
    }
}
