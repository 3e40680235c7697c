//! How something that is held moves with time: a site's bytes, a process's
//! descriptors. Made by [`crate::trend`].

use std::time::Duration;

/// What the movement comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Rises without bound, through all that was observed.
    Growing,
    /// Rises, but ever more slowly: a cache on its way to its bound.
    Filling,
    /// Moves up and down and comes back: batches, collectors of garbage, pools.
    /// What remains at its lowest points does not rise.
    Sawtooth,
    /// Made and given back all the time; what is held at once does not rise.
    Churn,
    /// One step at one time, and the same since.
    OneOff,
    /// The same all the time.
    Flat,
    /// Not observed for long enough to tell.
    TooEarly,
}

impl Verdict {
    /// Every verdict, the most important first.
    pub const ALL: [Self; 7] = [
        Self::Growing,
        Self::Filling,
        Self::Sawtooth,
        Self::Churn,
        Self::OneOff,
        Self::Flat,
        Self::TooEarly,
    ];

    /// As it is shown and written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Growing => "GROWING",
            Self::Filling => "filling",
            Self::Sawtooth => "sawtooth",
            Self::Churn => "churn",
            Self::OneOff => "one-off",
            Self::Flat => "flat",
            Self::TooEarly => "too early",
        }
    }
}

/// A rate of growth, in units (bytes, descriptors) per minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// The likeliest.
    pub per_minute: f64,
    /// With 90 % confidence not less than this.
    pub low: f64,
    /// With 90 % confidence not more than this.
    pub high: f64,
}

/// How something moved while it was observed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// What it comes to.
    pub verdict: Verdict,
    /// How sure that is, 0 to 1.
    pub confidence: f64,
    /// How fast it rises for good: through the lowest points of what moves up and
    /// down. Also when it is too early for a verdict.
    pub rate: Rate,
    /// How long it was observed: since it first held something.
    pub observed: Duration,
    /// How long it has not changed, for [`Verdict::Flat`] and
    /// [`Verdict::OneOff`].
    pub steady: Option<Duration>,
    /// Time from one lowest point to the next, where there is such a period.
    pub period: Option<Duration>,
}

/// How many of a site's blocks reached an age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survival {
    /// The age.
    pub age: Duration,
    /// Blocks that reached it.
    pub reached: u64,
    /// Blocks that were made early enough to reach it: estimated, since sums are
    /// looked at once a second, and less often kept for ever.
    pub of: u64,
}

impl Survival {
    /// Share of the blocks that reached the age, 0 to 1; `None` without any that
    /// could.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        (self.of > 0).then(|| (self.reached as f64 / self.of as f64).min(1.0))
    }
}

/// How figures of the whole process moved; `None` for what could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessTrends {
    /// Resident memory and swap, bytes.
    pub memory: Option<Trend>,
    /// Open descriptors.
    pub descriptors: Option<Trend>,
    /// Threads.
    pub threads: Option<Trend>,
}

/// What all growth has in common.
#[derive(Clone, Debug, PartialEq)]
pub struct CommonCaller {
    /// The function nearest to the allocation that the growing stacks pass through,
    /// as it is named in frames.
    pub function: String,
    /// How many growing stacks pass through it.
    pub stacks: usize,
    /// How many growing stacks there are.
    pub growing: usize,
    /// Share of all growth that passes through it, 0 to 1.
    pub share: f64,
}
