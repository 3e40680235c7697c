//! The verdict: from what was kept of something to what it comes to.

use std::time::Duration;

use super::{
    grid::Grid,
    history::{History, Sample},
    line::{Line, Point, growth},
    teeth::Teeth,
    view::{self, Rise, View},
};
use crate::model::{Rate, Trend, Verdict};

/// Shorter than this tells nothing: a minute, less the time between two looks, so that
/// a trace of 60 s is long enough.
const EARLY: Duration = Duration::from_secs(59);
/// At most so many cells are looked at, at least half as many after a minute.
const CELLS: u64 = 40;
/// What moves up and down falls back by this share of what it held.
const DEEP: f64 = 0.4;

impl History {
    /// What it comes to.
    #[must_use]
    pub fn judge(&self) -> Trend {
        let observed = self.lived();
        let trend = |verdict, confidence| Trend {
            verdict,
            confidence,
            rate: Rate::default(),
            observed,
            steady: None,
            period: None,
        };
        let Some((first, last)) = self.ends() else {
            return trend(Verdict::TooEarly, 0.0);
        };
        if self.never_changed() {
            return if observed < EARLY {
                trend(Verdict::TooEarly, 0.0)
            } else {
                let verdict = if self.came_at_once() {
                    Verdict::OneOff
                } else {
                    Verdict::Flat
                };
                Trend {
                    steady: Some(observed),
                    ..trend(verdict, confidence(verdict, observed))
                }
            };
        }
        let grid = self.grid(CELLS);
        let judge = Judge {
            views: view::views(self, &grid),
            load: load(&grid),
            teeth: Teeth::of(&grid.cells, first.held as f64, DEEP),
            history: self,
            grid: &grid,
            first,
            last,
        };
        judge.trend(observed)
    }
}

struct Judge<'a> {
    history: &'a History,
    grid: &'a Grid,
    first: Sample,
    last: Sample,
    views: Vec<View>,
    /// By how much more is made at the end than at the beginning.
    load: f64,
    teeth: Teeth,
}

impl Judge<'_> {
    fn trend(&self, observed: Duration) -> Trend {
        let rise = self.rise();
        let steady = self.history.steady();
        let verdict = self.verdict(&rise, observed, steady);
        let line = match rise {
            Rise::Steady(line) | Rise::Slowing(line) => Some(line),
            Rise::None => self.surest(),
        };
        let is_steady = matches!(verdict, Verdict::OneOff | Verdict::Flat);
        let swings = matches!(verdict, Verdict::Growing | Verdict::Sawtooth);
        let period = self.teeth.period().filter(|_| swings);
        Trend {
            verdict,
            confidence: match (verdict, rise) {
                (Verdict::Growing, Rise::Steady(line)) => {
                    // What is believed along a curve is not doubted for its line.
                    let doubt = (view::BELIEVED - line.score()).min(0.0).exp();
                    confidence(verdict, observed) - 0.1 * doubt
                }
                _ => confidence(verdict, observed),
            }
            .clamp(0.0, 1.0),
            rate: match line {
                Some(line) if !is_steady => rate(&line),
                _ => Rate::default(),
            },
            observed,
            steady: (is_steady && steady * 2 >= observed).then_some(steady),
            period: period.map(|cells| Duration::from_secs_f64(cells * self.grid.width)),
        }
    }

    fn moved_once(&self) -> bool {
        self.grid.moving() * 10 <= self.grid.whole().len()
    }

    fn verdict(&self, rise: &Rise, observed: Duration, steady: Duration) -> Verdict {
        let (made, gone) = self.turnover();
        // Half of the time nothing happened.
        let still = steady * 2 >= observed && self.grid.quiet() * 2 >= self.grid.whole().len();
        let rises_for_good =
            !self.teeth.falling && matches!(rise, Rise::Steady(line) if line.score() > 8.0);
        let too_few = self.teeth.too_few(self.grid.cells.len()) && !rises_for_good;
        if observed < EARLY || too_few {
            return Verdict::TooEarly;
        }
        match rise {
            Rise::Steady(_) => Verdict::Growing,
            Rise::Slowing(_) => Verdict::Filling,
            Rise::None if still && (self.history.came_at_once() || self.moved_once()) => {
                Verdict::OneOff
            }
            Rise::None if still => Verdict::Flat,
            Rise::None if self.teeth.troughs.len() > 1 && !self.history.trembles() => {
                Verdict::Sawtooth
            }
            // Rises, but not so that anything could be said of how.
            Rise::None if gone < made / 2 && self.grid.rises_late() => Verdict::TooEarly,
            Rise::None if made > 0 && gone >= made / 10 => Verdict::Churn,
            Rise::None => Verdict::Flat,
        }
    }

    /// Things made and things given back, since the first look.
    fn turnover(&self) -> (u64, u64) {
        let (first, last) = (&self.first, &self.last);
        (
            last.made.saturating_sub(first.made),
            last.gone.saturating_sub(first.gone),
        )
    }

    /// Whether it rises for good, evenly or ever faster.
    fn rise(&self) -> Rise {
        match self.even_rise() {
            even @ Rise::Steady(_) => even,
            uneven => self.speeding_up().map_or(uneven, Rise::Steady),
        }
    }

    /// A rise that becomes ever faster, at its last pace: by the lowest points or old
    /// things, and by a view that no other excludes.
    fn speeding_up(&self) -> Option<Line> {
        // A few jumps, each larger than the last, are a pool that doubles.
        if !self.grid.moves_late() {
            return None;
        }
        let views = self.views.iter().skip(1);
        let late = |view: &View| view.late();
        let fast = views
            .filter(|view| !self.follows_load(view))
            .filter_map(View::speeds_up)
            .filter(|fast| {
                let mut others = self.views.iter().filter_map(late);
                !others.any(|other| other.excludes(fast.line.slope))
            })
            .max_by(|a, b| a.line.score().total_cmp(&b.line.score()));
        fast.map(|fast| fast.line)
    }

    /// Whether it rises for good: by the clearest view that no other excludes.
    fn even_rise(&self) -> Rise {
        let straight = self.straightest();
        let Some(view) = straight.or(self.views.first()) else {
            return Rise::None;
        };
        if self.follows_load(view) {
            return Rise::None;
        }
        let rise = view.rise();
        let Rise::Steady(line) = rise else {
            return rise;
        };
        // Straight by a view that others exclude; only a leak behind a cache remains.
        if straight.is_none() && !view.slows() {
            return Rise::None;
        }
        // The number of things may show more clearly than their size that it slows.
        let slows = view::things(self.grid)
            .filter(|things| things.line.score() > 0.7 * view.line.score())
            .filter(View::slows)
            .is_some_and(|things| matches!(things.rise(), Rise::Slowing(_)));
        if slows { Rise::Slowing(line) } else { rise }
    }

    fn straightest(&self) -> Option<&View> {
        let views = self.views.iter();
        views
            .filter(|view| view.line.score() >= view::BELIEVED && !self.follows_load(view))
            .filter(|view| view.aged || self.lows_rise())
            .filter(|view| {
                !self
                    .views
                    .iter()
                    .any(|other| other.excludes(view.line.slope))
            })
            .max_by(|a, b| a.line.score().total_cmp(&b.line.score()))
    }

    /// Whether what is held at least rises, too, as far as that can be told.
    fn lows_rise(&self) -> bool {
        let lows = self.views.iter().filter(|view| !view.aged).skip(1);
        lows.map(|view| view.line.score())
            .fold(f64::NEG_INFINITY, f64::max)
            > 2.0
    }

    fn surest(&self) -> Option<Line> {
        let lines = self.views.iter().map(|view| view.line);
        lines.min_by(|a, b| a.error.total_cmp(&b.error))
    }

    /// Whether no more rises than is made: what is held of a churn follows a load
    /// that rises.
    fn follows_load(&self, view: &View) -> bool {
        let (made, gone) = self.turnover();
        // What is kept adds up; it is no churn.
        if gone < made / 2 {
            return false;
        }
        // All views of what is held do when the finest does.
        let (view, base) = if view.aged {
            (Some(view), 0.0)
        } else {
            (self.views.first(), self.first.held as f64)
        };
        view.is_some_and(|view| {
            // Of a leak under a load that rises in a line, at least half as much more.
            let follows = (1.7 * self.load).min(1.65).max(1.35 * self.load);
            growth(&view.points, &view.line, base) < follows
        })
    }
}

/// By how much more is made at the end, as a share of the mean; 0 when that may be
/// chance.
fn load(grid: &Grid) -> f64 {
    let cells = grid.whole().iter().enumerate().skip(1);
    let made: Vec<Point> = cells
        .map(|(index, cell)| (index as f64, cell.made))
        .collect();
    match Line::through(&made) {
        Some(line) if line.score() > 2.0 => growth(&made, &line, 0.0),
        _ => 0.0,
    }
}

fn rate(line: &Line) -> Rate {
    let (low, high) = line.bounds();
    Rate {
        per_minute: line.slope * 60.0,
        low: low * 60.0,
        high: high * 60.0,
    }
}

/// How often a verdict is right after so long, by the generated series (those
/// included of which nobody can tell): `GROWING` when it leaks, any other when it
/// doesn't. What remains in doubt is mostly a cache that still fills in a straight
/// line, or batches longer than the observation, and dwindles as time passes.
fn confidence(verdict: Verdict, observed: Duration) -> f64 {
    let doubt = match verdict {
        Verdict::Growing => 0.28,
        Verdict::Filling => 0.35,
        Verdict::Sawtooth | Verdict::Flat => 0.16,
        Verdict::Churn => 0.07,
        Verdict::OneOff => 0.02,
        Verdict::TooEarly => return 0.0,
    };
    1.0 - doubt * (observed.as_secs_f64() / 60.0).max(1.0).powf(-0.6)
}
