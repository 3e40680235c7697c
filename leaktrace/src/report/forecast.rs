//! A forecast as a sentence: `At this rate the limit of its cgroup (12 GiB) is
//! reached in about 1 h 40 min (between 1 h 20 min and 2 h 10 min).`

use std::time::Duration;

use crate::{
    model::{Forecast, Limit, LimitKind},
    report::quantity,
};

/// When the limit is reached, with how sure that is.
#[must_use]
pub fn sentence(forecast: &Forecast) -> String {
    let (what, end) = limit(&forecast.limit);
    if forecast.limit.room == 0 {
        let what = capital(&what);
        return format!("{what} {} already.", end.replace("is ", "has been "));
    }
    let (likely, earliest) = (roughly(forecast.likely), roughly(forecast.earliest));
    let latest = forecast.latest.map(roughly);
    let range = match latest {
        Some(latest) if latest == likely && earliest == likely => String::new(),
        Some(latest) => format!(" (between {earliest} and {latest})"),
        None if earliest == likely => " at the earliest".to_owned(),
        None => format!(" (at the earliest in {earliest}, perhaps never)"),
    };
    format!("At this rate {what} {end} in about {likely}{range}.")
}

/// A limit, and what becomes of it.
fn limit(limit: &Limit) -> (String, &'static str) {
    const REACHED: &str = "is reached";
    let bytes = quantity::bytes_short(limit.most);
    let count = quantity::grouped(limit.most);
    match limit.kind {
        LimitKind::CgroupMemory => (format!("the limit of its cgroup ({bytes})"), REACHED),
        LimitKind::CgroupHigh => (
            format!("memory.high of its cgroup ({bytes}), from where on it is slowed down,"),
            REACHED,
        ),
        LimitKind::AddressSpace => (
            format!("the limit of its address space (RLIMIT_AS, {bytes})"),
            REACHED,
        ),
        LimitKind::Data => (
            format!("the limit of its data (RLIMIT_DATA, {bytes})"),
            REACHED,
        ),
        LimitKind::Machine => (
            format!(
                "what the machine has left ({} of memory and swap)",
                quantity::bytes_short(limit.room)
            ),
            "is used up",
        ),
        LimitKind::Descriptors => (
            format!("the limit of descriptors (RLIMIT_NOFILE, {count})"),
            REACHED,
        ),
        LimitKind::UserThreads => (
            format!("its user's limit of threads (RLIMIT_NPROC, {count})"),
            REACHED,
        ),
        LimitKind::CgroupThreads => (
            format!("the limit of threads of its cgroup (pids.max, {count})"),
            REACHED,
        ),
        LimitKind::MachineThreads => (format!("the machine's limit of threads ({count})"), REACHED),
        LimitKind::Mappings => (
            format!("the limit of mappings (vm.max_map_count, {count})"),
            REACHED,
        ),
    }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(characters).collect()
    })
}

/// A duration to about two digits: a forecast knows no more.
fn roughly(duration: Duration) -> String {
    const STEPS: [(u64, u64); 6] = [
        (120, 10),
        (20 * 60, 60),
        (3_600, 5 * 60),
        (6 * 3_600, 10 * 60),
        (2 * 86_400, 3_600),
        (u64::MAX, 86_400),
    ];
    let seconds = duration.as_secs();
    let step = STEPS
        .iter()
        .find(|(until, _)| seconds < *until)
        .map_or(1, |(_, step)| *step);
    // Never "in 0 s".
    let rounded = (seconds.saturating_add(step / 2) / step * step).max(step);
    quantity::duration(Duration::from_secs(rounded))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    fn forecast(kind: LimitKind, most: u64) -> Forecast {
        Forecast {
            limit: Limit {
                kind,
                most,
                room: most / 4,
            },
            likely: minutes(101),
            earliest: minutes(80),
            latest: Some(minutes(132)),
        }
    }

    #[test]
    fn every_limit_is_named_with_its_size() {
        let said = |kind, most| {
            let text = sentence(&forecast(kind, most));
            let text = text.strip_prefix("At this rate ").unwrap();
            text.strip_suffix(" in about 1 h 40 min (between 1 h 20 min and 2 h 10 min).")
                .unwrap()
                .to_owned()
        };
        let expected = [
            (
                LimitKind::CgroupMemory,
                12 * GIB,
                "the limit of its cgroup (12 GiB) is reached",
            ),
            (
                LimitKind::CgroupHigh,
                10 * GIB,
                "memory.high of its cgroup (10 GiB), from where on it is slowed down, is reached",
            ),
            (
                LimitKind::AddressSpace,
                GIB,
                "the limit of its address space (RLIMIT_AS, 1 GiB) is reached",
            ),
            (
                LimitKind::Data,
                GIB,
                "the limit of its data (RLIMIT_DATA, 1 GiB) is reached",
            ),
            (
                LimitKind::Machine,
                16 * GIB,
                "what the machine has left (4 GiB of memory and swap) is used up",
            ),
            (
                LimitKind::Descriptors,
                1024,
                "the limit of descriptors (RLIMIT_NOFILE, 1 024) is reached",
            ),
            (
                LimitKind::UserThreads,
                63_432,
                "its user's limit of threads (RLIMIT_NPROC, 63 432) is reached",
            ),
            (
                LimitKind::CgroupThreads,
                512,
                "the limit of threads of its cgroup (pids.max, 512) is reached",
            ),
            (
                LimitKind::MachineThreads,
                32_768,
                "the machine's limit of threads (32 768) is reached",
            ),
            (
                LimitKind::Mappings,
                65_530,
                "the limit of mappings (vm.max_map_count, 65 530) is reached",
            ),
        ];
        for (kind, most, text) in expected {
            assert_eq!(said(kind, most), text);
        }
    }

    #[test]
    fn uncertainty_is_told_as_far_as_it_shows() {
        let mut forecast = forecast(LimitKind::CgroupMemory, 12 * GIB);
        forecast.latest = None;
        assert_eq!(
            sentence(&forecast),
            "At this rate the limit of its cgroup (12 GiB) is reached in about 1 h 40 min (at the \
             earliest in 1 h 20 min, perhaps never)."
        );
        forecast.earliest = minutes(100);
        forecast.latest = Some(minutes(102));
        assert_eq!(
            sentence(&forecast),
            "At this rate the limit of its cgroup (12 GiB) is reached in about 1 h 40 min."
        );
    }

    #[test]
    fn what_is_reached_is_told_so() {
        let mut forecast = forecast(LimitKind::Descriptors, 1024);
        forecast.limit.room = 0;
        assert_eq!(
            sentence(&forecast),
            "The limit of descriptors (RLIMIT_NOFILE, 1 024) has been reached already."
        );
    }

    #[test]
    fn times_have_no_more_digits_than_are_known() {
        let said = |seconds| roughly(Duration::from_secs(seconds));
        assert_eq!(said(0), "10 s");
        assert_eq!(said(94), "90 s");
        assert_eq!(said(119), "2 min");
        assert_eq!(said(754), "13 min");
        assert_eq!(said(2_300), "40 min");
        assert_eq!(said(6_060), "1 h 40 min");
        assert_eq!(said(36_000 + 1_799), "10 h");
        assert_eq!(said(4 * 86_400 + 50_000), "5 d");
    }
}
