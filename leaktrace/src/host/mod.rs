//! leaktrace's own standing on the machine: its rights and its priority.

pub mod priority;
pub mod privilege;
