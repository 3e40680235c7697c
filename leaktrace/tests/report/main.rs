//! Reports as people and programs get them, compared with files under
//! `tests/golden/`. `LEAKTRACE_BLESS=1 cargo test` writes those anew; look at
//! the difference before committing it.

#[path = "fixture.rs"]
mod fixture;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use leaktrace::{
    alert::{Growth, GrowthTest},
    model::{
        Advice, CommonCaller, EndReason, Forecast, Limit, LimitKind, Mark, MemorySample, Rate,
        Report, SortKey, Trend, Verdict, VerdictSums, WatchEnd, Weight,
    },
    report::{
        export::{ExportOptions, Format},
        flamegraph, folded,
        json::Document,
        line::width,
        summary::{self, SummaryOptions},
        table::{self, TableOptions},
        watch,
    },
};
use leaktrace_common::counter::{COUNTERS, Counter};
use proptest::prelude::*;
use unicode_width::UnicodeWidthStr as _;

fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("LEAKTRACE_BLESS").is_some() {
        fs::write(&path, text).expect("the golden file can be written");
        return;
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        wanted == text,
        "{} differs (LEAKTRACE_BLESS=1 writes it anew); now it is:\n{text}",
        path.display()
    );
}

fn table(report: &Report, width: usize) -> String {
    table::render(
        report,
        &TableOptions {
            width,
            colour: false,
            stacks: false,
            top: 10,
        },
    )
}

fn summary(report: &Report) -> String {
    summary::render(
        report,
        &SummaryOptions {
            width: None,
            colour: false,
            top: 10,
        },
    )
}

#[test]
fn tables_at_two_widths() {
    for width in [80, 140] {
        let tables = [
            table(&fixture::leaking(), width),
            table(&fixture::with_losses(fixture::leaking()), width),
            table(&fixture::bare(), width),
        ];
        golden(&format!("table-{width}.txt"), &tables.join("---\n"));
    }
}

#[test]
fn table_with_whole_stacks() {
    let options = TableOptions {
        width: 100,
        colour: false,
        stacks: true,
        top: 2,
    };
    golden(
        "table-stacks.txt",
        &table::render(&fixture::leaking(), &options),
    );
}

#[test]
fn summaries() {
    let interrupted = fixture::ended(fixture::leaking(), EndReason::Signal("SIGINT"));
    golden("summary-leaking.txt", &summary(&interrupted));
    let mut braked = fixture::with_losses(interrupted.clone());
    braked.end = Some(EndReason::Overhead {
        cost: 0.57,
        limit: 0.5,
    });
    braked
        .trace
        .options
        .push(("min-size".to_owned(), "4 KiB".to_owned()));
    golden("summary-brake.txt", &summary(&braked));
    golden("summary-silent.txt", &summary(&fixture::silent()));
    golden("summary-healthy.txt", &summary(&fixture::healthy()));
}

/// Everything that a watch without probes can end with.
#[test]
fn watches() {
    let mut text = watch::title(
        &fixture::leaking().process,
        Duration::from_secs(60),
        Duration::from_secs(1),
    );
    let (first, now) = fixture::glances();
    text += &watch::heading();
    text += &watch::first_line(&first);
    text += &watch::line(&first, &now);
    let mut report = fixture::watched();
    text += &watch::conclusion(&report, Some(80), false);
    golden("watch.txt", &text);
    report.end = WatchEnd::Exited;
    report.movements.clear();
    let name = Some(Arc::from("a\x1b[2Jb"));
    report.advice = vec![
        Advice::TraceHeap { free: None },
        Advice::TraceHeap {
            free: Some((200 << 20, 240 << 20)),
        },
        Advice::TraceAllocator("jemalloc"),
        Advice::TraceInside,
        Advice::Mappings {
            mostly: name.clone(),
            may_be_blocks: false,
        },
        Advice::Mappings {
            mostly: None,
            may_be_blocks: true,
        },
        Advice::Files(name.clone()),
        Advice::Shared(name),
        Advice::Threads,
        Advice::LookLonger,
        Advice::Nothing,
    ];
    golden("watch-advice.txt", &watch::conclusion(&report, None, false));
}

#[test]
fn reasons_of_incomplete_stacks_are_ordered_by_what_their_sites_hold() {
    let mut report = fixture::leaking();
    let ends = ["a gap", "another", "a gap", "another"];
    for (site, reason) in report.sites.iter_mut().zip(ends) {
        site.end = fixture::incomplete(reason);
    }
    report.sites.swap(0, 3);
    let text = summary(&report);
    let (_, list) = text.split_once("where the others end:\n").unwrap();
    let lines: Vec<_> = list.lines().take(2).map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "2 sites with 36.3 MiB: a gap",
            "2 sites with 4.9 MiB: another"
        ]
    );
}

#[test]
fn summary_of_a_short_run_that_misses_nothing() {
    golden("summary-short-run.txt", &summary(&fixture::short_run()));
}

#[test]
fn filters_by_age_are_named_where_their_sites_are() {
    let mut report = fixture::leaking();
    report.trace.options = vec![("min-age".to_owned(), "30s".to_owned())];
    let text = summary(&report);
    let title = "The growing site with --min-age 30s (growth and freed are of blocks of any age):";
    assert!(text.contains(title), "{text}");
    report.trace.sort = SortKey::LiveBytes;
    let text = summary(&report);
    let title = "All 4 sites with --min-age 30s, by live bytes (growth and freed are of blocks of any \
                 age):";
    assert!(text.contains(title), "{text}");
    assert!(table(&report, 160).contains(" | sites with --min-age 30s\n"));
}

#[test]
fn a_cost_over_the_limit_that_does_not_matter_is_explained() {
    let mut report = fixture::leaking();
    (report.cost, report.cost_cpus) = (Some(0.71), Some(0.021));
    let text = summary(&report);
    let explained = "cost 71 % of orderd's CPU time, which was only 2.1 % of one CPU (the limit of \
                     50 % does not apply under 5 %)";
    assert!(text.contains(explained), "{text}");
    assert!(table(&report, 140).contains(" | cost 71 % (2.1 % of one CPU) | "));
}

#[test]
fn the_readme_explains_every_line_about_what_was_not_seen() {
    let readme = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).expect("there is a README");
    let rows: Vec<_> = readme
        .lines()
        .filter(|line| line.starts_with('|'))
        .collect();
    let mut report = fixture::leaking();
    report.counters.events = [7; COUNTERS];
    let text = summary(&report);
    for counter in Counter::ALL {
        let line = counter.text(7);
        if text.contains(&format!(" 7 {line}\n")) {
            let cell = format!("`{line}`");
            assert!(
                rows.iter().any(|row| row.contains(&cell)),
                "no row has {cell}"
            );
        }
    }
    assert!(text.matches(" 7 ").count() > COUNTERS - 5, "{text}");
}

#[test]
fn what_growing_stacks_share_is_named() {
    let mut report = fixture::ended(fixture::leaking(), EndReason::Signal("SIGINT"));
    let mut common = CommonCaller {
        function: "Session::create(User const&)".to_owned(),
        stacks: 14,
        growing: 14,
        share: 1.0,
    };
    report.common_caller = Some(common.clone());
    let text = summary(&report);
    let all = "All 14 growing stacks pass through Session::create.";
    assert!(text.contains(all), "{text}");
    let text = table(&report, 160);
    let all = "\n    all 14 growing stacks pass through Session::create\n";
    assert!(text.contains(all), "{text}");
    common.stacks = 12;
    common.share = 0.931;
    report.common_caller = Some(common);
    report.site_count = 90;
    let text = table(&report, 160);
    let most = "; 12 of 14 growing stacks, with 93 % of the growth, pass through Session::create\n";
    assert!(text.contains(most), "{text}");
}

#[test]
fn after_a_mark_growth_of_rss_counts_from_there_too() {
    let mut report = fixture::ended(fixture::leaking(), EndReason::Signal("SIGINT"));
    report.mark = Some(Mark {
        time: report.trace.started.clone(),
        at: Duration::from_secs(30),
        memory: MemorySample {
            rss: report.memory.rss.map(|rss| rss - 20 * fixture::MIB),
            ..report.memory
        },
        filters: false,
    });
    // The mean of 36 MiB per minute, for half a minute.
    let text = summary(&report);
    let share = "and makes 90 % of the growth of RSS since the mark (+18 of +20 MiB).";
    assert!(text.contains(share), "{text}");
    let since = "\nSince the mark: RSS grew 20 MiB, to 8.24 GiB.\n";
    assert!(text.contains(since), "{text}");
}

#[test]
fn what_could_not_be_judged_is_not_said_to_be_steady() {
    // A minute was traced, but no site was there from its beginning.
    let mut report = judged(&[(Verdict::TooEarly, 1e6), (Verdict::Flat, 0.0)]);
    report.growing.clear();
    let sums = |live_bytes| VerdictSums {
        sites: 1,
        live_bytes,
        growth_per_minute: 0.0,
    };
    report.verdicts = vec![
        (Verdict::TooEarly, sums(36_000_000)),
        (Verdict::Flat, sums(9)),
    ];
    let text = summary(&report);
    let early =
        "Too early to tell what grows without end: 60 s observed, but a site needs a minute";
    assert!(
        text.contains(early) && !text.contains("No site grew"),
        "{text}"
    );
    assert!(summary::next_step(&report).contains("--duration 5m"));
    report.verdicts = vec![
        (Verdict::TooEarly, sums(9)),
        (Verdict::Flat, sums(36_000_000)),
    ];
    let text = summary(&report);
    assert!(text.contains("No site grew steadily in 60 s: "), "{text}");
}

#[test]
fn memory_that_grows_without_any_site_runs_into_its_limit() {
    let mut report = fixture::healthy();
    report.trends.memory = Some(fixture::trend(Verdict::Growing, 149.0 * (1 << 20) as f64));
    report.forecasts = vec![Forecast {
        limit: Limit {
            kind: LimitKind::CgroupMemory,
            most: 12 << 30,
            room: 4 << 30,
        },
        likely: Duration::from_secs(1800),
        earliest: Duration::from_secs(1700),
        latest: None,
    }];
    let text = summary(&report);
    let said = "\nRSS with swap grew steadily, at 149 MiB/min.\nAt this rate the limit of its cgroup \
                (12 GiB) is reached in about 30 min";
    assert!(text.contains(said), "{text}");
}

#[test]
fn json_report() {
    let report = fixture::ended(fixture::leaking(), EndReason::Signal("SIGINT"));
    let text = serde_json::to_string_pretty(&Document::of(&report)).unwrap() + "\n";
    golden("report.json", &text);
    let options = ExportOptions {
        weight: Weight::LiveBytes,
        top: 10,
    };
    let bytes = Format::Json.exporter().export(&report, &options).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        written,
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    );
}

#[test]
fn folded_stacks() {
    golden(
        "live-bytes.folded",
        &folded::render(&fixture::leaking(), Weight::LiveBytes),
    );
}

#[test]
fn flamegraph_has_title_units_and_colours() {
    let svg = flamegraph::render(&fixture::leaking(), Weight::LiveBlocks).unwrap();
    let svg = String::from_utf8(svg).unwrap();
    assert!(svg.contains(">orderd (4242): 52 310 blocks held (41.2 MiB)</text>"));
    assert!(svg.contains("2026-11-21 03:14:07 +0100, 60 s traced | lost 0 "));
    let colour = |name: &str| {
        let frame = svg
            .split("<g>")
            .find(|part| part.starts_with(&format!("<title>{name}")));
        let frame = frame.unwrap_or_else(|| panic!("no frame {name}"));
        frame
            .split("fill=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned()
    };
    assert!(svg.contains("<title>Session::create(User const&amp;) (46,113 blocks, "));
    // inferno's own root has no name, and its search button cannot be seen.
    let root = "orderd (4242), 52 310 blocks";
    assert!(svg.contains(&format!("<title>{root} (52,310 blocks, 100%)</title>")));
    assert!(svg.contains(&format!(">{root}</text>")));
    assert!(svg.contains("#search { text-anchor:end; opacity:0.8;"));
    assert!(
        svg.contains("green: program, yellow: standard library, orange: allocator, grey: unknown")
    );
    assert_eq!(
        colour("malloc (libc.so.6)"),
        colour("operator new(unsigned long) (libc.so.6)")
    );
    assert_ne!(colour("malloc (libc.so.6)"), colour("Worker::run()"));
    let standard = colour("std::make_unique");
    assert_ne!(standard, colour("malloc (libc.so.6)"));
    assert_ne!(standard, colour("Worker::run()"));
    assert_ne!(
        colour("[incomplete: no unwind information in libodd.so.3]"),
        colour("Worker::run()")
    );
    let again = flamegraph::render(&fixture::leaking(), Weight::LiveBlocks).unwrap();
    assert_eq!(
        svg.as_bytes(),
        again,
        "the same report gives the same picture"
    );
}

#[test]
fn flamegraph_without_blocks_says_so() {
    let svg = flamegraph::render(&fixture::silent(), Weight::LiveBytes).unwrap();
    golden("empty.svg", std::str::from_utf8(&svg).unwrap());
}

#[test]
fn a_filter_that_leaves_out_all_calls_is_no_idle_process() {
    let mut report = fixture::silent();
    report.counters.events[Counter::Filtered as usize] = 12_345;
    let text = summary(&report);
    assert!(
        text.contains("Nothing passed the size filter") && text.contains("12 345 allocations"),
        "{text}"
    );
    assert!(!text.contains("never called"), "{text}");
}

#[test]
fn table_has_at_most_four_lines_besides_the_sites() {
    let mut report = fixture::with_losses(fixture::leaking());
    report.site_count = 100;
    for top in 1..=6 {
        for report in [&report, &fixture::leaking(), &fixture::bare()] {
            let options = TableOptions {
                width: 100,
                colour: false,
                stacks: false,
                top,
            };
            assert!(table::render(report, &options).lines().count() <= top + 4);
        }
    }
}

#[test]
fn a_site_that_holds_nothing_takes_no_line_unless_asked_for() {
    let mut report = fixture::leaking();
    report.sites[3].sums.freed_blocks = report.sites[3].sums.alloc_blocks;
    report.sites[3].sums.freed_bytes = report.sites[3].sums.alloc_bytes;
    report.totals.freed_blocks += 4;
    report.totals.freed_bytes += 900;
    let table_now = table(&report, 140);
    assert!(
        table_now.contains("… 1 more site, nothing held"),
        "{table_now}"
    );
    assert!(!table_now.contains("stack not stored") && !summary(&report).contains("  4  "));
    report.trace.sort = SortKey::AllocBytes;
    assert!(table(&report, 140).contains("[stack not stored]"));
}

#[test]
fn a_hostile_name_does_not_reach_the_terminal() {
    let mut report = fixture::with_frames(vec![fixture::named("\x1b]0;owned\x07\u{9b}2Jf\nx")]);
    report.process.name = "\x1b[2Jx".to_owned();
    report.process.exe = "/tmp/\x1b[2J".into();
    report.trace.watched[0].path = "/\x1b[2J".into();
    let texts = [
        table(&report, 120),
        summary(&report),
        folded::render(&report, Weight::LiveBytes),
        String::from_utf8(flamegraph::render(&report, Weight::LiveBytes).unwrap()).unwrap(),
        summary::closing(&["a/\x1b[2J.svg".into()]),
    ];
    for text in texts {
        assert!(
            !text
                .chars()
                .any(|c| c.is_control() && c != '\n' && c != '\t'),
            "{text:?}"
        );
    }
}

/// Names as they come, and as nobody expects them.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z_:]{1,60}",
        "([a-z]{1,9}(::|<|>|\\(|\\)|, | )){0,12}[a-z]{1,9}",
        "[漢字가e\u{301}\u{fe0f}\u{200d}👩\u{2764}\u{1f3fd}]{0,60}",
        "[ ;#0-9.\n\t\u{1b}]{0,12}",
        "\\PC{0,60}",
        ".{0,30}",
    ]
}

proptest! {
    #[test]
    fn no_line_is_wider_than_the_terminal(
        names in prop::collection::vec(name(), 1..12),
        columns in 1_usize..200,
        (stacks, losses, blocks) in any::<(bool, bool, u64)>(),
    ) {
        let frames = names.iter().map(|name| fixture::named(name)).collect();
        let mut report = fixture::with_frames(frames);
        report.totals.alloc_blocks = blocks;
        report.totals.alloc_bytes = blocks;
        report.sites[0].sums.alloc_bytes = blocks;
        report.sites[0].growth_per_minute = -(blocks as f64);
        if losses {
            report = fixture::with_losses(report);
        }
        let options = TableOptions { width: columns, colour: false, stacks, top: 10 };
        for line in table::render(&report, &options).lines() {
            prop_assert!(width(line) <= columns && line.width() <= columns, "{line:?}");
        }
        let options = SummaryOptions { width: Some(columns), colour: false, top: 10 };
        let text = summary::render(&report, &options);
        let (sites, _) = text.split_once("\nFilling").unwrap();
        for line in sites.trim_end().lines().rev().take(names.len()) {
            prop_assert!(line.width() <= columns, "{line:?}");
        }
    }

    #[test]
    fn folded_lines_parse_back(
        names in prop::collection::vec(prop::collection::vec(name(), 1..6), 1..5),
        weights in prop::collection::vec(1..u64::from(u32::MAX), 5),
    ) {
        let mut report = fixture::bare();
        for (index, (names, weight)) in names.iter().zip(&weights).enumerate() {
            let frames = names.iter().map(|name| fixture::named(name)).collect();
            report.sites.push(fixture::site(index as u64, (*weight, 1), (0, 0), frames));
        }
        let text = folded::render(&report, Weight::LiveBytes);
        prop_assert_eq!(text.lines().count(), report.sites.len());
        for (line, site) in text.lines().zip(&report.sites) {
            let (stack, weight) = line.rsplit_once(' ').unwrap();
            prop_assert_eq!(weight.parse::<u64>().unwrap(), site.sums.live_bytes());
            prop_assert_eq!(stack.split(';').count(), site.frames.len());
            prop_assert!(stack.split(';').all(|frame| !frame.trim().is_empty()));
        }
        let svg = flamegraph::render(&report, Weight::LiveBytes).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        let total: u64 = report.sites.iter().map(|site| site.sums.live_bytes()).sum();
        let total = format!("total_samples=\"{total}\"");
        prop_assert!(svg.contains(&total), "no line was taken for something else");
    }
}

/// A report whose sites were judged so, with rates per minute.
fn judged(verdicts: &[(Verdict, f64)]) -> Report {
    let mut report = fixture::leaking();
    report.sites.truncate(verdicts.len());
    for (site, (verdict, per_minute)) in report.sites.iter_mut().zip(verdicts) {
        site.trend = Some(Trend {
            verdict: *verdict,
            confidence: 0.99,
            rate: Rate {
                per_minute: *per_minute,
                low: 0.0,
                high: per_minute * 2.0,
            },
            observed: report.elapsed,
            steady: None,
            period: None,
        });
    }
    report
}

#[test]
fn growth_is_what_is_judged_so_and_faster_than_tolerated() {
    let found = |report: &Report, tolerated| match (GrowthTest { tolerated }).judge(report) {
        Growth::Found(sites) => sites.iter().map(|site| site.stack_id).collect(),
        Growth::None | Growth::TooEarly { .. } => Vec::new(),
    };
    let report = judged(&[
        (Verdict::Filling, 9e9),
        (Verdict::Growing, 1e6),
        (Verdict::Growing, 2e6),
    ]);
    let ids: Vec<_> = report.sites.iter().map(|site| site.stack_id).collect();
    assert_eq!(found(&report, None), [ids[2], ids[1]]);
    assert_eq!(found(&report, Some(1e6)), [ids[2]]);
    assert_eq!(found(&report, Some(2e6)), [0; 0]);
    let bounded = judged(&[(Verdict::Flat, 0.0), (Verdict::Filling, 1e9)]);
    let nothing = GrowthTest::default().judge(&bounded);
    assert!(matches!(nothing, Growth::None), "{nothing:?}");
}

#[test]
fn growth_that_can_not_be_told_yet_is_none_and_is_said() {
    let mut report = judged(&[(Verdict::TooEarly, 1e9), (Verdict::Flat, 0.0)]);
    report.elapsed = Duration::from_secs(12);
    let live = report.sites[0].sums.live_bytes();
    let expect = |report: &Report, held: u64| {
        let growth = GrowthTest::default().judge(report);
        let Growth::TooEarly {
            sites: 1,
            live_bytes,
            traced,
        } = growth
        else {
            panic!("{growth:?}")
        };
        assert_eq!((live_bytes, traced), (held, report.elapsed));
    };
    expect(&report, live);
    // Nobody has looked.
    report.sites[0].trend = None;
    expect(&report, live);
    // What is held no more is no leak.
    report.sites[0].sums.freed_bytes = report.sites[0].sums.alloc_bytes;
    let growth = GrowthTest::default().judge(&report);
    assert!(matches!(growth, Growth::None), "{growth:?}");
}
