//! The verdict: from what was kept of a site to what it comes to.

use std::time::Duration;

use super::{
    bend::Bend,
    grid::{Grid, GridCell},
    history::{AGES, History},
    line::{Line, Point},
    teeth::Teeth,
};
use crate::model::{Rate, Trend, Verdict};

/// Shorter than this tells nothing.
const EARLY: Duration = Duration::from_secs(60);
/// Cells that are looked at.
const CELLS: u64 = 40;
/// A score above which a rise is believed.
const BELIEVED: f64 = 3.2;

/// One way to look at a site: each shows a leak at the same rate, and each shows
/// other things less.
#[derive(Clone, Debug)]
struct View {
    line: Line,
    points: Vec<Point>,
    aged: bool,
}

impl View {
    fn of(points: Vec<Point>, aged: bool) -> Option<Self> {
        let line = Line::through(&points)?;
        Some(Self { line, points, aged })
    }

    /// Whether it excludes a rise at this rate.
    fn contradicts(&self, slope: f64) -> bool {
        self.line.slope + 2.0 * self.line.error < 0.4 * slope
    }

    /// The later part of it.
    fn late(&self, share: f64) -> Option<Self> {
        let (first, last) = (self.points.first()?.0, self.points.last()?.0);
        let from = last - (last - first) * share;
        let points: Vec<Point> = self
            .points
            .iter()
            .copied()
            .filter(|p| p.0 >= from)
            .collect();
        let line = Line::through(&points)?;
        Some(Self {
            line,
            points,
            aged: self.aged,
        })
    }
}

impl History {
    /// What it comes to.
    #[must_use]
    pub fn judge(&self) -> Trend {
        let observed = self.lived();
        let early = observed < EARLY;
        if self.never_changed() {
            return Trend {
                verdict: if early {
                    Verdict::TooEarly
                } else {
                    Verdict::Flat
                },
                confidence: if early { 0.0 } else { 1.0 },
                rate: Rate::default(),
                observed,
                steady: (!early).then_some(observed),
                period: None,
            };
        }
        let grid = self.grid(CELLS);
        let views = views(self, &grid);
        let mut judge = Judge {
            history: self,
            grid: &grid,
            views,
            observed,
        };
        judge.verdict(early)
    }
}

struct Judge<'a> {
    history: &'a History,
    grid: &'a Grid,
    views: Vec<View>,
    observed: Duration,
}

/// What the growth comes to.
enum Rise {
    None,
    Steady(Line, f64),
    Slowing(Line, f64),
}

impl Judge<'_> {
    fn verdict(&mut self, early: bool) -> Trend {
        let cells = self.grid.whole();
        let range = range(cells);
        let teeth = Teeth::of(cells, range * 0.25);
        let rise = self.rise();
        let line = match &rise {
            Rise::Steady(line, _) | Rise::Slowing(line, _) => Some(*line),
            Rise::None => self.best(),
        };
        let rate = line.map_or(Rate::default(), |line| {
            let (low, high) = line.bounds();
            Rate {
                per_minute: line.slope * 60.0,
                low: low * 60.0,
                high: high * 60.0,
            }
        });
        let (first, last) = self.history.ends().unzip();
        let (first, last) = match (first, last) {
            (Some(first), Some(last)) => (first, last),
            _ => unreachable!("it changed"),
        };
        let made = last.made - first.made.min(last.made);
        let gone = last.gone - first.gone.min(last.gone);
        let steady = self.history.steady();
        let mut trend = Trend {
            verdict: Verdict::Flat,
            confidence: 0.5,
            rate,
            observed: self.observed,
            steady: None,
            period: None,
        };
        let deep = teeth.depth > 0.4 * (teeth.peak + first.held as f64).max(1.0);
        if deep && let Some(period) = teeth.period() {
            trend.period = Some(Duration::from_secs_f64(period * self.grid.width));
        }
        (trend.verdict, trend.confidence) = match rise {
            _ if early => (Verdict::TooEarly, 0.0),
            Rise::Steady(_, score) => (Verdict::Growing, 1.0 - 0.5 * (-score / 3.0).exp()),
            Rise::Slowing(_, score) => (Verdict::Filling, 1.0 - 0.5 * (-score / 3.0).exp()),
            Rise::None if steady * 2 >= self.observed && gone * 4 <= made => {
                trend.steady = Some(steady);
                (Verdict::OneOff, 0.9)
            }
            Rise::None if teeth.troughs.len() >= 2 && deep => (Verdict::Sawtooth, 0.8),
            Rise::None if teeth.troughs.len() == 1 && deep => (Verdict::TooEarly, 0.8),
            Rise::None if gone * 2 >= made => (Verdict::Churn, 0.8),
            Rise::None => (Verdict::Flat, 0.6),
        };
        trend
    }

    fn best(&self) -> Option<Line> {
        let lines = self.views.iter().map(|view| view.line);
        lines.min_by(|a, b| a.error.total_cmp(&b.error))
    }

    fn rise(&self) -> Rise {
        let straight = self
            .views
            .iter()
            .filter(|view| view.line.score() >= BELIEVED)
            .filter(|view| {
                !self
                    .views
                    .iter()
                    .any(|other| other.contradicts(view.line.slope))
            })
            .max_by(|a, b| a.line.score().total_cmp(&b.line.score()));
        let Some(view) = straight.or(self.views.first()) else {
            return Rise::None;
        };
        let bend = Bend::of(&view.points, view.line.carried);
        let score = match (straight, bend) {
            (Some(view), _) => view.line.score(),
            (None, Some(bend)) if bend.score >= BELIEVED => bend.score,
            _ => return Rise::None,
        };
        let late = view.late(0.5);
        let goes_on = |rate: f64| {
            late.as_ref()
                .is_none_or(|late| late.line.score() >= 2.0 && !late.contradicts(rate))
        };
        if let Some(bend) = bend.filter(|bend| bend.evidence > 9.0 && bend.remaining < 0.75) {
            if let Some((beyond, evidence)) = bend.beyond
                && beyond.score() > 4.0
                && evidence > 9.0
                && goes_on(beyond.slope)
            {
                return Rise::Steady(beyond, beyond.score());
            }
            return Rise::Slowing(view.line, score);
        }
        if goes_on(view.line.slope) {
            Rise::Steady(view.line, score)
        } else {
            Rise::Slowing(view.line, score)
        }
    }
}

fn views(history: &History, grid: &Grid) -> Vec<View> {
    let cells = grid.whole();
    let mut views = Vec::new();
    let skip = usize::from(cells.len() > 6);
    let mid = |from: usize, to: usize| (from + to) as f64 * 0.5 * grid.width;
    let cells_at = |of: fn(&GridCell) -> f64| -> Vec<Point> {
        let points = cells.iter().enumerate().skip(skip);
        points.map(|(i, cell)| (mid(i, i + 1), of(cell))).collect()
    };
    views.extend(View::of(cells_at(|cell| cell.mean), false));
    views.extend(View::of(cells_at(|cell| cell.low), false));
    // What is held of a churn follows how much is made.
    let pace = cells_at(|cell| cell.made);
    if let Some(line) = Line::through(&pace)
        && line.score().abs() > 3.0
    {
        let paces: Vec<f64> = pace.iter().map(|point| point.1).collect();
        let points = cells_at(|cell| cell.mean);
        views.extend(Line::beyond(&points, &paces).map(|line| View {
            line,
            points,
            aged: false,
        }));
    }
    for scale in [2, 3, 4, 6] {
        let mut points: Vec<Point> = Vec::new();
        let mut end = cells.len();
        while end >= skip + scale {
            let part = &cells[end - scale..end];
            let low = part
                .iter()
                .map(|cell| cell.low)
                .fold(f64::INFINITY, f64::min);
            points.push((mid(end - scale, end), low));
            end -= scale;
        }
        points.reverse();
        if points.len() >= 6 {
            views.extend(View::of(points, false));
        }
    }
    let lived = history.lived().as_secs_f64();
    for age in 1..AGES.len() {
        let points = history.aged(age);
        let span = points
            .last()
            .zip(points.first())
            .map_or(0.0, |(l, f)| l.0 - f.0);
        if points.len() >= 6 && span >= 0.4 * lived {
            views.extend(View::of(points, true));
        }
    }
    views
}

fn range(cells: &[GridCell]) -> f64 {
    let high = cells
        .iter()
        .map(|cell| cell.high)
        .fold(f64::NEG_INFINITY, f64::max);
    let low = cells
        .iter()
        .map(|cell| cell.low)
        .fold(f64::INFINITY, f64::min);
    (high - low).max(0.0)
}
