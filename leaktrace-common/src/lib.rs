//! What the BPF programs and userspace share: keys and values of maps, the
//! list of counters, the roles of watched functions, the ways a stack ends,
//! unwind tables and the state of a walk by them.
//!
//! Everything here is `#[repr(C)]` with explicit padding and integers only, so
//! that both sides agree on each byte; sizes are asserted beside the types.

#![no_std]

pub mod arch;
pub mod control;
pub mod counter;
pub mod function;
pub mod in_flight;
pub mod live;
pub mod remembered;
pub mod stack;
pub mod unwind;
pub mod vma;
pub mod walk;
