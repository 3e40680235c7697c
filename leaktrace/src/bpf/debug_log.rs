//! What the debugging object logs, printed to stderr. The shipped object logs
//! nothing.

use std::io::Write as _;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let _ = writeln!(std::io::stderr(), "bpf: {}", record.args());
    }
    fn flush(&self) {}
}

/// Prints what the object logs for as long as the runtime runs. Only the
/// debugging object has the map for it.
pub fn print(ebpf: &mut Ebpf) {
    if ebpf.map("AYA_LOGS").is_none() || tokio::runtime::Handle::try_current().is_err() {
        return;
    }
    let Ok(logger) = EbpfLogger::init_with_logger(ebpf, Stderr) else {
        return;
    };
    // SAFETY: the registration owns the logger, whose descriptor never changes.
    let Ok(mut logger) = (unsafe { AsyncFd::register(logger) }) else {
        return;
    };
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
}
