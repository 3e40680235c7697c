//! The verdicts against series of which the truth is known.

mod blocks;
mod kinds;
mod quality;
mod random;
