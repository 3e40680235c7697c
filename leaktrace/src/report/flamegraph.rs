//! A flamegraph of what is held, as an SVG that a browser zooms and searches.
//!
//! Greens: the program and its libraries; yellow: the standard libraries of C++
//! and Rust; orange: the allocator's own functions; grey: what has no symbol, and where stacks are not complete. Below all is
//! the process. A function has
//! the same colour in every picture.

use anyhow::Context as _;
use inferno::flamegraph::{
    self, Options, TextTruncateDirection,
    color::{BackgroundColor, Color, PaletteMap},
};

use crate::{
    model::{FrameKind, Report, Weight},
    report::{folded, name, quantity, standard_library::is_standard},
};

const ALLOCATOR: Color = Color {
    r: 243,
    g: 165,
    b: 92,
};
const STANDARD_LIBRARY: Color = Color {
    r: 233,
    g: 213,
    b: 120,
};
const NO_SYMBOL: Color = Color {
    r: 190,
    g: 190,
    b: 190,
};
const INCOMPLETE: Color = Color {
    r: 214,
    g: 214,
    b: 214,
};
/// The frame below all others, which inferno adds.
const ALL: Color = Color {
    r: 205,
    g: 214,
    b: 205,
};

/// The report's sites as a flamegraph, or a picture that says in words why
/// there is nothing to show.
///
/// # Errors
/// When the lines can't be drawn, which would be a defect.
pub fn render(report: &Report, weight: Weight) -> anyhow::Result<Vec<u8>> {
    let mut colours = PaletteMap::default();
    colours.insert("", ALL);
    let lines = lines(report, weight, &mut colours);
    if lines.is_empty() {
        return Ok(empty(report, weight).into_bytes());
    }
    let mut options = Options::default();
    options.title = title(report, weight);
    options.subtitle = Some(
        subtitle(report)
            + " | green: program, yellow: standard library, orange: allocator, grey: unknown",
    );
    options.count_name = unit(weight).to_owned();
    options.bgcolors = Some(BackgroundColor::Grey);
    options.palette_map = Some(&mut colours);
    options.text_truncate_direction = TextTruncateDirection::Right;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
        .context("cannot draw the flamegraph")?;
    let svg = String::from_utf8(svg).context("the flamegraph is no text")?;
    let process = name::clean(&report.process.name);
    let root = format!(
        "{process} ({}), {}",
        report.process.pid,
        shown(report, weight)
    );
    Ok(improved(&svg, &root).into_bytes())
}

/// What inferno has no option for: a name for the frame below all others, whose
/// text is empty, and a search button that can be seen.
fn improved(svg: &str, root: &str) -> String {
    const ROOT: &str = "<title>all (";
    const NO_TEXT: &str = "></text>";
    const FAINT: &str = "#search { text-anchor:end; opacity:0.1;";
    const VISIBLE: &str = "#search { text-anchor:end; opacity:0.8; text-decoration:underline;";
    let svg = svg.replacen(FAINT, VISIBLE, 1);
    let Some((before, rest)) = svg.split_once(ROOT) else {
        return svg;
    };
    let root = escaped(root);
    let text = format!(">{root}</text>");
    format!(
        "{before}<title>{root} ({}",
        rest.replacen(NO_TEXT, &text, 1)
    )
}

/// Folded lines, and the colours of all their frames.
fn lines(report: &Report, weight: Weight, colours: &mut PaletteMap) -> Vec<String> {
    let mut lines = Vec::new();
    // inferno adds the weights up in 64 bits.
    let mut room = u64::MAX;
    for site in &report.sites {
        let value = site.weight(weight).min(room);
        room -= value;
        if value == 0 {
            continue;
        }
        let labels = folded::labels(report, site, " (inlined)");
        for label in &labels {
            let colour = match label.frame {
                None => INCOMPLETE,
                Some(frame) if frame.symbol.as_deref().is_some_and(is_standard) => STANDARD_LIBRARY,
                Some(frame) if frame.kind == FrameKind::Allocator => ALLOCATOR,
                Some(frame) if frame.symbol.is_none() => NO_SYMBOL,
                Some(_) => program_colour(&label.text),
            };
            colours.insert(&label.text, colour);
        }
        let frames: Vec<_> = labels.iter().map(|label| label.text.as_str()).collect();
        lines.push(format!("{} {value}", frames.join(";")));
    }
    lines
}

/// A soft green that depends on the name (by its FNV-1a hash).
fn program_colour(name: &str) -> Color {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let [.., x, y, z] = hash.to_le_bytes();
    Color {
        r: 120 + x / 4,
        g: 196 + y / 8,
        b: 120 + z / 4,
    }
}

fn unit(weight: Weight) -> &'static str {
    match weight {
        Weight::LiveBytes | Weight::AllocBytes => "bytes",
        Weight::LiveBlocks | Weight::AllocBlocks => "blocks",
    }
}

/// `orderd (4242): 41.2 MiB held in 52 310 blocks`
fn title(report: &Report, weight: Weight) -> String {
    let process = name::clean(&report.process.name);
    let totals = &report.totals;
    let what = match weight {
        Weight::LiveBytes => format!(
            "{} held in {}",
            quantity::bytes_fine(totals.live_bytes()),
            quantity::things(totals.live_blocks(), "block")
        ),
        Weight::LiveBlocks => format!(
            "{} held ({})",
            quantity::things(totals.live_blocks(), "block"),
            quantity::bytes_fine(totals.live_bytes())
        ),
        Weight::AllocBytes => format!(
            "{} allocated in {}, freed ones included",
            quantity::bytes_fine(totals.alloc_bytes),
            quantity::things(totals.alloc_blocks, "block")
        ),
        Weight::AllocBlocks => format!(
            "{} allocated ({}), freed ones included",
            quantity::things(totals.alloc_blocks, "block"),
            quantity::bytes_fine(totals.alloc_bytes)
        ),
    };
    // Totals know nothing of filters.
    let filtered = if shown_weight(report, weight) < total(report, weight) {
        format!(", {} shown", shown(report, weight))
    } else {
        String::new()
    };
    format!("{process} ({}): {what}{filtered}", report.process.pid)
}

fn shown_weight(report: &Report, weight: Weight) -> u64 {
    let weights = report.sites.iter().map(|site| site.weight(weight));
    weights.fold(0, u64::saturating_add)
}

/// What all sites weigh: `8.19 MiB`, `807 blocks`.
fn shown(report: &Report, weight: Weight) -> String {
    let shown = shown_weight(report, weight);
    match unit(weight) {
        "bytes" => quantity::bytes_fine(shown),
        _ => quantity::things(shown, "block"),
    }
}

fn total(report: &Report, weight: Weight) -> u64 {
    match weight {
        Weight::LiveBytes => report.totals.live_bytes(),
        Weight::LiveBlocks => report.totals.live_blocks(),
        Weight::AllocBytes => report.totals.alloc_bytes,
        Weight::AllocBlocks => report.totals.alloc_blocks,
    }
}

/// `2026-11-21 03:14:07 +0100, 60 s traced | lost 0 | …`
fn subtitle(report: &Report) -> String {
    let mut text = format!(
        "{}, {} traced | lost {}",
        report.trace.started.strftime("%F %T %z"),
        quantity::duration(report.elapsed),
        quantity::grouped(report.lost()),
    );
    if report.lost() > 0 {
        text.push_str(" (totals are a lower bound)");
    }
    if report.inexact() > 0 {
        text.push_str(" | totals are inexact");
    }
    if let Some(shares) = quantity::complete(report.complete) {
        text.push_str(&format!(" | stacks complete {shares}"));
    }
    text
}

/// A picture of two lines of text.
fn empty(report: &Report, weight: Weight) -> String {
    let nothing = match weight {
        _ if report.totals.alloc_blocks == 0 => "Nothing to show: no allocation was seen.",
        Weight::LiveBytes | Weight::LiveBlocks if report.totals.live_blocks() == 0 => {
            "Nothing to show: every block that was allocated has been freed."
        }
        _ => "Nothing to show: no site passes the filters.",
    };
    let text = |y: u32, size: u32, text: &str| {
        format!(
            "<text x=\"600\" y=\"{y}\" font-size=\"{size}\" text-anchor=\"middle\" \
             font-family=\"monospace\">{}</text>\n",
            escaped(text)
        )
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg version=\"1.1\" width=\"1200\" height=\"120\" viewBox=\"0 0 1200 120\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n\
         <rect width=\"1200\" height=\"120\" fill=\"#f8f8f8\"/>\n{}{}{}</svg>\n",
        text(30, 17, &title(report, weight)),
        text(56, 12, &subtitle(report)),
        text(92, 14, nothing),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
