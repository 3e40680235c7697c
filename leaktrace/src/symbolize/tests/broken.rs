//! Files that are broken, on purpose or not.

use std::{fs::File, io::Write as _};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::*;

/// A symbolizer of one file, whose number is 1.
fn of_file(file: File, options: Options) -> Symbolizer {
    let file = CodeFile::new("/broken".into(), Some(Image::Own(Arc::new(file))));
    Symbolizer::new(options, Arc::new(Mutex::new(CodeFiles::of(file))))
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Offsets all over the code.
fn some_offsets(length: u64) -> Vec<FrameWord> {
    (0..length)
        .step_by(97)
        .map(|offset| FrameWord::in_file(1, offset))
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
        let frames = of_file(file, plain()).resolve_stack(&stack);
        assert!(frames.len() >= stack.len());
    }
}

/// A file's debug sections, in its bytes.
fn debug_sections(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let file = object::File::parse(bytes).unwrap();
    let debug = file
        .sections()
        .filter(|section| section.name().is_ok_and(|name| name.starts_with(".debug_")));
    debug
        .filter_map(|section| section.file_range())
        .map(|(start, size)| start as usize..(start + size) as usize)
        .collect()
}

/// Writes new content for a section behind the end of an ELF file's bytes, and
/// lets its header lead there. It has `size` bytes, though `content` may be
/// shorter.
fn replace_section(bytes: &mut Vec<u8>, name: &str, flags: u64, content: &[u8], size: u64) {
    let index = {
        let file = object::File::parse(&**bytes).unwrap();
        file.section_by_name(name).unwrap().index().0
    };
    let headers = u64::from_le_bytes(bytes[0x28..0x30].try_into().unwrap()) as usize;
    let header = headers + index * 64;
    let end = bytes.len() as u64;
    for (field, value) in [(0x08, flags), (0x18, end), (0x20, size)] {
        bytes[header + field..header + field + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes.extend(content);
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
    // Every third time anywhere after the first bytes, without which it would
    // not be taken for an ELF file at all, else in debug information.
    let in_debug: Vec<usize> = debug_sections(&whole).into_iter().flatten().collect();
    let anywhere: Vec<usize> = (16..whole.len()).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..300 {
        let mut bytes = whole.clone();
        let places = if round % 3 == 0 { &anywhere } else { &in_debug };
        // From one wrong byte to some dozens.
        for _ in 0..=(round % 40) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            bytes[places[(random >> 8) as usize % places.len()]] = random as u8;
        }
        let options = Options { limits, ..plain() };
        let frames = of_file(file_of(&bytes), options).resolve_stack(&stack);
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
    let number = FileNumber(symbolizer.located(&[main])[0].file());
    let path = program.to_str().unwrap();
    symbolizer.distrust(number, path, Failure::Died);
    let frames = symbolizer.resolve_addresses(&[main]);
    assert_eq!((name(&frames[0]), frames[0].line), ("main", None));
    symbolizer.known(number).resolved.clear();
    symbolizer.distrust(number, path, Failure::Late);
    let frames = symbolizer.resolve_addresses(&[main]);
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
    let limits = Limits::default();
    let short = Duration::from_secs(2);
    let long = Duration::from_secs(600);
    for (patience, file) in [(short, long), (long, short)] {
        is_left_behind(Limits {
            patience,
            file,
            ..limits
        });
    }
}

fn is_left_behind(limits: Limits) {
    let Some(workshop) = Workshop::open("broken::a_reader_that_takes_too_long…") else {
        return;
    };
    let target = Target::start(&workshop.program("program"), &[]);
    let mut symbolizer = target.symbolizer(Options { limits, ..plain() });
    let main = target.address("main");
    let _ = symbolizer.resolve_addresses(&[main]);
    let id = symbolizer.worker.as_ref().unwrap().process_id();
    let process = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    let status = || std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    while !status().contains("State:\tT") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let frames = symbolizer.resolve_addresses(&[main + 1]);
    assert_eq!(
        name(&frames[0]),
        "main",
        "another reader, without debug information"
    );
    assert_eq!(frames[0].line, None);
    let notes = symbolizer.notes();
    assert!(notes[0].contains("taking too long"), "{notes:?}");
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
    let size = 2_u64 << 30;
    replace_section(&mut bytes, ".debug_info", 0, &[], size);
    std::fs::write(&program, &bytes).unwrap();
    let file = File::options().write(true).open(&program).unwrap();
    file.set_len(bytes.len() as u64 + size).unwrap();
    drop(file);

    let target = Target::start(&program, &[]);
    let mut symbolizer = target.symbolizer(plain());
    let started = Instant::now();
    let frames = symbolizer.resolve_addresses(&[target.address("main")]);
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!((name(&frames[0]), frames[0].line), ("main", None));
    let [note] = &symbolizer.notes()[..] else {
        panic!("{:?}", symbolizer.notes())
    };
    assert!(note.contains("has 2049 MiB of debug information"), "{note}");
}

/// Resolves a function of a program whose debug information kills the reader,
/// and checks that it has its name all the same, and what is said.
fn is_named_without_debug_information(
    program: &Path,
    function: &str,
    address: impl Fn(&Target) -> u64,
) {
    let target = Target::start(program, &[]);
    let mut symbolizer = target.symbolizer(plain());
    let started = Instant::now();
    let frames = symbolizer.resolve_addresses(&[address(&target)]);
    assert_eq!((name(&frames[0]), frames[0].line), (function, None));
    assert_eq!(
        symbolizer.notes(),
        [format!(
            "The debug information of {} can't be used, being broken or too much: its functions are named \
             from its symbol table, without source lines.",
            program.display()
        )]
    );
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn compressed_debug_information_larger_than_it_says_kills_only_the_reader() {
    let Some(workshop) = Workshop::open("broken::compressed_debug_information_larger…") else {
        return;
    };
    let program = workshop.program("program");
    let mut bytes = std::fs::read(&program).unwrap();
    // `Elf64_Chdr`: zstd, 100 bytes when unpacked.
    let mut section = [2_u64, 100, 1].map(u64::to_le_bytes).concat();
    // A frame of zstd (RFC 8878, 3.1.1) with a window of 128 KiB.
    section.extend(b"\x28\xb5\x2f\xfd\x00\x38");
    // Blocks of one byte to be repeated 128 KiB times: 4 GiB in all.
    let repeated = ((128_u32 << 10) << 3 | 1 << 1).to_le_bytes();
    for _ in 0..32_768 {
        section.extend(&repeated[..3]);
        section.push(b'x');
    }
    let size = section.len() as u64;
    let compressed = u64::from(object::elf::SHF_COMPRESSED);
    replace_section(&mut bytes, ".debug_str", compressed, &section, size);
    std::fs::write(&program, &bytes).unwrap();
    is_named_without_debug_information(&program, "main", |target| target.address("main"));
}

/// A function with debug information (DWARF 4) that has half a million calls
/// inlined into each other.
const NESTED: &str = r#"
    .section .debug_line, "", @progbits
lines:
    .text
    .globl nested
    .type nested, @function
nested:
    .file 1 "nested.c"
    .loc 1 1
    .rept 32
    nop
    .endr
    .size nested, . - nested
    .section .debug_abbrev, "", @progbits
abbreviations:
    .byte 1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0x10, 0x17, 0, 0
    .byte 2, 0x2e, 1, 0x03, 0x08, 0x11, 0x01, 0x12, 0x07, 0, 0
    .byte 3, 0x1d, 1, 0x31, 0x13, 0x11, 0x01, 0x12, 0x07, 0, 0
    .byte 0
    .section .debug_info, "", @progbits
unit:
    .long end - begin
begin:
    .value 4
    .long abbreviations
    .byte 8
    .byte 1
    .quad nested, 32
    .long lines
function:
    .byte 2
    .string "nested"
    .quad nested, 32
    .rept 500000
    .byte 3
    .long function - unit
    .quad nested, 32
    .endr
    .rept 500002
    .byte 0
    .endr
end:
    .section .note.GNU-stack, "", @progbits
"#;

#[test]
fn calls_inlined_half_a_million_levels_deep_kill_only_the_reader() {
    let Some(workshop) = Workshop::open("broken::calls_inlined_half_a_million…") else {
        return;
    };
    std::fs::write(workshop.path("program.c"), PROGRAM).unwrap();
    std::fs::write(workshop.path("nested.s"), NESTED).unwrap();
    let arguments = [
        &["program.c", "nested.s", "-o", "program", "-no-pie"],
        &LAYOUT[..],
    ]
    .concat();
    workshop.run("gcc", &arguments);
    let program = workshop.path("program");
    let bytes = std::fs::read(&program).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let mut symbols = file.symbols();
    let nested = symbols
        .find(|symbol| symbol.name() == Ok("nested"))
        .unwrap();
    is_named_without_debug_information(&program, "nested", |_| nested.address());
}

#[test]
fn a_file_that_is_cut_short_while_it_is_read_gives_what_is_left() {
    let Some(workshop) = Workshop::open("broken::a_file_that_is_cut_short…") else {
        return;
    };
    let bytes = std::fs::read(workshop.program("program")).unwrap();
    let file = file_of(&bytes);
    let other_end = file.try_clone().unwrap();
    let length = bytes.len() as u64;
    let mut symbolizer = of_file(file, plain());
    let stack = some_offsets(length);
    // Now it's mapped and its headers are known.
    assert_eq!(symbolizer.resolve_stack(&stack[..1]).len(), 1);
    other_end.set_len(5000).unwrap();
    let frames = symbolizer.resolve_stack(&stack);
    assert!(frames.len() >= stack.len());
    let [note] = &symbolizer.notes()[..] else {
        panic!("{:?}", symbolizer.notes())
    };
    assert!(note.contains("was cut short while it was read"), "{note}");
}

#[test]
fn a_reader_that_was_killed_between_requests_is_started_anew() {
    let Some(workshop) = Workshop::open("broken::a_reader_that_was_killed…") else {
        return;
    };
    let target = Target::start(&workshop.program("program"), &[]);
    let mut symbolizer = target.symbolizer(plain());
    let main = target.address("main");
    let _ = symbolizer.resolve_addresses(&[main]);
    let id = symbolizer.worker.as_ref().unwrap().process_id();
    let process = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    // Still to be waited for, so nobody else has its id.
    while !symbolizer.worker.as_mut().unwrap().has_ended() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let frames = symbolizer.resolve_addresses(&[main + 1]);
    assert_eq!(name(&frames[0]), "main");
    assert!(frames[0].line.is_some(), "nothing says the file is bad");
    assert!(symbolizer.notes().is_empty(), "{:?}", symbolizer.notes());
}

#[test]
fn the_kernel_bounds_the_memory_of_the_reader() {
    let Some(workshop) = Workshop::open("broken::the_kernel_bounds…") else {
        return;
    };
    let target = Target::start(&workshop.program("program"), &[]);
    let mut symbolizer = target.symbolizer(plain());
    let _ = symbolizer.resolve_addresses(&[target.address("main")]);
    let id = symbolizer.worker.as_ref().unwrap().process_id();
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let data = limits
        .lines()
        .find(|line| line.starts_with("Max data size"))
        .unwrap();
    let memory = Limits::default().memory.to_string();
    assert_eq!(data.split_whitespace().nth(3), Some(&*memory), "{data}");
}
