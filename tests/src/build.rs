//! Compiles fixtures when a test first needs them, into `target/fixtures`, and
//! again only when their source has changed.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Every fixture that [`fixture`] can build, by source file.
pub const SOURCES: &[&str] = &[
    "badalloc.cpp",
    "altstack.c",
    "constructors.c",
    "custom.c",
    "deep.c",
    "family.cpp",
    "fibres.c",
    "futures.rs",
    "growing.go",
    "grows.c",
    "holders.c",
    "leaver.c",
    "mappings.c",
    "mixed.c",
    "partial.c",
    "rules.c",
    "sites.rs",
    "sleeper.c",
    "stacks.cpp",
    "strict.c",
    "tight.c",
];

/// Where fixtures lie that are built as somebody else would.
pub const BUILDS: &str = "builds";

/// Flags for C and C++: sites must be functions of their own, with frame
/// pointers, and calls must stay what the source says.
const C_FLAGS: &[&str] = &[
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fno-builtin",
    "-pthread",
];

/// What undoes these for code that is hard to unwind.
const NO_FRAME_POINTERS: [&str; 2] = ["-fomit-frame-pointer", "-foptimize-sibling-calls"];

/// What makes `truth.c`, linked into a program, stand before the C library's
/// functions.
const STANDS_BEFORE: &str = "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc";

/// A fixture as somebody else would build it.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// Its source file.
    pub source: &'static str,
    /// The compiler.
    pub compiler: &'static str,
    /// What the compiler is told in addition.
    pub flags: &'static [&'static str],
    /// Links `truth.c` into it: a library can't be preloaded.
    pub has_truth: bool,
}

impl Build {
    /// Path of the program, which is called `name`, built if need be.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let directory = directory()?.join(BUILDS);
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        hand_over(&directory)?;
        let mut flags: Vec<String> = Vec::new();
        if self.compiler != "rustc" {
            flags.extend(NO_FRAME_POINTERS.map(String::from));
        }
        flags.extend(self.flags.iter().copied().map(String::from));
        if self.has_truth {
            let truth = directory.join("truth.o");
            let as_object = ["-c", "-DSTATIC"].map(String::from);
            compile(&fixture_source("truth"), &truth, &as_object)?;
            flags.extend([truth.display().to_string(), STANDS_BEFORE.to_owned()]);
        }
        let program = directory.join(name);
        compile_with(
            self.compiler,
            &sources().join(self.source),
            &program,
            &flags,
        )?;
        Ok(program)
    }
}

/// Path of the fixture `name` (its source file without extension), built if
/// need be.
///
/// # Errors
/// When there is no such source, or it does not compile.
pub fn fixture(name: &str) -> Result<PathBuf> {
    let source = source_of(name)?;
    let source = sources().join(source);
    let program = directory()?.join(name);
    match name {
        "custom" => {
            let library = library("fixturealloc")?;
            compile(&source, &program, &with_library(&library))?;
        }
        "partial" => {
            let library = library("partalloc")?;
            compile(&source, &program, &with_library(&library))?;
        }
        "constructors" => {
            let library = library("constructed")?;
            compile(&source, &program, &with_library(&library))?;
        }
        "mappings" => {
            // What they are needed for is not linked to them.
            library("swap_one")?;
            library("swap_two")?;
            compile(
                &source,
                &program,
                &["-fomit-frame-pointer", "-ldl"].map(String::from),
            )?;
        }
        "stacks" => compile(&source, &program, &NO_FRAME_POINTERS.map(String::from))?,
        _ => compile(&source, &program, &[])?,
    }
    Ok(program)
}

fn source_of(name: &str) -> Result<&'static str> {
    SOURCES
        .iter()
        .copied()
        .find(|source| {
            source
                .rsplit_once('.')
                .is_some_and(|(stem, _)| stem == name)
        })
        .with_context(|| format!("no fixture is called {name}"))
}

/// Path of C or C++ fixture `name` without frame pointers.
///
/// # Errors
/// When there is none of that name, or it does not compile.
pub fn without_frame_pointers(name: &str) -> Result<PathBuf> {
    let source = source_of(name)?;
    let build = Build {
        source,
        compiler: if source.ends_with(".cpp") {
            "g++"
        } else {
            "gcc"
        },
        flags: &[],
        has_truth: false,
    };
    build.program(&format!("{name}-without-frame-pointers"))
}

/// Whether the fixture `name` is there, as new as its source.
#[must_use]
pub fn is_built(name: &str) -> bool {
    directory().is_ok_and(|directory| is_fresh(&directory.join(name)).unwrap_or(false))
}

/// Path of the static build of C fixture `name`.
///
/// # Errors
/// When it does not compile.
pub fn static_fixture(name: &str, how: Static) -> Result<PathBuf> {
    let (suffix, flags): (_, &[_]) = match how {
        Static::Fixed => ("static", &["-static"]),
        Static::Pie => ("static-pie", &["-static-pie"]),
        Static::Stripped => ("static-stripped", &["-static", "-s"]),
    };
    let program = directory()?.join(format!("{name}-{suffix}"));
    let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
    compile(&fixture_source(name), &program, &flags)?;
    Ok(program)
}

/// How a program without shared libraries is linked.
#[derive(Clone, Copy, Debug)]
pub enum Static {
    /// To run at a fixed address.
    Fixed,
    /// To run at any address.
    Pie,
    /// At a fixed address, and without symbols.
    Stripped,
}

/// Path of the 32-bit build of C fixture `name`.
///
/// # Errors
/// When it does not compile.
pub fn fixture_32_bit(name: &str) -> Result<PathBuf> {
    let program = directory()?.join(format!("{name}-32"));
    compile(&fixture_source(name), &program, &["-m32".into()])?;
    Ok(program)
}

/// Whether the compiler can link 32-bit programs.
///
/// # Errors
/// When the directory for the attempt can't be made.
pub fn can_make_32_bit() -> Result<bool> {
    let directory = tempfile::tempdir().context("making a directory")?;
    let source = directory.path().join("empty.c");
    fs::write(&source, "int main(void) { return 0; }\n")?;
    let output = Command::new("gcc")
        .arg("-m32")
        .arg("-o")
        .arg(directory.path().join("empty"))
        .arg(&source)
        .output();
    Ok(output.is_ok_and(|output| output.status.success()))
}

/// The source of C fixture `name`.
pub(crate) fn fixture_source(name: &str) -> PathBuf {
    sources().join(format!("{name}.c"))
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Cargo's target directory, from where this test program lies
/// (`target/debug/deps/…`).
///
/// # Errors
/// When the program's own path is unknown.
pub fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding the test program's own path")?;
    program
        .ancestors()
        .find(|path| path.join("CACHEDIR.TAG").is_file())
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is not in cargo's target directory", program.display()))
}

/// Where fixtures lie that were built elsewhere, for a machine without compilers
/// and sources: `LEAKTRACE_FIXTURES`.
fn prebuilt() -> Option<PathBuf> {
    let directory = std::env::var_os("LEAKTRACE_FIXTURES")?;
    (!directory.is_empty()).then(|| directory.into())
}

/// Where built fixtures lie.
pub(crate) fn directory() -> Result<PathBuf> {
    if let Some(directory) = prebuilt() {
        return Ok(directory);
    }
    let directory = target_directory()?.join("fixtures");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    hand_over(&directory)?;
    Ok(directory)
}

/// Path of the library fixture `name`.
///
/// # Errors
/// When it does not compile.
pub fn library(name: &str) -> Result<PathBuf> {
    let library = directory()?.join(format!("lib{name}.so"));
    compile(&fixture_source(name), &library, &library_flags(name))?;
    Ok(library)
}

/// Flags that make `libNAME.so`. Without a name of its own it would be looked for
/// where it was built.
pub(crate) fn library_flags(name: &str) -> Vec<String> {
    let named = format!("-Wl,-soname,lib{name}.so");
    ["-shared", "-fPIC", "-ftls-model=initial-exec", &named]
        .map(String::from)
        .into()
}

/// Flags that link a library which will lie beside the program.
pub(crate) fn with_library(library: &Path) -> Vec<String> {
    vec![
        library.display().to_string(),
        "-Wl,-rpath,$ORIGIN".to_owned(),
    ]
}

/// Compiles `source` with the usual compiler of its language.
pub(crate) fn compile(source: &Path, program: &Path, more: &[String]) -> Result<()> {
    let extension = source.extension().and_then(|extension| extension.to_str());
    let compiler = match extension {
        Some("c") => "gcc",
        Some("cpp") => "g++",
        Some("rs") => "rustc",
        Some("go") => "go",
        _ => bail!("don't know how to build {}", source.display()),
    };
    compile_with(compiler, source, program, more)
}

/// Compiles `source`, if need be; `more` is not for Go.
pub(crate) fn compile_with(
    compiler: &str,
    source: &Path,
    program: &Path,
    more: &[String],
) -> Result<()> {
    if is_fresh(program)? {
        return Ok(());
    }
    ensure!(
        prebuilt().is_none(),
        "{} was not built beforehand",
        program.display()
    );
    // Under a name of its own first: a build that is interrupted leaves nothing
    // that looks ready.
    let unfinished = program.with_extension(format!("{}.tmp", std::process::id()));
    let mut command = Command::new(compiler);
    match compiler {
        "rustc" => {
            command.args([
                "--edition=2024",
                "-Copt-level=2",
                "-g",
                "-Cforce-frame-pointers=yes",
            ]);
            command.args(more).arg("-o").arg(&unfinished).arg(source);
        }
        "go" => {
            command.args(["build", "-o"]).arg(&unfinished).arg(source);
            command.env("CGO_ENABLED", "1").env("GO111MODULE", "off");
            command.env("GOCACHE", directory()?.join("go-cache"));
        }
        _ => {
            command.args(C_FLAGS).arg("-o").arg(&unfinished).arg(source);
            command.args(more);
        }
    }
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(&unfinished, program)
        .with_context(|| format!("moving {} into place", program.display()))?;
    hand_over(program)
}

/// Whether `program` is newer than everything it may be made of (all sources:
/// they are few) and the files that say how.
fn is_fresh(program: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(program).and_then(|metadata| metadata.modified()) else {
        return Ok(false);
    };
    if prebuilt().is_some() {
        return Ok(true);
    }
    let mut newest = std::time::UNIX_EPOCH;
    for how in ["src/build.rs", "src/targets.rs"] {
        let how = Path::new(env!("CARGO_MANIFEST_DIR")).join(how);
        newest = newest.max(fs::metadata(how)?.modified()?);
    }
    for entry in fs::read_dir(sources()).context("listing the fixtures' sources")? {
        newest = newest.max(entry?.metadata()?.modified()?);
    }
    Ok(built > newest)
}

/// Gives what root built to the owner of the target directory, who could not
/// rebuild it otherwise.
fn hand_over(path: &Path) -> Result<()> {
    // SAFETY: geteuid only reads the caller's credentials.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(());
    }
    let owner = fs::metadata(target_directory()?)?;
    chown(path, Some(owner.uid()), Some(owner.gid()))
        .with_context(|| format!("giving {} to its user", path.display()))
}
