//! One line a guest, for people.

use super::guest::Guest;
use super::kernel::Kernel;
use super::verdict::{Feature, Verdict};

/// What became of a guest.
pub struct Row {
    /// Its name.
    pub name: String,
    /// Whether nothing is special about it but its kernel.
    pub is_plain: bool,
    outcome: Outcome,
}

enum Outcome {
    NotRun(String),
    Ran {
        release: String,
        preemption: String,
        verdict: Box<Verdict>,
        attempts: u32,
    },
}

impl Row {
    /// A guest that was not booted.
    pub fn not_run(guest: &Guest, reason: &str) -> Self {
        Self {
            name: guest.name(),
            is_plain: !guest.is_for_races(),
            outcome: Outcome::NotRun(reason.to_owned()),
        }
    }

    /// A guest that was booted, the last time with this verdict.
    pub fn ran(guest: &Guest, kernel: &Kernel, verdict: Verdict, attempts: u32) -> Self {
        let preemption = verdict.facts.preemption.clone();
        Self {
            name: guest.name(),
            is_plain: !guest.is_for_races(),
            outcome: Outcome::Ran {
                release: kernel.release.clone(),
                preemption: preemption.unwrap_or_else(|| kernel.preemption.clone()),
                verdict: Box::new(verdict),
                attempts,
            },
        }
    }

    /// Whether it was booted and something was wrong.
    pub fn has_failed(&self) -> bool {
        matches!(&self.outcome, Outcome::Ran { verdict, .. } if verdict.has_failed())
    }

    /// What its kernel lacks.
    pub fn missing(&self) -> impl Iterator<Item = &Feature> {
        let facts = match &self.outcome {
            Outcome::NotRun(_) => None,
            Outcome::Ran { verdict, .. } => Some(&verdict.facts),
        };
        facts.into_iter().flat_map(|facts| facts.missing())
    }

    /// The table's cells, below [`HEADER`].
    pub fn cells(&self) -> [String; 8] {
        match &self.outcome {
            Outcome::NotRun(reason) => {
                let mut cells = [const { String::new() }; 8];
                cells[0].clone_from(&self.name);
                cells[1] = format!("not run: {reason}");
                cells
            }
            Outcome::Ran {
                release,
                preemption,
                verdict,
                ..
            } => {
                let tally = &verdict.tally;
                let largest = verdict.facts.largest().map_or_else(
                    || "unknown".to_owned(),
                    |program| format!("{} ({})", program.verified.unwrap_or(0), program.name),
                );
                [
                    self.name.clone(),
                    release.clone(),
                    preemption.clone(),
                    verdict.facts.programs.len().to_string(),
                    largest,
                    tally.passed.to_string(),
                    tally.failed.to_string(),
                    tally.skipped.to_string(),
                ]
            }
        }
    }
}

/// What the columns are.
pub const HEADER: [&str; 8] = [
    "guest",
    "kernel",
    "preemption",
    "programs",
    "verifier instructions, most",
    "passed",
    "failed",
    "not run",
];

/// The table of all guests, then what there is to say of each: what is wrong, which
/// tests were not run, what the kernel lacks.
pub fn text(rows: &[Row]) -> String {
    let mut table = vec![HEADER.map(str::to_owned)];
    table.extend(rows.iter().map(Row::cells));
    let mut text = aligned(&table);
    for row in rows {
        let Outcome::Ran {
            verdict, attempts, ..
        } = &row.outcome
        else {
            continue;
        };
        let mut lines = Vec::new();
        if *attempts > 1 {
            lines.push(format!("attempts: {attempts}"));
        }
        lines.extend(verdict.problems());
        for (name, reason) in &verdict.tally.not_run {
            lines.push(format!("not run: {name}: {reason}"));
        }
        for feature in row.missing() {
            let instead = feature.instead.as_deref().unwrap_or("not needed");
            lines.push(format!("no {}: {instead}", feature.name));
        }
        if !lines.is_empty() {
            text.push_str(&format!("\n{}\n  {}\n", row.name, lines.join("\n  ")));
        }
    }
    text
}

/// Cells in columns. The last one of a line that has no more takes what room it
/// likes.
fn aligned(table: &[[String; 8]]) -> String {
    let mut widths = [0; 8];
    for row in table {
        let last = row.iter().rposition(|cell| !cell.is_empty()).unwrap_or(0);
        for (width, cell) in widths.iter_mut().zip(&row[..last]) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in table {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
