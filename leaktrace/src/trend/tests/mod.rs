//! The verdicts against series of which the truth is known.

mod blocks;
mod kinds;
mod properties;
mod quality;
mod random;

pub(super) use random::Random;
