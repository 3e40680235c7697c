//! Folded stacks, as flamegraph tools read them: one line a stack, root first,
//! `;` between frames, a space, the weight.
//!
//! A frame is the function's name, with ` (libfoo.so)` after it when it is not
//! the program's own, or `[libfoo.so+0x1234]` without a symbol. Inlined
//! functions end in `_[i]`, the mark of `stackcollapse-perf.pl`. A stack that is
//! not complete begins with a frame `[incomplete: reason]`. Stacks of weight 0
//! are left out; stacks that read the same are not merged.

use crate::{
    model::{Completeness, Frame, Report, Site, Weight},
    report::name,
};

/// All sites of the report, one line each.
#[must_use]
pub fn render(report: &Report, weight: Weight) -> String {
    let mut text = String::new();
    for site in &report.sites {
        let value = site.weight(weight);
        if value > 0 {
            let labels = labels(report, site, "_[i]");
            let frames: Vec<_> = labels.iter().map(|label| label.text.as_str()).collect();
            text.push_str(&frames.join(";"));
            text.push_str(&format!(" {value}\n"));
        }
    }
    text
}

/// A frame's text in a folded line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label<'a> {
    /// What the line has: not empty, without `;`, line breaks and anything at
    /// its ends that a parser would take for something else.
    pub text: String,
    /// The frame; `None` for a mark of leaktrace's own.
    pub frame: Option<&'a Frame>,
}

/// A site's frames from the root inwards, at least one; those of inlined
/// functions end in `inlined`.
#[must_use]
pub fn labels<'a>(report: &Report, site: &'a Site, inlined: &str) -> Vec<Label<'a>> {
    let mut labels = Vec::with_capacity(site.frames.len() + 1);
    let mark = |text: &str| Label {
        text: escaped(text),
        frame: None,
    };
    match &site.end {
        Completeness::Incomplete(reason) => {
            labels.push(mark(&format!("[incomplete: {reason}]")));
        }
        Completeness::Complete if site.frames.is_empty() => labels.push(mark("[no stack]")),
        Completeness::Complete => {}
    }
    let program = report.process.exe.to_str();
    labels.extend(site.frames.iter().rev().map(|frame| {
        let mut text = name::function(frame).into_owned();
        match frame.module.as_deref() {
            Some(module) if frame.symbol.is_some() && Some(module) != program => {
                text = format!("{text} ({})", name::file_name(module));
            }
            _ => {}
        }
        let mut text = escaped(&text);
        if frame.inlined {
            text.push_str(inlined);
        }
        Label {
            text,
            frame: Some(frame),
        }
    }));
    labels
}

/// Takes from a name what has a meaning in a folded line: `;`, a number after a
/// space (a weight), `# ` at the beginning (a comment), blanks at the ends.
fn escaped(name: &str) -> String {
    let clean = name::clean(name).replace(';', ":");
    let mut text = clean.trim().to_owned();
    // The weight follows after a space, and `# ` begins a comment.
    if text == "#" {
        text.push('_');
    } else if let Some(rest) = text.strip_prefix("# ") {
        text = format!("#_{rest}");
    }
    if let Some((head, last)) = text.rsplit_once(char::is_whitespace)
        && last
            .chars()
            .all(|character| character.is_ascii_digit() || character == '.')
    {
        text = format!("{head}_{last}");
    }
    if text.is_empty() {
        text.push('?');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_be_taken_for_a_weight_or_a_comment() {
        assert_eq!(escaped("f(int; char)"), "f(int: char)");
        assert_eq!(escaped("a\nb"), "a b");
        assert_eq!(escaped("foo 42"), "foo_42");
        assert_eq!(escaped("42"), "42");
        assert_eq!(escaped("# note"), "#_note");
        assert_eq!(escaped("  "), "?");
    }
}
