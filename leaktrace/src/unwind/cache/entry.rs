//! What one file of the cache holds, as bytes.
//!
//! Little-endian: magic number, version, CRC-32 of all that follows; hash of
//! what the table was made from; counts; rules, pages (their counts of rows)
//! and rows.

use leaktrace_common::unwind::{Page, Row, Rule};

use crate::unwind::{cache::Key, evaluate::Functions, file_table::FileTable};

const MAGIC: [u8; 8] = *b"lt-unwnd";
/// To be raised whenever tables come out otherwise than before, or are written
/// otherwise.
const VERSION: u32 = 2;
const HASH: usize = 32;
/// Magic number, version, checksum.
const PREAMBLE: usize = 16;
const COUNTS: usize = 7;
const HEADER: usize = PREAMBLE + HASH + 4 * COUNTS;

/// The bytes of a table.
#[must_use]
pub fn encode(key: &Key, table: &FileTable) -> Vec<u8> {
    let size = HEADER + size_of_val(&*table.rules) + 4 * table.pages.len() + 4 * table.rows.len();
    let mut bytes = Vec::with_capacity(size);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(key.hash());
    let Functions {
        total,
        with_frame_pointer,
        damaged,
    } = table.functions;
    let counts: [u32; COUNTS] = [
        table.first_page,
        total,
        with_frame_pointer,
        damaged,
        table.rules.len() as u32,
        table.pages.len() as u32,
        table.rows.len() as u32,
    ];
    bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
    for rule in &table.rules {
        bytes.extend([rule.cfa_kind, rule.fp_kind]);
        bytes.extend(rule.ra_offset.to_le_bytes());
        for offset in [rule.cfa_offset, rule.cfa_addend, rule.fp_offset] {
            bytes.extend(offset.to_le_bytes());
        }
    }
    bytes.extend(table.pages.iter().flat_map(|page| page.count.to_le_bytes()));
    bytes.extend(table.rows.iter().flat_map(|row| row.0.to_le_bytes()));
    let checksum = crc32fast::hash(&bytes[PREAMBLE..]);
    bytes[PREAMBLE - 4..PREAMBLE].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The table in an entry; `None` when it is of another version, was made from
/// something else, or is damaged.
#[must_use]
pub fn decode(key: &Key, bytes: &[u8]) -> Option<FileTable> {
    let mut rest = bytes;
    if take(&mut rest, MAGIC.len())? != MAGIC || number(&mut rest)? != VERSION {
        return None;
    }
    let checksum = number(&mut rest)?;
    let body = rest;
    if take(&mut rest, HASH)? != key.hash() || crc32fast::hash(body) != checksum {
        return None;
    }
    let mut table = FileTable {
        first_page: number(&mut rest)?,
        functions: Functions {
            total: number(&mut rest)?,
            with_frame_pointer: number(&mut rest)?,
            damaged: number(&mut rest)?,
        },
        ..FileTable::default()
    };
    let mut counts = [0; 3];
    for count in &mut counts {
        *count = number(&mut rest)? as usize;
    }
    let [rules, pages, rows] = counts;
    table.rules = array(&mut rest, rules)?.iter().map(rule).collect();
    let mut first = 0_u32;
    for count in array(&mut rest, pages)? {
        let count = u32::from_le_bytes(*count);
        table.pages.push(Page { first, count });
        first = first.checked_add(count)?;
    }
    let rows = array(&mut rest, rows)?;
    table.rows = rows
        .iter()
        .map(|row| Row(u32::from_le_bytes(*row)))
        .collect();
    // A checksum is no proof.
    (rest.is_empty() && table.check().is_ok()).then_some(table)
}

fn rule(bytes: &[u8; 16]) -> Rule {
    let [
        cfa_kind,
        fp_kind,
        r0,
        r1,
        a0,
        a1,
        a2,
        a3,
        b0,
        b1,
        b2,
        b3,
        c0,
        c1,
        c2,
        c3,
    ] = *bytes;
    Rule {
        cfa_kind,
        fp_kind,
        ra_offset: i16::from_le_bytes([r0, r1]),
        cfa_offset: i32::from_le_bytes([a0, a1, a2, a3]),
        cfa_addend: i32::from_le_bytes([b0, b1, b2, b3]),
        fp_offset: i32::from_le_bytes([c0, c1, c2, c3]),
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    rest.split_off(..count)
}

fn array<'a, const SIZE: usize>(rest: &mut &'a [u8], count: usize) -> Option<&'a [[u8; SIZE]]> {
    let bytes = take(rest, count.checked_mul(SIZE)?)?;
    let (items, []) = bytes.as_chunks() else {
        return None;
    };
    Some(items)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    array(rest, 1)?
        .first()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::unwind::tests::any_bytes::any_table;

    fn key(number: u8) -> Key {
        Key {
            name: "abc".to_owned(),
            hash: [number; 32],
        }
    }

    proptest! {
        #[test]
        fn a_table_comes_back_as_it_was(table in any_table()) {
            let bytes = encode(&key(1), &table);
            prop_assert_eq!(bytes.capacity(), bytes.len());
            prop_assert_eq!(decode(&key(1), &bytes), Some(table));
            prop_assert_eq!(decode(&key(2), &bytes), None);
        }

        #[test]
        fn damaged_entries_are_ignored(
            table in any_table(),
            place in any::<prop::sample::Index>(),
            bits in 1..=255_u8,
        ) {
            let bytes = encode(&key(1), &table);
            let place = place.index(bytes.len());
            prop_assert_eq!(decode(&key(1), &bytes[..place]), None);
            let mut damaged = bytes;
            damaged[place] ^= bits;
            prop_assert_eq!(decode(&key(1), &damaged), None);
        }

        /// Somebody may have made the checksum right.
        #[test]
        fn forged_entries_are_ignored_or_consistent(
            table in any_table(),
            place in any::<prop::sample::Index>(),
            bits in 1..=255_u8,
        ) {
            let mut bytes = encode(&key(1), &table);
            let place = PREAMBLE + place.index(bytes.len() - PREAMBLE);
            bytes[place] ^= bits;
            let checksum = crc32fast::hash(&bytes[PREAMBLE..]);
            bytes[PREAMBLE - 4..PREAMBLE].copy_from_slice(&checksum.to_le_bytes());
            if let Some(table) = decode(&key(1), &bytes) {
                prop_assert_eq!(table.check(), Ok(()));
            }
        }
    }
}
