//! The prediction against the loader itself, which lists what it maps when
//! `LD_TRACE_LOADED_OBJECTS` is set (ldd(1)).

use std::{fs, os::unix::fs::PermissionsExt as _, process};

use super::*;

/// What the loader maps, by its own account, without itself.
fn by_loader(program: &Path, variables: &[(&str, &str)]) -> Vec<PathBuf> {
    let output = process::Command::new(program)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        // `libc.so.6 => /lib/libc.so.6 (0x…)`, or an absolute path alone.
        .filter_map(|line| line.split_once(" (0x").map(|(line, _)| line.trim()))
        .map(|line| line.split_once(" => ").map_or(line, |(_, path)| path))
        .filter(|path| path.starts_with('/') && !path.contains("/ld-linux"))
        .map(|path| fs::canonicalize(path).unwrap())
        .collect()
}

fn by_us(program: &Path, variables: &[(&str, &str)]) -> Prediction {
    let mut command = Command::new(program.into(), vec![]);
    for (key, value) in variables {
        command.environment.retain(|(known, _)| known != key);
        command.environment.push(((*key).into(), (*value).into()));
    }
    predict(program, &LoaderContext::of(&command)).unwrap()
}

fn assert_same(program: &Path, variables: &[(&str, &str)]) {
    let prediction = by_us(program, variables);
    let libraries: Vec<_> = prediction
        .libraries
        .iter()
        .map(|path| fs::canonicalize(path).unwrap())
        .collect();
    assert_eq!(
        libraries,
        by_loader(program, variables),
        "{}",
        program.display()
    );
    assert_eq!(prediction.missing, Vec::<OsString>::new());
    assert!(!libraries.is_empty());
}

#[test]
fn for_programs_of_the_system_the_loader_agrees() {
    for name in [
        "sh",
        "bash",
        "python3",
        "perl",
        "gcc",
        "git",
        "curl",
        "ssh",
        "systemctl",
    ] {
        let command = Command::new(name.into(), vec![]);
        let Some(path) = command.resolve() else {
            continue;
        };
        let (program, _) = follow_scripts(&path).unwrap();
        assert_same(&program, &[]);
    }
}

#[test]
fn preloaded_libraries_come_first() {
    let libm = LdCache::system()
        .look_up(OsStr::new("libm.so.6"), &[])
        .map(Path::to_path_buf);
    let Some(libm) = libm else {
        eprintln!("not run: no /etc/ld.so.cache, or no libm in it");
        return;
    };
    let libm = libm.to_str().unwrap();
    let program = Path::new("/bin/true");
    assert_same(program, &[("LD_PRELOAD", libm)]);
    assert_same(program, &[("LD_PRELOAD", "libm.so.6")]);
    let prediction = by_us(program, &[("LD_PRELOAD", &format!("/no/such.so:{libm}"))]);
    assert_eq!(prediction.libraries[0], Path::new(libm));
    assert!(prediction.missing.is_empty());
}

/// Compiles with gcc; `None` when there is none.
fn gcc(directory: &Path, arguments: &[&str]) -> Option<()> {
    let status = process::Command::new("gcc")
        .current_dir(directory)
        .args(arguments)
        .status();
    match status {
        Ok(status) => {
            assert!(status.success(), "gcc {arguments:?}");
            Some(())
        }
        Err(error) => {
            eprintln!("not run: no gcc ({error})");
            None
        }
    }
}

/// A program that needs `libone.so`, which needs `libtwo.so`, of which there is
/// one in `a` and one in `b`; linked with these options.
fn fixture(directory: &Path, program: &[&str], one: &[&str]) -> Option<PathBuf> {
    for part in ["a", "b"] {
        fs::create_dir_all(directory.join(part)).unwrap();
    }
    fs::write(directory.join("two.c"), "int two(void) { return 2; }").unwrap();
    fs::write(
        directory.join("one.c"),
        "int two(void); int one(void) { return two(); }",
    )
    .unwrap();
    fs::write(
        directory.join("main.c"),
        "int one(void); int main(void) { return one(); }",
    )
    .unwrap();
    for place in ["a/libtwo.so", "b/libtwo.so"] {
        gcc(directory, &["-shared", "-fPIC", "-o", place, "two.c"])?;
    }
    let base = [
        "-shared",
        "-fPIC",
        "-o",
        "a/libone.so",
        "one.c",
        "-La",
        "-ltwo",
    ];
    gcc(directory, &[&base, one].concat())?;
    let base = [
        "-o",
        "main",
        "main.c",
        "-La",
        "-lone",
        "-Wl,--allow-shlib-undefined",
    ];
    gcc(directory, &[&base, program].concat())?;
    Some(directory.join("main"))
}

#[test]
fn rpath_holds_for_the_libraries_libraries_and_goes_before_the_variable() {
    let directory = tempfile::tempdir().unwrap();
    let options = [
        "-Wl,--disable-new-dtags",
        "-Wl,-rpath,$ORIGIN/b:${ORIGIN}/a",
    ];
    let Some(program) = fixture(directory.path(), &options, &[]) else {
        return;
    };
    assert_same(&program, &[]);
    let a = directory.path().join("a");
    assert_same(&program, &[("LD_LIBRARY_PATH", a.to_str().unwrap())]);
    let prediction = by_us(&program, &[("LD_LIBRARY_PATH", a.to_str().unwrap())]);
    assert!(
        prediction
            .libraries
            .iter()
            .any(|path| path.ends_with("b/libtwo.so"))
    );
}

#[test]
fn runpath_holds_for_its_own_file_only_and_goes_after_the_variable() {
    let directory = tempfile::tempdir().unwrap();
    let program_options = ["-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN/a"];
    let one_options = ["-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN/../b"];
    let Some(program) = fixture(directory.path(), &program_options, &one_options) else {
        return;
    };
    assert_same(&program, &[]);
    let prediction = by_us(&program, &[]);
    assert!(
        prediction
            .libraries
            .iter()
            .any(|path| path.ends_with("b/libtwo.so"))
    );
    let a = directory.path().join("a");
    assert_same(&program, &[("LD_LIBRARY_PATH", a.to_str().unwrap())]);

    // Without one of its own, the program's RUNPATH does not help libone.so.
    let Some(program) = fixture(directory.path(), &program_options, &[]) else {
        return;
    };
    assert_eq!(by_us(&program, &[]).missing, ["libtwo.so"]);
    assert!(
        !by_loader(&program, &[])
            .iter()
            .any(|path| path.ends_with("libtwo.so"))
    );
}

#[test]
fn a_library_for_another_processor_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let options = ["-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN/b:$ORIGIN/a"];
    let Some(program) = fixture(directory.path(), &options, &[]) else {
        return;
    };
    let other = directory.path().join("b/libtwo.so");
    let mut bytes = fs::read(&other).unwrap();
    // e_machine: AArch64.
    bytes[18..20].copy_from_slice(&183_u16.to_le_bytes());
    fs::write(&other, bytes).unwrap();
    assert_same(&program, &[]);
    assert!(
        by_us(&program, &[])
            .libraries
            .iter()
            .any(|path| path.ends_with("a/libtwo.so"))
    );
}

#[test]
fn a_static_program_maps_no_library() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("main.c"),
        "int main(void) { return 0; }",
    )
    .unwrap();
    if gcc(directory.path(), &["-static", "-o", "main", "main.c"]).is_none() {
        return;
    }
    let prediction = by_us(&directory.path().join("main"), &[]);
    assert!(prediction.is_static() && prediction.libraries.is_empty());
    assert_eq!(prediction.files().count(), 1);
}

#[test]
fn scripts_lead_to_their_interpreter() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let script = |name: &str, content: &str| {
        fs::write(at(name), content).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("inner", "#! /bin/sh -e\nexit 0\n");
    script("outer", &format!("#!{}\n", at("inner").display()));
    script("plain", "exit 0\n");
    script("endless", &format!("#!{}\n", at("endless").display()));

    let prediction = by_us(&at("outer"), &[]);
    assert_eq!(prediction.program, Path::new("/bin/sh"));
    assert_eq!(prediction.scripts, [at("outer"), at("inner")]);
    assert!(!prediction.is_static());
    assert_eq!(by_us(&at("plain"), &[]).program, Path::new("/bin/sh"));

    let error = predict(&at("endless"), &LoaderContext::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot run {}: scripts are nested too deeply, which the kernel refuses as well",
            at("endless").display()
        )
    );
}

#[test]
fn an_interpreter_s_name_ends_at_a_blank() {
    let name = |line: &str| interpreter_of(line.as_bytes()).map(|path| path.display().to_string());
    assert_eq!(name("#!/bin/sh\n").as_deref(), Some("/bin/sh"));
    assert_eq!(
        name("#! \t/usr/bin/env -S x y\n").as_deref(),
        Some("/usr/bin/env")
    );
    assert_eq!(name("#!\n/bin/sh"), None);
    assert_eq!(name("/bin/sh"), None);
}

#[test]
fn the_loader_s_variables_are_replaced() {
    let replaced = |text: &str| {
        expand(OsStr::new(text), Path::new("/opt/x"))
            .display()
            .to_string()
    };
    assert_eq!(replaced("$ORIGIN/../lib:${ORIGIN}"), "/opt/x/../lib:/opt/x");
    assert_eq!(replaced("/lib/$PLATFORM"), "/lib/x86_64");
    assert_eq!(replaced("/a/$LIBS/${ORIGIN/$"), "/a/$LIBS/${ORIGIN/$");
    assert!(replaced("/usr/$LIB").starts_with("/usr/lib"));
}

#[test]
fn what_is_no_program_is_an_error() {
    let error = predict(Path::new("/no/such/program"), &LoaderContext::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read /no/such/program: No such file or directory (os error 2)"
    );
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("broken");
    fs::write(&program, b"\x7fELF\x01\x01\x01").unwrap();
    let error = predict(&program, &LoaderContext::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot trace {}: it is a 32-bit file; leaktrace reads 64-bit ones only",
            program.display()
        )
    );
}
