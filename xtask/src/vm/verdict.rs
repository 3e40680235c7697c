//! What a guest's outputs mean. A machine that panics ends as silently as one that
//! is switched off, so nothing is well unless the outputs say so.

use serde_json::Value;

use super::machine::Ended;
use crate::tests::tally::Tally;

/// What makes a kernel's log a failure, whatever the tests say.
const ALARMS: [&str; 7] = [
    "------------[ cut here ]------------",
    "WARNING: CPU:",
    "BUG:",
    "Oops",
    "Kernel panic",
    "failed to handle uretprobe",
    "suspicious RCU usage",
];

/// How a guest's run ended.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Over all test programs.
    pub tally: Tally,
    /// What the kernel and leaktrace say of themselves.
    pub facts: Facts,
    /// What else went wrong.
    complaints: Vec<String>,
}

/// What the kernel and leaktrace say of themselves.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Programs that leaktrace had loaded while it traced.
    pub programs: Vec<Program>,
    /// What leaktrace knows of the kernel.
    pub features: Vec<Feature>,
    /// How the kernel preempts, where it can be told to do otherwise.
    pub preemption: Option<String>,
}

/// A loaded program.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name in the kernel.
    pub name: String,
    /// Instructions that the verifier went through, where the kernel tells.
    pub verified: Option<u64>,
}

/// An ability of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name in reports.
    pub name: String,
    /// Whether the kernel has it.
    pub available: bool,
    /// What leaktrace does without it.
    pub instead: Option<String>,
}

impl Verdict {
    /// Judges a guest by what it left.
    pub fn read(ended: &Ended) -> Self {
        let mut verdict = Self::default();
        verdict.read_console(&ended.console);
        verdict.read_results(&ended.results);
        if ended.timed_out {
            verdict.complain("it did not end in time");
        }
        let is_finished = ended.results.lines().any(|line| line == "== complete");
        if !is_finished || !ended.results.lines().any(|line| line == "RC=0") {
            verdict.complain("it gave no complete result");
        }
        if !ended.emulator.trim().is_empty() {
            // Only a reason, if something else is wrong.
            let reason = format!("QEMU said: {}", ended.emulator.trim());
            if verdict.has_failed() {
                verdict.complain(&reason);
            }
        }
        verdict
    }

    /// A kernel that was told to preempt in one way must say that it does.
    pub fn expect_preemption(&mut self, wanted: Option<&str>) {
        let found = self.facts.preemption.as_deref();
        if let Some(wanted) = wanted
            && found != Some(wanted)
        {
            let found = found.unwrap_or("unknown");
            self.complain(&format!("preemption is {found}, not {wanted}"));
        }
    }

    /// Whether anything is wrong.
    pub fn has_failed(&self) -> bool {
        self.tally.failed > 0 || !self.complaints.is_empty()
    }

    /// Everything that is wrong, a line each.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let failures = self.tally.failures.iter();
        failures
            .map(|name| format!("failed: {name}"))
            .chain(self.complaints.iter().cloned())
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let more = match self.complaints.len() {
            0 => String::new(),
            1 => format!("; {}", self.complaints[0]),
            many => format!("; {} and {} more", self.complaints[0], many - 1),
        };
        format!("{}{more}", self.tally)
    }

    fn complain(&mut self, text: &str) {
        self.complaints.push(text.to_owned());
    }

    fn read_console(&mut self, console: &str) {
        let is_alarm = |line: &&str| ALARMS.iter().any(|alarm| line.contains(alarm));
        let mut alarms: Vec<&str> = console.lines().filter(is_alarm).collect();
        // A warning's first line says nothing; the second says what it is.
        if alarms.len() > 1 {
            alarms.retain(|line| !line.contains(ALARMS[0]));
        }
        for line in alarms {
            self.complain(&format!("the kernel said: {}", line.trim()));
        }
    }

    fn read_results(&mut self, results: &str) {
        // The program that is running: its name, and what it printed.
        let mut program: Option<(&str, String)> = None;
        for line in results.lines() {
            let Some(marked) = line.strip_prefix("== ") else {
                if let Some((_, text)) = &mut program {
                    text.push_str(line);
                    text.push('\n');
                }
                continue;
            };
            let (word, rest) = marked.split_once(' ').unwrap_or((marked, ""));
            match word {
                "facts" => match serde_json::from_str(rest) {
                    Ok(facts) => self.facts = Facts::read(&facts),
                    Err(error) => self.complain(&format!("facts that are no JSON: {error}")),
                },
                "program" => {
                    self.end_program(program.replace((rest, String::new())), false);
                }
                "status" => self.end_program(program.take(), rest == "0"),
                "left" if rest != "nothing" => self.complain(&format!("left behind: {rest}")),
                _ => {}
            }
        }
        self.end_program(program, false);
    }

    fn end_program(&mut self, program: Option<(&str, String)>, succeeded: bool) {
        if let Some((name, text)) = program {
            self.tally.add(name, &text, succeeded);
        }
    }
}

impl Facts {
    fn read(facts: &Value) -> Self {
        let array = |name: &str| facts[name].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let programs = array("programs").into_iter().map(|program| Program {
            name: text(&program["name"]).unwrap_or_default(),
            verified: program["verified_instructions"].as_u64(),
        });
        let features = facts["features"].as_object().cloned().unwrap_or_default();
        let features = features.into_iter().map(|(name, feature)| Feature {
            name,
            available: feature["available"].as_bool().unwrap_or(false),
            instead: text(&feature["instead"]),
        });
        Self {
            programs: programs.collect(),
            features: features.collect(),
            preemption: text(&facts["preempt"]),
        }
    }

    /// The program that the verifier had most to do with.
    pub fn largest(&self) -> Option<&Program> {
        self.programs
            .iter()
            .filter(|program| program.verified.is_some())
            .max_by_key(|program| program.verified)
    }

    /// What the kernel lacks, or has but not together with what it needs.
    pub fn missing(&self) -> impl Iterator<Item = &Feature> {
        let is_missing = |feature: &&Feature| !feature.available || feature.instead.is_some();
        self.features.iter().filter(is_missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: &str = "== facts {\"programs\":[{\"name\":\"enter\",\"verified_instructions\":900},\
        {\"name\":\"leave\",\"verified_instructions\":3000}],\"features\":{\"cookies\":{\
        \"available\":false,\"used\":false,\"instead\":\"more programs\"}},\"preempt\":\"full\"}\n\
        == program rules\n\
        test one ... ok\n\
        test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out\n\
        == status 0\n\
        == left nothing\n\
        == complete\n\
        RC=0\n";

    fn judge(console: &str, results: &str) -> Verdict {
        Verdict::read(&Ended {
            console: console.to_owned(),
            results: results.to_owned(),
            ..Ended::default()
        })
    }

    fn problems(console: &str, results: &str) -> Vec<String> {
        judge(console, results).problems().collect()
    }

    #[test]
    fn a_run_that_ended_well() {
        let mut verdict = judge("[ 1.0] Linux version 6.1\n", WELL);
        verdict.expect_preemption(Some("full"));
        assert!(!verdict.has_failed(), "{verdict:?}");
        assert_eq!(verdict.summary(), "1 passed, 0 failed, 2 skipped");
        let largest = verdict.facts.largest().expect("a program");
        assert_eq!(
            (largest.name.as_str(), largest.verified),
            ("leave", Some(3000))
        );
        let missing: Vec<_> = verdict.facts.missing().collect();
        assert_eq!(missing[0].instead.as_deref(), Some("more programs"));
    }

    #[test]
    fn a_machine_that_just_ends_has_failed() {
        assert_eq!(problems("", ""), ["it gave no complete result"]);
        // It panicked in the middle of a program.
        let cut = WELL.split("test result").next().unwrap_or_default();
        assert_eq!(
            problems("[ 9.0] Kernel panic - not syncing: x\n", cut),
            [
                "failed: rules: ended without a result",
                "the kernel said: [ 9.0] Kernel panic - not syncing: x",
                "it gave no complete result"
            ]
        );
        let not_well = WELL.replace("RC=0", "RC=1");
        assert_eq!(problems("", &not_well), ["it gave no complete result"]);
    }

    #[test]
    fn a_warning_in_the_kernels_log_is_a_failure() {
        let warning = "[ 2.0] ------------[ cut here ]------------\n\
                       [ 2.0] WARNING: CPU: 0 PID: 7 at kernel/bpf/verifier.c:1\n";
        assert_eq!(
            problems(warning, WELL),
            ["the kernel said: [ 2.0] WARNING: CPU: 0 PID: 7 at kernel/bpf/verifier.c:1"]
        );
        let uretprobe = "[ 2.0] uprobe: x:7 failed to handle uretprobe pending syscalls\n";
        assert_eq!(problems(uretprobe, WELL).len(), 1);
        let harmless = "[ 0.1] Spectre V2 : WARNING: Unprivileged eBPF is enabled\n";
        assert!(problems(harmless, WELL).is_empty());
    }

    #[test]
    fn what_is_left_behind_is_a_failure() {
        let left = WELL.replace("left nothing", "left bpf link 7");
        assert_eq!(problems("", &left), ["left behind: bpf link 7"]);
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let died = WELL.replace("status 0", "status 101");
        assert_eq!(
            problems("", &died),
            ["failed: rules: ended without a result"]
        );
    }

    #[test]
    fn preemption_other_than_asked_for_is_a_failure() {
        let mut verdict = judge("", &WELL.replace("full", "lazy"));
        verdict.expect_preemption(Some("full"));
        let problems: Vec<_> = verdict.problems().collect();
        assert_eq!(problems, ["preemption is lazy, not full"]);
    }
}
