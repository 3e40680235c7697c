//! What the running kernel does with the instruction under a probe.

/// Abilities of a kernel that decide which instructions are cheap or safe to
/// probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelAbility {
    /// Which no-operations it emulates.
    pub nops: NopAbility,
    /// The target has a user shadow stack. Kernels before 6.16 emulate a
    /// `call` without writing there, and the matching `ret` then faults; so
    /// calls are left alone.
    pub shadow_stack: bool,
}

/// Which no-operations a kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NopAbility {
    /// The one-byte `nop` and `pause`; the two-byte one is refused, longer ones
    /// are single-stepped.
    OneByte,
    /// All up to eight bytes, and the five-byte one is replaced by a call
    /// (6.18), less than half as dear as a trap.
    FastFiveByte,
}

impl KernelAbility {
    /// What every supported kernel (5.10 and later) can do.
    pub const BASE: Self = Self {
        nops: NopAbility::OneByte,
        shadow_stack: false,
    };

    /// Asks the running kernel.
    #[must_use]
    pub fn of_running_kernel() -> Self {
        let nops = if has_uprobe_call() {
            NopAbility::FastFiveByte
        } else {
            NopAbility::OneByte
        };
        Self { nops, ..Self::BASE }
    }
}

/// Whether the system call through which replaced no-operations enter the
/// kernel exists. It came with (or after) the emulation of the other ones.
fn has_uprobe_call() -> bool {
    /// `uprobe` in `arch/x86/entry/syscalls/syscall_64.tbl`.
    const UPROBE: libc::c_long = 336;
    if cfg!(not(target_arch = "x86_64")) {
        return false;
    }
    // SAFETY: takes no arguments, and does nothing but fail when it isn't
    // called from the kernel's own trampoline.
    let result = unsafe { libc::syscall(UPROBE) };
    result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO)
}
