//! Logging through aya-log, in the debugging object only: the shipped one has
//! nothing of it.

/// Logs a line about the call that a program's registers belong to.
#[cfg(feature = "debug")]
macro_rules! debug_log {
    ($registers:expr, $($argument:tt)*) => {
        aya_log_ebpf::info!($registers, $($argument)*)
    };
}

/// Does nothing.
#[cfg(not(feature = "debug"))]
macro_rules! debug_log {
    ($registers:expr, $($argument:tt)*) => {
        let _ = $registers;
    };
}
