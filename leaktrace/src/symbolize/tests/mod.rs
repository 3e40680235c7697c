//! Real programs, compiled here, run, looked into, and ended before their
//! addresses are resolved.

mod broken;
mod fetched;
mod separate;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::target::{Process, mapped_file::open_executable_files, mapping::read_mappings};

use super::*;

const PROGRAM: &str = include_str!("program.c");
const LIBRARY: &str = include_str!("library.cpp");
/// Keeps functions in order and next to each other (see `program.c`).
const LAYOUT: [&str; 4] = [
    "-fno-toplevel-reorder",
    "-fno-reorder-functions",
    "-falign-functions=1",
    "-O2",
];

/// A directory with compiled fixtures.
struct Workshop(TempDir);

impl Workshop {
    /// `None`, and a line that says so, when there is no compiler.
    fn open(test: &str) -> Option<Self> {
        for tool in ["gcc", "g++", "strip", "objcopy"] {
            let found = Command::new(tool)
                .arg("--version")
                .stdout(Stdio::null())
                .status();
            if !found.is_ok_and(|status| status.success()) {
                not_run(test, &format!("{tool} is not installed"));
                return None;
            }
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, tool: &str, arguments: &[&str]) {
        if let Err(errors) = self.try_to_run(tool, arguments) {
            panic!("{tool} {arguments:?}: {errors}");
        }
    }

    /// The error is what it said.
    fn try_to_run(&self, tool: &str, arguments: &[&str]) -> Result<(), String> {
        let output = Command::new(tool)
            .current_dir(&self.0)
            .args(arguments)
            .output()
            .map_err(|error| error.to_string())?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(errors)
    }

    /// The program, with debug information.
    fn program(&self, name: &str) -> PathBuf {
        std::fs::write(self.path("program.c"), PROGRAM).unwrap();
        let arguments = [
            &["-g", "program.c", "-o", name, "-Wl,--build-id"],
            &LAYOUT[..],
        ]
        .concat();
        self.run("gcc", &arguments);
        self.path(name)
    }

    /// The library, with debug information.
    fn library(&self, name: &str) -> PathBuf {
        std::fs::write(self.path("library.cpp"), LIBRARY).unwrap();
        let flags = ["-g", "-shared", "-fPIC", "library.cpp", "-o", name];
        self.run("g++", &[&flags[..], &LAYOUT[..]].concat());
        self.path(name)
    }
}

fn not_run(test: &str, reason: &str) {
    crate::testing::not_run(module_path!(), test, reason);
}

/// A program that ran and said what is where. It is ended when this is dropped.
struct Target {
    child: Child,
    addresses: Vec<(String, u64)>,
    mappings: Vec<Mapping>,
    files: Vec<Arc<MappedFile>>,
}

impl Target {
    fn start(program: &Path, libraries: &[&Path]) -> Self {
        let mut child = Command::new(program)
            .args(libraries)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut addresses = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let (name, address) = line.split_once(' ').unwrap();
            if name == "end" {
                break;
            }
            let digits = address.replace("(nil)", "0");
            let digits = digits.trim_start_matches("0x");
            addresses.push((name.to_owned(), u64::from_str_radix(digits, 16).unwrap()));
        }
        let process = Process::open(child.id()).unwrap();
        let mappings = read_mappings(&process).unwrap();
        let (files, problems) = open_executable_files(&process, &mappings);
        assert!(problems.is_empty(), "{problems:?}");
        Self {
            child,
            addresses,
            mappings,
            files,
        }
    }

    fn address(&self, name: &str) -> u64 {
        self.addresses
            .iter()
            .find(|(known, _)| known == name)
            .unwrap()
            .1
    }

    /// Ends the program; what was learned of it stays.
    fn end(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }

    fn symbolizer(&self, options: Options) -> Symbolizer {
        let mut symbolizer = Symbolizer::new(options, Arc::default());
        symbolizer.update(&self.mappings, &self.files);
        symbolizer
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Symbolizer {
    /// A stack given as addresses: the places of its calls.
    fn located(&mut self, addresses: &[u64]) -> Vec<FrameWord> {
        let mut frames: Vec<_> = addresses.iter().copied().map(FrameWord).collect();
        self.locate(&mut frames);
        for caller in frames.iter_mut().skip(1) {
            *caller = caller.before();
        }
        frames
    }

    fn resolve_addresses(&mut self, addresses: &[u64]) -> Arc<[Frame]> {
        let frames = self.located(addresses);
        self.resolve_stack(&frames)
    }

    fn begins_thread_at(&mut self, addresses: &[u64]) -> bool {
        let places = self.located(addresses);
        self.begins_thread(*places.last().unwrap())
    }
}

/// No wrappers, and no debug files of the machine that this runs on.
fn plain() -> Options {
    Options {
        debug_directories: Vec::new(),
        ..Options::new(|_| false)
    }
}

fn name(frame: &Frame) -> &str {
    frame.symbol.as_deref().unwrap_or("?")
}

/// The line of the program's source that has this in it.
fn line_of(source: &str, text: &str) -> Option<u32> {
    source
        .lines()
        .position(|line| line.contains(text))
        .map(|index| index as u32 + 1)
}

#[test]
fn inlined_functions_and_lines_are_resolved_after_the_program_ended_and_was_deleted() {
    let Some(workshop) = Workshop::open("inlined_functions_and_lines…") else {
        return;
    };
    let program = workshop.program("program");
    let mut target = Target::start(&program, &[]);
    let mut symbolizer = target.symbolizer(plain());
    target.end();
    std::fs::remove_file(&program).unwrap();

    let malloc = target.address("malloc");
    let frames = symbolizer.resolve_addresses(&[malloc, target.address("in_innermost")]);
    let names: Vec<&str> = frames.iter().map(name).collect();
    assert_eq!(names, ["malloc", "innermost", "middle", "outer_function"]);
    let inlined: Vec<bool> = frames.iter().map(|frame| frame.inlined).collect();
    assert_eq!(inlined, [false, true, true, false]);
    let lines: Vec<Option<u32>> = frames[1..].iter().map(|frame| frame.line).collect();
    let expected =
        ["line of innermost", "line of middle", "line of outer"].map(|text| line_of(PROGRAM, text));
    assert_eq!(lines, expected);
    for frame in &frames[1..] {
        assert_eq!(frame.module.as_deref(), program.to_str());
        assert_eq!(frame.source.as_deref(), workshop.path("program.c").to_str());
        assert_eq!(frame.build_id.as_deref().map(str::len), Some(40));
        assert_eq!(frame.kind, FrameKind::Program);
    }
    assert_eq!(frames[0].kind, FrameKind::Allocator);
    assert_eq!(frames[0].symbol_offset, 0);
    assert!(symbolizer.notes().is_empty(), "{:?}", symbolizer.notes());

    let mut compiled = target.symbolizer(Options {
        inlined: false,
        ..plain()
    });
    let frames = compiled.resolve_addresses(&[malloc, target.address("in_innermost")]);
    assert_eq!(frames.len(), 2);
    assert_eq!(name(&frames[1]), "outer_function");
    assert_eq!(frames[1].line, line_of(PROGRAM, "line of outer"));
    assert!(!frames[1].inlined);
}

#[test]
fn a_call_that_ends_a_function_belongs_to_it_and_not_to_the_next() {
    let Some(workshop) = Workshop::open("a_call_that_ends_a_function…") else {
        return;
    };
    let target = Target::start(&workshop.program("program"), &[]);
    let return_address = target.address("after_last_call");
    assert_eq!(
        return_address,
        target.address("comes_after"),
        "the fixture's layout"
    );
    let mut symbolizer = target.symbolizer(plain());
    let frames = symbolizer.resolve_addresses(&[target.address("malloc"), return_address]);
    assert_eq!(name(&frames[1]), "ends_with_a_call");
    assert_eq!(frames[1].line, line_of(PROGRAM, "line of the last call"));
    // As the probed instruction, it is taken as it is.
    let frames = symbolizer.resolve_addresses(&[return_address]);
    assert_eq!(
        (name(&frames[0]), frames[0].symbol_offset),
        ("comes_after", 0)
    );
}

#[test]
fn a_stripped_file_shows_only_what_its_dynamic_symbols_say() {
    let Some(workshop) = Workshop::open("a_stripped_file…") else {
        return;
    };
    let program = workshop.program("program");
    workshop.run("strip", &["--strip-all", "program"]);
    let library = workshop.library("library.so");
    workshop.run("strip", &["--strip-all", "library.so"]);
    let target = Target::start(&program, &[&library]);
    let mut symbolizer = target.symbolizer(plain());
    let stack = [
        target.address("exported"),
        target.address("hidden") + 1,
        target.address("outer_function") + 1,
    ];
    let frames = symbolizer.resolve_addresses(&stack);
    assert_eq!(frames.len(), 3);
    assert_eq!(name(&frames[0]), "exported");
    for (frame, module) in [(&frames[1], &library), (&frames[2], &program)] {
        assert_eq!(
            (&frame.symbol, &frame.source, frame.line),
            (&None, &None, None)
        );
        assert_eq!(frame.module.as_deref(), module.to_str());
    }
    assert_eq!(
        frames[1].file_offset.abs_diff(frames[0].file_offset),
        target
            .address("hidden")
            .abs_diff(target.address("exported")),
        "offsets in the file are as far apart as the addresses"
    );
}

#[test]
fn names_are_demangled_and_wrappers_belong_to_the_allocator() {
    let Some(workshop) = Workshop::open("names_are_demangled…") else {
        return;
    };
    let library = workshop.library("library.so");
    let target = Target::start(&workshop.program("program"), &[&library]);
    let options = Options {
        is_allocation_wrapper: |name| name.starts_with("(anonymous") || name == "comes_after",
        ..plain()
    };
    let mut symbolizer = target.symbolizer(options);
    let hidden = target.address("hidden") + 1;
    let after = target.address("comes_after") + 1;
    let frames = symbolizer.resolve_addresses(&[
        target.address("malloc"),
        hidden,
        hidden,
        target.address("main") + 1,
        after,
    ]);
    let found: Vec<(&str, FrameKind)> = frames
        .iter()
        .map(|frame| (name(frame), frame.kind))
        .collect();
    let wrapper = ("(anonymous namespace)::hidden(int)", FrameKind::Allocator);
    assert_eq!(
        found,
        [
            ("malloc", FrameKind::Allocator),
            wrapper,
            wrapper,
            ("main", FrameKind::Program),
            ("comes_after", FrameKind::Program),
        ],
        "only wrappers directly above the allocator count"
    );
}

#[test]
fn a_separate_debug_file_is_used_when_its_build_id_matches() {
    let Some(workshop) = Workshop::open("a_separate_debug_file…") else {
        return;
    };
    let program = workshop.program("program");
    workshop.run(
        "objcopy",
        &["--only-keep-debug", "program", "program.debug"],
    );
    workshop.run("strip", &["--strip-all", "program"]);
    workshop.run("objcopy", &["--add-gnu-debuglink=program.debug", "program"]);
    let target = Target::start(&program, &[]);
    let stack = [target.address("malloc"), target.address("in_innermost")];
    let names = |options: Options| -> Vec<String> {
        let frames = target.symbolizer(options).resolve_addresses(&stack);
        frames[1..]
            .iter()
            .map(|frame| name(frame).to_owned())
            .collect()
    };
    let all = ["innermost", "middle", "outer_function"];
    assert_eq!(names(plain()), all, "beside the file, by name");

    // In the target's root, by build id.
    let build_id = target.symbolizer(plain()).resolve_addresses(&stack)[1]
        .build_id
        .clone()
        .unwrap();
    let (first, rest) = build_id.split_at(2);
    let directory = workshop.path(&format!("root/debug/.build-id/{first}"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::rename(
        workshop.path("program.debug"),
        directory.join(format!("{rest}.debug")),
    )
    .unwrap();
    let in_root = Options {
        target_root: Some(workshop.path("root")),
        debug_directories: vec!["/debug".into()],
        ..plain()
    };
    assert_eq!(names(in_root.clone()), all);
    // As the target sees it, also by links.
    std::fs::rename(workshop.path("root/debug"), workshop.path("root/moved")).unwrap();
    std::os::unix::fs::symlink("/moved", workshop.path("root/debug")).unwrap();
    assert_eq!(names(in_root.clone()), all);
    assert_eq!(names(plain()), ["?"], "nowhere to be found");

    // Another program's.
    std::fs::write(workshop.path("other.c"), "int main(void) { return 0; }").unwrap();
    workshop.run("gcc", &["-g", "-Wl,--build-id", "other.c", "-o", "other"]);
    let directory = workshop.path(&format!("root/moved/.build-id/{first}"));
    std::fs::rename(
        workshop.path("other"),
        directory.join(format!("{rest}.debug")),
    )
    .unwrap();
    assert_eq!(names(in_root), ["?"]);
}

#[test]
fn compressed_debug_information_is_read() {
    let Some(workshop) = Workshop::open("compressed_debug_information…") else {
        return;
    };
    let program = workshop.program("program");
    let compress = |kind: &str, to: &str| {
        let option = format!("--compress-debug-sections={kind}");
        workshop.try_to_run("objcopy", &[&option, "program", to])
    };
    let lines_of = |program: &Path| {
        let target = Target::start(program, &[]);
        let stack = [target.address("malloc"), target.address("in_innermost")];
        let frames = target.symbolizer(plain()).resolve_addresses(&stack);
        assert_eq!(frames[1].line, line_of(PROGRAM, "line of innermost"));
    };
    // Older tools know only zlib.
    if compress("zstd", "zstd").is_ok() {
        lines_of(&workshop.path("zstd"));
    }
    compress("zlib", "program").unwrap();
    lines_of(&program);
    let target = Target::start(&program, &[]);
    let stack = [target.address("malloc"), target.address("in_innermost")];
    // And left alone when it would take too much memory, which is said.
    let limits = Limits {
        unpacked: 100,
        ..Limits::default()
    };
    let mut symbolizer = target.symbolizer(Options { limits, ..plain() });
    let frames = symbolizer.resolve_addresses(&stack);
    assert_eq!((name(&frames[1]), frames[1].line), ("outer_function", None));
    let [note] = &symbolizer.notes()[..] else {
        panic!("{:?}", symbolizer.notes())
    };
    assert!(note.contains("compressed debug information"), "{note}");
}

#[test]
fn split_debug_information_is_read_from_a_package_and_told_without() {
    let Some(workshop) = Workshop::open("split_debug_information…") else {
        return;
    };
    let names = || -> (Vec<String>, Vec<String>) {
        let target = Target::start(&workshop.path("program"), &[]);
        let mut symbolizer = target.symbolizer(plain());
        let stack = [target.address("malloc"), target.address("in_innermost")];
        let frames = symbolizer.resolve_addresses(&stack);
        assert_eq!(frames[1].line, line_of(PROGRAM, "line of innermost"));
        let names = frames[1..].iter().map(|frame| name(frame).to_owned());
        (names.collect(), symbolizer.notes().to_vec())
    };
    std::fs::write(workshop.path("program.c"), PROGRAM).unwrap();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let split = ["-g", version, "-gsplit-dwarf", "program.c", "-o", "program"];
        workshop.run("gcc", &[&split[..], &LAYOUT[..]].concat());
        let _ = std::fs::remove_file(workshop.path("program.dwp"));
        let (found, notes) = names();
        assert_eq!(found, ["outer_function"], "{version}");
        assert!(
            matches!(&notes[..], [note] if note.contains("is in .dwo files") && note.contains("dwp -e")),
            "{version}: {notes:?}"
        );
        // That of binutils knows no DWARF 5, and LLVM's does not end.
        let made = workshop.try_to_run("dwp", &["-e", "program", "-o", "program.dwp"]);
        if made.is_err() {
            not_run(
                "split_debug_information…",
                &format!("dwp can't pack {version}"),
            );
            continue;
        }
        let (found, notes) = names();
        assert_eq!(
            found,
            ["innermost", "middle", "outer_function"],
            "{version}"
        );
        assert!(notes.is_empty(), "{version}: {notes:?}");
    }
}

#[test]
fn debug_information_that_grows_too_much_is_given_up_with_a_note() {
    let Some(workshop) = Workshop::open("debug_information_that_grows…") else {
        return;
    };
    let target = Target::start(&workshop.program("program"), &[]);
    // Nothing may stay, and nothing may be begun anew.
    let limits = Limits {
        growth: 0,
        restarts: 0,
        ..Limits::default()
    };
    let mut symbolizer = target.symbolizer(Options { limits, ..plain() });
    let main = target.address("main");
    let stack: Vec<u64> = (main..main + 64).collect();
    let frames = symbolizer.resolve_addresses(&stack);
    let mains: Vec<&Frame> = frames.iter().filter(|frame| !frame.inlined).collect();
    assert!(mains.iter().all(|frame| name(frame) == "main"));
    assert!(
        mains[0].line.is_some(),
        "looked up before memory was looked at"
    );
    assert_eq!(mains[63].line, None);
    let [note] = &symbolizer.notes()[..] else {
        panic!("{:?}", symbolizer.notes())
    };
    assert!(note.contains("too much memory"), "{note}");
}

#[test]
fn memory_without_a_file_keeps_its_address_and_special_mappings_their_names() {
    let Some(workshop) = Workshop::open("memory_without_a_file…") else {
        return;
    };
    let target = Target::start(&workshop.program("program"), &[]);
    let mut symbolizer = target.symbolizer(plain());
    let heap = target.address("on_the_heap");
    let vdso = target
        .mappings
        .iter()
        .find(|mapping| mapping.is_special("[vdso]"))
        .unwrap();
    let functions = symbolizer.resolve_addresses(&(vdso.start..vdso.end).collect::<Vec<u64>>());
    let in_vdso: Vec<&str> = functions
        .iter()
        .filter(|frame| frame.symbol.is_some())
        .map(name)
        .collect();
    assert!(in_vdso.contains(&"clock_gettime"), "{in_vdso:?}");
    assert!(
        functions
            .iter()
            .all(|frame| frame.module.as_deref() == Some("[vdso]"))
    );

    let main = target.address("main");
    let mut known = [main, vdso.start + 8].map(FrameWord);
    assert!(symbolizer.locate(&mut known));
    assert!(known.iter().all(|frame| frame.file() != 0));
    assert_eq!(known[1].offset(), 8);
    let mut half = [main, heap].map(FrameWord);
    assert!(!symbolizer.locate(&mut half));
    assert_eq!(half, [known[0], FrameWord(heap)]);
    assert!(symbolizer.locate(&mut known), "what is located stays");
    let frames = symbolizer.resolve_addresses(&[heap, 0]);
    assert_eq!((&frames[0].module, frames[0].file_offset), (&None, heap));
    assert_eq!((&frames[1].module, frames[1].file_offset), (&None, 0));
}

#[test]
fn of_libcs_functions_the_plain_names_are_shown() {
    let Some(workshop) = Workshop::open("of_libcs_functions…") else {
        return;
    };
    let target = Target::start(&workshop.program("program"), &[]);
    let mut symbolizer = target.symbolizer(Options::new(|_| false));
    let frames = symbolizer.resolve_addresses(&[target.address("malloc")]);
    assert_eq!(
        name(&frames[0]),
        "malloc",
        "and not __libc_malloc, at the same address"
    );
}

#[test]
fn threads_begin_at_the_entry_point_and_in_clone_also_without_names() {
    let Some(workshop) = Workshop::open("threads_begin_at…") else {
        return;
    };
    let program = workshop.program("program");
    workshop.run("strip", &["--strip-all", "program"]);
    let target = Target::start(&program, &[]);
    let mut symbolizer = target.symbolizer(plain());
    let [malloc, main] = ["malloc", "main"].map(|name| target.address(name));
    // glibc's `_start` calls `__libc_start_main` 0x1b to 0x26 bytes on.
    assert!(symbolizer.begins_thread_at(&[malloc, target.address("start") + 0x21]));
    assert!(!symbolizer.begins_thread_at(&[malloc, main + 4]));
    assert!(!symbolizer.begins_thread_at(&[malloc]));
    let in_clone = target.address("in_clone");
    assert!(
        in_clone != 0,
        "not found on the stack: another libc's code?"
    );
    assert!(symbolizer.begins_thread_at(&[malloc, main + 4, in_clone]));
}
