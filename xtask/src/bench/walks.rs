//! What a stack costs: recognised, or walked by unwind tables or by frame
//! pointers.
//!
//! A malloc that fails leaves nothing to record, but its stack is looked at all
//! the same. What it takes more than under a filter that leaves it out before
//! that is the stack's; from two depths follow a frame's part and the rest.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::figures::Figures;
use super::load::Load;
use super::programs::{self, Program};
use super::series::Series;
use super::table::{Table, grouped};
use super::tracer::Tracer;
use super::{Bench, report};

/// Rounds before those that are measured.
const WARM_UP_PAIRS: u64 = 20_000;

/// How stacks are come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The same again and again, remembered.
    Recognised,
    /// Each in place of another, so none is found though all are written down.
    Walked,
    /// Too long to be written down.
    TooLong,
}

impl Way {
    const ALL: [Self; 3] = [Self::Recognised, Self::Walked, Self::TooLong];

    const fn name(self) -> &'static str {
        match self {
            Self::Recognised => "recognised",
            Self::Walked => "walked, and written down",
            Self::TooLong => "walked, too long for that",
        }
    }

    /// Frames of the program, of two loads.
    const fn depths(self) -> [&'static str; 2] {
        match self {
            // By frame pointers, no more than 31 frames are remembered.
            Self::Recognised | Self::Walked => ["10", "26"],
            // By tables, no less than 64 are too many.
            Self::TooLong => ["70", "110"],
        }
    }

    /// What the load is told beside the depth.
    const fn argument(self) -> Option<&'static str> {
        match self {
            Self::Recognised | Self::TooLong => None,
            Self::Walked => Some("changing"),
        }
    }
}

/// How walks find from a frame to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Tables,
    FramePointers,
}

impl By {
    const ALL: [Self; 2] = [Self::Tables, Self::FramePointers];

    const fn name(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::FramePointers => "frame pointers",
        }
    }

    const fn option(self) -> &'static str {
        match self {
            Self::Tables => "auto",
            Self::FramePointers => "fp",
        }
    }

    const fn program(self) -> Program {
        match self {
            Self::Tables => Program::TightWithoutFramePointers,
            Self::FramePointers => Program::Tight,
        }
    }
}

/// Measurements of one depth, ns a pair.
#[derive(Default)]
struct Depth {
    /// Frames of a stack, those of libc included.
    frames: f64,
    without_stacks: Series,
    with_stacks: Series,
}

impl Depth {
    /// What the stack takes.
    fn stack_ns(&self) -> Option<f64> {
        Some(self.with_stacks.median()? - self.without_stacks.median()?)
    }
}

/// Stacks of two depths that are come by in one way.
struct Kind {
    way: Way,
    by: By,
    depths: [Depth; 2],
}

/// What stacks of a kind cost.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    frame_ns: f64,
    fixed_ns: f64,
}

impl Cost {
    /// The line through two points of frames and ns.
    fn through(a: (f64, f64), b: (f64, f64)) -> Self {
        let frame_ns = (b.1 - a.1) / (b.0 - a.0);
        Self {
            frame_ns,
            fixed_ns: a.1 - frame_ns * a.0,
        }
    }
}

impl Kind {
    fn cost(&self) -> Option<Cost> {
        let [shorter, longer] = &self.depths;
        Some(Cost::through(
            (shorter.frames, shorter.stack_ns()?),
            (longer.frames, longer.stack_ns()?),
        ))
    }
}

/// All kinds.
pub struct Walks(Vec<Kind>);

impl Walks {
    /// Measures all kinds, each in turn, several times over.
    ///
    /// # Errors
    /// Anything fails; what was started is ended.
    pub fn measure(bench: &Bench) -> Result<Self> {
        let kinds = Way::ALL.into_iter().flat_map(|way| {
            By::ALL.into_iter().map(move |by| Kind {
                way,
                by,
                depths: Default::default(),
            })
        });
        let mut kinds: Vec<Kind> = kinds.collect();
        for number in 0..bench.scale.walk_cycles {
            for kind in &mut kinds {
                for (arguments, depth) in kind.way.depths().into_iter().zip(&mut kind.depths) {
                    measure_depth(bench, kind.way, kind.by, arguments, number, depth)
                        .with_context(|| {
                            format!("measuring stacks {} by {}", kind.way.name(), kind.by.name())
                        })?;
                }
            }
        }
        Ok(Self(kinds))
    }

    /// One line a kind and depth.
    pub fn table(&self) -> Table {
        let mut table = Table::new(&[
            "stacks",
            "by",
            "frames",
            "ns without",
            "ns with",
            "a stack",
            "a frame",
            "the rest",
        ]);
        let shown = |value: Option<f64>| value.map(grouped).unwrap_or_default();
        for kind in &self.0 {
            let cost = kind.cost();
            for (number, depth) in kind.depths.iter().enumerate() {
                let cost = cost.filter(|_| number == 1);
                // So far from there, the line says little of no frames.
                let fixed = cost.filter(|_| kind.way != Way::TooLong);
                table.push(vec![
                    kind.way.name().to_owned(),
                    kind.by.name().to_owned(),
                    format!("{:.0}", depth.frames),
                    shown(depth.without_stacks.median()),
                    shown(depth.with_stacks.median()),
                    shown(depth.stack_ns()),
                    shown(cost.map(|cost| cost.frame_ns)),
                    shown(fixed.map(|cost| cost.fixed_ns)),
                ]);
            }
        }
        table
    }

    /// What is wanted of walks by tables.
    pub fn add_to(&self, figures: &mut Figures) {
        let cost = |way, by| {
            let kind = self
                .0
                .iter()
                .find(|kind| kind.way == way && kind.by == by)?;
            kind.cost()
        };
        let Some(walked) = cost(Way::Walked, By::Tables) else {
            return;
        };
        figures.push("a frame walked by tables", walked.frame_ns, 80.0, ns);
        if let Some(too_long) = cost(Way::TooLong, By::Tables) {
            let name = "the same, in stacks too long to remember";
            figures.push(name, too_long.frame_ns, 80.0, ns);
        }
        figures.push(
            "a stack walked by tables, without frames",
            walked.fixed_ns,
            400.0,
            ns,
        );
        if let Some(walked) = cost(Way::Walked, By::FramePointers) {
            figures.push_beside("a frame walked by frame pointers", ns(walked.frame_ns));
            let name = "a stack walked by frame pointers, without frames";
            figures.push_beside(name, ns(walked.fixed_ns));
        }
    }
}

fn ns(value: f64) -> String {
    format!("{value:.0} ns")
}

fn measure_depth(
    bench: &Bench,
    way: Way,
    by: By,
    frames: &str,
    number: usize,
    depth: &mut Depth,
) -> Result<()> {
    let mut command = by.program().command(&[frames]);
    command.args(way.argument());
    let mut load = Load::start(&mut command)?;
    let mut order = [false, true];
    if number % 2 == 1 {
        order.reverse();
    }
    for with_stacks in order {
        let written = programs::dir().join("walks.json");
        let mut start = bench.leaktrace(load.pid());
        start.command.args(["-q", "--unwind", by.option()]);
        report::write_to(&mut start, &written);
        if !with_stacks {
            start.command.args(["--max-size", "1"]);
        }
        let tracer = Tracer::start(start)?;
        // Some that succeed, for the report.
        load.round(1000)?;
        let ns = failing_rounds(bench, &mut load)?;
        tracer.stop()?;
        let report = report::take(&written)?;
        if with_stacks {
            depth.with_stacks.extend(ns);
            depth.frames = frames_in(&report)
                .context("leaktrace's report has not the load's stacks, all of one length")?;
        } else {
            depth.without_stacks.extend(ns);
        }
    }
    load.finish()
}

fn failing_rounds(bench: &Bench, load: &mut Load) -> Result<Vec<f64>> {
    let about_ns = load.failing_round(WARM_UP_PAIRS)?;
    let pairs = (bench.scale.round_cpu.as_nanos() as f64 / about_ns) as u64;
    let pairs = pairs.max(1000);
    (0..bench.scale.rounds)
        .map(|_| load.failing_round(pairs))
        .collect()
}

/// How many frames the stacks of a report have, if it is the same number.
/// Functions that the compiler put into others are in frames of these.
fn frames_in(report: &Value) -> Option<f64> {
    let mut lengths = report["stacks"].as_array()?.iter().map(|stack| {
        let frames = stack["frames"].as_array().into_iter().flatten();
        frames.filter(|frame| frame["inlined"] == false).count()
    });
    let first = lengths.next()?;
    lengths
        .all(|length| length == first)
        .then_some(first as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_cost_of_a_frame_is_the_slope() {
        let cost = Cost::through((14.0, 1700.0), (30.0, 2980.0));
        assert_eq!(
            cost,
            Cost {
                frame_ns: 80.0,
                fixed_ns: 580.0
            }
        );
    }

    #[test]
    fn frames_are_counted_when_all_stacks_have_as_many() {
        let stack = |inlined: &[bool]| {
            let frames: Vec<_> = inlined.iter().map(|it| json!({"inlined": it})).collect();
            json!({"frames": frames})
        };
        let report = |stacks: &[Value]| json!({"stacks": stacks});
        let of_two = stack(&[false, true, false]);
        let two = report(&[of_two.clone(), stack(&[false, false])]);
        assert_eq!(frames_in(&two), Some(2.0));
        assert_eq!(frames_in(&report(&[of_two, stack(&[false])])), None);
        assert_eq!(frames_in(&report(&[])), None);
    }
}
