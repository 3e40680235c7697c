//! Tables as text, for a terminal or for Markdown.

/// Rows of cells below a header.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|&cell| cell.to_owned()).collect()],
        }
    }

    pub fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// Columns aligned by spaces: words to the left, numbers to the right. A
    /// first cell that repeats the one above is left out.
    pub fn plain(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().map(|row| width(row, column)).max())
            .map(Option::unwrap_or_default)
            .collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let is_repeated = number > 0 && row.first() == self.rows[number - 1].first();
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let cell = if column == 0 && is_repeated { "" } else { cell };
                let width = widths[column];
                line += &if self.is_text(column) {
                    format!("{cell:<width$}  ")
                } else {
                    format!("{cell:>width$}  ")
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// The same for Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            text += &format!("| {} |\n", row.join(" | "));
            if number == 0 {
                let rules = (0..row.len()).map(|column| match self.is_text(column) {
                    true => "---",
                    false => "---:",
                });
                text += &format!("| {} |\n", rules.collect::<Vec<_>>().join(" | "));
            }
        }
        text
    }

    /// Whether a column has words: its first cell that says anything begins
    /// with a letter.
    fn is_text(&self, column: usize) -> bool {
        let cells = self.rows.iter().skip(1).filter_map(|row| row.get(column));
        let first = cells.filter_map(|cell| cell.chars().next()).next();
        first.is_some_and(char::is_alphabetic)
    }
}

fn width(row: &[String], column: usize) -> usize {
    row.get(column).map_or(0, |cell| cell.chars().count())
}

/// `12.3`, `123`, `12 345`: three digits or more.
pub fn grouped(value: f64) -> String {
    if value < 99.95 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `0.45 MiB`, `12.3 MiB`, `180 MiB`.
pub fn megabytes(bytes: f64) -> String {
    let value = bytes / f64::from(1 << 20);
    if value < 1.0 {
        format!("{value:.2} MiB")
    } else {
        format!("{} MiB", grouped(value))
    }
}

/// `0.4 ms`, `45 ms`, `0.45 s`, `12.3 s`.
pub fn seconds(value: f64) -> String {
    match value {
        ..0.009_95 => format!("{:.1} ms", value * 1e3),
        ..0.099_5 => format!("{:.0} ms", value * 1e3),
        ..9.995 => format!("{value:.2} s"),
        _ => format!("{} s", grouped(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["load", "ns", "note"]);
        for (load, ns, note) in [("a", "5.0", ""), ("a", "1 000", "slow"), ("bee", "", "")] {
            table.push(vec![load.into(), ns.into(), note.into()]);
        }
        table
    }

    #[test]
    fn plain_columns_are_aligned_and_repetition_is_left_out() {
        let expected = "load     ns  note\n\
                        a       5.0\n\
                        \x20     1 000  slow\n\
                        bee\n";
        assert_eq!(table().plain(), expected);
    }

    #[test]
    fn markdown_keeps_every_cell() {
        let expected = "| load | ns | note |\n\
                        | --- | ---: | --- |\n\
                        | a | 5.0 |  |\n\
                        | a | 1 000 | slow |\n\
                        | bee |  |  |\n";
        assert_eq!(table().markdown(), expected);
    }

    #[test]
    fn quantities_have_about_three_digits() {
        assert_eq!(grouped(12.34), "12.3");
        assert_eq!(grouped(99.96), "100");
        assert_eq!(grouped(1_234_567.8), "1 234 568");
        assert_eq!(seconds(0.000_44), "0.4 ms");
        assert_eq!(seconds(0.045), "45 ms");
        assert_eq!(seconds(0.123), "0.12 s");
        assert_eq!(seconds(12.34), "12.3 s");
        assert_eq!(megabytes(524_288.0), "0.50 MiB");
        assert_eq!(megabytes(180.0 * 1_048_576.0), "180 MiB");
    }
}
