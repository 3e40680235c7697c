//! leaktrace: which call stacks of a live process hold the memory that is not
//! given back. `ARCHITECTURE.md` has the map of these modules.

pub mod aggregate;
pub mod bpf;
pub mod cli;
pub mod exit;
pub mod model;
pub mod output;
pub mod report;
pub mod session;
