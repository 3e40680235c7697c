//! Whether a target is as fast after tracing as it was before.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{fixture::Fixture, suite::is_emulated};

/// The share of its speed that a target must regain.
const REGAINED: f64 = 0.95;

/// Checks that fixture `tight`, idle, takes no longer for a pair of calls than
/// the `before` femtoseconds of before it was traced; gives the share of its
/// speed that it has regained.
///
/// # Errors
/// When it stays slower.
pub fn expect_regained(fixture: &mut Fixture, before: u64) -> Result<f64> {
    // The machine is noisy: the fastest of several measurements counts, and
    // there are more of them until it is fast again.
    let mut after = u64::MAX;
    for _ in 0..20 {
        after = after.min(fixture.number("speed")?);
        if before as f64 / after as f64 >= REGAINED {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let regained = before as f64 / after as f64;
    // Time says nothing there.
    if is_emulated() {
        return Ok(regained);
    }
    println!("{before} fs a pair before, {after} fs after ({regained:.3})");
    ensure!(
        regained >= REGAINED,
        "{before} fs a pair before, {after} fs after"
    );
    Ok(regained)
}
