//! The last report as it is printed, and what leaktrace ends with.

use std::io;

use rustix::stdio;
use tokio::runtime::Handle;

use super::{TraceOptions, messages, reporter::Finished};
use crate::{
    alert::Growth,
    exit::Outcome,
    model::EndReason,
    output::{destination::Target, screen::ScreenEnd, stream, terminal::Terminal},
    report::{
        export::Format,
        summary::{self, SummaryOptions},
    },
    say,
};

/// Prints the last report. Inside the runtime.
pub fn conclude(finished: &Finished, options: &TraceOptions) -> Outcome {
    let printed = match &finished.line {
        Some(line) => print_line(line, finished),
        None => {
            print_summary(finished, options);
            true
        }
    };
    for failure in &finished.failures {
        say!("leaktrace: {failure}");
    }
    if options.verbose {
        say!("{}", messages::self_check(&finished.report.self_check));
    }
    let growth = match options.fail_if_growth {
        Some(test) => test.judge(&finished.report),
        None => Growth::None,
    };
    if let Some(text) = messages::growth(&growth) {
        say!("{text}");
    }
    match (&finished.report.end, growth) {
        (Some(EndReason::Overhead { .. }), _) => Outcome::Refused,
        _ if !printed || !finished.failures.is_empty() => Outcome::Failed,
        (_, Growth::Found(_)) => Outcome::Grew,
        _ => Outcome::Reported,
    }
}

/// Prints the last report as a line of JSON, and for a person what was written;
/// whether that worked, as far as anybody reads it.
fn print_line(line: &str, finished: &Finished) -> bool {
    let result = match &finished.screen {
        // After those lines that wait, and not into them.
        Some(screen) => Handle::current().block_on(screen.finish(line.to_owned())),
        None => stream::write_all(stdio::stdout(), line.as_bytes())
            .or_else(stream::closed_is_fine)
            .map_err(|errno| ScreenEnd::Failed(io::Error::from(errno).to_string())),
    };
    let closing = summary::closing(&finished.written) + &summary::next_step(&finished.report);
    if !closing.is_empty() {
        say!("{}", closing.trim());
    }
    let dropped = finished.screen.as_ref().map_or(0, |it| it.dropped());
    if dropped > 0 {
        say!("{}", messages::dropped_lines(dropped));
    }
    match result {
        Ok(()) | Err(ScreenEnd::Closed) => true,
        Err(ScreenEnd::Failed(reason)) => {
            say!("leaktrace: cannot write to stdout: {reason}");
            false
        }
    }
}

/// Prints the last report for a person.
fn print_summary(finished: &Finished, options: &TraceOptions) {
    let to_stderr = options
        .outputs
        .iter()
        .any(|output| output.target == Target::Stdout);
    let (out, terminal) = if to_stderr {
        (stdio::stderr(), Terminal::of(stdio::stderr()))
    } else {
        (stdio::stdout(), Terminal::of(stdio::stdout()))
    };
    let width = terminal.is_terminal.then_some(terminal.columns);
    // As an output it has been printed already.
    let is_printed = options
        .outputs
        .iter()
        .any(|output| (output.format, &output.target) == (Format::Txt, &Target::Stdout));
    let report = &finished.report;
    let look = SummaryOptions {
        width,
        colour: terminal.colour,
        top: options.top,
    };
    let summary = if is_printed {
        String::new()
    } else {
        summary::render(report, &look)
    };
    let reminder = summary::reminder(report, &look, &summary);
    let closing = summary::closing(&finished.written) + &reminder + &summary::next_step(report);
    let text = summary + &closing;
    // A reader that is gone has had enough.
    match &finished.screen {
        Some(screen) => {
            let _ = Handle::current().block_on(screen.finish(text));
        }
        None => {
            let _ = stream::write_all(out, text.as_bytes());
        }
    }
}
