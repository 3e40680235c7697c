//! What of a file's functions can be named: its symbol tables and debug
//! information, in the file itself or beside it.

use std::{
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, read::elf::ElfFile64,
};

use super::allocators::{KNOWN, KnownAllocator};
use crate::symbolize::{SERVERS, debug_file::SearchPath, elf_image::ElfImage, mini_debug_info};

/// What a file tells about its functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// It has all of its functions' names (`.symtab`).
    pub symbol_table: bool,
    /// It has at least the names of those it exports (`.dynsym`).
    pub exported: bool,
    /// It has source lines (`.debug_info`).
    pub debug_info: bool,
    /// It has the names of the others, too, in compressed form
    /// (`.gnu_debugdata`).
    pub mini_debug_info: bool,
    /// Another file has all of these, found by build id or `.gnu_debuglink`.
    pub debug_file: Option<PathBuf>,
    /// It names such a file (`.gnu_debuglink`).
    pub debug_link: Option<String>,
    /// Build id, hexadecimal.
    pub build_id: Option<String>,
    /// Allocators that are compiled into it.
    pub allocators: Vec<&'static KnownAllocator>,
}

impl Symbols {
    /// Looks into a file, given its bytes and its path in the target.
    ///
    /// # Errors
    /// When it is no 64-bit ELF file, with the reason.
    pub fn read(bytes: &[u8], path: &Path, search: &SearchPath) -> Result<Self, String> {
        let file = ElfFile64::<Endianness>::parse(bytes).map_err(|error| error.to_string())?;
        let has = |name: &str| {
            file.section_by_name(name)
                .is_some_and(|section| section.size() > 0)
        };
        let build_id: Option<String> = file
            .build_id()
            .ok()
            .flatten()
            .map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect());
        let debug_link = file
            .gnu_debuglink()
            .ok()
            .flatten()
            .map(|(name, _)| String::from_utf8_lossy(name).into_owned());
        let image = ElfImage::parse(bytes).map_err(|error| error.to_string())?;
        let debug_file = search.find(&image, path).map(|found| found.path);
        Ok(Self {
            symbol_table: has(".symtab"),
            exported: has(".dynsym"),
            debug_info: has(".debug_info"),
            mini_debug_info: has(mini_debug_info::SECTION),
            debug_file,
            debug_link,
            build_id,
            allocators: allocators(&file),
        })
    }
}

fn allocators(file: &ElfFile64<'_, Endianness>) -> Vec<&'static KnownAllocator> {
    let by_section = |known: &KnownAllocator| {
        known
            .section
            .is_some_and(|name| file.section_by_name(name).is_some())
    };
    let mut found: Vec<bool> = KNOWN.iter().map(by_section).collect();
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        if !symbol.is_definition() {
            continue;
        }
        let Ok(name) = symbol.name_bytes() else {
            continue;
        };
        for (known, found) in KNOWN.iter().zip(&mut found) {
            *found = *found || known.symbols.iter().any(|symbol| symbol.as_bytes() == name);
        }
    }
    KNOWN
        .iter()
        .zip(found)
        .filter_map(|(known, found)| found.then_some(known))
        .collect()
}

/// The command that finds debug information for a file, as this distribution
/// has it.
#[must_use]
pub fn debug_package_hint(path: &Path, build_id: Option<&str>, pid: u32) -> String {
    // The path ends up in a line that is meant to be copied into a shell.
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(byte);
    let path = if path.as_os_str().as_bytes().iter().all(plain) {
        path.display().to_string()
    } else {
        format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
    };
    if Path::new("/etc/debian_version").exists() {
        format!(
            "find-dbgsym-packages {pid}   (package debian-goodies; it names the packages to \
             install)"
        )
    } else if Path::new("/usr/bin/dnf").exists() {
        format!("sudo dnf debuginfo-install {path}")
    } else {
        other_debug_hint(&path, build_id, pid)
    }
}

/// Where no package manager is known that finds it. Servers of debug
/// information (debuginfod) go by the build id.
fn other_debug_hint(path: &str, build_id: Option<&str>, pid: u32) -> String {
    let package = format!("install the debug package of {path}");
    match build_id {
        Some(_) => format!(
            "{package}, or: sudo --preserve-env={SERVERS} leaktrace attach {pid} --debuginfod"
        ),
        None => format!("{package}, or build it with -g and do not strip it"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn without_a_package_manager_the_build_id_leads_to_the_file() {
        assert_eq!(
            other_debug_hint("/lib/x.so", Some("abcdef"), 7),
            "install the debug package of /lib/x.so, or: sudo --preserve-env=DEBUGINFOD_URLS \
             leaktrace attach 7 --debuginfod"
        );
        assert!(other_debug_hint("/lib/x.so", None, 7).ends_with("do not strip it"));
    }

    use std::{fs, process::Command};

    use super::*;

    fn run(tool: &str, directory: &Path, arguments: &[&str]) {
        let mut command = Command::new(tool);
        let status = command.current_dir(directory).args(arguments).status();
        assert!(status.unwrap().success(), "{tool} {arguments:?}");
    }

    /// Compiles a program that looks like one with jemalloc in it.
    fn program(directory: &Path, options: &[&str]) -> Option<PathBuf> {
        let source = directory.join("main.c");
        let code = "int je_malloc(void) { return 1; } int main(void) { return je_malloc(); }";
        fs::write(&source, code).unwrap();
        let exe = directory.join("main");
        let status = Command::new("gcc")
            .args(options)
            .arg(&source)
            .arg("-o")
            .arg(&exe)
            .status();
        match status {
            Ok(status) => {
                assert!(status.success());
                Some(exe)
            }
            Err(error) => {
                crate::testing::not_run(module_path!(), "program", &format!("no gcc ({error})"));
                None
            }
        }
    }

    fn look(exe: &Path, debug_directory: &Path) -> Symbols {
        let search = SearchPath::new(None, vec![debug_directory.to_owned()], None).unwrap();
        Symbols::read(&fs::read(exe).unwrap(), exe, &search).unwrap()
    }

    #[test]
    fn symbols_debug_info_and_their_lack_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let Some(exe) = program(directory.path(), &["-g"]) else {
            return;
        };
        let seen = look(&exe, directory.path());
        assert!(seen.symbol_table && seen.debug_info && seen.exported);
        assert_eq!(seen.allocators, [&KNOWN[0]]);

        let exe = program(directory.path(), &[]).unwrap();
        let seen = look(&exe, directory.path());
        assert!(seen.symbol_table && !seen.debug_info);

        let exe = program(directory.path(), &["-s"]).unwrap();
        let seen = look(&exe, directory.path());
        assert!(!seen.symbol_table && !seen.debug_info && seen.exported);
        assert!(seen.allocators.is_empty() && seen.debug_file.is_none());
    }

    #[test]
    fn debug_files_are_found_by_build_id_and_by_link() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let Some(exe) = program(directory.path(), &["-g", "-Wl,--build-id=0xabcdef"]) else {
            return;
        };
        let run = |tool: &str, arguments: &[&str]| run(tool, directory.path(), arguments);
        let by_id = at("debug/.build-id/ab/cdef.debug");
        fs::create_dir_all(by_id.parent().unwrap()).unwrap();
        let split = ["--only-keep-debug", "main", by_id.to_str().unwrap()];
        run("objcopy", &split);
        run("strip", &["main"]);
        let seen = look(&exe, &at("debug"));
        assert_eq!(seen.build_id.as_deref(), Some("abcdef"));
        assert_eq!(seen.debug_file, Some(by_id.clone()));
        assert!(!seen.debug_info && !seen.mini_debug_info);

        fs::create_dir(at(".debug")).unwrap();
        fs::rename(&by_id, at(".debug/main.debug")).unwrap();
        run(
            "objcopy",
            &["--add-gnu-debuglink=.debug/main.debug", "main"],
        );
        let seen = look(&exe, &at("elsewhere"));
        assert_eq!(seen.debug_file, Some(at(".debug/main.debug")));
        // Another program's.
        fs::copy(&exe, at(".debug/main.debug")).unwrap();
        run(
            "objcopy",
            &[
                "--update-section",
                ".note.gnu.build-id=/dev/null",
                ".debug/main.debug",
            ],
        );
        assert_eq!(look(&exe, &at("elsewhere")).debug_file, None);

        fs::write(at("mini"), "xz").unwrap();
        run("objcopy", &["--add-section=.gnu_debugdata=mini", "main"]);
        assert!(look(&exe, &at("elsewhere")).mini_debug_info);
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        let search = SearchPath::new(None, Vec::new(), None).unwrap();
        for bytes in [&b"#!/bin/sh\n"[..], b""] {
            assert!(Symbols::read(bytes, Path::new("/x"), &search).is_err());
        }
    }

    #[test]
    fn a_path_is_quoted_for_the_shell() {
        let hint = debug_package_hint(Path::new("/opt/it's; rm -r/x"), None, 7);
        assert!(
            !hint.contains("; rm") || hint.contains("'/opt/it'\\''s; rm -r/x'"),
            "{hint}"
        );
    }
}
