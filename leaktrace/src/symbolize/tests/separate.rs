//! Symbols that are not in the file that is mapped, or not as usual.

use super::*;

/// Whether these tools are there; a line says so when not.
fn has(tools: &[&str], test: &str) -> bool {
    let missing = |tool: &&&str| {
        let found = Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        !found.is_ok_and(|status| status.success())
    };
    match tools.iter().find(missing) {
        Some(tool) => not_run(test, &format!("{tool} is not installed")),
        None => return true,
    }
    false
}

/// The names of the frames above `malloc`, and what is said of them.
fn names_of(target: &Target, options: Options, callers: &[&str]) -> (Vec<String>, Vec<String>) {
    let mut symbolizer = target.symbolizer(options);
    let mut stack = vec![target.address("malloc")];
    // As return addresses, in the function.
    stack.extend(callers.iter().map(|name| target.address(name) + 1));
    let frames = symbolizer.resolve_addresses(&stack);
    let names = frames[1..].iter().map(|frame| name(frame).to_owned());
    (names.collect(), symbolizer.notes().to_vec())
}

const CALLERS: [&str; 2] = ["exported", "hidden"];
const HIDDEN: &str = "(anonymous namespace)::hidden(int)";

/// Strips the library as Fedora does: symbols that are not dynamic remain in a
/// compressed section.
fn strip_to_mini_debug_info(workshop: &Workshop) {
    let script = "set -e
        nm -D library.so --format=posix --defined-only | cut -d' ' -f1 | sort > dynamic
        nm library.so --format=posix --defined-only |
            grep ' [tT] ' | cut -d' ' -f1 | sort > functions
        comm -13 dynamic functions > keep
        objcopy --only-keep-debug library.so whole
        objcopy -S --remove-section .comment --keep-symbols=keep whole mini
        strip --strip-all library.so
        cp library.so bare.so
        rm -f mini.xz
        xz -9 mini
        objcopy --add-section .gnu_debugdata=mini.xz library.so";
    workshop.run("sh", &["-c", script]);
}

#[test]
fn mini_debug_information_names_functions_that_are_not_exported() {
    const TEST: &str = "mini_debug_information…";
    let Some(workshop) = Workshop::open(TEST) else {
        return;
    };
    if !has(&["xz", "nm", "comm"], TEST) {
        return;
    }
    let program = workshop.program("program");
    let library = workshop.library("library.so");
    strip_to_mini_debug_info(&workshop);
    let target = Target::start(&program, &[&library]);
    let (names, notes) = names_of(&target, plain(), &CALLERS);
    assert_eq!(names, ["exported", HIDDEN]);
    assert!(notes.is_empty(), "{notes:?}");
    let mut symbolizer = target.symbolizer(plain());
    let hidden = target.address("hidden") + 3;
    let frames = symbolizer.resolve_addresses(&[target.address("malloc"), hidden]);
    assert_eq!((frames[1].symbol_offset, frames[1].line), (2, None));

    // A whole debug file is better.
    std::fs::create_dir(workshop.path(".debug")).unwrap();
    std::fs::rename(workshop.path("whole"), workshop.path(".debug/whole")).unwrap();
    let link = "--add-gnu-debuglink=.debug/whole";
    workshop.run("objcopy", &[link, "library.so", "linked.so"]);
    let target = Target::start(&program, &[&workshop.path("linked.so")]);
    let mut symbolizer = target.symbolizer(plain());
    let hidden = target.address("hidden") + 1;
    let frames = symbolizer.resolve_addresses(&[target.address("malloc"), hidden]);
    assert_eq!(name(&frames[1]), HIDDEN);
    assert_eq!(frames[1].line, line_of(LIBRARY, "value * 7"));
}

#[test]
fn mini_debug_information_that_is_broken_or_far_too_large_is_left_alone() {
    const TEST: &str = "mini_debug_information_that_is_broken…";
    let Some(workshop) = Workshop::open(TEST) else {
        return;
    };
    if !has(&["xz", "nm", "comm", "head"], TEST) {
        return;
    }
    let program = workshop.program("program");
    workshop.library("library.so");
    strip_to_mini_debug_info(&workshop);
    let look = |section: &str, says: &str| {
        let add = format!("--add-section=.gnu_debugdata={section}");
        workshop.run("objcopy", &[&add, "bare.so", "bad.so"]);
        let target = Target::start(&program, &[&workshop.path("bad.so")]);
        let (names, notes) = names_of(&target, plain(), &CALLERS);
        assert_eq!(names, ["exported", "?"], "{section}");
        let matches =
            matches!(&notes[..], [note] if note.contains("mini-debug-info") && note.contains(says));
        assert!(matches, "{section}: {notes:?}");
    };
    std::fs::write(workshop.path("garbage"), [0x5a; 5000]).unwrap();
    look("garbage", "can't be unpacked");
    let whole = std::fs::read(workshop.path("mini.xz")).unwrap();
    std::fs::write(workshop.path("half"), &whole[..whole.len() / 2]).unwrap();
    look("half", "can't be unpacked");
    workshop.run("sh", &["-c", "head -c 1G /dev/zero | xz -1 > bomb"]);
    look("bomb", "more than 64 MiB");
}

#[test]
fn debug_information_that_files_share_is_read_and_its_lack_told() {
    const TEST: &str = "debug_information_that_files_share…";
    let Some(workshop) = Workshop::open(TEST) else {
        return;
    };
    if !has(&["dwz"], TEST) {
        return;
    }
    let program = workshop.program("program");
    workshop.run("cp", &["program", "other"]);
    let shared = workshop.path("shared.dwz");
    workshop.run("dwz", &["-m", shared.to_str().unwrap(), "program", "other"]);
    let look = |options: Options| {
        let target = Target::start(&program, &[]);
        let stack = [target.address("malloc"), target.address("in_innermost")];
        let mut symbolizer = target.symbolizer(options);
        let frames = symbolizer.resolve_addresses(&stack);
        let names = frames[1..].iter().map(|frame| name(frame).to_owned());
        let lines = frames[1..].iter().map(|frame| frame.line);
        (
            names.collect::<Vec<_>>(),
            lines.collect::<Vec<_>>(),
            symbolizer.notes().to_vec(),
        )
    };
    let all = ["innermost", "middle", "outer_function"];
    let lines =
        ["line of innermost", "line of middle", "line of outer"].map(|text| line_of(PROGRAM, text));
    // By the path that is in the program.
    let (names, found, notes) = look(plain());
    assert_eq!(
        (&names[..], &found[..]),
        (&all.map(String::from)[..], &lines[..])
    );
    assert!(notes.is_empty(), "{notes:?}");

    // Compressed, as Debian's are.
    for file in ["program", "shared.dwz"] {
        workshop.run("objcopy", &["--compress-debug-sections=zlib", file]);
    }
    let (names, found, notes) = look(plain());
    assert_eq!(
        (&names[..], &found[..]),
        (&all.map(String::from)[..], &lines[..])
    );
    assert!(notes.is_empty(), "{notes:?}");

    // By build id, in the target's root.
    let build_id = {
        let bytes = std::fs::read(&program).unwrap();
        let image = elf_image::ElfImage::parse(&bytes).unwrap();
        debug_file::hexadecimal(&image.shared_debug.unwrap().build_id)
    };
    let (first, rest) = build_id.split_at(2);
    let directory = workshop.path(&format!("root/debug/.build-id/{first}"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::rename(&shared, directory.join(format!("{rest}.debug"))).unwrap();
    let in_root = Options {
        target_root: Some(workshop.path("root")),
        debug_directories: vec!["/debug".into()],
        ..plain()
    };
    let (names, found, notes) = look(in_root);
    assert_eq!(
        (&names[..], &found[..]),
        (&all.map(String::from)[..], &lines[..])
    );
    assert!(notes.is_empty(), "{notes:?}");

    // Nowhere, or another one at its path: nothing wrong, and it is said.
    for other in [None, Some("program")] {
        if let Some(other) = other {
            std::fs::copy(workshop.path(other), &shared).unwrap();
        }
        let (names, found, notes) = look(plain());
        assert_eq!(names, ["?", "?", "outer_function"], "{other:?}");
        assert_eq!(found, lines, "{other:?}");
        assert!(
            matches!(&notes[..], [note] if note.contains("shared.dwz")),
            "{other:?}: {notes:?}"
        );
    }
}

#[test]
fn only_regular_files_are_opened_as_debug_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("plain"), b"x").unwrap();
    let pipe = path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let search = debug_file::SearchPath::new(None, Vec::new(), None).unwrap();
    let holder = std::fs::File::open(path("plain")).unwrap();
    let shared = |path: PathBuf| elf_image::SharedDebug {
        path,
        build_id: vec![1; 20],
    };
    // A writer that waits for a reader would get through if it was opened.
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let watched = pipe.clone();
    let writer = std::thread::spawn(move || {
        while stopped.try_recv().is_err() {
            if rustix::fs::open(&watched, flags, rustix::fs::Mode::empty()).is_ok() {
                return true;
            }
        }
        false
    });
    for _ in 0..1000 {
        assert!(search.find_shared(&shared(pipe.clone()), &holder).is_none());
    }
    stop.send(()).unwrap();
    assert!(!writer.join().unwrap(), "the pipe was opened");
}

#[test]
fn what_eu_strip_splits_is_put_together_again() {
    const TEST: &str = "what_eu_strip_splits…";
    let Some(workshop) = Workshop::open(TEST) else {
        return;
    };
    if !has(&["eu-strip"], TEST) {
        return;
    }
    let program = workshop.program("program");
    workshop.run("eu-strip", &["-f", "program.debug", "program"]);
    let target = Target::start(&program, &[]);
    let mut symbolizer = target.symbolizer(plain());
    let stack = [target.address("malloc"), target.address("in_innermost")];
    let frames = symbolizer.resolve_addresses(&stack);
    let names: Vec<&str> = frames[1..].iter().map(name).collect();
    assert_eq!(names, ["innermost", "middle", "outer_function"]);
    assert_eq!(frames[1].line, line_of(PROGRAM, "line of innermost"));
}

#[test]
fn files_that_were_replaced_while_mapped_keep_their_own_symbols() {
    let Some(workshop) = Workshop::open("files_that_were_replaced…") else {
        return;
    };
    // The same paths, and the same functions at other addresses with other names.
    let build = |generation: u32| {
        let rename =
            |source: &str, name: &str| source.replace(name, &format!("{name}_{generation}"));
        let padding = format!(
            "void padding(void) {{ __asm__(\".skip {}\"); }}\n",
            generation * 300
        );
        let program = rename(PROGRAM, "middle").replace(
            "extern char _start",
            &format!("{padding}extern char _start"),
        );
        // Not in the way of what runs.
        for name in ["program", "library.so"] {
            let _ = std::fs::remove_file(workshop.path(name));
        }
        std::fs::write(workshop.path("program.c"), program).unwrap();
        std::fs::write(
            workshop.path("library.cpp"),
            padding + &rename(LIBRARY, "Square"),
        )
        .unwrap();
        let common = ["-g", "-Wl,--build-id"];
        let program = [&common[..], &["program.c", "-o", "program"], &LAYOUT];
        workshop.run("gcc", &program.concat());
        let library = [
            &common[..],
            &["-shared", "-fPIC", "library.cpp", "-o", "library.so"],
            &LAYOUT,
        ];
        workshop.run("g++", &library.concat());
        // The library's are in a file beside it, which is replaced, too.
        workshop.run(
            "objcopy",
            &["--only-keep-debug", "library.so", "library.debug"],
        );
        let stripped = [
            "--strip-debug",
            "--add-gnu-debuglink=library.debug",
            "library.so",
        ];
        workshop.run("objcopy", &stripped);
        Target::start(&workshop.path("program"), &[&workshop.path("library.so")])
    };
    let first = build(1);
    let second = build(2);
    for name in ["program", "library.so"] {
        std::fs::remove_file(workshop.path(name)).unwrap();
    }
    for (generation, target) in [(1, &first), (2, &second)] {
        let mut symbolizer = target.symbolizer(plain());
        let exported = target.address("exported");
        let area: Vec<u64> = (exported - 40..exported).collect();
        let stack = [
            &[target.address("malloc"), target.address("in_innermost")],
            &area[..],
        ]
        .concat();
        let frames = symbolizer.resolve_addresses(&stack);
        let middle = format!("middle_{generation}");
        let names: Vec<&str> = frames[1..4].iter().map(name).collect();
        assert_eq!(names, ["innermost", &middle, "outer_function"]);
        assert_eq!(frames[2].line, line_of(PROGRAM, "line of middle"));
        let square = format!("shapes::Square_{generation}::area(int)");
        assert!(frames.iter().any(|frame| name(frame) == square), "{square}");
        let other = format!("_{}", 3 - generation);
        assert!(
            frames.iter().all(|frame| !name(frame).contains(&other)),
            "{other}"
        );
    }
}
