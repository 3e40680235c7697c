//! When conditions that are true are told: once when they come true, and not
//! over and over.

use std::{sync::Arc, time::Duration};

use super::{Condition, Figures};

/// Conditions that are watched.
#[derive(Clone, Debug)]
pub struct Alerts {
    watched: Vec<Watched>,
    every: Duration,
}

#[derive(Clone, Debug)]
struct Watched {
    condition: Arc<Condition>,
    /// When it was told last.
    told: Option<Duration>,
}

/// A condition that has come true.
#[derive(Clone, Debug, PartialEq)]
pub struct Firing {
    /// Which.
    pub condition: Arc<Condition>,
    /// Of what.
    pub figures: Figures,
    /// Its own figure among them, in its own unit.
    pub value: f64,
    /// When, since the start.
    pub at: Duration,
}

impl Alerts {
    /// Watches conditions, each of which is told at most once in `every`.
    #[must_use]
    pub fn new(conditions: &[Condition], every: Duration) -> Self {
        let watched = conditions.iter().map(|condition| Watched {
            condition: Arc::new(condition.clone()),
            told: None,
        });
        Self {
            watched: watched.collect(),
            every,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Those to be told now: they are true, and were not told within the last
    /// `every`. One that goes on being true is told again after that; so is one
    /// that comes and goes.
    pub fn due(&mut self, now: Duration, figures: &Figures) -> Vec<Firing> {
        let every = self.every;
        let due = self.watched.iter_mut().filter_map(|watched| {
            let value = watched.condition.holds(figures)?;
            let is_soon = |told| now.saturating_sub(told) < every;
            if watched.told.is_some_and(is_soon) {
                return None;
            }
            watched.told = Some(now);
            Some(Firing {
                condition: Arc::clone(&watched.condition),
                figures: *figures,
                value,
                at: now,
            })
        });
        due.collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: Duration = Duration::from_secs(300);

    fn alerts(texts: &[&str]) -> Alerts {
        let conditions: Vec<Condition> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Alerts::new(&conditions, EVERY)
    }

    fn live(bytes: u64) -> Figures {
        Figures {
            live_bytes: bytes,
            ..Figures::default()
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_condition_has_a_time_of_its_own() {
        let mut alerts = alerts(&["live>10", "live>=20"]);
        let mut told = |at, bytes| -> Vec<String> {
            let due = alerts.due(seconds(at), &live(bytes));
            due.iter()
                .map(|firing| format!("{} {}", firing.condition, firing.value))
                .collect()
        };
        assert_eq!(told(1, 10), [""; 0]);
        assert_eq!(told(2, 11), ["live>10 11"]);
        assert_eq!(told(3, 20), ["live>=20 20"]);
        assert_eq!(told(4, 99), [""; 0]);
        assert_eq!(told(302, 99), ["live>10 99"]);
        assert_eq!(told(303, 99), ["live>=20 99"]);
    }

    #[test]
    fn one_that_comes_and_goes_is_not_told_each_time() {
        let mut alerts = alerts(&["live>10"]);
        let told = (0..900)
            .filter(|at| !alerts.due(seconds(*at), &live(10 + at % 2)).is_empty())
            .collect::<Vec<_>>();
        assert_eq!(told, [1, 301, 601]);
    }

    #[test]
    fn one_that_comes_back_later_is_told_at_once() {
        let mut alerts = alerts(&["live>10"]);
        assert_eq!(alerts.due(seconds(5), &live(11)).len(), 1);
        assert_eq!(alerts.due(seconds(6), &live(1)).len(), 0);
        assert_eq!(alerts.due(seconds(400), &live(1)).len(), 0);
        assert_eq!(alerts.due(seconds(401), &live(11)).len(), 1);
    }

    proptest! {
        #[test]
        fn told_when_it_comes_true_never_when_it_is_not_and_never_too_soon(
            values in proptest::collection::vec(0_u64..4, 1..400),
            step in 1_u64..200,
        ) {
            let mut alerts = alerts(&["live>=2"]);
            let mut last = None;
            for (index, value) in values.into_iter().enumerate() {
                let now = seconds(index as u64 * step);
                let told = !alerts.due(now, &live(value)).is_empty();
                let is_allowed = last.is_none_or(|last| now - last >= EVERY);
                prop_assert_eq!(told, value >= 2 && is_allowed);
                if told {
                    last = Some(now);
                }
            }
        }
    }
}
