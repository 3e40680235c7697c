//! What is told of growth: verdicts on real programs (`fixtures/holders.c`), the
//! mark from which growth counts, and the ages that blocks reach.

use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::{
    fixture::Fixture,
    suite::{self, Need, case},
    tracer::{Start, Tracer},
};
use serde_json::Value;

fn main() -> ExitCode {
    const C: &[Need] = &[Need::Tracing, Need::C];
    suite::main(vec![
        case("every_way_to_hold_memory_has_its_verdict", C, verdicts),
        case("only_blocks_made_since_the_mark_are_shown", C, mark),
        case("growth_counts_from_the_mark", C, growth_since_mark),
        case("warm_up_sets_the_mark", C, warmup),
        case("ages_that_blocks_reach_are_counted", C, survival),
        case("ages_that_blocks_reach_are_counted", C, survival).without_all(),
    ])
}

/// A site of the fixture, and what it may be judged to be.
const VERDICTS: [(&str, &[&str]); 8] = [
    ("leaks", &["growing"]),
    ("hides", &["growing"]),
    ("churns", &["churn", "sawtooth", "flat"]),
    ("caches", &["filling"]),
    (
        "caches_little",
        &["churn", "flat", "sawtooth", "filling", "one_off"],
    ),
    ("pools", &["one_off", "filling", "flat", "sawtooth"]),
    ("loads", &["one_off"]),
    ("batches", &["sawtooth", "churn"]),
];

/// Of these it is never said, in no table.
const NEVER_GROWING: [&str; 2] = ["churns", "caches_little"];

/// A leak of 20 KiB/s beside, and at the same site as, 200 MiB/s of churn is named
/// within two minutes; what is bounded never is. Nor is a store that was full before
/// it was traced, whose new blocks take the place of old ones.
fn verdicts() -> Result<()> {
    let mut full = Fixture::start("holders", &["none"])?;
    full.tell("store")?;
    let store = Start::attach(full.pid())?.attached()?;
    let mut fixture = Fixture::start("holders", &[])?;
    let pid = fixture.pid().to_string();
    let mut tracer = Start::bare(&["attach", &pid, "--max-overhead", "off", "--top", "30"])?
        .args(&["--format", "json-lines", "-o", "txt:report.txt"])
        .attached()?;
    fixture.tell("begin")?;
    sleep(Duration::from_secs(120));
    tracer.signal(libc::SIGINT)?;
    let ended = tracer.ended()?;
    ended.expect_status(0)?;
    let reports: Vec<Value> = ended
        .stdout
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(reports.len() > 20, "only {} tables", reports.len());
    for report in &reports {
        for site in NEVER_GROWING {
            let Ok(stack) = stack(report, site) else {
                continue;
            };
            let trend = &stack["trend"];
            ensure!(trend["verdict"] != "growing", "{site}: {trend}");
        }
    }
    let report = reports.last().context("no report")?;
    for (site, wanted) in VERDICTS {
        let trend = &stack(report, site)?["trend"];
        let verdict = trend["verdict"].as_str().context("no verdict")?;
        ensure!(
            wanted.contains(&verdict),
            "{site} is said to be {verdict}, not {wanted:?}: {trend}"
        );
    }
    for site in ["leaks", "hides"] {
        let rate = stack(report, site)?["trend"]["per_minute"].as_f64();
        let rate = rate.context("no rate")? / 60.0 / 1024.0;
        ensure!((14.0..26.0).contains(&rate), "{site} at {rate} KiB/s");
    }
    let report = store.json_report()?;
    let trend = &stack(&report, "stores")?["trend"];
    ensure!(trend["verdict"] == "too_early", "a full store: {trend}");
    let notes = report["notes"].to_string();
    ensure!(notes.contains("may only take their place"), "{notes}");
    full.finish_well()?;
    let text = ended.file("report.txt")?;
    for part in ["LIKELY LEAKS: 2 sites grew steadily at ", "Not growing: "] {
        ensure!(text.contains(part), "{part:?} is missing in {text}");
    }
    fixture.finish_well()
}

/// 500 blocks before the mark and 1 000 after it: 1 000 are shown.
fn mark() -> Result<()> {
    let mut fixture = Fixture::start("holders", &["none"])?;
    let mut tracer = Start::attach(fixture.pid())?
        .args(&["--since", "mark"])
        .attached()?;
    fixture.tell("step 500")?;
    set_mark(&mut tracer)?;
    fixture.tell("step 1000")?;
    let report = tracer.json_report()?;
    let site = stack(&report, "request")?;
    for (field, wanted) in [
        ("live_blocks", 1000),
        ("live_bytes", 100_000),
        ("alloc_blocks", 1000),
        ("freed_blocks", 0),
    ] {
        ensure!(site[field] == wanted, "{field}: {site}");
    }
    ensure!(report["mark"]["filters"] == true, "{}", report["mark"]);
    ensure!(
        report["totals"]["live_blocks"] == 1500,
        "{}",
        report["totals"]
    );
    fixture.finish_well()
}

/// Without a filter everything is shown, and growth is what came after the mark,
/// also when blocks from before it are freed.
fn growth_since_mark() -> Result<()> {
    let mut fixture = Fixture::start("holders", &["none"])?;
    let mut tracer = Start::attach(fixture.pid())?.attached()?;
    fixture.tell("step 500")?;
    set_mark(&mut tracer)?;
    let marked = Instant::now();
    fixture.tell("flush")?;
    fixture.tell("step 100")?;
    sleep(Duration::from_millis(500));
    let (least, report) = (marked.elapsed(), tracer.json_report()?);
    let site = stack(&report, "request")?;
    ensure!(site["live_blocks"] == 100, "{site}");
    // 400 blocks of 100 bytes fewer than at the mark.
    let per_minute = site["growth_per_minute"].as_f64().context("no growth")?;
    let most = -40_000.0 * 60.0 / marked.elapsed().as_secs_f64();
    let fewest = -40_000.0 * 60.0 / least.as_secs_f64() * 1.2;
    ensure!(
        (fewest..most).contains(&per_minute),
        "{per_minute} is not within {fewest} and {most}"
    );
    fixture.finish_well()
}

fn warmup() -> Result<()> {
    let mut fixture = Fixture::start("holders", &["none"])?;
    let mut tracer = Start::attach(fixture.pid())?
        .args(&["--warmup", "1s", "--since", "mark"])
        .attached()?;
    fixture.tell("step 30")?;
    tracer.wait_for_line(|line| line.starts_with("marked at "))?;
    fixture.tell("step 7")?;
    let report = tracer.json_report()?;
    ensure!(stack(&report, "request")?["live_blocks"] == 7);
    fixture.finish_well()
}

/// Of 200 blocks 40 die at once, 60 after more than a second, 100 live on.
fn survival() -> Result<()> {
    // Looks are a second apart, or more where everything is slow.
    let long = Duration::from_millis(if suite::is_emulated() { 6000 } else { 2500 });
    let mut fixture = Fixture::start("holders", &["none"])?;
    let tracer = Start::attach(fixture.pid())?.attached()?;
    fixture.tell("step 40")?;
    fixture.tell("flush")?;
    fixture.tell("step 60")?;
    sleep(long);
    fixture.tell("flush")?;
    fixture.tell("step 100")?;
    sleep(long);
    let report = tracer.json_report()?;
    let survival = &stack(&report, "request")?["survival"];
    let second = &survival[0];
    ensure!(second["age_ns"] == 1_000_000_000_u64, "{survival}");
    ensure!(second["reached"] == 160, "{survival}");
    // All of them were made more than a second before the end.
    ensure!(second["of"] == 200 || suite::is_emulated(), "{survival}");
    // Nothing can have lived for ten seconds yet.
    ensure!(survival[1].is_null() || suite::is_emulated(), "{survival}");
    fixture.finish_well()
}

fn set_mark(tracer: &mut Tracer) -> Result<()> {
    tracer.signal(libc::SIGUSR2)?;
    tracer.wait_for_line(|line| line.starts_with("marked at "))?;
    Ok(())
}

/// The stack of blocks that this function allocates.
fn stack<'a>(report: &'a Value, function: &str) -> Result<&'a Value> {
    let stacks = report["stacks"].as_array().context("no stacks")?;
    let is_of = |stack: &&Value| {
        let frames = stack["frames"].as_array().into_iter().flatten();
        let mut symbols = frames.filter_map(|frame| frame["symbol"].as_str());
        symbols.any(|symbol| symbol == function)
    };
    stacks
        .iter()
        .find(is_of)
        .with_context(|| format!("no stack through {function}"))
}
