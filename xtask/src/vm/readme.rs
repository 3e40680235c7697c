//! The table of kernels in README.md, as the last whole run saw them.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, bail};

use super::table::{HEADER, Row};
use crate::project;

const BEGIN: &str = "<!-- kernels: written by `cargo xtask vm-test --bless-readme` -->\n";
const END: &str = "<!-- end of kernels -->\n";

/// Writes the table.
///
/// # Errors
/// Something failed in the run, or README.md has no place for a table.
pub fn bless(rows: &[Row]) -> Result<()> {
    if rows.iter().any(Row::has_failed) {
        bail!("README.md stays as it is: it says what works");
    }
    let path = project::root().join("README.md");
    let text = fs::read_to_string(&path).context("cannot read README.md")?;
    let text = replaced(&text, &markdown(rows))
        .context("README.md has no lines between which the table of kernels goes")?;
    fs::write(&path, text).context("cannot write README.md")
}

fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// Two tables: the guests, and what is done on kernels that lack something.
fn markdown(rows: &[Row]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&HEADER.map(str::to_owned));
    text.push_str(&line(&[const { "---" }; HEADER.len()].map(str::to_owned)));
    for row in rows {
        text.push_str(&line(&row.cells()));
    }
    let mut lacking: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.is_plain) {
        for feature in row.missing() {
            if let Some(instead) = &feature.instead {
                let kernels = lacking.entry((&feature.name, instead)).or_default();
                kernels.push(&row.name);
            }
        }
    }
    if !lacking.is_empty() {
        let header = ["feature", "not in", "what leaktrace does instead"];
        text.push('\n');
        text.push_str(&line(&header.map(str::to_owned)));
        text.push_str(&line(&header.map(|_| "---".to_owned())));
    }
    for ((feature, instead), kernels) in lacking {
        let cells = [format!("`{feature}`"), kernels.join(", "), instead.into()];
        text.push_str(&line(&cells));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_the_marks_is_replaced() {
        let text = format!("a\n{BEGIN}old\n{END}z\n");
        let new = replaced(&text, "new\n");
        assert_eq!(new, Some(format!("a\n{BEGIN}new\n{END}z\n")));
        assert_eq!(replaced("a\n", "new\n"), None);
    }
}
