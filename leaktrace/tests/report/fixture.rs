//! Synthetic reports, small and readable.

use std::{sync::Arc, time::Duration};

use leaktrace::model::{
    Advice, Cause, CauseKind, CompleteShare, Completeness, Edge, EndReason, FeatureInfo, Forecast,
    Frame, FrameKind, Glance, Limit, LimitKind, MemorySample, Movement, ProcessInfo, ProcessTrends,
    Quantity, Rate, Report, RssGrowth, SelfCheck, Site, SortKey, Sums, Survival, TraceInfo, Trend,
    Verdict, VerdictSums, WatchEnd, WatchReport, WatchedFileInfo, WhyNot, Without,
};
use leaktrace_common::{
    counter::{Counter, CounterBlock},
    function::Role,
};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

pub fn incomplete(reason: &str) -> Completeness {
    Completeness::Incomplete(reason.into())
}

fn time(text: &str) -> jiff::Zoned {
    format!("{text}+01:00[+01:00]").parse().expect("a time")
}

pub fn frame(symbol: &str, module: &str) -> Frame {
    Frame {
        symbol: (!symbol.is_empty()).then(|| symbol.to_owned()),
        symbol_offset: 0x1f,
        module: Some(module.into()),
        file_offset: 0x1234,
        build_id: Some("6f2c".into()),
        source: None,
        line: None,
        inlined: false,
        kind: FrameKind::Program,
    }
}

pub fn at(symbol: &str, source: &str, line: u32) -> Frame {
    Frame {
        source: Some(source.into()),
        line: Some(line),
        ..frame(symbol, "/usr/sbin/orderd")
    }
}

pub fn inlined(symbol: &str, source: &str, line: u32) -> Frame {
    Frame {
        inlined: true,
        symbol_offset: 0,
        ..at(symbol, source, line)
    }
}

pub fn allocator(symbol: &str) -> Frame {
    Frame {
        symbol_offset: 0,
        kind: FrameKind::Allocator,
        ..frame(symbol, "/usr/lib/x86_64-linux-gnu/libc.so.6")
    }
}

/// A site that allocated `(bytes, blocks)` and gave `freed` back.
pub fn site(id: u64, allocated: (u64, u64), freed: (u64, u64), frames: Vec<Frame>) -> Site {
    let sums = Sums {
        alloc_bytes: allocated.0,
        alloc_blocks: allocated.1,
        freed_bytes: freed.0,
        freed_blocks: freed.1,
        ..Sums::default()
    };
    Site {
        stack_id: id,
        class: "heap",
        sums,
        growth_per_minute: sums.live_bytes() as f64,
        trend: None,
        survival: Vec::new(),
        oldest_age: None,
        end: Completeness::Complete,
        frames: frames.into(),
    }
}

/// How something moved in a minute, with this rate in bytes per minute.
pub fn trend(verdict: Verdict, per_minute: f64) -> Trend {
    Trend {
        verdict,
        confidence: 0.97,
        rate: Rate {
            per_minute,
            low: per_minute * 0.93,
            high: per_minute * 1.08,
        },
        observed: Duration::from_secs(60),
        steady: matches!(verdict, Verdict::Flat | Verdict::OneOff)
            .then_some(Duration::from_secs(40)),
        period: None,
    }
}

/// What the sites' verdicts come to.
fn verdicts(sites: &[Site]) -> Vec<(Verdict, VerdictSums)> {
    let mut all: Vec<(Verdict, VerdictSums)> = Vec::new();
    for verdict in Verdict::ALL {
        let mut sums = VerdictSums::default();
        for site in sites.iter().filter(|site| site.verdict() == verdict) {
            sums.sites += 1;
            sums.live_bytes += site.sums.live_bytes();
            sums.growth_per_minute += site.growth();
        }
        if sums.sites > 0 {
            all.push((verdict, sums));
        }
    }
    all
}

fn started_thread() -> [Frame; 2] {
    let libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    [frame("start_thread", libc), frame("clone3", libc)]
}

/// Sixty seconds of a server that leaks sessions, as in the README.
pub fn leaking() -> Report {
    let mut session = vec![
        allocator("malloc"),
        allocator("operator new(unsigned long)"),
        inlined(
            "std::make_unique<Session, User const&>(User const&)",
            "/usr/include/c++/12/bits/unique_ptr.h",
            1065,
        ),
        at("Session::create(User const&)", "/src/orderd/session.cc", 88),
        at(
            "Login::handle(Request const&, std::function<void (Reply&&)>)",
            "/src/orderd/login.cc",
            40,
        ),
        at(
            "Router::dispatch(Request const&)",
            "/src/orderd/router.cc",
            211,
        ),
        at("Worker::run()", "/src/orderd/worker.cc", 57),
    ];
    session.extend(started_thread());
    let mut cache = vec![
        allocator("malloc"),
        at(
            "boost::container::flat_map<std::string, Template, std::less<std::string>>::emplace(std::string&&)",
            "/usr/include/boost/container/flat_map.hpp",
            702,
        ),
        at(
            "TemplateCache::load(char const*)",
            "/src/orderd/cache.cc",
            41,
        ),
    ];
    cache.extend(started_thread());
    let mut sites = vec![
        site(0xa1, (36 * MIB, 46_113), (0, 0), session),
        site(0xa2, (5_500 * KIB, 1_364), (482 * KIB, 164), cache),
        site(
            0xa3,
            (300 * KIB, 5_003),
            (0, 10),
            vec![
                allocator("malloc"),
                frame("", "/opt/vendor/libodd.so.3"),
                frame("odd_callback", "/opt/vendor/libodd.so.3"),
            ],
        ),
        site(0xa4, (900, 4), (0, 0), vec![]),
    ];
    sites[0].oldest_age = Some(Duration::from_millis(59_400));
    sites[0].trend = Some(trend(Verdict::Growing, 36.1 * MIB as f64));
    sites[0].survival = vec![
        Survival {
            age: Duration::from_secs(1),
            reached: 45_300,
            of: 45_400,
        },
        Survival {
            age: Duration::from_secs(10),
            reached: 38_000,
            of: 38_500,
        },
    ];
    sites[1].growth_per_minute = 0.0;
    sites[1].trend = Some(trend(Verdict::Flat, 0.0));
    sites[2].trend = Some(trend(Verdict::Filling, 12_000.0));
    sites[2].end = incomplete("no unwind information in libodd.so.3");
    sites[3].end = incomplete("stack not stored");
    let totals = sites.iter().fold(Sums::default(), |all, site| Sums {
        alloc_bytes: all.alloc_bytes + site.sums.alloc_bytes,
        alloc_blocks: all.alloc_blocks + site.sums.alloc_blocks,
        freed_bytes: all.freed_bytes + site.sums.freed_bytes,
        freed_blocks: all.freed_blocks + site.sums.freed_blocks,
        ..all
    });
    let mut report = bare();
    report.totals = Sums {
        alloc_bytes: totals.alloc_bytes + 900 * MIB,
        alloc_blocks: totals.alloc_blocks + 2_235_000,
        freed_bytes: totals.freed_bytes + 900 * MIB,
        freed_blocks: totals.freed_blocks + 2_235_000,
        ..totals
    };
    report.counters.events[Counter::AllocCalls as usize] = report.totals.alloc_blocks;
    report.counters.events[Counter::FreeCalls as usize] = report.totals.freed_blocks + 77;
    report.counters.events[Counter::UnknownFree as usize] = 77;
    report.counters.events[Counter::NestedCall as usize] = 12;
    report.counters.nested[Role::AllocArray as usize][Role::Alloc as usize] = 12;
    report.alloc_rate = 38_123.4;
    report.cost = Some(0.023);
    report.cost_cpus = Some(0.087);
    report.complete = CompleteShare {
        calls: Some(0.9993),
        bytes: Some(0.992),
    };
    report.self_check = SelfCheck {
        return_addresses: 812,
        after_call: 811,
        doubtful_stacks: 0,
    };
    report.site_count = sites.len();
    report.verdicts = verdicts(&sites);
    report.sites = sites;
    report.growing = vec![0];
    report.trends.descriptors = Some(trend(Verdict::Growing, 3.04));
    report.memory.descriptors = Some(215);
    report
}

/// The same as the last report, with the probes gone.
pub fn ended(mut report: Report, end: EndReason) -> Report {
    report.end = Some(end);
    report.trace.disabled = Some(Edge {
        earliest_ns: 1_060_000_000_000,
        latest_ns: 1_060_000_004_000,
    });
    report
}

/// Losses of two kinds.
pub fn with_losses(mut report: Report) -> Report {
    report.counters.events[Counter::LiveFull as usize] = 123_456;
    report.counters.events[Counter::LiveBusy as usize] = 2;
    report.counters.events[Counter::StaleInFlight as usize] = 3;
    report
        .notes
        .push("The target forks by vfork; what such children allocate is not seen.".into());
    report
}

/// A command that was traced from its first instruction and ended soon, one of
/// everything.
pub fn short_run() -> Report {
    let mut report = ended(bare(), EndReason::TargetExit);
    report.elapsed = Duration::from_millis(380);
    report.memory_read = None;
    report.trace.from_start = true;
    report.trace.cost_limit = None;
    let main = at("main", "/src/orderd/main.cc", 12);
    report.sites = vec![site(0xc1, (64, 1), (0, 0), vec![allocator("malloc"), main])];
    report.totals = report.sites[0].sums;
    report.verdicts = verdicts(&report.sites);
    report.site_count = 14;
    report.complete = CompleteShare {
        calls: Some(1.0),
        bytes: Some(1.0),
    };
    report
}

/// Thirty seconds without a single call.
pub fn silent() -> Report {
    let mut report = ended(bare(), EndReason::Duration);
    report.elapsed = Duration::from_secs(30);
    report.taken = time("2026-11-21T03:14:37");
    report.alloc_rate = 0.0;
    report
}

/// Ten minutes of a server that frees nearly everything.
pub fn healthy() -> Report {
    let mut report = ended(bare(), EndReason::Signal("SIGINT"));
    report.elapsed = Duration::from_secs(612);
    report.memory_read = Some(report.elapsed);
    report.taken = time("2026-11-21T03:24:19");
    report.sites = vec![site(
        0xb1,
        (512 * KIB, 640),
        (102 * KIB, 100),
        vec![allocator("malloc"), at("main", "/src/orderd/main.cc", 12)],
    )];
    report.sites[0].growth_per_minute = 0.0;
    report.sites[0].trend = Some(Trend {
        observed: Duration::from_secs(610),
        steady: Some(Duration::from_secs(490)),
        ..trend(Verdict::Flat, 0.0)
    });
    report.verdicts = verdicts(&report.sites);
    report.site_count = 1;
    report.totals = Sums {
        alloc_bytes: 800 * MIB,
        alloc_blocks: 2_100_000,
        freed_bytes: 800 * MIB - 410 * KIB,
        freed_blocks: 2_099_460,
        ..Sums::default()
    };
    report.counters.events[Counter::AllocCalls as usize] = 2_100_000;
    report.complete = CompleteShare {
        calls: Some(1.0),
        bytes: Some(1.0),
    };
    report.memory.rss = Some(8 * GIB + 445 * MIB);
    report.memory.rss_anon = report.memory_at_start.rss_anon.map(|rss| rss + 240 * MIB);
    report.rss_growth = Some(RssGrowth {
        grown: 240 * MIB,
        swapped: 0,
        traced: 410 * KIB,
        causes: vec![Cause {
            kind: CauseKind::Kept { free: None },
            bytes: 240 * MIB - 410 * KIB,
            mostly: None,
        }],
    });
    report
}

/// No events at all, no sites.
pub fn bare() -> Report {
    let memory_at_start = MemorySample {
        rss: Some(8 * GIB + 205 * MIB),
        rss_anon: Some(8 * GIB),
        rss_file: Some(200 * MIB),
        rss_shmem: Some(5 * MIB),
        swap: Some(0),
        vm_size: Some(11 * GIB),
        threads: Some(48),
        descriptors: Some(212),
        cgroup_usage: Some(8 * GIB + 256 * MIB),
        cgroup_limit: Some(12 * GIB),
    };
    let memory = MemorySample {
        rss: Some(8 * GIB + 249 * MIB),
        rss_anon: Some(8 * GIB + 44 * MIB),
        cgroup_usage: Some(8 * GIB + 300 * MIB),
        ..memory_at_start
    };
    Report {
        process: ProcessInfo {
            pid: 4242,
            name: "orderd".to_owned(),
            exe: "/usr/sbin/orderd".into(),
            started: time("2026-11-15T02:11:40"),
        },
        trace: TraceInfo {
            started: time("2026-11-21T03:14:07"),
            enabled: Edge {
                earliest_ns: 1_000_000_000_000,
                latest_ns: 1_000_000_002_500,
            },
            disabled: None,
            watched: vec![WatchedFileInfo {
                path: "/usr/lib/x86_64-linux-gnu/libc.so.6".into(),
                build_id: Some("93ac".to_owned()),
                functions: ["malloc", "calloc", "realloc", "free/cfree"]
                    .map(String::from)
                    .into(),
            }],
            options: vec![("top".to_owned(), "10".to_owned())],
            features: vec![
                FeatureInfo {
                    name: "uprobe_multi",
                    since: "6.6",
                    config: None,
                    available: true,
                    used: true,
                    without: Without::Instead("one perf event a probe"),
                    why_not: None,
                },
                FeatureInfo {
                    name: "long_nop_emulated",
                    since: "6.18",
                    config: None,
                    available: false,
                    used: false,
                    without: Without::Instead("probes go on other instructions"),
                    why_not: Some(WhyNot::Missing),
                },
            ],
            from_start: false,
            sort: SortKey::Growth,
            cost_limit: Some(0.5),
            pair_cost: Some(Duration::from_nanos(1_420)),
        },
        taken: time("2026-11-21T03:15:07"),
        elapsed: Duration::from_secs(60),
        end: None,
        counters: CounterBlock::default(),
        totals: Sums::default(),
        alloc_rate: 0.0,
        cost: None,
        cost_cpus: None,
        memory_at_start,
        memory,
        memory_read: Some(Duration::from_secs(60)),
        rss_growth: None,
        forecasts: Vec::new(),
        complete: CompleteShare::default(),
        self_check: SelfCheck::default(),
        sites: Vec::new(),
        growing: Vec::new(),
        common_caller: None,
        verdicts: Vec::new(),
        trends: ProcessTrends::default(),
        mark: None,
        site_count: 0,
        ages_known: false,
        notes: Vec::new(),
    }
}

/// A frame with any name.
pub fn named(name: &str) -> Frame {
    at(name, "a/b.cc", 1)
}

/// The report with one site that has these frames.
pub fn with_frames(frames: Vec<Frame>) -> Report {
    let mut report = leaking();
    report.sites.truncate(1);
    report.sites[0].frames = Arc::from(frames);
    report
}

/// The first look at a process, and a later one.
pub fn glances() -> (Glance, Glance) {
    let report = bare();
    let first = Glance {
        memory: report.memory_at_start,
        heap: Some(7 * GIB),
        other_mappings: Some(900 * MIB),
        mapping_count: Some(812),
        ..Glance::default()
    };
    let now = Glance {
        at: Duration::from_millis(5_013),
        memory: report.memory,
        heap: Some(7 * GIB + 40 * MIB),
        cpus: Some(3.84),
        ..first
    };
    (first, now)
}

/// A watch in which heap and descriptors grew.
pub fn watched() -> WatchReport {
    let movement =
        |quantity, first, last, verdict, rate: [f64; 3], limit: Option<Limit>| Movement {
            quantity,
            first,
            last,
            trend: Trend {
                verdict,
                confidence: 0.9,
                rate: Rate {
                    per_minute: rate[0],
                    low: rate[1],
                    high: rate[2],
                },
                observed: Duration::from_secs(60),
                steady: None,
                period: None,
            },
            forecast: limit.map(|limit| Forecast {
                limit,
                likely: Duration::from_secs(6_060),
                earliest: Duration::from_secs(5_900),
                latest: Some(Duration::from_secs(6_400)),
            }),
        };
    let growing = [44.0, 42.1, 45.3].map(|mib| mib * MIB as f64);
    let cgroup = Limit {
        kind: LimitKind::CgroupMemory,
        most: 12 * GIB,
        room: 4 * GIB,
    };
    let descriptors = Limit {
        kind: LimitKind::Descriptors,
        most: 1024,
        room: 800,
    };
    let (first, last) = (8 * GIB, 8 * GIB + 44 * MIB);
    WatchReport {
        process: leaking().process,
        elapsed: Duration::from_secs(60),
        end: WatchEnd::Over,
        movements: vec![
            movement(
                Quantity::Held,
                first,
                last,
                Verdict::Growing,
                growing,
                Some(cgroup),
            ),
            movement(
                Quantity::Anonymous,
                first - GIB,
                last - GIB,
                Verdict::Growing,
                growing,
                None,
            ),
            movement(
                Quantity::Heap,
                7 * GIB,
                7 * GIB + 44 * MIB,
                Verdict::Growing,
                growing,
                None,
            ),
            movement(Quantity::Files, GIB, GIB, Verdict::Flat, [0.0; 3], None),
            movement(
                Quantity::Descriptors,
                212,
                224,
                Verdict::Growing,
                [12.0, 11.2, 13.1],
                Some(descriptors),
            ),
            movement(
                Quantity::Threads,
                48,
                52,
                Verdict::Filling,
                [0.4, 0.1, 0.8],
                None,
            ),
            movement(
                Quantity::MappingCount,
                812,
                830,
                Verdict::TooEarly,
                [0.0; 3],
                None,
            ),
        ],
        advice: vec![
            Advice::TraceHeap {
                free: Some((600 * MIB, 7 * GIB)),
            },
            Advice::Descriptors,
        ],
    }
}
