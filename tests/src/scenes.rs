//! What scenes of `fixtures/custom.c` leave, where several test files play them.

use anyhow::{Result, ensure};

use crate::{
    comparison::{Expected, check_exact, check_sums},
    report::Report,
};

/// What the scene `nested` leaves, by caller: bytes, blocks.
pub const NESTED: &[(&str, u64, u64)] = &[
    ("zeroes", 100, 1),
    ("resizes", 5000, 1),
    ("resizes_array", 7000, 1),
    ("aligns_out", 70, 1),
];

/// Checks that each call of the scene `nested` counts once, whatever it calls.
///
/// # Errors
/// When the report says anything else.
pub fn check_nested(report: &Report) -> Result<()> {
    check_sums(report)?;
    check_exact(report)?;
    Expected::of(NESTED).check(report)?;
    let unknown = report.counter("unknown_free")?;
    ensure!(unknown == 0, "{unknown} unknown frees");
    let nested = report.counter("nested_call")?;
    ensure!(nested > 5, "{nested} nested calls");
    Ok(())
}
