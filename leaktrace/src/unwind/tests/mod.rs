//! What concerns several stages.

pub(super) mod any_bytes;
mod driver;
pub(super) mod frames;
mod own_stacks;
