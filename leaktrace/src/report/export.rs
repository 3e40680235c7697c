//! The outputs that can be asked for: one list of formats, each with what turns
//! a report into its bytes.

use std::{fmt, path::Path, str::FromStr};

use crate::{
    model::{Report, Weight},
    report::{flamegraph, folded, json, summary},
};

/// What a person may choose about an output, whatever its format.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// What widths and numbers mean in `svg` and `folded`.
    pub weight: Weight,
    /// Most sites whose stacks `txt` shows.
    pub top: usize,
}

/// Turns a report into the bytes of a file; knows nothing of where they go.
pub trait Exporter {
    /// The whole file.
    ///
    /// # Errors
    /// When the report can't be expressed in this format, which would be a
    /// defect.
    fn export(&self, report: &Report, options: &ExportOptions) -> anyhow::Result<Vec<u8>>;
}

/// A format of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A flamegraph.
    Svg,
    /// Folded stacks.
    Folded,
    /// The JSON report.
    Json,
    /// The summary.
    Txt,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Svg, Self::Folded, Self::Json, Self::Txt];

    /// Its name, which is also the extension of its files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Svg => "svg",
            Self::Folded => "folded",
            Self::Json => "json",
            Self::Txt => "txt",
        }
    }

    /// The names of all formats, for messages: `svg, folded, json, txt`.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The format whose name is the path's extension.
    #[must_use]
    pub fn of_extension(path: &Path) -> Option<Self> {
        path.extension()?.to_str()?.parse().ok()
    }

    /// What makes it.
    #[must_use]
    pub fn exporter(self) -> &'static dyn Exporter {
        match self {
            Self::Svg => &Svg,
            Self::Folded => &Folded,
            Self::Json => &Json,
            Self::Txt => &Txt,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No format has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such format: `{0}` (there are {names})", names = Format::names())]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

struct Svg;
struct Folded;
struct Json;
struct Txt;

impl Exporter for Svg {
    fn export(&self, report: &Report, options: &ExportOptions) -> anyhow::Result<Vec<u8>> {
        flamegraph::render(report, options.weight)
    }
}

impl Exporter for Folded {
    fn export(&self, report: &Report, options: &ExportOptions) -> anyhow::Result<Vec<u8>> {
        Ok(folded::render(report, options.weight).into_bytes())
    }
}

impl Exporter for Json {
    fn export(&self, report: &Report, _: &ExportOptions) -> anyhow::Result<Vec<u8>> {
        json::render(report)
    }
}

impl Exporter for Txt {
    fn export(&self, report: &Report, options: &ExportOptions) -> anyhow::Result<Vec<u8>> {
        let options = summary::SummaryOptions {
            width: None,
            colour: false,
            top: options.top,
        };
        Ok(summary::render(report, &options).into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_by_its_name_and_extension() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            let path = format!("a.b/c.{format}");
            assert_eq!(Format::of_extension(Path::new(&path)), Some(format));
        }
        assert_eq!(Format::of_extension(Path::new("svg")), None);
        assert_eq!(
            "pdf".parse::<Format>().unwrap_err().to_string(),
            "no such format: `pdf` (there are svg, folded, json, txt)"
        );
    }
}
