//! Which tests run in a guest.

use super::guest::Guest;

/// A test program of the end-to-end package, and which of its cases are left out.
struct Suite {
    program: &'static str,
    /// By part of their names.
    skipped: &'static [&'static str],
    /// Also where only what programs do to each other is of interest.
    for_races: bool,
}

/// What is forced to do without a feature, in every program: older kernels are
/// here, and newer ones do without nothing.
const FORCED: [&str; 2] = ["_without_", "_on_the_oldest_kernel"];

/// Attaching takes seconds in a guest, so cases are left out whose point is made
/// by another one.
const SUITES: [Suite; 10] = [
    Suite {
        program: "exactness",
        skipped: &[
            // More memory than a guest has.
            "more_than_a_million_live_blocks",
            // In one trace: `by_site`.
            "wrappers_by_size",
        ],
        for_races: true,
    },
    Suite {
        program: "rules",
        skipped: &[
            // In one trace: `scenes_one_after_another`.
            "refused_realloc",
            "realloc_to",
            "realloc_of",
            "out_pointer",
            "free_of_nothing",
            "reallocarray",
            "every_function",
            "no_bytes",
            "refusals",
            "idle_process",
            // In one trace: `calls_left_by_longjmp_one_after_another`.
            "call_left_by_longjmp",
            "nested_call",
        ],
        for_races: true,
    },
    Suite {
        program: "mappings",
        skipped: &[],
        for_races: true,
    },
    Suite {
        program: "stacks",
        skipped: &[
            // The same as `every_kind_of_frame`, where tables are all there is.
            "by_tables_alone",
            "frame_pointers_alone",
        ],
        for_races: true,
    },
    Suite {
        program: "edges",
        skipped: &[],
        for_races: true,
    },
    Suite {
        program: "growth",
        skipped: &[
            // Takes minutes, and looks at the same sums on every kernel.
            "every_way_to_hold_memory",
            // The same as the mark that a signal sets.
            "warm_up",
        ],
        for_races: false,
    },
    Suite {
        program: "userspaces",
        skipped: &[],
        for_races: false,
    },
    Suite {
        program: "harm",
        skipped: &[],
        for_races: false,
    },
    Suite {
        program: "lifecycle",
        skipped: &[
            // Of signals and files, which are the same on every kernel.
            "sigterm",
            "sighup",
            "ctrl_z",
            "duration",
            "stdout",
            "second_ctrl_c",
            "saved",
            "unless_asked",
            "gives_way",
            "old_blocks",
            "is_killed",
            "can_not_be_watched",
            "dies_first",
            // The same as `calls_after_an_exec`, told otherwise.
            "an_exec_is_when",
            // Of time, which says nothing here.
            "probes_go_at_once",
            "estimate",
        ],
        for_races: false,
    },
    Suite {
        program: "leftovers",
        skipped: &[
            // The same on every kernel.
            "reader_of_symbols",
            "holder_of_probes",
            // Starts it dozens of times.
            "while_preparing",
        ],
        for_races: false,
    },
];

/// Names of the test programs.
pub fn programs() -> impl Iterator<Item = &'static str> {
    SUITES.iter().map(|suite| suite.program)
}

/// The arguments of the program `guest`, which runs from `dir` what `guest` is for.
pub fn arguments(guest: &Guest, dir: &str, filter: Option<&str>) -> Vec<String> {
    let mut words = Vec::new();
    for suite in SUITES
        .iter()
        .filter(|suite| suite.for_races || !guest.is_for_races())
    {
        if !words.is_empty() {
            words.push("--".to_owned());
        }
        words.push(format!("{dir}/{}", suite.program));
        words.push("--color=never".to_owned());
        words.extend(filter.map(str::to_owned));
        let skipped = FORCED.iter().chain(suite.skipped);
        words.extend(skipped.map(|name| format!("--skip={name}")));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(guest: usize, filter: Option<&str>) -> Vec<String> {
        let guests = Guest::selected(&["6.12".to_owned()]).expect("guests");
        arguments(&guests[guest], "/t", filter)
    }

    fn count(words: &[String], wanted: &str) -> usize {
        words.iter().filter(|word| *word == wanted).count()
    }

    #[test]
    fn every_program_gets_the_filter() {
        let words = words(0, Some("perf"));
        assert_eq!(words[0], "/t/exactness");
        assert_eq!(count(&words, "perf"), SUITES.len());
        assert_eq!(count(&words, "--"), SUITES.len() - 1);
    }

    #[test]
    fn a_machine_for_races_runs_no_more_than_that() {
        let words = words(1, None);
        assert_eq!(count(&words, "/t/rules"), 1);
        assert_eq!(count(&words, "/t/harm"), 0);
    }
}
