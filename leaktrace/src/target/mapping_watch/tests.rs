//! Real processes, looked at while they live and after they have ended.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::fd::{AsRawFd as _, RawFd},
    path::PathBuf,
    process::{ChildStdin, ChildStdout, Command, Stdio},
};

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
use tempfile::TempDir;

use super::{
    super::{
        mapping::read_mappings,
        read_stat,
        test_process::{Running, wait_until},
    },
    *,
};

fn not_run(test: &str, reason: &str) {
    crate::testing::not_run(module_path!(), test, reason);
}

/// `None`, and a line that says so, where this is not allowed.
fn watch(test: &str, pid: u32) -> Option<MappingWatch> {
    let watch = MappingWatch::start(pid);
    match &watch.source {
        Source::Events(_) | Source::MapsOnly => {
            assert_eq!(watch.note(), None);
            Some(watch)
        }
        Source::Failed(error) => {
            let expected = [libc::EACCES, libc::EPERM, libc::ENOENT, libc::ENOSYS];
            assert!(
                expected.map(Some).contains(&error.raw_os_error()),
                "{error}"
            );
            not_run(test, &format!("perf_event_open: {error}"));
            None
        }
    }
}

/// A shell that has stopped itself; going on, it executes the command.
fn stopped_before(command: &[&str]) -> (Running, Process) {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""])
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let child = Running(shell.spawn().unwrap());
    wait_until("it has stopped", || {
        read_stat(child.pid()).unwrap().state == b'T'
    });
    let process = Process::open(child.pid()).unwrap();
    (child, process)
}

fn go_on(process: &Process) {
    rustix::process::pidfd_send_signal(process.pidfd(), rustix::process::Signal::CONT).unwrap();
}

fn code_of(process: &Process) -> Vec<Mapping> {
    let mappings = read_mappings(process).unwrap_or_default();
    mappings
        .into_iter()
        // The page at a fixed address, which no process maps.
        .filter(|mapping| mapping.executable && !mapping.is_special("[vsyscall]"))
        .collect()
}

#[test]
fn events_tell_what_proc_maps_shows() {
    let (_child, process) = stopped_before(&["sleep", "1000"]);
    let Some(mut watch) = watch("events_tell_what_proc_maps_shows", process.pid()) else {
        return;
    };
    go_on(&process);
    let is_libc = |mapping: &Mapping| mapping.path.to_string_lossy().contains("libc.so");
    wait_until("sleep is what runs, with its libc", || {
        let stat = read_stat(process.pid()).unwrap();
        stat.name == "sleep" && code_of(&process).iter().any(is_libc)
    });
    watch.poll(&process);
    let told: Vec<Mapping> = watch.code.iter().cloned().collect();
    // Offsets, devices, inodes, and the vDSO; nothing left of the shell.
    assert_eq!(told, code_of(&process));
    assert!(told.iter().any(|mapping| mapping.is_special("[vdso]")));
    for mapping in told.iter().filter(|mapping| mapping.is_file()) {
        assert!(watch.files[&mapping.shown_file()].backs(mapping));
    }
}

#[test]
fn a_program_that_has_ended_keeps_its_code() {
    let (_child, process) = stopped_before(&["true"]);
    let Some(mut watch) = watch("a_program_that_has_ended_keeps_its_code", process.pid()) else {
        return;
    };
    let shell = process.exe().to_path_buf();
    let before = watch.current(&process).0;
    assert!(before.iter().any(|mapping| mapping.path == shell));

    go_on(&process);
    wait_until("it has ended", || !process.is_alive());
    // What there is without the events.
    assert!(read_mappings(&process).is_err());
    let (mappings, files) = watch.current(&process);
    assert!(!mappings.iter().any(|mapping| mapping.path == shell));
    let names: Vec<&str> = mappings
        .iter()
        .filter_map(|mapping| mapping.path.file_name()?.to_str())
        .collect();
    for name in ["true", "libc.so.6", "[vdso]"] {
        assert_eq!(names.iter().filter(|n| **n == name).count(), 1, "{names:?}");
    }
    assert!(
        names.iter().any(|name| name.starts_with("ld-")),
        "{names:?}"
    );
    assert_eq!(files.len(), 3, "{files:?}");
    for mapping in mappings.iter().filter(|mapping| mapping.is_file()) {
        let file = files.iter().find(|file| file.backs(mapping)).unwrap();
        let content = file.map().unwrap();
        let elf = object::File::parse(&*content).unwrap();
        let offsets: Vec<u64> = elf.segments().map(|it| it.file_range().0).collect();
        assert!(
            offsets.contains(&mapping.offset),
            "{mapping:?} {offsets:x?}"
        );
    }
    assert_eq!(watch.note(), None);
}

const HOST: &str = r#"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static char *library;

static void *load(void *unused)
{
    getchar();
    void *handle = dlopen(library, RTLD_NOW);
    printf("%p\n", handle ? dlsym(handle, "plugged_in") : 0);
    fflush(stdout);
    getchar();
    if (handle)
        dlclose(handle);
    return unused;
}

int main(int count, char **arguments)
{
    pthread_t thread;
    library = arguments[count - 1];
    pthread_create(&thread, 0, load, 0);
    puts("ready");
    fflush(stdout);
    pthread_join(thread, 0);
    return 0;
}
"#;

/// A program whose second thread loads a library, says where `plugged_in` is,
/// and unloads it; before each it waits for a byte.
struct Plugin {
    directory: TempDir,
    child: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    process: Process,
}

impl Plugin {
    fn start(test: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        fs::write(path("host.c"), HOST).unwrap();
        // Not at the beginning of the code.
        let library = "int first(int n) { return n + 1; }\nint plugged_in(void) { return 5; }\n";
        fs::write(path("plugin.c"), library).unwrap();
        let compile = |arguments: &[&str]| {
            let status = Command::new("gcc")
                .current_dir(&directory)
                .args(arguments)
                .status();
            if let Ok(status) = &status {
                assert!(status.success());
            }
            status.is_ok()
        };
        if !compile(&["-pthread", "host.c", "-o", "host", "-ldl"])
            || !compile(&["-shared", "-fPIC", "plugin.c", "-o", "plugin.so"])
        {
            not_run(test, "gcc is not installed");
            return None;
        }
        let mut command = Command::new(path("host"));
        command.arg(path("plugin.so"));
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Running(pipes.spawn().unwrap());
        let input = child.0.stdin.take().unwrap();
        let output = BufReader::new(child.0.stdout.take().unwrap());
        let process = Process::open(child.pid()).unwrap();
        let mut plugin = Self {
            directory,
            child,
            input,
            output,
            process,
        };
        assert_eq!(plugin.line(), "ready");
        Some(plugin)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn next(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("plugin.so")
    }

    /// Loads the library; the address of `plugged_in`.
    fn load(&mut self) -> u64 {
        self.next();
        let line = self.line();
        u64::from_str_radix(line.strip_prefix("0x").unwrap(), 16).unwrap()
    }

    fn end(&mut self) {
        self.next();
        assert!(self.child.0.wait().unwrap().success());
    }
}

/// Where a function is in a file.
fn offset_of_function(elf: &[u8], name: &str) -> u64 {
    let elf = object::File::parse(elf).unwrap();
    let symbol = elf.symbols().find(|it| it.name() == Ok(name)).unwrap();
    let segment = elf
        .segments()
        .find(|it| (it.address()..it.address() + it.size()).contains(&symbol.address()))
        .unwrap();
    symbol.address() - segment.address() + segment.file_range().0
}

/// Checks that the address is known to be that function.
fn assert_known(mappings: &[Mapping], files: &[Arc<MappedFile>], address: u64, library: &Path) {
    let mapping = mappings
        .iter()
        .find(|mapping| mapping.file_offset(address).is_some())
        .unwrap();
    assert_eq!(mapping.path, library);
    let file = files.iter().find(|file| file.backs(mapping)).unwrap();
    let offset = offset_of_function(&file.map().unwrap(), "plugged_in");
    assert_eq!(mapping.file_offset(address), Some(offset));
}

#[test]
fn a_library_loaded_and_unloaded_between_two_looks_is_known() {
    const TEST: &str = "a_library_loaded_and_unloaded_between_two_looks_is_known";
    let Some(mut plugin) = Plugin::start(TEST) else {
        return;
    };
    // The thread that will load it is there already.
    let Some(mut watch) = watch(TEST, plugin.process.pid()) else {
        return;
    };
    let before = watch.current(&plugin.process).0;
    let library = plugin.library();
    assert!(!before.iter().any(|mapping| mapping.path == library));

    let address = plugin.load();
    plugin.end();
    let (mappings, files) = watch.current(&plugin.process);
    assert_known(&mappings, &files, address, &library);
    // What was mapped before the watch began is still known as well.
    assert!(before.iter().all(|mapping| mappings.contains(mapping)));
}

#[test]
fn a_library_deleted_after_it_was_told_of_stays_readable() {
    const TEST: &str = "a_library_deleted_after_it_was_told_of_stays_readable";
    let Some(mut plugin) = Plugin::start(TEST) else {
        return;
    };
    let Some(mut watch) = watch(TEST, plugin.process.pid()) else {
        return;
    };
    let address = plugin.load();
    watch.poll(&plugin.process);
    let library = plugin.library();
    fs::remove_file(&library).unwrap();
    plugin.end();
    let (mappings, files) = watch.current(&plugin.process);
    assert_known(&mappings, &files, address, &library);
}

#[test]
fn a_library_replaced_before_it_was_told_of_is_not_taken_for_another() {
    const TEST: &str = "a_library_replaced_before_it_was_told_of_is_not_taken_for_another";
    let Some(mut plugin) = Plugin::start(TEST) else {
        return;
    };
    let Some(mut watch) = watch(TEST, plugin.process.pid()) else {
        return;
    };
    plugin.load();
    plugin.end();
    let library = plugin.library();
    let other = plugin.directory.path().join("host");
    fs::rename(other, &library).unwrap();
    let (mappings, files) = watch.current(&plugin.process);
    assert!(mappings.iter().any(|mapping| mapping.path == library));
    assert!(!files.iter().any(|file| file.path() == library));
}

#[test]
fn without_events_proc_maps_is_what_is_known() {
    let (_child, process) = stopped_before(&["true"]);
    let mut watch = MappingWatch::start(process.pid());
    watch.source = Source::Failed(io::Error::from_raw_os_error(libc::EACCES));
    let (mappings, files) = watch.current(&process);
    assert!(!files.is_empty());
    let of_proc = code_of(&process);
    assert!(of_proc.iter().all(|mapping| mappings.contains(mapping)));
    assert_eq!(
        watch.note().unwrap(),
        "New code of the process cannot be watched (perf_event_open: Permission denied (os error \
         13)), so functions of libraries that the process loads and soon unloads, or loads and \
         soon ends, may have no names; where kernel.perf_event_paranoid forbids it, run leaktrace \
         as root."
    );
}

#[test]
fn a_process_that_is_gone_cannot_be_watched() {
    // Above the largest pid_max there can be (2^22).
    let watch = MappingWatch::start(4_194_305);
    let Source::Failed(error) = &watch.source else {
        panic!("{:?}", watch.source)
    };
    assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    assert!(watch.note().is_some());
}

#[test]
fn no_descriptor_reaches_the_programs_that_are_started() {
    let (_child, process) = stopped_before(&["true"]);
    let test = "no_descriptor_reaches_the_programs_that_are_started";
    let Some(mut watch) = watch(test, process.pid()) else {
        return;
    };
    let (_, files) = watch.current(&process);
    let Source::Events(events) = &watch.source else {
        panic!("{:?}", watch.source)
    };
    let descriptors: Vec<RawFd> = watch
        .root
        .iter()
        .map(|root| root.as_raw_fd())
        .chain(events.descriptors())
        .chain(files.iter().map(|file| file.file().as_raw_fd()))
        .collect();
    assert!(descriptors.len() > 3);
    for descriptor in descriptors {
        // SAFETY: only asks for the flags of a descriptor.
        let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC, "{descriptor}");
    }
}
