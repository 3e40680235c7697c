//! What the movement of something held comes to: a leak, a cache, a churn.
//!
//! A [`History`] takes one look a second at what a site holds (or a process: its
//! memory, its descriptors), keeps a bounded summary, and judges it. The verdicts
//! are [`crate::model::Verdict`]; nothing here reads or writes.
//!
//! # How it is judged
//!
//! 1. **Cells.** `history` keeps lowest, highest and mean of up to 40 cells of equal
//!    width, whatever the length of the trace.
//! 2. **Views.** `view` looks at them in several ways: the mean; the lower envelope
//!    at several scales, in which what goes up and down is gone and only its troughs
//!    remain; and what is held in *old* things, of 10 s, 60 s and 10 min. The last is
//!    the strongest evidence for a slow leak below a large churn: old bytes of a churn
//!    are constant (those of a full cache, too), those of a leak rise in a line.
//! 3. **A straight rise.** `line` fits each by the estimator of Theil and Sen, finds
//!    how much its errors hang together, and tests the rise by feasible generalised
//!    least squares after Perron and Yabu. Plain Mann-Kendall or least squares see
//!    trends in most random walks, which is what a cache looks like whose entries are
//!    replaced. A rise is believed if a view shows it and none excludes it.
//! 4. **Bending.** `bend` sets curves that slow down (exponential approach, powers of
//!    time, a line that ends) against the line, and against them an approach beside a
//!    line: a leak behind a cache that has become warm. What slows down is `filling`.
//! 5. **Going on.** The later half must rise as the whole does. If it rises faster,
//!    and is believed by itself, that is a leak that speeds up: a line misses it by
//!    so much that it isn't sure of a rise, but a power of time or an exponential is.
//! 6. **The load.** What is held of a churn follows how much is made (Little's law:
//!    what is held is what is made in a second times how long it lives). A rise that
//!    the rise of the load explains is none, unless little is given back.
//! 7. **Teeth.** `teeth` finds deep falls, their period, and whether enough of them
//!    have been seen for any verdict.
//!
//! # What nobody can tell
//!
//! A cache that still fills in a straight line, a batch that is longer than the
//! observation, and a leak are the same series until one of them ends. They are called
//! `GROWING`; that they are rarer the longer one has looked is in the confidence.
//! Without ages, a leak of which the rise is less than the noise of what else the site
//! holds isn't found.
//!
//! `tests/` makes more than a thousand series by a seed and counts how often the
//! verdict is right.

mod bend;
mod grid;
mod history;
mod judge;
mod line;
mod teeth;
#[cfg(test)]
mod tests;
mod view;

pub use history::{AGES, Aged, History, MadeBy, Sample};
pub(crate) use line::theil_sen;
