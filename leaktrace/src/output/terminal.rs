//! How wide a terminal is and whether it may show colours.

use std::{env, io::IsTerminal as _, os::fd::AsFd};

use crate::report::line::{Line, Look};

/// Width of a terminal that does not tell its own.
const USUAL_COLUMNS: usize = 80;
/// Width where the output is no terminal: wide enough for most stacks.
const FILE_COLUMNS: usize = 120;
/// What an output can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Columns of a line.
    pub columns: usize,
    /// Whether escape sequences for colours are welcome.
    pub colour: bool,
    /// Whether it is a terminal at all.
    pub is_terminal: bool,
}

impl Terminal {
    /// What `fd` is now; a terminal's width may change at any time.
    ///
    /// Colours are off without a terminal, with `NO_COLOR` set to anything
    /// (<https://no-color.org>), and on `TERM=dumb`.
    #[must_use]
    pub fn of(fd: impl AsFd) -> Self {
        let fd = fd.as_fd();
        let size = rustix::termios::tcgetwinsize(fd).ok();
        Self::decide(
            fd.is_terminal(),
            size.map(|size| usize::from(size.ws_col)),
            |name| env::var(name).ok(),
        )
    }

    fn decide(
        is_terminal: bool,
        own_columns: Option<usize>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let said = variable("COLUMNS").and_then(|text| text.trim().parse().ok());
        let known = |columns: &usize| *columns > 0;
        let columns = if is_terminal {
            own_columns
                .filter(known)
                .or(said.filter(known))
                .unwrap_or(USUAL_COLUMNS)
        } else {
            said.filter(known).unwrap_or(FILE_COLUMNS)
        };
        let refused = variable("NO_COLOR").is_some_and(|value| !value.is_empty())
            || variable("TERM").is_some_and(|term| term == "dumb");
        Self {
            columns,
            colour: is_terminal && !refused,
            is_terminal,
        }
    }
}

/// Breaks each line of `text` between words where stderr's terminal ends; as it
/// is without a terminal.
#[must_use]
pub fn fitted_to_stderr(text: &str) -> String {
    let terminal = Terminal::of(rustix::stdio::stderr());
    if !terminal.is_terminal {
        return text.to_owned();
    }
    let mut fitted = String::new();
    for paragraph in text.lines() {
        let mut line = Line::default();
        line.push(Look::Plain, paragraph);
        for line in line.wrapped(terminal.columns, 2) {
            line.render(false, &mut fitted);
        }
    }
    fitted.truncate(fitted.trim_end_matches('\n').len());
    fitted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(is_terminal: bool, own: usize, variables: &[(&str, &str)]) -> (usize, bool) {
        let terminal = Terminal::decide(is_terminal, Some(own), |name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        });
        (terminal.columns, terminal.colour)
    }

    #[test]
    fn a_terminal_tells_its_width_and_has_colours() {
        assert_eq!(decide(true, 132, &[("COLUMNS", "90")]), (132, true));
        assert_eq!(decide(true, 0, &[("COLUMNS", "90")]), (90, true));
        assert_eq!(decide(true, 0, &[]), (80, true));
        assert_eq!(decide(true, 30, &[]), (30, true));
    }

    #[test]
    fn colours_can_be_refused() {
        assert_eq!(decide(true, 100, &[("NO_COLOR", "1")]), (100, false));
        assert_eq!(decide(true, 100, &[("NO_COLOR", "")]), (100, true));
        assert_eq!(decide(true, 100, &[("TERM", "dumb")]), (100, false));
    }

    #[test]
    fn a_file_gets_no_colours_and_a_width_of_its_own() {
        assert_eq!(decide(false, 0, &[]), (120, false));
        assert_eq!(decide(false, 0, &[("COLUMNS", "200")]), (200, false));
        assert_eq!(decide(false, 0, &[("COLUMNS", "wide")]), (120, false));
    }
}
