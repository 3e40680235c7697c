//! A return probe enters the kernel by a system call on some kernels, which a
//! seccomp filter may answer by killing the process. So before a process under
//! a filter is traced, a child of our own goes first.

use std::{
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
};

use anyhow::{Context as _, Result, bail};

use super::plan::Plan;
use crate::{
    bpf::{LinkKind, Program, Scope, Tracer},
    probe_site::KernelAbility,
    target::{Process, mapped_file, mapping},
};

/// Instructions of a classic BPF filter on `struct seccomp_data`, see
/// seccomp(2): allow the four calls of strict mode, kill for any other.
fn strict_filter() -> [libc::sock_filter; 7] {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUALS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let allowed = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
    ];
    let mut filter = [libc::sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: 0,
    }; 7];
    filter[0] = libc::sock_filter {
        code: LOAD,
        jt: 0,
        jf: 0,
        k: 0,
    };
    for (index, number) in allowed.into_iter().enumerate() {
        let to_allow = (allowed.len() - index) as u8;
        filter[index + 1] = libc::sock_filter {
            code: EQUALS,
            jt: to_allow,
            jf: 0,
            k: number as u32,
        };
    }
    filter[5].k = libc::SECCOMP_RET_KILL_PROCESS;
    filter[6].k = libc::SECCOMP_RET_ALLOW;
    filter
}

/// Sets return probes on a child under a strict filter, and lets it allocate.
///
/// # Errors
/// When the child dies of it: then the target would as well.
pub fn under_seccomp(tracer: &mut Tracer, ability: KernelAbility, kind: LinkKind) -> Result<()> {
    let own = Process::own().context("looking at leaktrace itself")?;
    let mappings = mapping::read_mappings(&own).context("reading leaktrace's own mappings")?;
    let (files, _) = mapped_file::open_executable_files(&own, &mappings);
    let plan = Plan::of(&files, ability)?;
    if plan.files.is_empty() {
        bail!("the process is under seccomp, and whether that stands return probes can't be tried");
    }
    let mut child = FilteredChild::start()?;
    let mut attachment = tracer.attach(
        kind,
        &plan.files,
        Program::Empty,
        Scope::Process(child.pid as u32),
        0,
    )?;
    let survived = child.allocate();
    attachment.detach(|_, _| {});
    if !survived {
        bail!(
            "not attached: the process is under seccomp, and on this kernel a return probe kills \
             processes whose filter does not know the system call behind it (Linux 6.11 until it \
             was let through; update the kernel). Nothing was changed in the process"
        );
    }
    Ok(())
}

/// A child that installs the filter and waits.
struct FilteredChild {
    pid: libc::pid_t,
    go: std::fs::File,
    answer: std::fs::File,
}

impl FilteredChild {
    fn start() -> Result<Self> {
        let (go_read, go_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (answer_read, answer_write) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let filter = strict_filter();
        // SAFETY: the child calls only async-signal-safe functions and malloc,
        // which glibc keeps usable after fork.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(std::io::Error::last_os_error())
                .context("making a child to try seccomp on");
        }
        if pid == 0 {
            let (go, answer) = (raw(&go_read), raw(&answer_write));
            // While this is open here, the end of leaktrace would not be noticed.
            drop(go_write);
            // SAFETY: as above; never returns.
            unsafe { child(go, answer, &filter) }
        }
        drop((go_read, answer_write));
        let mut child = Self {
            pid,
            go: go_write.into(),
            answer: answer_read.into(),
        };
        // It says when the filter is in.
        if !child.answers() {
            bail!("a child to try seccomp on could not install its filter");
        }
        Ok(child)
    }

    /// Lets it allocate; whether it lived through that.
    fn allocate(&mut self) -> bool {
        self.go.write_all(b"g").is_ok() && self.answers()
    }

    fn answers(&mut self) -> bool {
        self.answer.read_exact(&mut [0]).is_ok()
    }
}

impl Drop for FilteredChild {
    fn drop(&mut self) {
        // SAFETY: our own child, not waited for yet.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn raw(fd: &OwnedFd) -> i32 {
    use std::os::fd::AsRawFd as _;
    fd.as_raw_fd()
}

/// # Safety
/// Only in a fresh child.
unsafe fn child(go: i32, answer: i32, filter: &[libc::sock_filter]) -> ! {
    // SAFETY: plain system calls with valid arguments, see each manual page.
    unsafe {
        // The allocator's own memory, before system calls are forbidden.
        libc::free(std::hint::black_box(libc::malloc(64)));
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) != 0
        {
            libc::_exit(1);
        }
        let mut byte = b'r';
        libc::write(answer, (&raw const byte).cast(), 1);
        libc::read(go, (&raw mut byte).cast(), 1);
        for _ in 0..16 {
            libc::free(std::hint::black_box(libc::malloc(64)));
        }
        libc::write(answer, (&raw const byte).cast(), 1);
        libc::read(go, (&raw mut byte).cast(), 1);
        libc::_exit(0)
    }
}
