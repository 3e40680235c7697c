//! leaktrace's own standing on the machine: its rights, its priority, and what
//! it needs mounted.

pub mod priority;
pub mod privilege;
pub mod tracefs;
