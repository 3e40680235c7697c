//! Counts over all test programs, read from what they print.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How the tests went.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and programs that ended without a result.
    pub failed: u64,
    /// Tests that did not run.
    pub skipped: u64,
    /// The names of those that failed.
    pub failures: Vec<String>,
    /// Why tests did not run, by name.
    pub not_run: BTreeMap<String, String>,
}

impl Tally {
    /// Adds what one test program printed, in libtest's format. A program may
    /// print several results (documentation tests do, one a crate).
    pub fn add(&mut self, program: &str, text: &str, succeeded: bool) {
        let failed_before = self.failed;
        let mut results = 0;
        // The names below the last `failures:` before a result; what a failed
        // test printed stands below an earlier one.
        let mut names = Vec::new();
        // libtest knows no test that could not run: it calls it passed.
        let (mut not_run, mut ignored) = (BTreeSet::new(), BTreeSet::new());
        for line in text.lines() {
            // libtest, one test at a time, has begun the line with its name.
            let begun = line
                .split_once(" ... ")
                .filter(|(name, _)| name.starts_with("test "));
            let said = begun.map_or(line, |(_, said)| said);
            if let Some(counts) = line.strip_prefix("test result: ") {
                results += 1;
                self.passed += count(counts, "passed");
                self.failed += count(counts, "failed");
                self.skipped += count(counts, "ignored");
                self.failures.append(&mut names);
            } else if let Some(rest) = said.strip_prefix("NOT RUN: ") {
                let (name, reason) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
                not_run.insert(name.to_owned());
                self.not_run.insert(name.to_owned(), reason.to_owned());
            } else if line == "failures:" {
                names.clear();
            } else if let Some(name) = line.strip_prefix("    ") {
                names.push(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("test ") {
                ignored.extend(self.add_ignored(rest));
            }
        }
        let called_passed = not_run.difference(&ignored).count() as u64;
        self.passed = self.passed.saturating_sub(called_passed);
        self.skipped += called_passed;
        // Killed, aborted, or unable to start its tests at all.
        if self.failed == failed_before && (!succeeded || results == 0) {
            self.failed += 1;
            self.failures
                .push(format!("{program}: ended without a result"));
        }
    }

    /// A test that was not even started.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skipped += 1;
        self.not_run.insert(name.to_owned(), reason.to_owned());
    }

    /// Reads libtest's `name ... ignored, reason` and libtest-mimic's
    /// `name ... ignored (reason)`; gives the name.
    fn add_ignored(&mut self, line: &str) -> Option<String> {
        let (name, reason) = line.split_once(" ... ignored")?;
        let name = name.trim_end();
        let reason = reason
            .trim_start_matches([',', ' ', '('])
            .trim_end_matches(')');
        let reason = if reason.is_empty() {
            "no reason given"
        } else {
            reason
        };
        // What the test itself said is more than this.
        self.not_run
            .entry(name.to_owned())
            .or_insert_with(|| reason.to_owned());
        Some(name.to_owned())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// The number before a word in `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> u64 {
    let words: Vec<_> = counts
        .split([' ', ';'])
        .filter(|part| !part.is_empty())
        .collect();
    words
        .windows(2)
        .find(|pair| pair[1] == word)
        .and_then(|pair| pair[0].parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "running 5 tests\n\
        test pure::one ... ok\n\
        NOT RUN: go::grows: go is not installed\n\
        test go::grows ... ignored\n\
        test slow ... ignored, takes an hour\n\
        test alone ... ignored (no root)\n\
        test broken ... it prints\n\
        FAILED\n\
        \n\
        failures:\n\
        \n\
        ---- broken ----\n\
        \x20   expected 1\n\
        \n\
        failures:\n\
        \x20   broken\n\
        \n\
        test result: FAILED. 1 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";

    #[test]
    fn counts_names_and_reasons_are_read() {
        let mut tally = Tally::default();
        tally.add("t", MIXED, false);
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 3 skipped");
        assert_eq!(tally.failures, ["broken"]);
        assert_eq!(tally.not_run["go::grows"], "go is not installed");
        assert_eq!(tally.not_run["slow"], "takes an hour");
        assert_eq!(tally.not_run["alone"], "no root");
    }

    #[test]
    fn a_test_that_says_it_did_not_run_is_skipped_although_libtest_calls_it_passed() {
        let mut tally = Tally::default();
        tally.add(
            "t",
            "running 4 tests\n\
             NOT RUN: a::compiles: gcc is not installed\n\
             NOT RUN: a::compiles: gcc is not installed\n\
             test a::compiles ... ok\n\
             test alone ... NOT RUN: alone: not permitted\n\
             ok\n\
             NOT RUN: known: no root\n\
             test known ... ignored (no root)\n\
             test one ... ok\n\
             test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n",
            true,
        );
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 3 skipped");
        assert_eq!(tally.not_run["a::compiles"], "gcc is not installed");
        assert_eq!(tally.not_run["alone"], "not permitted");
        assert_eq!(tally.not_run["known"], "no root");
    }

    #[test]
    fn results_of_several_crates_in_one_output_are_summed() {
        let mut tally = Tally::default();
        let ok = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        tally.add("documentation", &ok.repeat(3), true);
        assert_eq!((tally.passed, tally.failed), (6, 0));
    }

    #[test]
    fn a_program_that_dies_is_a_failure_even_without_a_failed_test() {
        let mut tally = Tally::default();
        tally.add("t", "running 2 tests\ntest one ... ok\n", false);
        assert_eq!((tally.passed, tally.failed), (0, 1));
        assert_eq!(tally.failures, ["t: ended without a result"]);

        let mut silent = Tally::default();
        silent.add("t", "", true);
        assert_eq!(silent.failed, 1);
    }
}
