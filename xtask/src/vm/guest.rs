//! Which machines are booted: a kernel, and how.

use anyhow::{Result, bail};

/// One machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The kernel's series, as the command line names it.
    pub series: &'static str,
    /// What the kernel is told of preemption; `None` leaves it to the kernel.
    pub preemption: Option<&'static str>,
    /// Processors.
    pub processors: u32,
}

/// The series that backports have the newest kernel of.
pub const NEWEST: &str = "newest";

/// Every machine.
const ALL: [Guest; 8] = [
    plain("5.10"),
    plain("6.1"),
    plain("6.12"),
    preemptible("6.12"),
    plain("6.18"),
    plain(NEWEST),
    preemptible(NEWEST),
    two_processors(NEWEST),
];

const fn plain(series: &'static str) -> Guest {
    Guest {
        series,
        preemption: None,
        processors: 1,
    }
}

/// Shows what two programs do to each other that share a processor's state.
const fn preemptible(series: &'static str) -> Guest {
    Guest {
        preemption: Some("full"),
        ..plain(series)
    }
}

/// Shows what programs on two processors do to each other.
const fn two_processors(series: &'static str) -> Guest {
    Guest {
        processors: 2,
        ..plain(series)
    }
}

impl Guest {
    /// Those of the series asked for, or all.
    ///
    /// # Errors
    /// There is no such series.
    pub fn selected(series: &[String]) -> Result<Vec<Self>> {
        for wanted in series {
            if !ALL.iter().any(|guest| guest.series == wanted) {
                let mut known: Vec<_> = ALL.iter().map(|guest| guest.series).collect();
                known.dedup();
                bail!("no kernel `{wanted}`; there are {}", known.join(", "));
            }
        }
        let is_wanted =
            |guest: &Self| series.is_empty() || series.iter().any(|wanted| wanted == guest.series);
        Ok(ALL.into_iter().filter(is_wanted).collect())
    }

    /// Its name: the series and what is special.
    pub fn name(&self) -> String {
        let mut name = self.series.to_owned();
        if let Some(preemption) = self.preemption {
            name.push_str(&format!(" preempt={preemption}"));
        }
        if self.processors > 1 {
            name.push_str(&format!(" smp={}", self.processors));
        }
        name
    }

    /// Whether it is there for what programs do to each other: another machine
    /// shows what its kernel can do.
    pub fn is_for_races(&self) -> bool {
        self.preemption.is_some() || self.processors > 1
    }

    /// How often a failure is not yet believed: emulated machines with several
    /// processors panic about once in 80 boots, whatever runs there.
    pub fn retries(&self) -> u32 {
        u32::from(self.processors > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_selects_all_its_machines() {
        let names = |series: &[&str]| -> Vec<String> {
            let series: Vec<_> = series.iter().map(|&name| name.to_owned()).collect();
            Guest::selected(&series)
                .unwrap_or_default()
                .iter()
                .map(Guest::name)
                .collect()
        };
        assert_eq!(names(&["6.12"]), ["6.12", "6.12 preempt=full"]);
        assert_eq!(names(&[]).len(), ALL.len());
        assert!(Guest::selected(&["4.19".to_owned()]).is_err());
    }
}
