//! A line of text for a terminal: pieces with a look, measured in columns.

use unicode_width::UnicodeWidthChar;

/// How a piece of text looks where colours are allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Look {
    /// As it comes.
    #[default]
    Plain,
    /// What the eye should find first: bold.
    Strong,
    /// What can be skipped: dim.
    Faint,
    /// What must not be missed: bold red.
    Alarm,
}

impl Look {
    /// The escape sequence that begins it (ECMA-48, SGR).
    fn start(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "\x1b[1m",
            Self::Faint => "\x1b[2m",
            Self::Alarm => "\x1b[1;31m",
        }
    }
}

const STOP: &str = "\x1b[0m";
const ELLIPSIS: char = '…';

/// Columns that `text` takes on a terminal: the sum over its characters, as
/// terminals count. What has no width of its own (combining marks) takes none.
#[must_use]
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(character: char) -> usize {
    character.width().unwrap_or(0)
}

/// The longest start of `text` that fits into `columns`, together with the
/// combining marks of its last character.
#[must_use]
pub fn head(text: &str, columns: usize) -> &str {
    let mut used = 0;
    for (index, character) in text.char_indices() {
        used += char_width(character);
        if used > columns {
            return &text[..index];
        }
    }
    text
}

/// The longest end of `text` that fits into `columns` and begins with a
/// character of its own.
#[must_use]
pub fn tail(text: &str, columns: usize) -> &str {
    let mut used = 0;
    let mut start = text.len();
    for (index, character) in text.char_indices().rev() {
        let width = char_width(character);
        used += width;
        if used > columns {
            break;
        }
        if width > 0 {
            start = index;
        }
    }
    &text[start..]
}

/// Pieces of text in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pieces: Vec<(Look, String)>,
}

impl Line {
    /// Adds a piece at the end.
    pub fn push(&mut self, look: Look, text: impl Into<String>) {
        self.pieces.push((look, text.into()));
    }

    /// Adds another line's pieces at the end.
    pub fn append(&mut self, mut other: Self) {
        self.pieces.append(&mut other.pieces);
    }

    /// Columns it takes.
    #[must_use]
    pub fn width(&self) -> usize {
        self.pieces.iter().map(|(_, text)| width(text)).sum()
    }

    /// Cuts it to at most `columns`, the last of which then is `…`.
    pub fn cut(&mut self, columns: usize) {
        if self.width() <= columns {
            return;
        }
        let mut room = columns.saturating_sub(1);
        let mut kept = 0;
        for (_, text) in &mut self.pieces {
            kept += 1;
            let taken = width(text);
            if taken > room {
                text.truncate(head(text, room).len());
                if columns > 0 {
                    text.push(ELLIPSIS);
                }
                break;
            }
            room -= taken;
        }
        self.pieces.truncate(kept);
    }

    /// Breaks it between words into lines of at most `columns`; all but the
    /// first begin with `indent` blanks. A word that is wider stays whole, so
    /// that it can be copied.
    #[must_use]
    pub fn wrapped(self, columns: usize, indent: usize) -> Vec<Self> {
        if self.width() <= columns {
            return vec![self];
        }
        let mut lines = vec![Self::default()];
        let (mut used, mut words) = (0, 0);
        for (look, text) in &self.pieces {
            for word in text.split_inclusive(' ') {
                let taken = width(word.trim_end_matches(' '));
                if words > 0 && taken > 0 && used + taken > columns {
                    let mut next = Self::default();
                    next.push(Look::Plain, " ".repeat(indent));
                    lines.push(next);
                    (used, words) = (indent, 0);
                }
                used += width(word);
                words += usize::from(taken > 0);
                if let Some(line) = lines.last_mut() {
                    line.push(*look, word);
                }
            }
        }
        lines
    }

    /// Appends it to `out` with a line feed, blanks at the end removed.
    pub fn render(&self, colour: bool, out: &mut String) {
        let start = out.len();
        for (look, text) in &self.pieces {
            if colour && *look != Look::Plain && !text.trim().is_empty() {
                out.push_str(look.start());
                out.push_str(text);
                out.push_str(STOP);
            } else {
                out.push_str(text);
            }
        }
        let kept = out[start..].trim_end_matches(' ').len();
        out.truncate(start + kept);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pieces: &[&str]) -> Line {
        let mut line = Line::default();
        for piece in pieces {
            line.push(Look::Strong, *piece);
        }
        line
    }

    fn text(line: &Line) -> String {
        let mut out = String::new();
        line.render(false, &mut out);
        out
    }

    #[test]
    fn cutting_counts_columns_not_characters() {
        let mut wide = line(&["ab", "漢字漢字"]);
        wide.cut(6);
        assert_eq!(text(&wide), "ab漢…\n");
        let mut combined = line(&["e\u{301}e\u{301}e\u{301}e\u{301}"]);
        combined.cut(3);
        assert_eq!(text(&combined), "e\u{301}e\u{301}…\n");
    }

    #[test]
    fn what_fits_stays_whole() {
        let mut fits = line(&["abc", "def"]);
        fits.cut(6);
        assert_eq!(text(&fits), "abcdef\n");
        fits.cut(0);
        assert_eq!(text(&fits), "\n");
    }

    #[test]
    fn lines_break_between_words_and_never_within() {
        let wrapped = |pieces: &[&str], columns| -> String {
            let lines = line(pieces).wrapped(columns, 4);
            lines.iter().map(text).collect()
        };
        assert_eq!(wrapped(&["ab cd", " ef"], 8), "ab cd ef\n");
        assert_eq!(wrapped(&["ab cd", " ef gh"], 8), "ab cd ef\n    gh\n");
        assert_eq!(
            wrapped(&["  ab /a/long/path cd"], 8),
            "  ab\n    /a/long/path\n    cd\n"
        );
        assert_eq!(wrapped(&["  /a/long/path"], 8), "  /a/long/path\n");
    }

    #[test]
    fn ends_are_cut_between_characters() {
        assert_eq!(head("漢字", 3), "漢");
        assert_eq!(tail("漢字", 3), "字");
        assert_eq!(tail("ae\u{301}", 1), "e\u{301}");
    }

    #[test]
    fn escape_sequences_appear_only_with_colour() {
        let mut out = String::new();
        line(&["abc"]).render(true, &mut out);
        assert_eq!(out, "\x1b[1mabc\x1b[0m\n");
        assert_eq!(text(&line(&["abc"])), "abc\n");
    }
}
