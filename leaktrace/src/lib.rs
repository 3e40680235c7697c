//! leaktrace: which call stacks of a live process hold the memory that is not
//! given back. `ARCHITECTURE.md` has the map of these modules.

pub mod aggregate;
pub mod alert;
pub mod allocator;
pub mod arch;
pub mod bpf;
pub mod cli;
pub mod companion;
pub mod doctor;
pub mod elf;
pub mod exit;
pub mod explain;
pub mod file_map;
pub mod forecast;
pub mod host;
pub mod launch;
pub mod model;
pub mod output;
pub mod perf_event;
pub mod probe_site;
pub mod quantity;
pub mod report;
pub mod session;
pub mod symbolize;
pub mod target;
#[cfg(test)]
mod testing;
pub mod trend;
pub mod unwind;
