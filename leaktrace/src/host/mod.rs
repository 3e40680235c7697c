//! leaktrace's own standing on the machine: its rights and its priority.

pub mod jit;
pub mod priority;
pub mod privilege;
