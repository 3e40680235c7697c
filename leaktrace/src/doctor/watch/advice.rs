//! What to do about what grows. Pure.

use std::{sync::Arc, time::Duration};

use crate::model::{Advice, Movement, Quantity};

/// In less time than this, nothing can be said to be flat.
const ENOUGH: Duration = Duration::from_secs(60);
/// A part of the growth of anonymous memory that is worth a word of its own.
const CONSIDERABLE: f64 = 0.2;

/// What was found out.
pub struct Findings<'a> {
    /// In how much time.
    pub elapsed: Duration,
    /// How each quantity moved.
    pub movements: &'a [Movement],
    /// The allocator, if it is another than glibc's and a file tells it.
    pub allocator: Option<&'static str>,
    /// Whether malloc's mapped blocks could be told from other mappings.
    pub blocks_told: bool,
    /// The file that has grown most.
    pub file: Option<Arc<str>>,
    /// The shared memory that has.
    pub shared: Option<Arc<str>>,
    /// The anonymous memory with a name that has.
    pub anonymous: Option<Arc<str>>,
    /// What is free in glibc's heaps, and how large these are.
    pub free: Option<(u64, u64)>,
}

impl Findings<'_> {
    /// What to do, the most important first; never nothing at all.
    pub fn advice(&self) -> Vec<Advice> {
        let mut advice = Vec::new();
        if self.grows(Quantity::Anonymous) {
            self.about_anonymous(&mut advice);
        }
        let others = [
            (Quantity::Files, Advice::Files(self.file.clone())),
            (Quantity::Shared, Advice::Shared(self.shared.clone())),
            (Quantity::Descriptors, Advice::Descriptors),
            (Quantity::Threads, Advice::Threads),
        ];
        for (quantity, about) in others {
            if self.grows(quantity) {
                advice.push(about);
            }
        }
        if advice.is_empty() {
            advice.push(if self.elapsed < ENOUGH {
                Advice::LookLonger
            } else {
                Advice::Nothing
            });
        }
        advice
    }

    fn about_anonymous(&self, advice: &mut Vec<Advice>) {
        let all = self.change(Quantity::Anonymous);
        let is_considerable =
            |quantity| self.grows(quantity) && self.change(quantity) >= CONSIDERABLE * all;
        let mappings = is_considerable(Quantity::OtherMappings);
        if is_considerable(Quantity::Heap) {
            advice.push(Advice::TraceHeap { free: self.free });
        }
        match self.allocator {
            Some(name) if mappings => advice.push(Advice::TraceAllocator(name)),
            None if mappings => advice.push(Advice::Mappings {
                mostly: self.anonymous.clone(),
                may_be_blocks: !self.blocks_told,
            }),
            // With threads come their stacks.
            _ if advice.is_empty() && !self.grows(Quantity::Threads) => {
                advice.push(Advice::TraceInside);
            }
            _ => {}
        }
    }

    fn grows(&self, quantity: Quantity) -> bool {
        self.movement(quantity).is_some_and(Movement::grows)
    }

    fn change(&self, quantity: Quantity) -> f64 {
        let movement = self.movement(quantity);
        movement.map_or(0, |movement| movement.last.saturating_sub(movement.first)) as f64
    }

    fn movement(&self, quantity: Quantity) -> Option<&Movement> {
        self.movements
            .iter()
            .find(|movement| movement.quantity == quantity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rate, Trend, Verdict};

    fn movement(quantity: Quantity, change: u64, verdict: Verdict) -> Movement {
        Movement {
            quantity,
            first: 1 << 30,
            last: (1 << 30) + change,
            trend: Trend {
                verdict,
                confidence: 1.0,
                rate: Rate {
                    per_minute: change as f64,
                    low: change as f64,
                    high: change as f64,
                },
                observed: ENOUGH,
                steady: None,
                period: None,
            },
            forecast: None,
        }
    }

    fn findings(movements: &[Movement]) -> Findings<'_> {
        Findings {
            elapsed: ENOUGH,
            movements,
            allocator: None,
            blocks_told: true,
            file: Some(Arc::from("/data/index")),
            shared: None,
            anonymous: None,
            free: None,
        }
    }

    /// All of these grow by so many MiB (or things).
    fn growing(what: &[(Quantity, u64)]) -> Vec<Movement> {
        what.iter()
            .map(|(quantity, change)| {
                let unit = if quantity.is_bytes() { 1 << 20 } else { 1 };
                movement(*quantity, change * unit, Verdict::Growing)
            })
            .collect()
    }

    const NO_MAPPINGS: Advice = Advice::Mappings {
        mostly: None,
        may_be_blocks: false,
    };

    #[test]
    fn the_part_that_grows_decides_what_to_trace() {
        use Quantity::{Anonymous, Heap, OtherMappings, Threads};
        let heap = Advice::TraceHeap { free: None };
        let cases = [
            (vec![(Anonymous, 10), (Heap, 10)], vec![heap.clone()]),
            (
                vec![(Anonymous, 10), (Heap, 9), (OtherMappings, 1)],
                vec![heap.clone()],
            ),
            (
                vec![(Anonymous, 10), (Heap, 5), (OtherMappings, 5)],
                vec![heap, NO_MAPPINGS],
            ),
            (
                vec![(Anonymous, 10), (OtherMappings, 64)],
                vec![NO_MAPPINGS],
            ),
            (vec![(Anonymous, 10)], vec![Advice::TraceInside]),
            (vec![(Anonymous, 10), (Threads, 100)], vec![Advice::Threads]),
            // Only reserved, and nothing uses it.
            (vec![(OtherMappings, 64)], vec![Advice::Nothing]),
        ];
        for (what, advice) in cases {
            assert_eq!(findings(&growing(&what)).advice(), advice, "{what:?}");
        }
    }

    #[test]
    fn the_mappings_of_another_allocator_are_malloc_s() {
        let movements = growing(&[(Quantity::Anonymous, 10), (Quantity::OtherMappings, 10)]);
        let mut findings = findings(&movements);
        findings.allocator = Some("jemalloc");
        assert_eq!(findings.advice(), [Advice::TraceAllocator("jemalloc")]);
        findings.allocator = None;
        findings.blocks_told = false;
        findings.anonymous = Some(Arc::from("Go: heap"));
        assert_eq!(
            findings.advice(),
            [Advice::Mappings {
                mostly: Some(Arc::from("Go: heap")),
                may_be_blocks: true
            }]
        );
    }

    #[test]
    fn each_thing_that_grows_is_told() {
        let movements = growing(&[
            (Quantity::Files, 10),
            (Quantity::Shared, 10),
            (Quantity::Descriptors, 10),
            (Quantity::Threads, 10),
        ]);
        assert_eq!(
            findings(&movements).advice(),
            [
                Advice::Files(Some(Arc::from("/data/index"))),
                Advice::Shared(None),
                Advice::Descriptors,
                Advice::Threads,
            ]
        );
    }

    #[test]
    fn in_a_short_time_only_growth_can_be_told() {
        let mut movements = vec![movement(Quantity::Descriptors, 10, Verdict::TooEarly)];
        assert_eq!(findings(&movements).advice(), [Advice::Descriptors]);
        movements[0].trend.rate.low = -1.0;
        let mut findings = findings(&movements);
        assert_eq!(findings.advice(), [Advice::Nothing]);
        findings.elapsed = ENOUGH / 2;
        assert_eq!(findings.advice(), [Advice::LookLonger]);
    }

    #[test]
    fn a_few_are_no_growth_until_that_is_sure() {
        for (change, verdict, grows) in [
            (2, Verdict::TooEarly, false),
            (2, Verdict::Filling, false),
            (2, Verdict::Growing, true),
            (3, Verdict::TooEarly, true),
            (1000, Verdict::Sawtooth, false),
            (1000, Verdict::OneOff, false),
        ] {
            let one = movement(Quantity::Threads, change, verdict);
            assert_eq!(one.grows(), grows, "{change} {verdict:?}");
        }
    }
}
