//! [`Process`] against real processes.

use std::{os::unix::process::CommandExt as _, process::Command};

use super::{
    test_process::{Running, install, sleep, wait_until},
    *,
};

#[test]
fn a_process_is_described_and_its_end_noticed() {
    let mut child = sleep();
    let process = Process::open(child.pid()).unwrap();
    assert_eq!((process.pid(), process.name()), (child.pid(), "sleep"));
    assert_eq!(process.exe().file_name().unwrap(), "sleep");
    assert!(!process.main_thread_ended());
    let age = jiff::Zoned::now().duration_since(process.started());
    assert!(
        age.as_secs_f64() > -0.1 && age.as_secs_f64() < 5.0,
        "{age:?}"
    );
    assert!(process.is_alive());
    assert!(!process.read("maps").unwrap().is_empty());

    child.0.kill().unwrap();
    wait_until("it has ended", || !process.is_alive());
    // Still a zombie: its entries are there, but its memory is not.
    assert_eq!(
        process.read("maps").unwrap_err().raw_os_error(),
        Some(libc::ESRCH)
    );
    child.0.wait().unwrap();
    assert!(!process.is_alive());
}

#[test]
fn no_such_process() {
    // Above the largest pid_max there can be (2^22).
    for pid in [0, 4_194_305, u32::MAX] {
        assert_eq!(
            Process::open(pid).unwrap_err().to_string(),
            format!("there is no process {pid}: it may have ended; `ps -e` lists those that run")
        );
    }
}

#[test]
fn leaktrace_itself_is_refused() {
    let pid = std::process::id();
    assert_eq!(
        Process::open(pid).unwrap_err().to_string(),
        format!(
            "{pid} is this leaktrace itself, which cannot trace itself; choose another process"
        )
    );
}

#[test]
fn a_kernel_thread_is_refused() {
    let kernel_thread = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
        .find_map(|pid| Some((pid, read_stat(pid).ok().filter(Stat::is_kernel_thread)?)));
    let Some((pid, stat)) = kernel_thread else {
        crate::testing::not_run(
            module_path!(),
            "a_kernel_thread_is_refused",
            "this pid namespace has no kernel threads",
        );
        return;
    };
    assert_eq!(
        Process::open(pid).unwrap_err().to_string(),
        format!(
            "{pid} ({}) is a kernel thread: it has no memory of its own and never calls malloc; \
             choose a process that runs a program",
            stat.name
        )
    );
}

#[test]
fn a_zombie_is_refused() {
    let child = Running::start(&mut Command::new("true"));
    let pid = child.pid();
    wait_until("it is a zombie", || read_stat(pid).unwrap().has_ended());
    assert_eq!(
        Process::open(pid).unwrap_err().to_string(),
        format!(
            "{pid} (true) is a zombie: it has ended, and its parent {} has not taken notice yet; \
             there is nothing left to trace, choose a process that still runs",
            std::process::id()
        )
    );
    // A child of ours is described all the same.
    let process = Process::of_child(pid, Path::new("/usr/bin/true")).unwrap();
    assert_eq!(
        (process.name(), process.exe()),
        ("true", Path::new("/usr/bin/true"))
    );
    assert!(!process.is_alive());
}

#[test]
fn a_thread_is_refused_with_its_process_named() {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("a thread".into())
        .spawn(move || {
            send.send(rustix::thread::gettid()).unwrap();
            let _ = wait.recv();
        })
        .unwrap();
    let tid = receive.recv().unwrap().as_raw_nonzero();
    let pid = std::process::id();
    assert_eq!(
        Process::open(u32::try_from(tid.get()).unwrap())
            .unwrap_err()
            .to_string(),
        format!(
            "{tid} (a thread) is a thread of process {pid}, and all threads of a process are \
             traced together; use: leaktrace attach {pid}"
        )
    );
    drop(stop);
    thread.join().unwrap();
}

/// An `ELFCLASS32` i386 executable that calls `pause` (29) for ever.
fn thirty_two_bit_program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    // mov $29, %eax; int $0x80; jmp to the start
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let size = HEADERS + code.len() as u32;
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u16, 3].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend(
        [1, BASE + HEADERS, 52, 0, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes()),
    );
    elf.extend(
        [52u16, 32, 1, 0, 0, 0]
            .iter()
            .flat_map(|half| half.to_le_bytes()),
    );
    elf.extend(
        [1, 0, BASE, BASE, size, size, 5, 0x1000]
            .iter()
            .flat_map(|w| w.to_le_bytes()),
    );
    elf.extend(code);
    elf
}

#[test]
fn a_32_bit_process_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let exe = directory.path().join("old");
    install(&thirty_two_bit_program(), &exe);
    let spawned = Command::new(&exe).spawn();
    if spawned
        .as_ref()
        .is_err_and(|error| error.raw_os_error() == Some(libc::ENOEXEC))
    {
        crate::testing::not_run(
            module_path!(),
            "a_32_bit_process_is_refused",
            "this kernel does not run 32-bit programs",
        );
        return;
    }
    let child = Running(spawned.unwrap());
    let pid = child.pid();
    wait_until("exec is done", || is_loaded(pid));
    assert_eq!(
        Process::open(pid).unwrap_err().to_string(),
        format!(
            "{pid} (old) is a 32-bit process ({}), and leaktrace understands 64-bit ones only; \
             trace a 64-bit build of the program",
            exe.display()
        )
    );
}

#[test]
fn elf_classes_are_told_apart() {
    assert!(is_32_bit_elf(*b"\x7fELF\x01"));
    assert!(!is_32_bit_elf(*b"\x7fELF\x02"));
    assert!(!is_32_bit_elf(*b"#!/bi"));
}

#[test]
fn another_user_s_process_is_refused_with_the_command_that_would_do() {
    if !rustix::process::geteuid().is_root() {
        crate::testing::not_run(
            module_path!(),
            "another_user_s_process_is_refused_with_the_command_that_would_do",
            "needs root, to become another user than the target's",
        );
        return;
    }
    let child = sleep();
    let pid = child.pid();
    let error = std::thread::spawn(move || {
        // SAFETY: the raw system call changes the ids of this thread only,
        // which ends right after.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        assert_eq!(result, 0);
        Process::open(pid).unwrap_err()
    })
    .join()
    .unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "not permitted to trace {pid} (sleep): leaktrace does not run as root; use: sudo \
             leaktrace attach {pid}"
        )
    );
}

#[test]
fn root_without_the_capability_is_told_which_one() {
    if !rustix::process::geteuid().is_root() {
        crate::testing::not_run(
            module_path!(),
            "root_without_the_capability_is_told_which_one",
            "needs root",
        );
        return;
    }
    // Another user's, so that the capability is needed.
    let child = Running::start(Command::new("sleep").arg("1000").uid(65_534));
    let pid = child.pid();
    wait_until("it has executed sleep", || {
        read_stat(pid).unwrap().name == "sleep"
    });
    let error = std::thread::spawn(move || {
        // Capabilities are a thread's own.
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_PTRACE);
        rustix::thread::set_capabilities(None, sets).unwrap();
        Process::open(pid).unwrap_err()
    })
    .join()
    .unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "not permitted to trace {pid} (sleep): leaktrace runs as root, but without \
             CAP_SYS_PTRACE; run it outside the container, or give the container that capability"
        )
    );
}

#[test]
fn a_process_whose_main_thread_has_ended_is_no_zombie() {
    let directory = tempfile::tempdir().unwrap();
    let (source, exe) = (
        directory.path().join("m.c"),
        directory.path().join("headless"),
    );
    let program = "#include <pthread.h>\n#include <unistd.h>\n\
        static void *rest(void *p) { for (;;) pause(); return p; }\n\
        int main(void) { pthread_t t; pthread_create(&t, 0, rest, 0); pthread_exit(0); }\n";
    fs::write(&source, program).unwrap();
    match Command::new("gcc")
        .arg("-pthread")
        .arg(&source)
        .arg("-o")
        .arg(&exe)
        .status()
    {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            crate::testing::not_run(
                module_path!(),
                "a_process_whose_main_thread_has_ended_is_no_zombie",
                &format!("no gcc ({error})"),
            );
            return;
        }
    }
    let mut child = Running::start(&mut Command::new(&exe));
    let pid = child.pid();
    wait_until("its main thread has ended", || {
        read_stat(pid).unwrap().has_ended()
    });
    let process = Process::open(pid).unwrap();
    assert!(process.main_thread_ended() && process.is_alive());
    assert_eq!(process.exe(), exe);
    // What the main thread no longer has, the other thread shows.
    assert!(!mapping::read_mappings(&process).unwrap().is_empty());
    assert!(memory::sample(&process).rss.unwrap() > 0);
    assert!(memory::sample(&process).descriptors.unwrap() >= 3);

    let mappings = mapping::read_mappings(&process).unwrap();
    let (files, problems) = mapped_file::open_executable_files(&process, &mappings);
    assert!(problems.is_empty(), "{problems:?}");
    assert!(files.iter().any(|file| file.path() == exe));

    child.0.kill().unwrap();
    wait_until("it has ended", || !process.is_alive());
    assert!(!process.main_thread_ended());
}

#[test]
fn ticks_become_durations() {
    // User space sees 100 Hz on every architecture.
    assert_eq!(ticks(250), Duration::from_millis(2500));
    assert!(ticks(u64::MAX) > Duration::from_secs(1 << 56));
}
