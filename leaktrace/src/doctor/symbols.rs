//! What of a file's functions can be named: its symbol tables and debug
//! information, in the file itself or beside it.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, read::elf::ElfFile64,
};

use super::allocators::{KNOWN, KnownAllocator};

/// What a file tells about its functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// It has all of its functions' names (`.symtab`).
    pub symbol_table: bool,
    /// It has at least the names of those it exports (`.dynsym`).
    pub exported: bool,
    /// It has source lines (`.debug_info`).
    pub debug_info: bool,
    /// A file beside it has them, found by build id or `.gnu_debuglink`.
    pub debug_file: Option<PathBuf>,
    /// It names such a file (`.gnu_debuglink`).
    pub debug_link: Option<String>,
    /// Build id, hexadecimal.
    pub build_id: Option<String>,
    /// Allocators that are compiled into it.
    pub allocators: Vec<&'static KnownAllocator>,
}

/// Where distributions put debug information.
const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

impl Symbols {
    /// Looks into a file, given its bytes and its path (in leaktrace's mount
    /// namespace, if it is there at all).
    ///
    /// # Errors
    /// When it is no 64-bit ELF file, with the reason.
    pub fn read(bytes: &[u8], path: &Path) -> Result<Self, String> {
        Self::read_with(bytes, path, Path::new(DEBUG_DIRECTORY))
    }

    fn read_with(bytes: &[u8], path: &Path, debug_directory: &Path) -> Result<Self, String> {
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
        Ok(Self {
            symbol_table: has(".symtab"),
            exported: has(".dynsym"),
            debug_info: has(".debug_info"),
            debug_file: debug_file(
                build_id.as_deref(),
                debug_link.as_deref(),
                path,
                debug_directory,
            ),
            debug_link,
            build_id,
            allocators: allocators(&file),
        })
    }
}

/// The file with the debug information of another, where gdb looks for it.
fn debug_file(
    build_id: Option<&str>,
    link: Option<&str>,
    path: &Path,
    directory: &Path,
) -> Option<PathBuf> {
    let by_build_id = build_id.and_then(|id| {
        let (first, rest) = id.split_at_checked(2)?;
        Some(
            directory
                .join(".build-id")
                .join(first)
                .join(format!("{rest}.debug")),
        )
    });
    let by_link = link
        .filter(|link| !link.contains('/'))
        .zip(path.parent())
        .map(|(link, beside)| {
            let mirrored = directory.join(beside.strip_prefix("/").unwrap_or(beside));
            [
                beside.join(link),
                beside.join(".debug").join(link),
                mirrored.join(link),
            ]
        });
    by_build_id
        .into_iter()
        .chain(by_link.into_iter().flatten())
        // A file whose link names itself says nothing.
        .find(|candidate| {
            candidate != path && fs::metadata(candidate).is_ok_and(|metadata| metadata.is_file())
        })
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
        other_debug_hint(&path, build_id)
    }
}

/// Where no package manager is known that finds it. Servers of debug
/// information (debuginfod) go by the build id.
fn other_debug_hint(path: &str, build_id: Option<&str>) -> String {
    let package = format!("install the debug package of {path}");
    let parts = build_id.and_then(|id| Some((id, id.split_at_checked(2)?)));
    match parts {
        Some((id, (first, rest))) => format!(
            "{package}, or: sudo install -D $(debuginfod-find debuginfo {id}) \
             {DEBUG_DIRECTORY}/.build-id/{first}/{rest}.debug"
        ),
        None => format!("{package}, or build it with -g and do not strip it"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn without_a_package_manager_the_build_id_leads_to_the_file() {
        assert_eq!(
            other_debug_hint("/lib/x.so", Some("abcdef")),
            "install the debug package of /lib/x.so, or: sudo install -D $(debuginfod-find \
             debuginfo abcdef) /usr/lib/debug/.build-id/ab/cdef.debug"
        );
        assert!(other_debug_hint("/lib/x.so", None).ends_with("do not strip it"));
    }

    use std::process::Command;

    use super::*;

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
                eprintln!("not run: no gcc ({error})");
                None
            }
        }
    }

    fn look(exe: &Path, debug_directory: &Path) -> Symbols {
        Symbols::read_with(&fs::read(exe).unwrap(), exe, debug_directory).unwrap()
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
        let Some(exe) = program(directory.path(), &["-s", "-Wl,--build-id=0xabcdef"]) else {
            return;
        };
        let by_id = at("debug/.build-id/ab/cdef.debug");
        fs::create_dir_all(by_id.parent().unwrap()).unwrap();
        fs::write(&by_id, "").unwrap();
        let seen = look(&exe, &at("debug"));
        assert_eq!(seen.build_id.as_deref(), Some("abcdef"));
        assert_eq!(seen.debug_file, Some(by_id));

        fs::create_dir(at(".debug")).unwrap();
        let by_link = at(".debug/main.debug");
        fs::write(&by_link, "").unwrap();
        assert_eq!(
            debug_file(None, Some("main.debug"), &exe, &at("elsewhere")),
            Some(by_link)
        );
        assert_eq!(debug_file(None, Some("main"), &exe, &at("elsewhere")), None);
        assert_eq!(
            debug_file(Some("é"), Some("../x"), &exe, &at("elsewhere")),
            None
        );
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        assert!(Symbols::read(b"#!/bin/sh\n", Path::new("/x")).is_err());
        assert!(Symbols::read(b"", Path::new("/x")).is_err());
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
