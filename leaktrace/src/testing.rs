//! What tests of several modules share.

use std::io::Write as _;

/// Says that a test can't run here, and why: `cargo xtask test` repeats that at its
/// end. `module` is the test's `module_path!()`.
pub(crate) fn not_run(module: &str, test: &str, reason: &str) {
    let module = module.strip_prefix("leaktrace::").unwrap_or(module);
    // Not with println, which the test harness would keep.
    let line = format!("NOT RUN: {module}::{test}: {reason}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}
