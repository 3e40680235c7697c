//! What tracing needs of one process.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::{
    AS_ROOT, Check,
    allocators::{GO, KnownAllocator},
    symbols::{Symbols, debug_package_hint},
    unwinding::{Unwinding, code_without_file, unwinding_check},
};
use crate::{
    allocator,
    elf::ElfFile,
    symbolize::debug_file::{DIRECTORIES, SearchPath},
    target::{
        Denial, Process, TargetError,
        mapped_file::{MappedFile, open_executable_files},
        mapping::read_mappings,
    },
    unwind::Reason,
};

/// What is wrong with a process that can't even be opened.
#[must_use]
pub fn target_error_check(error: &TargetError) -> Check {
    let mend = match error {
        TargetError::NotPermitted {
            pid,
            name,
            why: Denial::NotRoot { .. },
        } => {
            return Check::failed(
                "process",
                format!("{pid} ({name}) can be looked at by root only"),
                format!("{AS_ROOT} {pid}"),
            );
        }
        TargetError::Thread { pid, .. } => format!("leaktrace doctor {pid}"),
        _ => "ps -e   (lists the processes there are)".to_owned(),
    };
    Check::failed("process", error.to_string(), mend)
}

/// Looks at everything that tracing needs of a process.
#[must_use]
pub fn target_checks(process: &Process) -> Vec<Check> {
    let pid = process.pid();
    let started = process.started().strftime("%Y-%m-%d %H:%M:%S");
    let mut checks = vec![
        Check::ok(
            "process",
            format!(
                "{pid} ({}), {}, since {started}",
                process.name(),
                process.exe().display()
            ),
        ),
        seccomp(process.seccomp()),
    ];
    if process.has_shadow_stack() {
        checks.push(Check::ok(
            "shadow stack",
            "in use; traced on kernels whose return probes keep it right (Linux 6.11), else refused",
        ));
    }
    if process.main_thread_ended() {
        checks.push(Check::ok(
            "main thread",
            "has ended while others go on; probes are set for all processes and filtered",
        ));
    }
    let mappings = match read_mappings(process) {
        Ok(mappings) => mappings,
        Err(error) => {
            checks.push(Check::failed(
                "mappings",
                format!("/proc/{pid}/maps cannot be read: {error}"),
                format!("{AS_ROOT} {pid}"),
            ));
            return checks;
        }
    };
    let (files, problems) = open_executable_files(process, &mappings);
    let search = search_path(pid);
    let files: Vec<File> = files
        .iter()
        .map(|file| File::look_into(file, search.as_ref()))
        .collect();
    checks.extend(allocator_checks(process, &files));
    let unwinding = |file: &File| unwinding_check(&file.shown(), &file.unwinding);
    checks.extend(files.iter().map(unwinding));
    checks.extend(code_without_file(&mappings));
    checks.extend(files.iter().map(|file| symbol_check(file, pid)));
    checks.extend(
        problems.iter().map(|problem| {
            Check::warning("symbols", problem.to_string(), format!("{AS_ROOT} {pid}"))
        }),
    );
    checks
}

/// Where debug files of a process are looked for, as when it is traced.
fn search_path(pid: u32) -> io::Result<SearchPath> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty()).ok();
    let directories = DIRECTORIES.map(PathBuf::from).to_vec();
    Ok(SearchPath::new(root, directories, None)?)
}

fn seccomp(mode: u32) -> Check {
    const TRIED: &str = "return probes are tried on a child of leaktrace's own first";
    match mode {
        0 => Check::ok("seccomp", "off"),
        1 => Check::ok("seccomp", format!("strict; {TRIED}")),
        _ => Check::ok("seccomp", format!("system calls are filtered; {TRIED}")),
    }
}

/// What was found in a mapped file.
#[derive(Debug)]
struct File {
    path: PathBuf,
    deleted: bool,
    symbols: Result<Symbols, String>,
    unwinding: Result<Unwinding, Reason>,
    has_malloc: bool,
    /// It is a program without a loader.
    is_static: bool,
}

impl File {
    fn look_into(file: &MappedFile, search: Result<&SearchPath, &io::Error>) -> Self {
        let (symbols, unwinding, has_malloc, is_static) = match file.map() {
            Ok(bytes) => {
                let elf = ElfFile::parse(&bytes).ok();
                (
                    search
                        .map_err(ToString::to_string)
                        .and_then(|search| Symbols::read(&bytes, file.path(), search)),
                    Unwinding::read(&bytes),
                    elf.as_ref().is_some_and(allocator::is_in),
                    elf.as_ref().is_some_and(ElfFile::is_static),
                )
            }
            Err(error) => (Err(error.to_string()), Err(error.into()), false, false),
        };
        let (path, deleted) = (file.path().to_path_buf(), file.is_deleted());
        Self {
            path,
            deleted,
            symbols,
            unwinding,
            has_malloc,
            is_static,
        }
    }

    /// Its path, with what is strange about it.
    fn shown(&self) -> String {
        let replaced = if self.deleted {
            " (deleted or replaced; read as it is mapped)"
        } else {
            ""
        };
        format!("{}{replaced}", self.path.display())
    }

    fn file_name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// The allocator whose library it is, or that is compiled into it.
    fn allocators(&self) -> Vec<&'static KnownAllocator> {
        match (
            KnownAllocator::by_file_name(&self.file_name()),
            &self.symbols,
        ) {
            (Some(known), _) => vec![known],
            (None, Ok(symbols)) => symbols.allocators.clone(),
            (None, Err(_)) => Vec::new(),
        }
    }
}

fn allocator_checks(process: &Process, files: &[File]) -> Vec<Check> {
    const NAME: &str = "allocator";
    const NOT_YET: &str = "watched are functions that a mapped file exports as malloc and free, or \
        that a static program has by its symbol table: run one that was not stripped";
    let mut checks = Vec::new();
    for file in files {
        let names: Vec<_> = file.allocators().iter().map(|known| known.name).collect();
        let known = match names.as_slice() {
            [] => "an allocator that is not known by name".to_owned(),
            names => names.join(" and "),
        };
        if file.has_malloc {
            checks.push(Check::ok(
                NAME,
                if file.is_static {
                    format!("{} statically linked, with {known}", file.path.display())
                } else {
                    format!("{} exports malloc: {known}", file.path.display())
                },
            ));
        } else if file.allocators().contains(&&GO) {
            checks.push(Check::warning(
                NAME,
                format!(
                    "{} is a Go program: Go's own memory is not malloc's, and only what its C \
                     code (cgo) allocates is seen",
                    file.path.display()
                ),
                "for Go's own memory use its profiler: net/http/pprof, heap",
            ));
        } else if !names.is_empty() {
            let how = if file.is_static {
                "statically linked, with"
            } else {
                "uses"
            };
            checks.push(Check::warning(
                NAME,
                format!(
                    "{} {how} {known} compiled in, and does not export it: what it allocates \
                     there is not seen",
                    file.path.display()
                ),
                NOT_YET,
            ));
        }
    }
    if !files.iter().any(|file| file.has_malloc) {
        let list: Vec<_> = files.iter().map(|file| file.path.clone()).collect();
        let error = TargetError::no_allocator(process, list);
        checks.push(Check::failed(NAME, error.to_string(), NOT_YET));
    }
    checks
}

fn symbol_check(file: &File, pid: u32) -> Check {
    const NAME: &str = "symbols";
    let shown = file.shown();
    let hint = |symbols: &Symbols| {
        debug_package_hint(Path::new(&file.path), symbols.build_id.as_deref(), pid)
    };
    match &file.symbols {
        Err(why) => Check::warning(
            NAME,
            format!("{shown}: not readable as an ELF file: {why}"),
            "nothing to do, if it is code that a program makes for itself (JIT)",
        ),
        Ok(symbols) => match symbols {
            Symbols {
                debug_info: true, ..
            } => Check::ok(NAME, format!("{shown}: functions and source lines")),
            Symbols {
                debug_file: Some(debug),
                ..
            } => Check::ok(
                NAME,
                format!(
                    "{shown}: functions and source lines, in {}",
                    debug.display()
                ),
            ),
            Symbols {
                symbol_table: true, ..
            } => Check::ok(NAME, format!("{shown}: functions, no source lines")),
            Symbols {
                mini_debug_info: true,
                ..
            } => Check::ok(
                NAME,
                format!("{shown}: functions, from mini-debug-info, no source lines"),
            ),
            Symbols { exported: true, .. } => Check::warning(
                NAME,
                format!(
                    "{shown}: exported functions only (stripped{})",
                    missing_debug_file(symbols)
                ),
                hint(symbols),
            ),
            Symbols { .. } => Check::warning(
                NAME,
                format!(
                    "{shown}: no functions' names (stripped{})",
                    missing_debug_file(symbols)
                ),
                hint(symbols),
            ),
        },
    }
}

/// What the file itself says about where its debug information would be.
fn missing_debug_file(symbols: &Symbols) -> String {
    match (&symbols.build_id, &symbols.debug_link) {
        (Some(id), _) => format!("; no debug file for build id {id}"),
        (None, Some(link)) => format!("; its debug file {link} is not there"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::{super::Outcome, *};
    use crate::target::test_process::{Running, sleep, wait_until};

    fn texts(checks: &[Check], name: &str) -> Vec<String> {
        let text = |check: &Check| match &check.outcome {
            Outcome::Ok(text) => format!("ok {text}"),
            Outcome::Warning { text, .. } => format!("warn {text}"),
            Outcome::Failed { text, .. } => format!("FAIL {text}"),
        };
        checks
            .iter()
            .filter(|check| check.name == name)
            .map(text)
            .collect()
    }

    fn libc_is_mapped(process: &Process) -> bool {
        let mappings = read_mappings(process).unwrap();
        mappings
            .iter()
            .any(|m| m.executable && m.path.to_string_lossy().contains("libc"))
    }

    #[test]
    fn an_ordinary_process_can_be_traced_and_its_files_are_named() {
        let child = sleep();
        let process = Process::open(child.pid()).unwrap();
        wait_until("libc is mapped", || libc_is_mapped(&process));
        let checks = target_checks(&process);
        assert!(checks.iter().all(|check| !check.has_failed()), "{checks:?}");
        assert_eq!(texts(&checks, "seccomp"), ["ok off"]);
        let allocators = texts(&checks, "allocator");
        assert!(
            allocators
                .iter()
                .any(|text| text.starts_with("ok ") && text.contains("exports malloc")),
            "{allocators:?}"
        );
        let symbols = texts(&checks, "symbols");
        assert!(
            symbols.iter().any(|text| text.contains("/sleep")),
            "{symbols:?}"
        );
        assert!(symbols.len() >= 3, "{symbols:?}");
        let unwinding = texts(&checks, "unwinding");
        assert_eq!(unwinding.len(), symbols.len(), "{unwinding:?}");
        assert!(
            unwinding
                .iter()
                .any(|text| text.starts_with("ok ") && text.contains("libc.so.6: by .eh_frame, ")),
            "{unwinding:?}"
        );
    }

    /// What is said about the allocator of a static program, of its symbols, its
    /// path and its id; `None` when there is no compiler.
    fn of_static_program(flags: &[&str]) -> Option<(Vec<String>, Vec<String>, String, u32)> {
        let directory = tempfile::tempdir().unwrap();
        let (source, exe) = (
            directory.path().join("main.c"),
            directory.path().join("alone"),
        );
        let code = "#include <stdlib.h>\n#include <unistd.h>\n\
            int main(void) { free(malloc(1)); for (;;) pause(); }\n";
        fs::write(&source, code).unwrap();
        let status = Command::new("gcc")
            .arg("-static")
            .args(flags)
            .arg(&source)
            .arg("-o")
            .arg(&exe)
            .status();
        match status {
            Ok(status) => assert!(status.success()),
            Err(error) => {
                crate::testing::not_run(
                    module_path!(),
                    "of_static_program",
                    &format!("no gcc ({error})"),
                );
                return None;
            }
        }
        let child = Running::start(&mut Command::new(&exe));
        let process = Process::open(child.pid()).unwrap();
        let checks = target_checks(&process);
        Some((
            texts(&checks, "allocator"),
            texts(&checks, "symbols"),
            exe.display().to_string(),
            child.pid(),
        ))
    }

    #[test]
    fn a_static_program_is_known_by_its_symbols() {
        let Some((allocators, symbols, exe, _)) = of_static_program(&[]) else {
            return;
        };
        assert_eq!(
            allocators,
            [format!("ok {exe} statically linked, with glibc")]
        );
        assert_eq!(symbols, [format!("ok {exe}: functions, no source lines")]);
    }

    #[test]
    fn a_stripped_static_program_fails_with_the_reason() {
        let Some((allocators, _, exe, pid)) = of_static_program(&["-s"]) else {
            return;
        };
        assert_eq!(
            allocators,
            [format!(
                "FAIL {pid} (alone) maps no file with a known allocator, so there is nothing to \
                 watch; it maps {exe}. (In a statically linked program it is found by its symbols, \
                 which `strip` removes.) `leaktrace doctor {pid}` says more"
            )]
        );
    }

    #[test]
    fn a_process_that_cannot_be_opened_is_one_failed_check() {
        let error = Process::open(4_194_305).unwrap_err();
        let check = target_error_check(&error);
        assert!(check.has_failed());
        assert_eq!(
            texts(&[check], "process"),
            ["FAIL there is no process 4194305: it may have ended; `ps -e` lists those that run"]
        );
    }

    #[test]
    fn stripped_files_say_which_debug_file_is_missing() {
        let file = |symbols: Symbols| File {
            path: "/lib/x.so".into(),
            deleted: true,
            symbols: Ok(symbols),
            unwinding: Err(Reason::NoInformation),
            has_malloc: false,
            is_static: false,
        };
        let check = symbol_check(
            &file(Symbols {
                exported: true,
                build_id: Some("abcd".into()),
                ..Symbols::default()
            }),
            7,
        );
        assert_eq!(
            texts(&[check], "symbols"),
            [
                "warn /lib/x.so (deleted or replaced; read as it is mapped): exported functions \
                 only (stripped; no debug file for build id abcd)"
            ]
        );
        let mini = Symbols {
            exported: true,
            mini_debug_info: true,
            ..Symbols::default()
        };
        assert!(
            texts(&[symbol_check(&file(mini), 7)], "symbols")[0]
                .ends_with("functions, from mini-debug-info, no source lines")
        );
        let with_debug = Symbols {
            debug_file: Some("/d/x.debug".into()),
            ..Symbols::default()
        };
        assert_eq!(
            texts(&[symbol_check(&file(with_debug), 7)], "symbols"),
            [
                "ok /lib/x.so (deleted or replaced; read as it is mapped): functions and source \
                 lines, in /d/x.debug"
            ]
        );
    }
}
