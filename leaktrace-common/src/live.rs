//! The live table: blocks that were allocated and not given back.

use crate::arch::ADDRESS_BITS;

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

/// Slots of a [`Bucket`]: with the count of spilled blocks, their keys fill one
/// cache line.
pub const BUCKET_SLOTS: usize = 7;
/// How many buckets, from a block's home on, the block may be in.
pub const PROBE_BUCKETS: u32 = 32;
/// Key of a slot that is being filled.
pub const CLAIMED: u64 = 1;

/// A part of the live table where it is an array of ours.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Blocks whose home this is, and that are in a later one.
    pub spilled: u64,
    /// Key of each slot: 0 free, [`CLAIMED`], or a block's.
    pub keys: [u64; BUCKET_SLOTS],
    /// What is known of each block.
    pub values: [LiveValue; BUCKET_SLOTS],
    /// Always 0.
    pub padding: [u64; 3],
}

/// A block's key in a bucket: its address with the process in the upper bits,
/// which are 0 in addresses of user space.
#[inline(always)]
#[must_use]
pub const fn slot_key(address: u64, process: u64) -> u64 {
    address ^ process << ADDRESS_BITS
}

/// The address in a key.
#[inline(always)]
#[must_use]
pub const fn slot_address(key: u64, process: u64) -> u64 {
    key ^ process << ADDRESS_BITS
}

/// The number of a key's home: multiplication by 2^64 divided by the golden
/// ratio spreads the addresses, which are multiples of 16, and the upper half of
/// another multiplication scales that to the number of buckets.
#[inline(always)]
#[must_use]
pub const fn bucket_of(key: u64, buckets: u32) -> u32 {
    let spread = (key ^ key >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((spread * buckets as u64) >> 32) as u32
}

/// How many buckets hold `blocks` without loss: five of eight slots are taken
/// then, so that [`PROBE_BUCKETS`] in a row are never all full. (At 0.72 of the
/// slots and 16 buckets, one block in some millions found no place.)
#[must_use]
pub const fn buckets_for(blocks: u32) -> u32 {
    let slots = blocks as u64 * 8 / 5;
    (slots / BUCKET_SLOTS as u64 + PROBE_BUCKETS as u64) as u32
}

const _: () = assert!(size_of::<Bucket>() == 256);
const _: () = assert!(size_of::<LiveKey>() == 16);
const _: () = assert!(size_of::<LiveValue>() == 24);

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for LiveKey {}
#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for LiveValue {}
