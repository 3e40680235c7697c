//! What depends on the processor's architecture: one file for each, with the
//! same names in it.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("leaktrace knows x86-64 only: another architecture needs a file in src/arch");
