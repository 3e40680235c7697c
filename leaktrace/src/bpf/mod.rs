//! The kernel side, seen from userspace: loading the BPF object, setting and
//! removing probes, steering the programs and reading their maps. Nothing
//! outside this module knows aya or a system call of BPF.

mod batch;
mod control;
mod debug_log;
mod features;
mod holder;
mod kernel_types;
mod links;
mod maps;
mod object;
mod probes;
mod slots;
mod syscall;
mod tracer;
mod unwind_maps;
mod uprobe_multi;
mod uprobe_perf;

pub use self::{
    control::{ControlPage, monotonic_ns},
    features::{Feature, Features, OLDEST_KERNEL},
    holder::{SERVICE as HOLDER, run as run_holder},
    links::{Attachment, LinkKind},
    maps::Maps,
    object::{Limits, ObjectSource, TableRoom},
    probes::{PlannedFile, PlannedProbe, Program, Scope},
    tracer::Tracer,
    unwind_maps::UnwindMaps,
};
