//! Fixtures as other distributions would build them: with an old C library, with
//! musl, with functions that begin with `endbr64`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::build::{
    compile, compile_with, directory, fixture_source, library_flags, target_directory, with_library,
};

/// Where `cargo xtask test` puts the C library of Debian bullseye, 2.31, with what
/// compiling for it needs.
const OLD_LIBRARY: &str = "userspaces/bullseye";

/// Where libraries lie below a root directory.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// A root directory that has C fixture `name` at its top, and an old C library.
///
/// # Errors
/// That library was not fetched, or the fixture does not compile.
pub fn with_old_library(name: &str) -> Result<PathBuf> {
    let root = directory()?.join("old-library");
    let program = root.join(name);
    let libraries = root.join(LIBRARIES);
    if !libraries.is_dir() {
        let system = target_directory()?.join(OLD_LIBRARY);
        ensure!(
            system.is_dir(),
            "there is no C library of bullseye in {}: `cargo xtask test` fetches it",
            system.display()
        );
        let unfinished = root.join("unfinished");
        for dir in [&unfinished, &root.join("lib64")] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let copy = |library: &str, place: &Path| {
            let from = system.join(LIBRARIES).join(library);
            fs::copy(&from, place).with_context(|| format!("copying {}", from.display()))
        };
        let loader = "ld-linux-x86-64.so.2";
        copy(loader, &root.join("lib64").join(loader))?;
        for library in ["libc.so.6", "libpthread.so.0"] {
            copy(library, &unfinished.join(library))?;
        }
        fs::create_dir_all(root.join("lib"))?;
        fs::rename(&unfinished, &libraries).context("moving libraries into place")?;
    }
    let system = target_directory().unwrap_or_default().join(OLD_LIBRARY);
    let system = system.display();
    let development = format!("{system}/usr/{LIBRARIES}");
    // The compiler would take what lies beside itself.
    let flags = [
        format!("--sysroot={system}"),
        format!("-B{development}"),
        format!("-L{development}"),
    ];
    compile(&fixture_source(name), &program, &flags)?;
    Ok(root)
}

/// C fixture `name`, linked with musl.
///
/// # Errors
/// There is no `musl-gcc`, or the fixture does not compile.
pub fn with_musl(name: &str) -> Result<PathBuf> {
    let program = directory()?.join(format!("{name}-musl"));
    compile_with("musl-gcc", &fixture_source(name), &program, &[])?;
    Ok(program)
}

/// The same without any library that is loaded.
///
/// # Errors
/// As [`with_musl`].
pub fn with_static_musl(name: &str) -> Result<PathBuf> {
    let program = directory()?.join(format!("{name}-musl-static"));
    let flags = ["-static".to_owned()];
    compile_with("musl-gcc", &fixture_source(name), &program, &flags)?;
    Ok(program)
}

/// The fixture `custom` with its allocator, every function of which begins with
/// `endbr64`.
///
/// # Errors
/// It does not compile.
pub fn custom_with_landing_pads() -> Result<PathBuf> {
    let name = "fixturealloc";
    let protection = "-fcf-protection=full".to_owned();
    let dir = directory()?.join("landing-pads");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let library = dir.join(format!("lib{name}.so"));
    let mut flags = library_flags(name);
    flags.push(protection.clone());
    compile(&fixture_source(name), &library, &flags)?;
    let program = dir.join("custom");
    let mut flags = with_library(&library);
    flags.push(protection);
    compile(&fixture_source("custom"), &program, &flags)?;
    Ok(program)
}
