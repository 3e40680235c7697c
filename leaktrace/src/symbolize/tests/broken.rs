//! Files that are broken, on purpose or not.

use std::{fs::File, io::Write as _};

use super::*;

/// A symbolizer of one file that is mapped whole at `BASE`.
fn mapped_whole(file: File, length: u64, options: Options) -> Symbolizer {
    let mut symbolizer = Symbolizer::new(options);
    let file = CodeFile {
        path: "/broken".into(),
        image: Some(Image::Own(Arc::new(file))),
    };
    symbolizer.files.push(KnownFile {
        file,
        trust: Trust::Everything,
        resolved: HashMap::new(),
    });
    let mapping = CodeMapping {
        start: BASE,
        end: BASE + length,
        offset: 0,
        file: Some(FileId(0)),
    };
    symbolizer.space.update([mapping]);
    symbolizer
}

const BASE: u64 = 0x10_0000;

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Offsets all over the code.
fn some_offsets(length: u64) -> Vec<u64> {
    (0..length)
        .step_by(97)
        .map(|offset| BASE + offset)
        .collect()
}

#[test]
fn files_that_are_cut_off_anywhere_neither_panic_nor_hang() {
    let Some(workshop) = Workshop::open("broken::files_that_are_cut_off…") else {
        return;
    };
    let whole = std::fs::read(workshop.program("program")).unwrap();
    let stack = some_offsets(whole.len() as u64);
    for length in (0..whole.len()).step_by(whole.len() / 60 + 1) {
        let file = file_of(&whole[..length]);
        let frames = mapped_whole(file, whole.len() as u64, plain()).resolve_stack(&stack);
        assert!(frames.len() >= stack.len());
    }
}

#[test]
fn files_with_wrong_bytes_neither_panic_nor_hang() {
    let Some(workshop) = Workshop::open("broken::files_with_wrong_bytes…") else {
        return;
    };
    let whole = std::fs::read(workshop.program("program")).unwrap();
    let length = whole.len() as u64;
    let stack = some_offsets(length);
    let limits = Limits {
        patience: Duration::from_secs(5),
        ..Limits::default()
    };
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..150 {
        let mut bytes = whole.clone();
        // From one wrong byte to some dozens, anywhere after the first ones,
        // without which it would not be taken for an ELF file at all.
        for _ in 0..=(round % 40) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let position = 16 + (random >> 8) as usize % (bytes.len() - 16);
            bytes[position] = random as u8;
        }
        let options = Options { limits, ..plain() };
        let frames = mapped_whole(file_of(&bytes), length, options).resolve_stack(&stack);
        assert!(frames.len() >= stack.len());
    }
}

#[test]
fn a_reader_that_panics_is_replaced_and_the_file_trusted_less() {
    let Some(workshop) = Workshop::open("broken::a_reader_that_panics…") else {
        return;
    };
    let program = workshop.program("program");
    let target = Target::start(&program, &[]);
    let mut symbolizer = target.symbolizer(plain());
    let main = target.address("main");
    let location = symbolizer.space.resolve(main).unwrap();
    let index = location.file.0 as usize;
    symbolizer.distrust(index, Failure::Died);
    let frames = symbolizer.resolve_stack(&[main]);
    assert_eq!((name(&frames[0]), frames[0].line), ("main", None));
    symbolizer.files[index].resolved.clear();
    symbolizer.distrust(index, Failure::Late);
    let frames = symbolizer.resolve_stack(&[main]);
    assert_eq!(frames[0].symbol, None);
    assert_eq!(frames[0].module.as_deref(), program.to_str());
    let notes = symbolizer.notes();
    assert_eq!(notes.len(), 2);
    assert!(
        notes[0].starts_with("The debug information of"),
        "{}",
        notes[0]
    );
    assert!(notes[1].contains("taking too long"), "{}", notes[1]);
}

#[test]
fn a_reader_that_takes_too_long_is_left_behind() {
    let Some(workshop) = Workshop::open("broken::a_reader_that_takes_too_long…") else {
        return;
    };
    let program = workshop.program("program");
    let bytes = std::fs::read(&program).unwrap();
    let limits = Limits {
        patience: Duration::ZERO,
        ..Limits::default()
    };
    let mut symbolizer = mapped_whole(
        file_of(&bytes),
        bytes.len() as u64,
        Options { limits, ..plain() },
    );
    let started = Instant::now();
    let frames = symbolizer.resolve_stack(&some_offsets(bytes.len() as u64));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(
        frames
            .iter()
            .all(|frame| frame.module.as_deref() == Some("/broken"))
    );
    assert!(
        symbolizer.notes()[0].contains("taking too long"),
        "{:?}",
        symbolizer.notes()
    );
}

#[test]
fn two_gib_of_debug_information_are_left_alone_and_said_so() {
    let Some(workshop) = Workshop::open("broken::two_gib_of_debug_information…") else {
        return;
    };
    let program = workshop.program("program");
    // The section moves behind the end of the file, which grows without being
    // written.
    let mut bytes = std::fs::read(&program).unwrap();
    let (end, size) = (bytes.len() as u64, 2_u64 << 30);
    let headers = u64::from_le_bytes(bytes[0x28..0x30].try_into().unwrap()) as usize;
    let index = {
        use object::{Object as _, ObjectSection as _};
        let file = object::File::parse(&*bytes).unwrap();
        file.section_by_name(".debug_info").unwrap().index().0
    };
    let header = headers + index * 64;
    bytes[header + 0x18..header + 0x20].copy_from_slice(&end.to_le_bytes());
    bytes[header + 0x20..header + 0x28].copy_from_slice(&size.to_le_bytes());
    std::fs::write(&program, &bytes).unwrap();
    let file = File::options().write(true).open(&program).unwrap();
    file.set_len(end + size).unwrap();
    drop(file);

    let target = Target::start(&program, &[]);
    let mut symbolizer = target.symbolizer(plain());
    let started = Instant::now();
    let frames = symbolizer.resolve_stack(&[target.address("main")]);
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!((name(&frames[0]), frames[0].line), ("main", None));
    let [note] = symbolizer.notes() else {
        panic!("{:?}", symbolizer.notes())
    };
    assert!(note.contains("has 2049 MiB of debug information"), "{note}");
}
