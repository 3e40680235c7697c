//! What one site held, in a bounded space, whatever the length of a trace.
//!
//! Time is cut into cells of the same width, a power of two seconds; a cell keeps
//! the lowest, highest and mean value. A cell in which nothing changed is not
//! stored, so a site that never changes costs one cell. When there are too many,
//! the width doubles and neighbours are merged, so that resolution halves.
//!
//! Time here is what the site *lived*: it begins when something is first held,
//! ignores a clock that goes back, and counts a pause (a suspended machine, a
//! stopped leaktrace) only as far as things were made at the usual pace
//! meanwhile.

use std::time::Duration;

use super::grid::{Grid, GridCell};

/// The ages of [`Aged`].
pub const AGES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
];

/// One look at something that is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since the trace began.
    pub at: Duration,
    /// What is held: bytes, or other units.
    pub held: u64,
    /// Things (blocks) made since the start, cumulative.
    pub made: u64,
    /// Things given back since the start, cumulative.
    pub gone: u64,
    /// Known only when somebody read the live table.
    pub aged: Option<Aged>,
}

impl Sample {
    /// A look at a value of which nobody knows what made it: a process's memory, its
    /// descriptors or threads.
    #[must_use]
    pub const fn level(at: Duration, held: u64) -> Self {
        Self {
            at,
            held,
            made: 0,
            gone: 0,
            aged: None,
        }
    }
}

/// What is held in things of at least each of [`AGES`], in units of
/// [`Sample::held`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aged {
    /// In the order of [`AGES`].
    pub held: [u64; 4],
}

/// How many things had been made by some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MadeBy {
    /// Not fewer: so many at the last look before that was kept.
    pub least: u64,
    /// As many, if they were made evenly between two such looks.
    pub likely: u64,
    /// Not more: so many at the first look after.
    pub most: u64,
}

impl MadeBy {
    const fn exactly(made: u64) -> Self {
        Self {
            least: made,
            likely: made,
            most: made,
        }
    }

    /// Between two looks, in seconds, with what had been made at each.
    fn between(at: f64, looks: (f64, f64), made: (u64, u64)) -> Self {
        if at <= looks.0 {
            return Self::exactly(made.0);
        }
        let more = made.1.saturating_sub(made.0);
        let share = (at - looks.0) / (looks.1 - looks.0);
        Self {
            least: made.0,
            likely: made.0 + ((more as f64 * share).round() as u64).min(more),
            most: made.0 + more,
        }
    }
}

/// More cells than this, and their width doubles.
const MOST_CELLS: usize = 40;
/// More looks at ages than this, and two neighbours become one.
const MOST_AGED: usize = 24;
/// The width of a cell at first.
const FIRST_WIDTH_MS: u64 = 1000;
/// No time is later: 35 years.
const LATEST_MS: u64 = 1 << 40;
/// Cells of two years hold that.
const MOST_SHIFT: u8 = 26;
/// Between two looks more time than this passed, and ten times the usual: a pause.
const PAUSE_MS: u64 = 15_000;
/// More pauses than this are remembered as one.
const MOST_PAUSES: usize = 8;

/// How something moved, thinned.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The last look, and the first at which anything was held or made.
    seen: Option<Seen>,
    /// The last look before, at which nothing was.
    nothing_at: Option<Duration>,
    /// Cells in which something changed, by index; the first is always there,
    /// the last is open: its mean is not yet known.
    cells: Vec<Cell>,
    /// A cell is `FIRST_WIDTH_MS << shift` wide.
    shift: u8,
    aged: Vec<AgedCell>,
    /// Where the time lived and the trace's time part.
    pauses: Vec<Anchor>,
}

#[derive(Clone, Debug)]
struct Seen {
    first: Sample,
    last: Sample,
    /// From the first to the last.
    lived_ms: u64,
    /// When `held` last changed.
    changed_ms: u64,
    /// When anything last changed, and the integral of `held` over the open cell
    /// until then, in units times milliseconds.
    summed_ms: u64,
    integral: f64,
    /// Usual time between two looks.
    usual_ms: u64,
    /// How often `held` moved from one look to the next, and how often the other
    /// way than before.
    moves: u32,
    turns: u32,
    falling: bool,
}

/// From this time lived on, time lived is the trace's less a constant.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    lived_ms: u64,
    at_ms: u64,
}

/// Values are relative to the first that was held, so that small movements of
/// something large keep their digits.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    /// Made until the last look that changed anything, cumulative.
    made: u64,
    /// When that look was, in seconds lived.
    until: f32,
    index: u32,
    low: f32,
    high: f32,
    mean: f32,
    last: f32,
    /// Things held at the end, relative to the first.
    things: f32,
}

#[derive(Clone, Copy, Debug)]
struct AgedCell {
    /// When the last look was, in seconds lived.
    until: f32,
    /// Mean time of the looks.
    mid: f32,
    looks: u32,
    held: [f32; 4],
}

impl History {
    /// Nothing seen yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            nothing_at: None,
            seen: None,
            cells: Vec::new(),
            shift: 0,
            aged: Vec::new(),
            pauses: Vec::new(),
        }
    }

    /// Adds a look. One that changes nothing costs nearly nothing.
    pub fn push(&mut self, sample: Sample) {
        if self.seen.is_none() {
            if sample.held == 0 && sample.made == 0 {
                self.nothing_at = Some(sample.at);
                return;
            }
            self.begin(sample);
        }
        let Some(seen) = &mut self.seen else { return };
        let jumped = seen.pass(sample);
        let (lived_ms, last) = (seen.lived_ms, seen.last);
        let changed = (sample.held, sample.made, sample.gone) != (last.held, last.made, last.gone);
        seen.last = sample;
        if sample.held != last.held {
            seen.changed_ms = lived_ms;
            let falling = sample.held < last.held;
            seen.moves = seen.moves.saturating_add(1);
            seen.turns = seen
                .turns
                .saturating_add(u32::from(falling != seen.falling));
            seen.falling = falling;
        }
        if jumped {
            self.anchor(lived_ms, millis(sample.at));
        }
        if changed {
            self.change(last);
        }
        // Of what never changed everything is as old as the trace.
        if let Some(aged) = sample.aged
            && !self.never_changed()
        {
            self.look_at_ages(aged);
        }
    }

    /// How many things had been made at a time of the trace.
    #[must_use]
    pub fn made_by(&self, at: Duration) -> MadeBy {
        let Some(seen) = &self.seen else {
            return MadeBy::default();
        };
        if at < seen.first.at {
            let nothing = self.nothing_at.unwrap_or(at).as_secs_f64();
            let looks = (nothing, seen.first.at.as_secs_f64());
            return MadeBy::between(at.as_secs_f64(), looks, (0, seen.first.made));
        }
        let seconds = |millis: u64| millis as f64 / 1000.0;
        let (lived, width) = (seconds(self.lived_at(millis(at))), seconds(self.width_ms()));
        // As many as there were at the last look before a cell's; between cells
        // none was made, but for the last look's time before one.
        let usual = seconds(seen.usual_ms.max(1));
        let (mut from, mut before) = (0.0, seen.first.made);
        for cell in &self.cells {
            let (begins, until) = (f64::from(cell.index) * width, f64::from(cell.until));
            from = f64::max(from, begins - usual);
            if lived < until {
                return MadeBy::between(lived, (from, until), (before, cell.made));
            }
            (from, before) = (until, cell.made);
        }
        MadeBy::exactly(before)
    }

    /// Since something was first held.
    pub(super) fn lived(&self) -> Duration {
        Duration::from_millis(self.seen.as_ref().map_or(0, |seen| seen.lived_ms))
    }

    /// How long what is held has not changed.
    pub(super) fn steady(&self) -> Duration {
        Duration::from_millis(
            self.seen
                .as_ref()
                .map_or(0, |seen| seen.lived_ms.saturating_sub(seen.changed_ms)),
        )
    }

    /// Whether all of it came at once, while it was watched.
    pub(super) fn came_at_once(&self) -> bool {
        self.nothing_at.is_some() && self.steady() == self.lived()
    }

    /// Whether it moves up and down from look to look, in no direction for long.
    pub(super) fn trembles(&self) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|seen| seen.turns > seen.moves / 2)
    }

    /// The first and the last look.
    pub(super) fn ends(&self) -> Option<(Sample, Sample)> {
        self.seen.as_ref().map(|seen| (seen.first, seen.last))
    }

    /// Whether anything ever changed.
    pub(super) fn never_changed(&self) -> bool {
        self.cells.len() <= 1
            && self.seen.as_ref().is_none_or(|seen| {
                let (first, last) = (seen.first, seen.last);
                (first.held, first.made, first.gone) == (last.held, last.made, last.gone)
            })
            && self.cells.iter().all(|cell| cell.low == cell.high)
    }

    /// All of it in cells of equal width, without holes, at most `most` of them.
    pub(super) fn grid(&self, most: u64) -> Grid {
        let Some(seen) = &self.seen else {
            return Grid::default();
        };
        let mut cells = self.cells.clone();
        if let Some(open) = cells.last_mut() {
            let width = self.width_ms();
            let now = seen.relative(seen.last.held);
            open.mean = seen.mean(u64::from(open.index) * width, width, now);
        }
        let mut shift = self.shift;
        while (seen.lived_ms / (FIRST_WIDTH_MS << shift)) >= most && shift < MOST_SHIFT {
            merge_pairs(&mut cells);
            shift += 1;
        }
        let width_ms = FIRST_WIDTH_MS << shift;
        let mut grid = Grid {
            width: width_ms as f64 / 1000.0,
            cells: Vec::new(),
        };
        let mut made = seen.first.made;
        let count = (seen.lived_ms / width_ms).min(most) + 1;
        let mut stored = cells.iter().peekable();
        let mut before = Cell::still(0, 0.0, 0.0, made, 0.0);
        for index in 0..count as u32 {
            let cell = match stored.next_if(|cell| cell.index == index) {
                Some(cell) => *cell,
                None => Cell::still(index, before.last, before.things, before.made, before.until),
            };
            grid.cells.push(GridCell {
                low: f64::from(cell.low),
                high: f64::from(cell.high),
                mean: f64::from(cell.mean),
                things: f64::from(cell.things),
                made: cell.made.saturating_sub(made) as f64,
            });
            made = cell.made;
            before = cell;
        }
        grid
    }

    /// For one of [`AGES`]: seconds lived, and what was held in things of that age;
    /// only from when there could be any.
    pub(super) fn aged(&self, age: usize) -> Vec<(f64, f64)> {
        let least = AGES[age].as_secs_f32();
        // One that joins looks from before that age has zeros in its mean.
        let young = |cell: &AgedCell| cell.until < least;
        let first = self.aged.iter().take_while(|cell| young(cell)).count() + 1;
        let cells = self.aged.iter().skip(first);
        cells
            .map(|cell| (f64::from(cell.mid), f64::from(cell.held[age])))
            .collect()
    }

    /// The same, had nobody read the live table.
    #[cfg(test)]
    pub(super) fn without_ages(&self) -> Self {
        Self {
            aged: Vec::new(),
            ..self.clone()
        }
    }

    fn begin(&mut self, sample: Sample) {
        self.seen = Some(Seen {
            first: sample,
            last: sample,
            lived_ms: 0,
            changed_ms: 0,
            summed_ms: 0,
            integral: 0.0,
            usual_ms: 0,
            moves: 0,
            turns: 0,
            falling: false,
        });
        reserve(&mut self.cells, MOST_CELLS + 1);
        self.cells.push(Cell::still(0, 0.0, 0.0, sample.made, 0.0));
        self.anchor(0, millis(sample.at));
    }

    fn anchor(&mut self, lived_ms: u64, at_ms: u64) {
        let anchor = Anchor { lived_ms, at_ms };
        self.pauses.truncate(MOST_PAUSES - 1);
        reserve(&mut self.pauses, MOST_PAUSES);
        self.pauses.push(anchor);
    }

    /// Time lived at a time of the trace.
    fn lived_at(&self, at_ms: u64) -> u64 {
        let anchor = self.pauses.iter().rfind(|anchor| anchor.at_ms <= at_ms);
        anchor.map_or(0, |anchor| anchor.lived_ms + (at_ms - anchor.at_ms))
    }

    fn width_ms(&self) -> u64 {
        FIRST_WIDTH_MS << self.shift
    }

    /// Takes in the last look, which differs from the one before.
    fn change(&mut self, before: Sample) {
        let width = self.width_ms();
        let (Some(seen), Some(open)) = (&mut self.seen, self.cells.last_mut()) else {
            return;
        };
        let was = seen.relative(before.held);
        let index = u32::try_from(seen.lived_ms / width).unwrap_or(u32::MAX);
        if index > open.index {
            open.mean = seen.mean(u64::from(open.index) * width, width, was);
            let things = open.things;
            seen.summed_ms = u64::from(index) * width;
            seen.integral = 0.0;
            reserve(&mut self.cells, MOST_CELLS + 1);
            self.cells
                .push(Cell::still(index, was as f32, things, before.made, 0.0));
        }
        let Some(open) = self.cells.last_mut() else {
            return;
        };
        seen.integral += was * seen.lived_ms.saturating_sub(seen.summed_ms) as f64;
        seen.summed_ms = seen.lived_ms;
        let now = seen.relative(seen.last.held) as f32;
        open.low = open.low.min(now);
        open.high = open.high.max(now);
        open.last = now;
        open.made = open.made.max(seen.last.made);
        open.until = (seen.lived_ms as f64 / 1000.0) as f32;
        open.things = seen.things() as f32;
        while self.cells.len() > MOST_CELLS && self.shift < MOST_SHIFT {
            self.widen();
        }
    }

    /// Doubles the width of cells.
    fn widen(&mut self) {
        let (width, count) = (self.width_ms(), self.cells.len());
        let Some(seen) = &mut self.seen else { return };
        // What the open cell takes in from before it.
        if let [.., before, open] = &self.cells[..]
            && open.index % 2 == 1
        {
            let earlier = if before.index + 1 == open.index {
                before.mean
            } else {
                before.last
            };
            seen.integral += f64::from(earlier) * width as f64;
        }
        merge_pairs(&mut self.cells);
        self.shift += 1;
        if self.cells.len() < count {
            self.cells.shrink_to(MOST_CELLS + 1);
        }
    }

    fn look_at_ages(&mut self, aged: Aged) {
        let Some(seen) = &self.seen else { return };
        let now = (seen.lived_ms as f64 / 1000.0) as f32;
        reserve(&mut self.aged, MOST_AGED + 1);
        self.aged.push(AgedCell {
            until: now,
            mid: now,
            looks: 1,
            held: aged.held.map(|held| held as f32),
        });
        if self.aged.len() <= MOST_AGED {
            return;
        }
        // The pair that together spans the least time: the oldest of those.
        let mut narrowest = (f32::INFINITY, 0);
        let mut from = 0.0;
        for (pair, both) in self.aged.windows(2).enumerate() {
            let span = both[1].until - from;
            if span < narrowest.0 {
                narrowest = (span, pair);
            }
            from = both[0].until;
        }
        let later = self.aged.remove(narrowest.1 + 1);
        self.aged[narrowest.1].join(&later);
    }
}

impl Seen {
    /// Lets time pass until a sample; whether time lived and the trace's time
    /// parted.
    fn pass(&mut self, sample: Sample) -> bool {
        let (now, before) = (millis(sample.at), millis(self.last.at));
        let Some(passed) = now.checked_sub(before) else {
            return true;
        };
        let pause = passed > PAUSE_MS && self.usual_ms > 0 && passed / 10 > self.usual_ms;
        if !pause {
            self.usual_ms = match self.usual_ms {
                0 => passed,
                usual => (usual * 7 + passed.min(usual * 2)).div_ceil(8),
            };
            self.lived_ms = (self.lived_ms + passed).min(LATEST_MS);
            return false;
        }
        let made = self.last.made.saturating_sub(self.first.made);
        let more = sample.made.saturating_sub(self.last.made);
        // Nothing is known of its pace: it may as well have lived on.
        let lived = if made == 0 {
            passed
        } else {
            let due = more as f64 / made as f64 * self.lived_ms as f64;
            (due as u64).clamp(self.usual_ms, passed)
        };
        self.lived_ms = (self.lived_ms + lived).min(LATEST_MS);
        lived != passed
    }

    fn relative(&self, held: u64) -> f64 {
        if held >= self.first.held {
            (held - self.first.held) as f64
        } else {
            -((self.first.held - held) as f64)
        }
    }

    /// Things held now, relative to the first.
    fn things(&self) -> f64 {
        let made = self.last.made.saturating_sub(self.first.made);
        made as f64 - self.last.gone.saturating_sub(self.first.gone) as f64
    }

    /// Mean of a cell of which `integral` has been summed, if from then on it
    /// stayed at `value`.
    fn mean(&self, begins_ms: u64, width_ms: u64, value: f64) -> f32 {
        let rest = (begins_ms + width_ms).saturating_sub(self.summed_ms.max(begins_ms));
        ((self.integral + value * rest as f64) / width_ms as f64) as f32
    }
}

impl Cell {
    /// Where nothing changes.
    const fn still(index: u32, value: f32, things: f32, made: u64, until: f32) -> Self {
        Self {
            made,
            until,
            index,
            low: value,
            high: value,
            mean: value,
            last: value,
            things,
        }
    }

    /// Together with the other half of a cell twice as wide.
    fn join(self, later: Self) -> Self {
        Self {
            low: self.low.min(later.low),
            high: self.high.max(later.high),
            mean: f32::midpoint(self.mean, later.mean),
            ..later
        }
    }
}

impl AgedCell {
    fn join(&mut self, later: &Self) {
        let (mine, theirs) = (f64::from(self.looks), f64::from(later.looks));
        let share = theirs / (mine + theirs);
        for (held, other) in self.held.iter_mut().zip(later.held) {
            *held = (f64::from(*held) * (1.0 - share) + f64::from(other) * share) as f32;
        }
        self.mid += ((f64::from(later.mid) - f64::from(self.mid)) * share) as f32;
        self.until = later.until;
        self.looks = self.looks.saturating_add(later.looks);
    }
}

/// Makes cells twice as wide. Of a pair only one may be stored: nothing changed in
/// the other.
fn merge_pairs(cells: &mut Vec<Cell>) {
    let mut merged: Vec<Cell> = Vec::with_capacity(cells.len());
    let mut cells_left = cells.iter().copied().peekable();
    let mut before = cells.first().copied();
    while let Some(cell) = cells_left.next() {
        let wide = cell.index / 2;
        let joined = if cell.index % 2 == 0 {
            let other = cells_left.next_if(|next| next.index == cell.index + 1);
            cell.join(other.unwrap_or(Cell::still(
                0,
                cell.last,
                cell.things,
                cell.made,
                cell.until,
            )))
        } else {
            let still = before.unwrap_or(cell);
            Cell::still(0, still.last, still.things, still.made, still.until).join(cell)
        };
        before = Some(joined);
        merged.push(Cell {
            index: wide,
            ..joined
        });
    }
    *cells = merged;
}

/// Makes room for one more: twice as much, but never more than for so many.
fn reserve<T>(full: &mut Vec<T>, most: usize) {
    if full.len() == full.capacity() {
        let room = most.saturating_sub(full.len()).max(1);
        full.reserve_exact(full.len().clamp(1, room));
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).map_or(LATEST_MS, |millis| millis.min(LATEST_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(millis: u64, held: u64, made: u64) -> Sample {
        Sample {
            at: Duration::from_millis(millis),
            held,
            made,
            gone: 0,
            aged: None,
        }
    }

    fn history(samples: impl IntoIterator<Item = Sample>) -> History {
        let mut history = History::new();
        samples.into_iter().for_each(|sample| history.push(sample));
        history
    }

    fn size(history: &History) -> usize {
        size_of::<History>()
            + history.cells.capacity() * size_of::<Cell>()
            + history.aged.capacity() * size_of::<AgedCell>()
            + history.pauses.capacity() * size_of::<Anchor>()
    }

    #[test]
    fn a_site_that_never_changes_is_small() {
        let history = history((0..10_000).map(|second| Sample {
            aged: Some(Aged {
                held: [4096, 4096, 4096, 0],
            }),
            ..sample(second * 1000, 4096, 1)
        }));
        assert_eq!(history.cells.len(), 1);
        assert!(size(&history) < 400, "{} bytes", size(&history));
        assert_eq!(history.steady(), Duration::from_secs(9999));
        assert!(history.never_changed());
    }

    #[test]
    fn a_site_that_always_changes_is_bounded() {
        let mut history = History::new();
        for second in 0..100_000 {
            history.push(Sample {
                aged: Some(Aged { held: [second; 4] }),
                ..sample(second * 1000, second * 77 % 1000, second)
            });
            assert!(history.cells.len() <= MOST_CELLS && history.aged.len() <= MOST_AGED);
        }
        assert!(size(&history) < 2700, "{} bytes", size(&history));
    }

    #[test]
    fn a_change_after_hours_keeps_the_resolution_of_others() {
        let mut samples: Vec<Sample> = (0..20).map(|s| sample(s * 1000, s + 1, s)).collect();
        samples.extend((20..50_000).map(|s| sample(s * 1000, 20, 19)));
        let history = history(samples);
        assert_eq!(history.shift, 0);
        assert_eq!(history.cells.len(), 20);
    }

    #[test]
    fn cells_keep_lowest_highest_and_mean_when_they_widen() {
        let held =
            |second: u64| 1000 + second * 10 + if second.is_multiple_of(7) { 500 } else { 0 };
        let history = history((0..=1280).map(|second| sample(second * 1000, held(second), second)));
        let grid = history.grid(40);
        assert_eq!(grid.width, 64.0);
        for (index, cell) in grid.whole().iter().enumerate() {
            let seconds = index as u64 * 64..(index as u64 + 1) * 64;
            // What was held when the cell began belongs to it, too.
            let before = seconds.start.saturating_sub(1);
            let values = || (before..seconds.end).map(|second| held(second) as f64 - 1500.0);
            assert_eq!(cell.high, values().fold(f64::NEG_INFINITY, f64::max));
            assert_eq!(cell.low, values().fold(f64::INFINITY, f64::min));
            let mean = seconds
                .clone()
                .map(|s| held(s) as f64 - 1500.0)
                .sum::<f64>()
                / 64.0;
            assert!((cell.mean - mean).abs() < 20.0, "{} {mean}", cell.mean);
        }
    }

    #[test]
    fn the_grid_fills_what_did_not_change() {
        let mut samples: Vec<Sample> = (0..=100).map(|s| sample(s * 1000, 10, 1)).collect();
        samples.extend((101..=200).map(|s| sample(s * 1000, 30, 2)));
        let grid = history(samples).grid(40);
        let means: Vec<f64> = grid.whole().iter().map(|cell| cell.mean).collect();
        assert!(means[..12].iter().all(|mean| *mean == 0.0), "{means:?}");
        assert!(means[13..].iter().all(|mean| *mean == 20.0), "{means:?}");
        let made: f64 = grid.whole().iter().map(|cell| cell.made).sum();
        assert_eq!(made, 1.0);
    }

    #[test]
    fn what_was_made_by_a_time_is_known_between_looks() {
        let history = history((0..=1000).map(|second| sample(5000 + second * 1000, 1, second * 3)));
        assert_eq!(history.made_by(Duration::from_secs(1)), MadeBy::exactly(0));
        assert_eq!(history.made_by(Duration::from_secs(5000)).likely, 3000);
        for second in [10, 100, 333, 777, 999] {
            let made = history.made_by(Duration::from_secs(5 + second)).likely;
            assert!(made.abs_diff(second * 3) <= 6, "{made} by {second}");
        }
        // Also of a short trace, whose looks are never quite on time.
        let late = (0..=3).map(|second| sample(second * 1004, second, second * 100));
        let history = self::history(late);
        assert_eq!(history.made_by(Duration::from_millis(2008)).likely, 200);
        assert_eq!(history.made_by(Duration::from_millis(2510)).likely, 250);
    }

    #[test]
    fn what_was_made_before_the_first_look_is_estimated_too() {
        let history = history((0..=3).map(|second| sample(second * 1000, second, second * 100)));
        let by = |millis| history.made_by(Duration::from_millis(millis));
        let expected = MadeBy {
            least: 0,
            likely: 90,
            most: 100,
        };
        assert_eq!(by(900), expected);
        assert_eq!(by(0), MadeBy::exactly(0));
    }

    #[test]
    fn what_was_made_at_once_is_between_the_looks_around_it() {
        for end in [7, 50, 700] {
            let made = |second: u64| if second < 5 { 10 } else { 1010 };
            let history = history((1..=end).map(|s| sample(s * 1000, made(s), made(s))));
            let by = |millis| history.made_by(Duration::from_millis(millis));
            assert_eq!(by(500), MadeBy::default());
            assert_eq!(by(3000).least, 10);
            assert_eq!(by(4500).most, 1010);
            assert_eq!(by(5000), MadeBy::exactly(1010));
            assert_eq!(by(end * 1000), MadeBy::exactly(1010));
        }
    }

    #[test]
    fn it_begins_when_something_is_held() {
        let mut samples: Vec<Sample> = (0..500).map(|second| sample(second * 1000, 0, 0)).collect();
        samples.extend((500..=600).map(|second| sample(second * 1000, second, second)));
        assert_eq!(history(samples).lived(), Duration::from_secs(100));
    }

    #[test]
    fn a_clock_that_goes_back_or_stands_still_takes_no_time() {
        let times = [10_000, 11_000, 12_000, 3000, 4000, 4000, 4000, 5000];
        let history = history(
            times
                .iter()
                .zip(1..)
                .map(|(at, held)| sample(*at, held, held)),
        );
        assert_eq!(history.lived(), Duration::from_secs(4));
    }

    #[test]
    fn a_pause_counts_as_far_as_things_were_made() {
        let before: Vec<Sample> = (0..=100)
            .map(|s| sample(s * 1000, s + 1, (s + 1) * 10))
            .collect();
        let lived = |made: u64| {
            let mut samples = before.clone();
            samples.push(sample(4_000_000, 200, made));
            history(samples).lived().as_secs()
        };
        // The machine was suspended; leaktrace was stopped for 100 s; for all of it.
        assert_eq!(lived(1020), 101);
        assert_eq!(lived(2010), 200);
        assert_eq!(lived(1_000_000), 4000);
    }
}
