//! What is held when blocks are born and die: every look follows from the same
//! births and deaths, so that bytes, counts and ages agree.

use std::time::Duration;

use crate::trend::{AGES, Aged, Sample};

/// Simulated time, in seconds.
pub const SECONDS: usize = 3600;
/// The live table is read this often.
const AGES_EVERY: usize = 5;

/// Blocks, as what each second adds to what was held before.
pub struct Blocks {
    held: Vec<f64>,
    aged: [Vec<f64>; 4],
    made: Vec<f64>,
    gone: Vec<f64>,
}

impl Blocks {
    pub fn new() -> Self {
        let empty = || vec![0.0; SECONDS + 1];
        Self {
            held: empty(),
            aged: [(); 4].map(|()| empty()),
            made: empty(),
            gone: empty(),
        }
    }

    /// So many blocks of so many bytes in all are made, and live so long.
    pub fn add(&mut self, born: f64, life: f64, bytes: f64, count: f64) {
        let second = |time: f64| time.max(0.0).ceil() as usize;
        let (born_at, dies_at) = (second(born), second(born + life));
        if born_at > SECONDS {
            return;
        }
        self.made[born_at] += count;
        self.held[born_at] += bytes;
        for (age, aged) in AGES.iter().zip(&mut self.aged) {
            let from = second(born + age.as_secs_f64());
            if from < dies_at && from <= SECONDS {
                aged[from] += bytes;
                if dies_at <= SECONDS {
                    aged[dies_at] -= bytes;
                }
            }
        }
        if dies_at <= SECONDS {
            self.gone[dies_at] += count;
            self.held[dies_at] -= bytes;
        }
    }

    /// One look a second.
    pub fn samples(&self) -> Vec<Sample> {
        let (mut held, mut made, mut gone, mut aged) = (0.0, 0.0, 0.0, [0.0; 4]);
        let whole = |value: f64| value.max(0.0).round() as u64;
        (0..=SECONDS)
            .map(|second| {
                held += self.held[second];
                made += self.made[second];
                gone += self.gone[second];
                for (sum, more) in aged.iter_mut().zip(&self.aged) {
                    *sum += more[second];
                }
                Sample {
                    at: Duration::from_secs(second as u64),
                    held: whole(held),
                    made: whole(made),
                    gone: whole(gone).min(whole(made)),
                    aged: second.is_multiple_of(AGES_EVERY).then(|| Aged {
                        held: aged.map(whole),
                    }),
                }
            })
            .collect()
    }
}
