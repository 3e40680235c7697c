//! Which tests run in a guest.

/// Test programs of the end-to-end package, and those of their cases that are
/// left out, by part of their names.
const SUITES: [(&str, &[&str]); 5] = [
    (
        "exactness",
        &[
            // Takes more memory than a guest has.
            "more_than_a_million_live_blocks",
        ],
    ),
    ("rules", &[]),
    ("edges", &[]),
    ("harm", &[]),
    (
        "lifecycle",
        &[
            // Of signals and files, which are the same on every kernel.
            "sigterm",
            "sighup",
            "ctrl_z",
            "closed_stdout",
            "saved",
            "unless_asked",
        ],
    ),
];

/// Names of the test programs.
pub fn programs() -> impl Iterator<Item = &'static str> {
    SUITES.into_iter().map(|(program, _)| program)
}

/// The arguments of the program `guest`, which runs them all from `dir`.
pub fn arguments(dir: &str, filter: Option<&str>) -> Vec<String> {
    let mut words = Vec::new();
    for (program, skipped) in SUITES {
        if !words.is_empty() {
            words.push("--".to_owned());
        }
        words.push(format!("{dir}/{program}"));
        words.push("--color=never".to_owned());
        words.extend(filter.map(str::to_owned));
        words.extend(skipped.iter().map(|name| format!("--skip={name}")));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_gets_the_filter() {
        let words = arguments("/t", Some("perf"));
        let filters = words.iter().filter(|word| *word == "perf").count();
        assert_eq!(filters, SUITES.len());
        assert_eq!(words[0], "/t/exactness");
        assert_eq!(
            words.iter().filter(|word| *word == "--").count(),
            SUITES.len() - 1
        );
    }
}
