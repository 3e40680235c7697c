//! When a limit is reached if growth goes on at the rate that was observed. Pure.

use std::time::Duration;

use crate::model::{Forecast, Limit, Rate, Resource};

/// What is farther than this is not told: by then everything is different.
pub const FARTHEST: Duration = Duration::from_secs(4 * 7 * 86_400);

/// The limit that a resource reaches first when it grows at this rate; `None` when
/// none is within [`FARTHEST`], or nothing grows.
#[must_use]
pub fn first(resource: Resource, rate: &Rate, limits: &[Limit]) -> Option<Forecast> {
    limits
        .iter()
        .filter(|limit| limit.kind.resource() == resource)
        .filter_map(|limit| forecast(rate, *limit))
        .filter(|forecast| forecast.likely <= FARTHEST)
        .min_by_key(|forecast| forecast.likely)
}

/// When one limit is reached; `None` when that may never be.
fn forecast(rate: &Rate, limit: Limit) -> Option<Forecast> {
    let after = |per_minute: f64| {
        // Also NaN is no growth.
        (per_minute > 0.0)
            .then(|| Duration::try_from_secs_f64(limit.room as f64 / per_minute * 60.0).ok())?
    };
    let likely = after(rate.per_minute)?;
    Some(Forecast {
        limit,
        likely,
        earliest: after(rate.high).map_or(likely, |earliest| earliest.min(likely)),
        latest: after(rate.low).map(|latest| latest.max(likely)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::LimitKind;

    const KINDS: [LimitKind; 4] = [
        LimitKind::CgroupMemory,
        LimitKind::CgroupHigh,
        LimitKind::AddressSpace,
        LimitKind::Machine,
    ];

    fn limit(kind: LimitKind, room: u64) -> Limit {
        Limit {
            kind,
            most: room.saturating_mul(2),
            room,
        }
    }

    fn rate(low: f64, per_minute: f64, high: f64) -> Rate {
        Rate {
            per_minute,
            low,
            high,
        }
    }

    fn memory(rate: &Rate, limits: &[Limit]) -> Option<Forecast> {
        first(Resource::Memory, rate, limits)
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    #[test]
    fn the_nearest_limit_is_told_with_its_range() {
        let limits = [
            limit(LimitKind::Machine, 9_000),
            limit(LimitKind::CgroupMemory, 1_000),
        ];
        assert_eq!(
            memory(&rate(5.0, 10.0, 20.0), &limits),
            Some(Forecast {
                limit: limits[1],
                likely: minutes(100),
                earliest: minutes(50),
                latest: Some(minutes(200)),
            })
        );
    }

    #[test]
    fn what_may_not_grow_at_all_may_never_reach_it() {
        let limits = [limit(LimitKind::Data, 100)];
        let forecast = memory(&rate(-1.0, 10.0, 20.0), &limits).unwrap();
        assert_eq!(forecast.latest, None);
        assert_eq!(memory(&rate(-3.0, 0.0, 20.0), &limits), None);
        assert_eq!(memory(&rate(f64::NAN, f64::NAN, f64::NAN), &limits), None);
    }

    #[test]
    fn what_is_far_is_not_told() {
        let weeks = |weeks: u64| limit(LimitKind::Machine, weeks * 7 * 24 * 60);
        let rate = rate(1.0, 1.0, 1.0);
        assert!(memory(&rate, &[weeks(4)]).is_some());
        assert_eq!(memory(&rate, &[weeks(5)]), None);
        assert_eq!(memory(&rate, &[]), None);
        assert_eq!(memory(&rate, &[limit(LimitKind::Machine, u64::MAX)]), None);
    }

    #[test]
    fn descriptors_do_not_run_into_limits_of_memory() {
        let limits = [
            limit(LimitKind::Machine, 1),
            limit(LimitKind::Descriptors, 60),
        ];
        let forecast = first(Resource::Descriptors, &rate(1.0, 1.0, 1.0), &limits).unwrap();
        assert_eq!((forecast.limit, forecast.likely), (limits[1], minutes(60)));
    }

    #[test]
    fn a_limit_that_is_reached_is_reached_now() {
        let limits = [limit(LimitKind::Data, 0)];
        let forecast = memory(&rate(1.0, 1.0, 1.0), &limits).unwrap();
        assert_eq!(forecast.likely, Duration::ZERO);
    }

    fn any_limits() -> impl Strategy<Value = Vec<Limit>> {
        let one =
            (0..KINDS.len(), 0..1_u64 << 45).prop_map(|(kind, room)| limit(KINDS[kind], room));
        proptest::collection::vec(one, 0..6)
    }

    proptest! {
        #[test]
        fn any_rate_gives_an_ordered_range(
            numbers in [any::<f64>(), any::<f64>(), any::<f64>()],
            limits in any_limits(),
        ) {
            let [low, per_minute, high] = numbers;
            if let Some(forecast) = memory(&rate(low, per_minute, high), &limits) {
                prop_assert!(forecast.earliest <= forecast.likely);
                prop_assert!(forecast.latest.is_none_or(|latest| latest >= forecast.likely));
                prop_assert!(forecast.likely <= FARTHEST);
            }
        }
        #[test]
        fn faster_growth_and_less_room_are_never_later(
            per_minute in 1.0..1e12_f64,
            factor in 1.0..100.0_f64,
            room in 0..1_u64 << 45,
            less in 0..1_u64 << 45,
        ) {
            let likely = |per_minute: f64, room| {
                let rate = rate(per_minute, per_minute, per_minute);
                memory(&rate, &[limit(LimitKind::Machine, room)]).map(|forecast| forecast.likely)
            };
            if let Some(base) = likely(per_minute, room) {
                prop_assert!(likely(per_minute * factor, room).unwrap() <= base);
                prop_assert!(likely(per_minute, room.min(less)).unwrap() <= base);
            }
        }
    }
}
