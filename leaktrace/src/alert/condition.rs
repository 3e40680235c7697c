//! Conditions as people write them: `live>500MiB`, `growth>=10MiB/min`,
//! `rss>80%`, `verdict`.

use std::{fmt, ops::Range, str::FromStr};

use unicode_width::UnicodeWidthStr as _;

use super::Figures;
use crate::quantity;

/// Something that is true or not of figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    figure: Figure,
    relation: Relation,
    threshold: f64,
}

/// What a condition looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Figure {
    /// Live bytes of all sites.
    LiveBytes,
    /// Live blocks of all sites.
    LiveBlocks,
    /// Growth of live bytes per minute.
    Growth,
    /// Resident memory, bytes.
    Rss,
    /// Resident memory in percent of the tightest limit.
    RssPercent,
    /// Swapped out, bytes.
    Swap,
    /// Open descriptors.
    Descriptors,
    /// Threads.
    Threads,
    /// Sites that are judged to grow.
    GrowingSites,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Over,
    AtLeast,
}

/// By what names figures are written, each with a condition on it.
const NAMES: [(&str, Figure, &str); 8] = [
    ("live", Figure::LiveBytes, "live>500MiB"),
    ("blocks", Figure::LiveBlocks, "blocks>1M"),
    ("growth", Figure::Growth, "growth>10MiB/min"),
    ("rss", Figure::Rss, "rss>80% or rss>2GiB"),
    ("swap", Figure::Swap, "swap>100MiB"),
    ("fds", Figure::Descriptors, "fds>5000"),
    ("threads", Figure::Threads, "threads>200"),
    ("verdict", Figure::GrowingSites, "verdict"),
];

/// A condition that can't be read: where, why, and what helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConditionError {
    /// As it was written.
    text: String,
    /// Which bytes of it are wrong.
    at: Range<usize>,
    what: String,
    help: String,
}

impl fmt::Display for ConditionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |range: Range<usize>| -> String {
            let text = self.text.get(range).unwrap_or_default();
            let visible = |c: char| if c.is_control() { '?' } else { c };
            text.chars().map(visible).collect()
        };
        let before = shown(0..self.at.start).width();
        let marks = "^".repeat(shown(self.at.clone()).width().max(1));
        write!(
            f,
            "{}\n  {}\n  {:before$}{marks} {}",
            self.what,
            shown(0..self.text.len()),
            "",
            self.help
        )
    }
}

/// A condition that is being read.
struct Reader<'a> {
    text: &'a str,
    /// How far it has been read.
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// What is wrong with everything that is left.
    fn error(&self, what: impl Into<String>, help: impl Into<String>) -> ConditionError {
        self.error_at(self.at..self.text.len(), what, help)
    }

    fn error_at(
        &self,
        at: Range<usize>,
        what: impl Into<String>,
        help: impl Into<String>,
    ) -> ConditionError {
        ConditionError {
            text: self.text.to_owned(),
            at,
            what: what.into(),
            help: help.into(),
        }
    }

    fn figure(&mut self) -> Result<(Figure, &'static str), ConditionError> {
        let end = self
            .rest()
            .find(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
            .unwrap_or(self.rest().len());
        let name = &self.rest()[..end];
        let found = NAMES.into_iter().find(|(known, ..)| *known == name);
        let Some((_, figure, example)) = found else {
            let known: Vec<_> = NAMES.iter().map(|(name, ..)| *name).collect();
            let what = match name {
                "" => "a condition begins with a figure".to_owned(),
                _ => format!("`{name}` is no figure"),
            };
            return Err(self.error_at(0..end, what, format!("one of {}", known.join(", "))));
        };
        self.at = end;
        self.skip_blanks();
        Ok((figure, example))
    }

    fn relation(&mut self, example: &str) -> Result<Relation, ConditionError> {
        let known = [(">=", Relation::AtLeast), (">", Relation::Over)];
        for (written, relation) in known {
            if self.rest().starts_with(written) {
                self.at += written.len();
                self.skip_blanks();
                return Ok(relation);
            }
        }
        // A shell that is given `live>500MiB` makes a file of that name.
        let quoted = format!("write {example}, in quotes: to a shell, > means a file");
        Err(match self.rest() {
            "" => self.error("a threshold is missing", quoted),
            _ => self.error("a figure is followed by > or >=", quoted),
        })
    }

    /// Which figure it is after all, and the threshold.
    fn threshold(&self, figure: Figure, example: &str) -> Result<(Figure, f64), ConditionError> {
        let value = self.rest();
        if value.is_empty() {
            return Err(self.error("a threshold is missing", format!("write {example}")));
        }
        if let Some(percent) = value.strip_suffix('%') {
            return match (figure, percent.trim().parse::<f64>()) {
                (Figure::Rss, Ok(share)) if share > 0.0 && share <= 100.0 => {
                    Ok((Figure::RssPercent, share))
                }
                (Figure::Rss, _) => Err(self.error(
                    format!("`{value}` is no share of the memory limit"),
                    "write it like 80%: more than 0%, at most 100%",
                )),
                _ => Err(self.error(
                    "only rss can be compared with a share of the memory limit",
                    format!("write {example}"),
                )),
            };
        }
        let read = match figure {
            Figure::Growth => quantity::rate(value),
            Figure::LiveBytes | Figure::Rss | Figure::Swap => {
                quantity::size(value).map(|bytes| bytes as f64)
            }
            _ => quantity::number(value).map(|number| number as f64),
        };
        match read {
            Ok(threshold) => Ok((figure, threshold)),
            Err(error) => {
                let (what, help) = error.split_once("; ").unwrap_or((&error, example));
                Err(self.error(what, help))
            }
        }
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let text = text.trim();
        let mut reader = Reader { text, at: 0 };
        let (figure, example) = reader.figure()?;
        if figure == Figure::GrowingSites {
            if !reader.rest().is_empty() {
                return Err(reader.error("verdict is a condition by itself", "leave this out"));
            }
            return Ok(Self {
                text: text.to_owned(),
                figure,
                relation: Relation::AtLeast,
                threshold: 1.0,
            });
        }
        let relation = reader.relation(example)?;
        let (figure, threshold) = reader.threshold(figure, example)?;
        Ok(Self {
            text: text.to_owned(),
            figure,
            relation,
            threshold,
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Condition {
    /// What it looks at.
    #[must_use]
    pub fn figure(&self) -> Figure {
        self.figure
    }

    /// What the figure is compared with, in its own unit: bytes, bytes per minute,
    /// percent, or a number.
    #[must_use]
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// The figure itself, in the same unit; `None` while it is not known.
    #[must_use]
    pub fn value(&self, figures: &Figures) -> Option<f64> {
        let memory = &figures.memory;
        let number = match self.figure {
            Figure::LiveBytes => Some(figures.live_bytes),
            Figure::LiveBlocks => Some(figures.live_blocks),
            Figure::Growth => return figures.growth_per_minute,
            Figure::Rss => memory.rss,
            Figure::RssPercent => {
                let limit = figures.memory_limit?.bytes;
                return Some(memory.rss? as f64 / limit as f64 * 100.0);
            }
            Figure::Swap => memory.swap,
            Figure::Descriptors => memory.descriptors,
            Figure::Threads => memory.threads,
            Figure::GrowingSites => Some(figures.growing_sites as u64),
        };
        number.map(|number| number as f64)
    }

    /// The figure when the condition is true of it.
    #[must_use]
    pub fn holds(&self, figures: &Figures) -> Option<f64> {
        self.value(figures).filter(|value| match self.relation {
            Relation::Over => *value > self.threshold,
            Relation::AtLeast => *value >= self.threshold,
        })
    }

    /// It as a part of a file name: letters, digits and `_` only.
    #[must_use]
    pub fn file_name_part(&self) -> String {
        let spelled = self.text.replace('%', "pct").replace(">=", "_at_least_");
        spelled
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{LimitOwner, MemoryLimit},
        *,
    };
    use crate::model::MemorySample;

    const MIB: u64 = 1 << 20;

    fn condition(text: &str) -> Condition {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn said(text: &str) -> String {
        text.parse::<Condition>().unwrap_err().to_string()
    }

    fn figures() -> Figures {
        Figures {
            live_bytes: 500 * MIB,
            live_blocks: 2 << 20,
            growth_per_minute: Some(3.0 * MIB as f64),
            growing_sites: 0,
            memory: MemorySample {
                rss: Some(820 * MIB),
                swap: Some(0),
                threads: Some(48),
                descriptors: Some(5000),
                ..MemorySample::default()
            },
            memory_limit: Some(MemoryLimit {
                bytes: 1000 * MIB,
                whose: LimitOwner::Cgroup,
            }),
        }
    }

    #[test]
    fn each_figure_is_compared_with_its_own_unit() {
        let holds = |text: &str| condition(text).holds(&figures()).is_some();
        for text in [
            "live>499MiB",
            "live >= 500MiB",
            "blocks>2000000",
            "growth>50KiB/s",
            "growth>=3MiB/min",
            "growth>179MiB/h",
            "rss>81%",
            "rss>0.8GiB",
            "swap>=0",
            "fds>4999",
            "threads>=48",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in [
            "live>500MiB",
            "blocks>=3M",
            "growth>3MiB/min",
            "rss>82%",
            "rss>1GiB",
            "swap>0",
            "fds>5000",
            "threads>48",
            "verdict",
        ] {
            assert!(!holds(text), "{text}");
        }
        let growing = Figures {
            growing_sites: 1,
            ..figures()
        };
        assert_eq!(condition("verdict").holds(&growing), Some(1.0));
        assert_eq!(condition("rss>81%").value(&figures()), Some(82.0));
    }

    #[test]
    fn what_is_not_known_fulfils_nothing() {
        let nothing = Figures::default();
        for text in ["growth>=0/s", "rss>1%", "rss>=0", "swap>=0", "fds>=0"] {
            assert_eq!(condition(text).holds(&nothing), None, "{text}");
        }
    }

    #[test]
    fn errors_show_the_place_and_what_helps() {
        assert_eq!(
            said("live>50Q"),
            "`50Q` is no size\n  live>50Q\n       ^^^ write it like 4096, 4k, 1.5MiB"
        );
        assert_eq!(
            said("heap>5"),
            "`heap` is no figure\n  heap>5\n  ^^^^ one of live, blocks, growth, rss, swap, fds, \
             threads, verdict"
        );
        // What is left of it after a shell has taken the rest.
        assert_eq!(
            said("live"),
            "a threshold is missing\n  live\n      ^ write live>500MiB, in quotes: to a shell, > \
             means a file"
        );
        assert_eq!(
            said("fds < 5"),
            "a figure is followed by > or >=\n  fds < 5\n      ^^^ write fds>5000, in quotes: to a \
             shell, > means a file"
        );
        assert_eq!(
            said("live>80%"),
            "only rss can be compared with a share of the memory limit\n  live>80%\n       ^^^ \
             write live>500MiB"
        );
        assert_eq!(
            said("rss>120%"),
            "`120%` is no share of the memory limit\n  rss>120%\n      ^^^^ write it like 80%: \
             more than 0%, at most 100%"
        );
        assert_eq!(
            said("growth>10MiB"),
            "`10MiB` is no rate\n  growth>10MiB\n         ^^^^^ write it like 100k/s, 1MiB/min, \
             2GiB/h"
        );
        assert_eq!(
            said("verdict>2"),
            "verdict is a condition by itself\n  verdict>2\n         ^^ leave this out"
        );
        assert_eq!(
            said("live>"),
            "a threshold is missing\n  live>\n       ^ write live>500MiB"
        );
        assert!(said("").starts_with("a condition begins with a figure\n  \n  ^ one of live,"));
    }

    #[test]
    fn every_example_is_a_condition() {
        for (name, _, examples) in NAMES {
            for example in examples.split(" or ") {
                assert!(condition(example).text.starts_with(name), "{example}");
            }
        }
    }

    #[test]
    fn file_names_tell_conditions_apart() {
        let part = |text| condition(text).file_name_part();
        assert_eq!(part("rss > 80%"), "rss_80pct");
        assert_eq!(part("rss>80"), "rss_80");
        assert_eq!(part("growth>=1.5MiB/min"), "growth_at_least_1_5MiB_min");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_told_what_is_wrong(text in "\\PC{0,20}|(live|rss|growth|fds|verdict)[ ]?(>|>=|<)?[ ]?[0-9a-zA-Z%./µ漢\u{1b}]{0,8}") {
            match text.parse::<Condition>() {
                Ok(condition) => {
                    prop_assert!(condition.threshold.is_finite() && condition.threshold >= 0.0);
                    prop_assert_eq!(condition.to_string(), text.trim());
                }
                Err(error) => prop_assert!(error.to_string().lines().count() >= 3),
            }
        }

        #[test]
        fn a_threshold_parts_figures_in_two(threshold in 0_u64..1 << 40, value in 0_u64..1 << 40) {
            let figures = Figures { live_bytes: value, ..Figures::default() };
            let over = condition(&format!("live>{threshold}")).holds(&figures);
            prop_assert_eq!(over.is_some(), value > threshold);
            let at_least = condition(&format!("live>={threshold}")).holds(&figures);
            prop_assert_eq!(at_least.is_some(), value >= threshold);
        }
    }
}
