//! Several ways to look at the same thing: each shows a leak at the same rate, and
//! everything else differently.
//!
//! - The mean of each cell: the least noise where noise is even.
//! - The lowest value of each cell and of 2, 3, 4 and 6 together, the lower
//!   envelope: what moves up and down within that span is gone, its troughs remain.
//! - What is held in things of 10 s, 60 s and 10 min: a churn has next to none of
//!   these, or always as much; what was leaked stays.
//!
//! Errors of coarser views hang together at least as those of the finest do: short
//! series show that too rarely by themselves.

use super::{
    bend::{self, Bend, Beyond},
    grid::{Grid, GridCell},
    history::{AGES, History},
    line::{Line, Point},
};

/// A score above which a rise is believed: by chance, once in six thousand.
pub(super) const BELIEVED: f64 = 3.6;
/// The same for a part of a view.
const BELIEVED_OF_PART: f64 = 2.8;
/// Cells that are taken together for their lowest value.
const SCALES: [usize; 4] = [2, 3, 4, 6];

/// One way to look at a site.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub line: Line,
    pub points: Vec<Point>,
    /// Of things of an age.
    pub aged: bool,
}

/// What a rise comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rise {
    /// There is none.
    None,
    /// Goes on.
    Steady(Line),
    /// Goes on more and more slowly.
    Slowing(Line),
}

impl View {
    fn of(points: Vec<Point>, aged: bool, carried: f64) -> Option<Self> {
        let line = Line::carrying(&points, carried)?;
        Some(Self { line, points, aged })
    }

    /// Whether it excludes a rise at this rate, or at half of it.
    pub fn excludes(&self, slope: f64) -> bool {
        self.line.slope + 3.0 * self.line.error < 0.4 * slope
    }

    /// Whether it slows down, for sure.
    pub fn slows(&self) -> bool {
        Bend::of(&self.points, self.line.carried).is_some_and(|bend| bend.slows())
    }

    /// Whether it rises, and goes on to.
    pub fn rise(&self) -> Rise {
        let (Some(bend), Some(late)) = (Bend::of(&self.points, self.line.carried), self.late())
        else {
            return Rise::None;
        };
        let straight = self.line.score() >= BELIEVED;
        if !straight && bend.score < BELIEVED {
            return Rise::None;
        }
        if bend.slows() {
            if self
                .beyond(&bend)
                .is_some_and(|beyond| late.outlasts(&bend, &beyond))
            {
                return Rise::Steady(late.line);
            }
        } else if straight && late.continues(&self.line) {
            return Rise::Steady(self.line);
        }
        if late.line.score() > 1.0 && late.line.slope > 0.1 * self.line.slope {
            Rise::Slowing(self.line)
        } else {
            Rise::None
        }
    }

    /// The later half of what rises ever faster, when that half alone is believed, too.
    /// A line misses such a curve by so much that it isn't sure of any rise.
    pub fn speeds_up(&self) -> Option<Self> {
        let late = self.late()?;
        let sure = bend::speeding_up(&self.points, self.line.carried);
        let late_sure = bend::speeding_up(&late.points, late.line.carried);
        (late.line.slope >= self.line.slope
            && sure >= BELIEVED
            && late.line.score().max(late_sure) >= BELIEVED)
            .then_some(late)
    }

    /// Whether this, the later half, rises as the whole does, as far as half of the
    /// points can tell.
    fn continues(&self, whole: &Line) -> bool {
        let due = (0.3 * whole.score() - 1.0).clamp(0.5, 2.0);
        self.line.score() >= due
            && self.line.slope >= 0.4 * whole.slope
            && !self.excludes(whole.slope)
    }

    /// Whether this, the later half of a rise that slowed down, goes on straight: a
    /// leak behind a cache that is now warm. The less a straight rise beside an
    /// approach explains that no curve does, the surer the rest must be.
    fn outlasts(&self, bend: &Bend, beyond: &Beyond) -> bool {
        let (sure, evidence) = (beyond.line.score(), beyond.evidence);
        let late = self.line.score();
        if sure < BELIEVED_OF_PART || late < BELIEVED_OF_PART {
            return false;
        }
        if evidence < 50.0 && self.slows() {
            return false;
        }
        let last = self
            .late()
            .map_or(0.0, |last| last.line.slope / self.line.slope);
        let sure = sure + late;
        if evidence > 20.0 {
            sure > 8.0 && last > 0.75
        } else if evidence > 4.0 {
            let much = bend.remaining < 0.6 || evidence > 12.0;
            sure > 16.0 && last > 0.8 || sure > 8.0 && last > 0.92 && much
        } else {
            sure > 11.0 && last > 0.92 && bend.remaining < 0.6
        }
    }

    fn beyond(&self, bend: &Bend) -> Option<Beyond> {
        bend.beyond(&self.points, self.line.carried)
    }

    /// Its later half.
    pub fn late(&self) -> Option<Self> {
        let (first, last) = (self.points.first()?.0, self.points.last()?.0);
        let middle = f64::midpoint(first, last);
        let late = self.points.iter().filter(|point| point.0 >= middle);
        Self::of(late.copied().collect(), self.aged, 0.0)
    }
}

/// All views of what is held; the first is the finest.
pub(super) fn views(history: &History, grid: &Grid) -> Vec<View> {
    let mut views = Vec::with_capacity(2 + SCALES.len() + AGES.len());
    let Some(means) = View::of(grid.points(|cell| cell.mean), false, 0.0) else {
        return views;
    };
    let all = means.line;
    views.push(means);
    views.extend(View::of(grid.points(|cell| cell.low), false, all.carried));
    for scale in SCALES {
        let points = envelope(grid, scale);
        if points.len() >= 6 {
            views.extend(View::of(points, false, all.carried.powi(scale as i32)));
        }
    }
    let lived = history.lived().as_secs_f64();
    for age in 1..AGES.len() {
        let points = history.aged(age);
        let span = points
            .last()
            .zip(points.first())
            .map_or(0.0, |(b, a)| b.0 - a.0);
        if points.len() < 6 || span < 0.4 * lived {
            continue;
        }
        let cells = span / points.len() as f64 / grid.width;
        // What wanders as far as all that is held does it in the same way.
        let wanders = |own: &Line| own.spread > 0.2 * all.spread;
        let same = Line::through(&points).as_ref().is_some_and(wanders);
        let carried = if same { all.carried.powf(cells) } else { 0.0 };
        views.extend(View::of(points, true, carried));
    }
    views
}

/// How many things are held.
pub(super) fn things(grid: &Grid) -> Option<View> {
    View::of(grid.points(|cell| cell.things), false, 0.0)
}

/// The lowest values of so many cells each.
fn envelope(grid: &Grid, scale: usize) -> Vec<Point> {
    let lows: Vec<Point> = grid.points(|cell: &GridCell| cell.low);
    let parts = lows.rchunks_exact(scale).rev();
    parts
        .map(|part| {
            let low = part
                .iter()
                .map(|point| point.1)
                .fold(f64::INFINITY, f64::min);
            (f64::midpoint(part[0].0, part[scale - 1].0), low)
        })
        .collect()
}
