//! x86-64.

/// The system call through which a no-operation that the kernel replaced enters
/// it: `uprobe` in `arch/x86/entry/syscalls/syscall_64.tbl`.
pub const UPROBE_SYSTEM_CALL: Option<libc::c_long> = Some(336);

/// Whether the kernel lets processes have a shadow stack of their own.
pub fn has_shadow_stacks() -> bool {
    /// `ARCH_SHSTK_STATUS` of `asm/prctl.h`.
    const STATUS: libc::c_long = 0x5005;
    let mut features = 0_u64;
    // SAFETY: the kernel writes to the variable, or fails.
    unsafe { libc::syscall(libc::SYS_arch_prctl, STATUS, &raw mut features) == 0 }
}
