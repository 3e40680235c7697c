//! What depends on the traced machine's architecture: one file for each, with
//! the same names in it. Programs are compiled for BPF, and told by a flag.

#[cfg(any(target_arch = "x86_64", bpf_target_arch = "x86_64"))]
mod x86_64;
#[cfg(any(target_arch = "x86_64", bpf_target_arch = "x86_64"))]
pub use x86_64::*;

#[cfg(not(any(target_arch = "x86_64", bpf_target_arch = "x86_64")))]
compile_error!("leaktrace knows x86-64 only: another architecture needs a file in src/arch");
