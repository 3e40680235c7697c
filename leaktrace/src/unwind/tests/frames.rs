//! Call frame information written by hand.

use leaktrace_common::unwind::Rule;

use crate::{
    elf::CallFrames,
    unwind::{
        Reason,
        evaluate::{CodeRow, Evaluated},
        order::order,
        read::Texts,
    },
};

/// Where the text is, in memory; in the file it is at [`OFFSET`].
pub(crate) const TEXT: u64 = 0x40_1000;
pub(crate) const OFFSET: u32 = 0x1000;
const LENGTH: u64 = 0x10_0000;

// Instructions that take operands; see DWARF 5, section 7.24.
pub(crate) const DEF_CFA: u8 = 0x0c;
pub(crate) const DEF_CFA_REGISTER: u8 = 0x0d;
pub(crate) const DEF_CFA_OFFSET: u8 = 0x0e;
const DEF_CFA_EXPRESSION: u8 = 0x0f;
const EXPRESSION: u8 = 0x10;
pub(crate) const UNDEFINED: u8 = 0x07;
pub(crate) const REGISTER: u8 = 0x09;
pub(crate) const REMEMBER: u8 = 0x0a;
pub(crate) const RESTORE_STATE: u8 = 0x0b;
pub(crate) const RBP: u8 = 6;
pub(crate) const RSP: u8 = 7;
pub(crate) const RA: u8 = 16;

pub(crate) const fn advance(bytes: u8) -> u8 {
    0x40 | bytes
}
/// The register is saved `words` words below the CFA: one operand.
pub(crate) const fn offset(register: u8) -> u8 {
    0x80 | register
}
pub(crate) const fn restore(register: u8) -> u8 {
    0xc0 | register
}

/// The CFA is what an expression yields.
pub(crate) fn computed_cfa(expression: &[u8]) -> Vec<u8> {
    let length = u8::try_from(expression.len()).unwrap();
    [&[DEF_CFA_EXPRESSION, length], expression].concat()
}

/// The register is saved where an expression says.
pub(crate) fn saved_at(register: u8, expression: &[u8]) -> Vec<u8> {
    let length = u8::try_from(expression.len()).unwrap();
    [&[EXPRESSION, register, length], expression].concat()
}

/// A section of `.eh_frame`.
#[derive(Clone, Default, Debug)]
pub(crate) struct Section {
    bytes: Vec<u8>,
    common: usize,
}

impl Section {
    /// With the usual common entry: at the start, the CFA is `rsp + 8` and the
    /// return address below it.
    pub(crate) fn usual() -> Self {
        let mut section = Self::default();
        section.common("zR");
        section
    }

    /// A common entry, that of the functions after it.
    pub(crate) fn common(&mut self, augmentation: &str) {
        let mut entry = vec![0, 0, 0, 0, 1];
        entry.extend(augmentation.bytes());
        // Code factor 1, data factor -8, return address in 16; augmentation
        // data: absolute pointers.
        entry.extend([0, 1, 0x78, RA, 1, 0]);
        entry.extend([DEF_CFA, RSP, 8, offset(RA), 1]);
        self.common = self.bytes.len();
        self.entry(entry);
    }

    pub(crate) fn function(&mut self, address: u64, length: u64, instructions: &[u8]) {
        let back = self.bytes.len() + 4 - self.common;
        let mut entry = u32::try_from(back).unwrap().to_le_bytes().to_vec();
        entry.extend(address.to_le_bytes());
        entry.extend(length.to_le_bytes());
        entry.push(0);
        entry.extend(instructions);
        self.entry(entry);
    }

    fn entry(&mut self, mut entry: Vec<u8>) {
        entry.resize(entry.len().next_multiple_of(4), 0);
        let length = u32::try_from(entry.len()).unwrap();
        self.bytes.extend(length.to_le_bytes());
        self.bytes.append(&mut entry);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn evaluate(&self) -> Result<Evaluated, Reason> {
        let frames = CallFrames {
            address: 0x10_0000,
            bytes: &self.bytes,
        };
        Evaluated::eh_frame(frames, &texts())
    }

    /// The rules of the text: offset from its start, rule.
    pub(crate) fn rules(&self) -> Vec<(u32, Rule)> {
        let evaluated = self.evaluate().unwrap();
        order(&evaluated)
            .iter()
            .filter(|row| row.offset >= OFFSET)
            .map(|row: &CodeRow| {
                let rule = evaluated.rules.all()[usize::from(row.rule)];
                (row.offset - OFFSET, rule)
            })
            .collect()
    }
}

pub(crate) fn texts() -> Texts {
    Texts::new(vec![(TEXT, OFFSET.into(), LENGTH)]).unwrap()
}
