//! leaktrace's own reports, of which figures are made.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::tracer::Start;

/// Has leaktrace write a report.
pub fn write_to(start: &mut Start, path: &Path) {
    let mut output = OsString::from("json:");
    output.push(path);
    start.command.arg("-o").arg(output);
}

/// A report that was written, whose file is removed.
///
/// # Errors
/// It is not there, or no report.
pub fn take(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let report = serde_json::from_slice(&text).context("a broken report")?;
    remove(path)?;
    Ok(report)
}

/// Removes a report, if it is there.
///
/// # Errors
/// It can't be removed.
pub fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}
