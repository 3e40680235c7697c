//! The live table: who takes a block out of it subtracts it from the sums, who
//! puts one in adds it.
//!
//! Two forms with the same rules. [`Slots`] is our own table in one array,
//! without locks, for kernels whose programs can compare and exchange (5.12);
//! [`Hash`] is the kernel's hash map, for older ones. A pair of malloc and free
//! costs 270 ns less in the first.

mod hash;
mod slots;

use leaktrace_common::live::LiveValue;

pub use hash::Hash;
pub use slots::Slots;

/// What the programs do with live blocks.
pub trait LiveTable {
    /// Whether programs of this form may compare and exchange.
    const EXCHANGES: bool;

    /// Takes a block out of the table. The sums are the caller's business: only
    /// whoever got the value may subtract it.
    fn take(address: u64) -> Option<LiveValue>;

    /// Puts a block into the table; false when it could not be, which is
    /// counted. A block that is there already means that its free was missed:
    /// it is taken out, subtracted and counted.
    fn insert(address: u64, value: &LiveValue) -> bool;
}
