//! The child between fork and exec. Another thread of leaktrace may have held
//! any lock at the fork, so the child makes system calls and nothing else: all
//! that it needs is prepared before.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{fd::RawFd, unix::ffi::OsStrExt as _},
    ptr,
};

use libc::c_char;
use rustix::process::Pid;

use super::{
    command::{BECOME_USER, Command, LaunchError},
    inherited::Inherited,
    undo::Undo,
    user::User,
};

/// What the child does between go-ahead and exec, for messages.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Step {
    Niceness = 1,
    OomScore = 2,
    Limits = 3,
    Ids = 4,
    Exec = 5,
}

impl Step {
    pub(super) const ALL: [Self; 5] = [
        Self::Niceness,
        Self::OomScore,
        Self::Limits,
        Self::Ids,
        Self::Exec,
    ];

    /// `None` for the command's own.
    pub(super) fn description(self) -> Option<&'static str> {
        match self {
            Self::Niceness => Some("giving it leaktrace's original niceness"),
            Self::OomScore => Some("giving it leaktrace's original oom_score_adj"),
            Self::Limits => Some("giving it leaktrace's original resource limits"),
            Self::Ids => Some(BECOME_USER),
            Self::Exec => None,
        }
    }
}

/// Everything that the child needs, made before the fork: after it there may be
/// no allocation, since another thread may have held the allocator's lock.
pub(super) struct Plan<'a> {
    go_read: RawFd,
    go_write: RawFd,
    errors_write: RawFd,
    undo: Undo,
    user: Option<&'a User>,
    paths: Vec<CString>,
    argv: Vec<*const c_char>,
    /// For a script without `#!`: `/bin/sh`, a slot for the path, arguments.
    shell: CString,
    shell_argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// What the pointers point to.
    _strings: [Vec<CString>; 2],
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        command: &'a Command,
        inherited: &Inherited,
        [go_read, go_write, errors_write]: [RawFd; 3],
    ) -> Result<Self, LaunchError> {
        let null_byte = |what| LaunchError::NullByte {
            program: command.program.to_string_lossy().into_owned(),
            what,
        };
        let c_string =
            |text: &OsStr, what| CString::new(text.as_bytes()).map_err(|_| null_byte(what));
        let arguments: Vec<CString> = std::iter::once(&command.program)
            .chain(&command.arguments)
            .map(|argument| c_string(argument, "an argument"))
            .collect::<Result<_, _>>()?;
        let environment: Vec<CString> = command
            .environment
            .iter()
            .map(|(key, value)| {
                let mut text = key.clone();
                text.push("=");
                text.push(value);
                c_string(&text, "an environment variable")
            })
            .collect::<Result<_, _>>()?;
        let paths = command
            .candidates()
            .iter()
            .map(|path| c_string(path.as_os_str(), "its path"))
            .collect::<Result<_, _>>()?;
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings
                .iter()
                .map(|string| string.as_ptr())
                .chain([ptr::null()])
                .collect()
        };
        let shell = CString::from(c"/bin/sh");
        let argv = pointers(&arguments);
        let shell_argv = [shell.as_ptr(), ptr::null()]
            .into_iter()
            .chain(argv[1..].iter().copied())
            .collect();
        Ok(Self {
            go_read,
            go_write,
            errors_write,
            undo: Undo::of(inherited),
            user: command.user.as_ref(),
            paths,
            argv,
            shell,
            shell_argv,
            envp: pointers(&environment),
            _strings: [arguments, environment],
        })
    }
}

/// Forks. The child waits, becomes the command or reports why it can't, and
/// never returns.
pub(super) fn fork(plan: &mut Plan<'_>) -> io::Result<Pid> {
    let mut all = std::mem::MaybeUninit::uninit();
    let mut before = std::mem::MaybeUninit::uninit();
    // leaktrace's signal handlers must not run in the child: they would write
    // to what it shares with leaktrace.
    // SAFETY: the first call makes the set valid, the second fills the other.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    // SAFETY: the child calls only async-signal-safe functions (`become_command`).
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        become_command(plan);
    }
    let error = io::Error::last_os_error();
    // SAFETY: filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    Pid::from_raw(pid).filter(|_| pid > 0).ok_or(error)
}

/// What the child does. Nothing here may allocate, lock or panic.
fn become_command(plan: &mut Plan<'_>) -> ! {
    // SAFETY: system calls and async-signal-safe functions on memory made
    // before the fork.
    unsafe {
        plan.undo.signals();
        // While this is open here, the end of leaktrace would not be noticed.
        libc::close(plan.go_write);
        if !may_go(plan.go_read) {
            libc::_exit(125);
        }
        let (step, errno) = match restore(plan) {
            Err(step) => (step, errno()),
            Ok(()) => {
                // From here on, nothing more is said unless exec fails.
                let begins = Step::Exec as u8;
                libc::write(plan.errors_write, (&raw const begins).cast(), 1);
                (Step::Exec, execute(plan))
            }
        };
        let [a, b, c, d] = errno.to_ne_bytes();
        let report = [step as u8, a, b, c, d];
        libc::write(plan.errors_write, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

fn errno() -> i32 {
    // SAFETY: the location is always valid, and this thread's own.
    unsafe { *libc::__errno_location() }
}

/// Waits for the go-ahead; `false` when leaktrace is gone.
fn may_go(go_read: RawFd) -> bool {
    let mut byte = 0_u8;
    loop {
        // SAFETY: reads one byte into one.
        match unsafe { libc::read(go_read, (&raw mut byte).cast(), 1) } {
            1 => return true,
            -1 if errno() == libc::EINTR => {}
            _ => return false,
        }
    }
}

/// Undoes what leaktrace has changed for itself, and becomes the user that runs
/// the command. `Err` leaves the reason in `errno`.
///
/// # Safety
/// Only for the child of a fork.
unsafe fn restore(plan: &Plan<'_>) -> Result<(), Step> {
    let check = |result: i64, step| if result < 0 { Err(step) } else { Ok(()) };
    // SAFETY: system calls on memory that lives in `plan`. The ids are changed
    // by raw ones, since the C library's tell other threads, of which there
    // are none here but those that it remembers from before the fork.
    unsafe {
        plan.undo.attributes()?;
        if let Some(User { uid, gid, groups }) = plan.user {
            check(
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
                Step::Ids,
            )?;
            check(
                libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid),
                Step::Ids,
            )?;
            check(
                libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid),
                Step::Ids,
            )?;
        }
    }
    Ok(())
}

/// Tries the command's paths as execvp(3) does; returns the errno when all fail.
///
/// # Safety
/// Only for the child of a fork.
unsafe fn execute(plan: &mut Plan<'_>) -> i32 {
    let mut result = libc::ENOENT;
    for path in &plan.paths {
        // SAFETY: the arrays end with null, and what they point to lives in `plan`.
        unsafe { libc::execve(path.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr()) };
        match errno() {
            libc::ENOEXEC => {
                // A script without `#!` is the shell's.
                plan.shell_argv[1] = path.as_ptr();
                // SAFETY: as above.
                unsafe {
                    libc::execve(
                        plan.shell.as_ptr(),
                        plan.shell_argv.as_ptr(),
                        plan.envp.as_ptr(),
                    )
                };
                return libc::ENOEXEC;
            }
            // Another directory may have one that can be executed.
            libc::EACCES => result = libc::EACCES,
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            error => return error,
        }
    }
    result
}
