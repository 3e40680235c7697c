//! leaktrace: which call stacks of a live process hold the memory that is not
//! given back. `ARCHITECTURE.md` has the map of these modules.

pub mod allocator;
pub mod bpf;
pub mod elf;
pub mod model;
pub mod probe_site;
