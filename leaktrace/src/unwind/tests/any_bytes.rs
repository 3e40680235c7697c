//! What holds whatever is in a file.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use crate::{
    elf::{ElfFile, running_libc},
    unwind::{
        compile,
        evaluate::Functions,
        file_table::FileTable,
        order::order,
        page::{Paged, page},
        tests::frames::{OFFSET, Section, TEXT},
    },
};

/// Bytes that mean something in call frame information.
const OPCODES: [u8; 16] = [
    0x00, 0x01, 0x05, 0x07, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x41, 0x86, 0x90, 0xc6, 0x06,
];

fn any_instructions() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        3 => prop::sample::select(OPCODES.to_vec()),
        1 => any::<u8>(),
    ];
    prop::collection::vec(byte, 0..60)
}

fn any_section() -> impl Strategy<Value = Section> {
    let function = (0..2000_u64, 0..3000_u64, any_instructions());
    let functions = prop::collection::vec(function, 1..12);
    (functions, any::<bool>()).prop_map(|(functions, is_signal)| {
        let mut section = Section::usual();
        for (start, length, instructions) in functions {
            section.function(TEXT + 128 * start, length, &instructions);
        }
        section.common(if is_signal { "zRS" } else { "zR" });
        section.function(TEXT, 100, &[]);
        section
    })
}

fn table_of(section: &Section) -> FileTable {
    let evaluated = section.evaluate().unwrap();
    let Paged {
        first_page,
        pages,
        rows,
    } = page(&order(&evaluated));
    FileTable {
        first_page,
        pages,
        rows,
        functions: evaluated.functions,
        rules: evaluated.rules.into_all(),
    }
}

/// Tables as they come out of the stages.
pub(crate) fn any_table() -> impl Strategy<Value = FileTable> {
    let table = any_section().prop_map(|section| table_of(&section));
    (table, any::<[u32; 3]>()).prop_map(|(table, [total, with_frame_pointer, damaged])| FileTable {
        functions: Functions {
            total,
            with_frame_pointer,
            damaged,
        },
        ..table
    })
}

/// A libc without most of its `.eh_frame`, so that it is read quickly; and
/// where the rest is in it.
fn short_libc() -> &'static (Vec<u8>, usize, usize) {
    const KEPT: usize = 20_000;
    static LIBC: OnceLock<(Vec<u8>, usize, usize)> = OnceLock::new();
    LIBC.get_or_init(|| {
        let mut bytes = running_libc();
        let file = ElfFile::parse(&bytes).unwrap();
        let frames = file.eh_frame().unwrap();
        let start = usize::try_from(file.file_offset(frames.address).unwrap()).unwrap();
        // The entry that would be cut becomes the terminator.
        let mut end = 0;
        while end < KEPT {
            let length: [u8; 4] = frames.bytes[end..end + 4].try_into().unwrap();
            end += 4 + u32::from_le_bytes(length) as usize;
        }
        bytes[start + end..start + end + 4].fill(0);
        (bytes, start, end)
    })
}

/// Everything that must hold of a file, whatever is in it.
fn assert_bounded(bytes: &[u8], section: usize) {
    let start = Instant::now();
    if let Ok(table) = compile(bytes) {
        table.check().unwrap();
        // An instruction makes one row at most; a page another one.
        assert!(table.rows.len() <= section + table.pages.len());
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_instructions_make_a_consistent_table(section in any_section()) {
        let table = table_of(&section);
        table.check().unwrap();
        prop_assert!(table.functions.total > 0);
        prop_assert_eq!(table.rule_at(u64::from(OFFSET) - 1).cfa_kind, 0);
    }

    #[test]
    fn damaged_frames_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30),
    ) {
        let (libc, start, length) = short_libc();
        let mut bytes = libc.clone();
        for (place, value) in damage {
            bytes[start + place.index(*length)] = value;
        }
        assert_bounded(&bytes, bytes.len() - start);
    }

    #[test]
    fn damaged_headers_never_panic(
        damage in prop::collection::vec((0..900_usize, any::<u8>()), 1..8),
    ) {
        let (libc, ..) = short_libc();
        let mut bytes = libc.clone();
        for (place, value) in damage {
            bytes[place] = value;
        }
        assert_bounded(&bytes, bytes.len());
    }
}
