//! What came out, by load and tracer.

use std::collections::BTreeMap;
use std::time::Duration;

use super::series::Series;
use super::table::{Table, grouped, megabytes, seconds};
use super::tracer::{Ending, Usage};
use super::workload::{Subject, Workload};

/// Measurements of one load under one tracer.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// CPU time of a pair in each round, ns.
    pub ns: Series,
    /// The tracer's own use of a CPU while the load was measured.
    pub usage: Usage,
    /// Peak of the tracer's resident memory, bytes.
    pub peak_rss: Series,
    /// Memory of its maps, bytes.
    pub map_bytes: Series,
    /// Seconds from its start until it was attached.
    pub attach: Series,
    /// Seconds from Ctrl-C until the load had its speed again.
    pub gone: Series,
    /// Seconds from Ctrl-C until it had ended.
    pub exit: Series,
}

impl Row {
    pub fn add_usage(&mut self, usage: Usage) {
        self.usage.cpu += usage.cpu;
        self.usage.wall += usage.wall;
    }

    pub fn add_ending(&mut self, ending: &Ending) {
        self.gone.extend(ending.gone.map(|gone| gone.as_secs_f64()));
        self.exit.push(ending.exit.as_secs_f64());
        self.peak_rss.push(ending.peak_rss as f64);
    }

    /// The tracer's use of a CPU as a share of one; `None` when it wasn't
    /// measured.
    pub fn cpu_share(&self) -> Option<f64> {
        (self.usage.wall > Duration::ZERO)
            .then(|| self.usage.cpu.as_secs_f64() / self.usage.wall.as_secs_f64())
    }
}

/// All rows, in the order in which loads were first measured.
#[derive(Debug, Default)]
pub struct Results {
    loads: Vec<(&'static str, BTreeMap<Subject, Row>)>,
}

impl Results {
    pub fn row(&mut self, workload: &Workload, subject: Subject) -> &mut Row {
        let known = self.loads.iter().position(|load| load.0 == workload.name);
        let index = known.unwrap_or_else(|| {
            self.loads.push((workload.name, BTreeMap::new()));
            self.loads.len() - 1
        });
        self.loads[index].1.entry(subject).or_default()
    }

    pub fn get(&self, workload: &Workload, subject: Subject) -> Option<&Row> {
        let load = self.loads.iter().find(|load| load.0 == workload.name)?;
        load.1.get(&subject)
    }

    /// Ratio of the medians of a pair's CPU time under two tracers.
    pub fn ratio(&self, workload: &Workload, subject: Subject, to: Subject) -> Option<f64> {
        let median = |subject| self.get(workload, subject)?.ns.median();
        Some(median(subject)? / median(to)?)
    }

    /// The longest that leaktrace's probes stayed after Ctrl-C, seconds.
    pub fn slowest_gone(&self) -> Option<f64> {
        let rows = self
            .loads
            .iter()
            .filter_map(|load| load.1.get(&Subject::Leaktrace));
        rows.filter_map(|row| row.gone.max()).reduce(f64::max)
    }

    /// One line a load and tracer.
    pub fn table(&self) -> Table {
        let mut table = Table::new(&[
            "load",
            "tracer",
            "ns/pair",
            "min..max",
            "slow-down",
            "x floor",
            "own CPU",
            "own RSS",
            "maps",
            "attach",
            "gone",
            "exit",
        ]);
        for (load, rows) in &self.loads {
            let median = |subject| rows.get(&subject).and_then(|row: &Row| row.ns.median());
            let untraced = median(Subject::Untraced);
            let floor = median(Subject::Floor);
            for (subject, row) in rows {
                let ratio = |to: Option<f64>| Some(row.ns.median()? / to?);
                let is_traced = !matches!(subject, Subject::Untraced | Subject::Afterwards);
                let cell = |text: Option<String>| text.unwrap_or_default();
                table.push(vec![
                    (*load).to_owned(),
                    subject.name().to_owned(),
                    cell(row.ns.median().map(grouped)),
                    cell(range(&row.ns)),
                    cell(ratio(untraced).map(times)),
                    cell(ratio(floor).filter(|_| is_traced).map(times)),
                    cell(
                        row.cpu_share()
                            .map(|share| format!("{:.1} %", share * 100.0)),
                    ),
                    cell(row.peak_rss.median().map(megabytes)),
                    cell(row.map_bytes.median().map(megabytes)),
                    cell(row.attach.median().map(seconds)),
                    cell(row.gone.median().map(seconds)),
                    cell(row.exit.median().map(seconds)),
                ]);
            }
        }
        table
    }
}

/// Three digits or more of a ratio.
fn times(ratio: f64) -> String {
    if ratio < 10.0 {
        format!("{ratio:.2}")
    } else {
        grouped(ratio)
    }
}

fn range(series: &Series) -> Option<String> {
    Some(format!(
        "{}..{}",
        grouped(series.min()?),
        grouped(series.max()?)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::workload::{IDLE, TIGHT};
    use super::*;

    #[test]
    fn ratios_are_of_medians_and_only_of_what_was_measured() {
        let mut results = Results::default();
        for (subject, values) in [
            (Subject::Untraced, [10.0, 11.0, 500.0]),
            (Subject::Leaktrace, [2000.0, 2200.0, 2300.0]),
        ] {
            results.row(&TIGHT, subject).ns.extend(values);
        }
        let ratio = |workload, subject| results.ratio(workload, subject, Subject::Untraced);
        assert_eq!(ratio(&TIGHT, Subject::Leaktrace), Some(200.0));
        assert_eq!(ratio(&TIGHT, Subject::Floor), None);
        assert_eq!(ratio(&IDLE, Subject::Leaktrace), None);
    }

    #[test]
    fn tables_say_nothing_about_what_was_not_measured() {
        let mut results = Results::default();
        results.row(&IDLE, Subject::Untraced).ns.push(20_000.0);
        let text = results.table().plain();
        let line = text.lines().nth(1).unwrap();
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>().join(" "),
            "idle, 1000 pairs/s untraced 20 000 20 000..20 000 1.00"
        );
    }
}
