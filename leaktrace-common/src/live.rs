//! The live table: blocks that were allocated and not given back.

/// Address and process of a block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LiveKey {
    /// Address of the block.
    pub address: u64,
    /// The address space, by leaktrace's own numbering (0 for the first).
    pub process: u64,
}

/// What is known of a live block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveValue {
    /// Requested bytes in the low 48 bits, role and flags in the high 16.
    pub size_and_flags: u64,
    /// The stack that allocated it.
    pub stack_id: u64,
    /// When, `CLOCK_MONOTONIC`; never 0.
    pub time_ns: u64,
}

/// Largest size that fits a [`LiveValue`].
pub const MAX_SIZE: u64 = (1 << 48) - 1;

impl LiveValue {
    /// Requested bytes.
    #[inline(always)]
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size_and_flags & MAX_SIZE
    }
    /// Number of the [`crate::function::Role`] that made it.
    #[inline(always)]
    #[must_use]
    pub const fn role(&self) -> u8 {
        (self.size_and_flags >> 48) as u8
    }
}

const _: () = assert!(size_of::<LiveKey>() == 16);
const _: () = assert!(size_of::<LiveValue>() == 24);

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for LiveKey {}
#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for LiveValue {}
