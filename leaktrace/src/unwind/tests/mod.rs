//! What concerns several stages.

pub(super) mod any_bytes;
pub(super) mod frames;
mod own_stacks;
