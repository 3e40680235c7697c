//! x86-64.

/// Bits of an address in user space that are not always 0: with four levels of
/// page tables, 47 would do. With five, only programs that ask for it get more.
pub const ADDRESS_BITS: u32 = 48;

/// Offsets from `rsp` of the interrupted registers in the frame of a signal:
/// `uc_mcontext.gregs` of x86-64's `ucontext_t`.
pub mod signal_frame {
    /// `REG_RBP`.
    pub const FP: u64 = 120;
    /// `REG_RSP`.
    pub const SP: u64 = 160;
    /// `REG_RIP`.
    pub const IP: u64 = 168;
}
