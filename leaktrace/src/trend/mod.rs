//! What the movement of something held comes to: a leak, a cache, a churn.

mod bend;
mod grid;
mod history;
mod judge;
mod line;
mod teeth;
#[cfg(test)]
mod tests;

pub use history::{AGES, Aged, History, Sample};
