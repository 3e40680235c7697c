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
}
