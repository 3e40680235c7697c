//! What depends on the traced machine's architecture, which `cargo xtask bpf`
//! names: one file for each, with the same names in it.

#[cfg(bpf_target_arch = "x86_64")]
mod x86_64;
#[cfg(bpf_target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(bpf_target_arch = "x86_64"))]
compile_error!("the programs know x86-64 only: another architecture needs a file in src/arch");
