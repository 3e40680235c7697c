//! Where reports go: files that appear whole or not at all, stdout, and a
//! screen that may be blocked.
//!
//! [`report`](crate::report) turns reports into bytes; here are the
//! destinations. [`Outputs`] is what a session holds.

pub mod atomic;
pub mod cache;
pub mod destination;
pub mod directory;
pub mod error;
pub mod owner;
pub mod screen;
pub mod stream;
pub mod terminal;

use std::path::{Path, PathBuf};

use crate::{
    model::{Report, Weight},
    output::{
        destination::{Destination, Target},
        directory::Directory,
        error::WriteError,
        owner::Owner,
    },
    report::export::{ExportOptions, Format},
};

/// Formats that are written when none was asked for.
const BY_DEFAULT: [Format; 3] = [Format::Svg, Format::Folded, Format::Json];

/// All outputs of a session; can be written more than once.
#[derive(Debug)]
pub struct Outputs {
    places: Places,
    owner: Option<Owner>,
}

#[derive(Debug)]
enum Places {
    /// `-o`.
    Chosen(Vec<Destination>),
    /// Without `-o`: a new directory.
    New(Directory),
    /// `--no-save`.
    None,
}

/// What became of one output.
#[derive(Debug)]
pub struct Written {
    /// Its format.
    pub format: Format,
    /// The file; `None` for stdout.
    pub path: Option<PathBuf>,
    /// Whether it is there.
    pub result: Result<(), WriteError>,
}

impl Outputs {
    /// The destinations of `-o`.
    #[must_use]
    pub fn chosen(destinations: Vec<Destination>, owner: Option<Owner>) -> Self {
        Self {
            places: Places::Chosen(destinations),
            owner,
        }
    }

    /// The usual formats in a directory that is made when it is needed.
    #[must_use]
    pub fn in_directory(directory: Directory, owner: Option<Owner>) -> Self {
        Self {
            places: Places::New(directory),
            owner,
        }
    }

    /// Nothing is written.
    #[must_use]
    pub fn none() -> Self {
        Self {
            places: Places::None,
            owner: None,
        }
    }

    /// Whether stdout belongs to an output, so that tables and the summary go
    /// to stderr.
    #[must_use]
    pub fn use_stdout(&self) -> bool {
        match &self.places {
            Places::Chosen(destinations) => destinations
                .iter()
                .any(|destination| destination.target == Target::Stdout),
            Places::New(_) | Places::None => false,
        }
    }

    /// Whether these can be written, or, if there are none, a directory can be made
    /// here: hours of tracing must not end with an error that was certain before.
    ///
    /// # Errors
    /// The first that can't.
    pub fn check(destinations: &[Destination], owner: Option<Owner>) -> Result<(), WriteError> {
        for destination in destinations {
            if let Target::File(path) = &destination.target {
                atomic::check(path, owner)?;
            }
        }
        if !destinations.is_empty() {
            return Ok(());
        }
        atomic::check_directory(".".as_ref()).map_err(|errno| {
            let here = std::env::current_dir().unwrap_or_else(|_| ".".into());
            WriteError::new(&here.join("leaktrace-…"), errno)
        })
    }

    /// The directory that will be made, to tell beforehand.
    #[must_use]
    pub fn directory(&self) -> Option<&Directory> {
        match &self.places {
            Places::New(directory) => Some(directory),
            Places::Chosen(_) | Places::None => None,
        }
    }

    /// Writes the report beside every destination that is a file, or into the
    /// directory, under names that have `label` in them: what the end of the trace
    /// brings goes elsewhere.
    pub fn write_aside(
        &mut self,
        report: &Report,
        options: &ExportOptions,
        label: &str,
    ) -> Vec<Written> {
        let owner = self.owner;
        match &mut self.places {
            Places::None => Vec::new(),
            Places::Chosen(destinations) => destinations
                .iter()
                .filter_map(|destination| destination.aside(label, owner))
                .map(|destination| write_chosen(&destination, report, options, owner))
                .collect(),
            Places::New(directory) => {
                let name = |format| format!("{label}.{format}");
                write_by_default(directory, report, options, owner, name)
            }
        }
    }

    /// Writes the report to every destination. One that fails does not keep
    /// the others from being written.
    pub fn write(&mut self, report: &Report, options: &ExportOptions) -> Vec<Written> {
        let owner = self.owner;
        match &mut self.places {
            Places::None => Vec::new(),
            Places::Chosen(destinations) => destinations
                .iter()
                .map(|destination| write_chosen(destination, report, options, owner))
                .collect(),
            Places::New(directory) => {
                let name = |format| file_name(format, options.weight);
                write_by_default(directory, report, options, owner, name)
            }
        }
    }
}

fn write_by_default(
    directory: &mut Directory,
    report: &Report,
    options: &ExportOptions,
    owner: Option<Owner>,
    name: impl Fn(Format) -> String,
) -> Vec<Written> {
    let mut all = Vec::new();
    for format in BY_DEFAULT {
        let name = name(format);
        let result = export(format, report, options, &directory.path().join(&name))
            .and_then(|bytes| directory.write(&name, &bytes, owner));
        // Only now is the directory's name certain.
        let path = directory.path().join(name);
        let no_directory = result.is_err() && !directory.is_made();
        all.push(Written {
            format,
            path: Some(path),
            result,
        });
        if no_directory {
            // Said once; the others would fail alike.
            break;
        }
    }
    all
}

fn write_chosen(
    destination: &Destination,
    report: &Report,
    options: &ExportOptions,
    owner: Option<Owner>,
) -> Written {
    let format = destination.format;
    match &destination.target {
        Target::Stdout => {
            let result = export(format, report, options, "stdout".as_ref()).and_then(|bytes| {
                stream::write_all(std::io::stdout(), &bytes)
                    .or_else(stream::closed_is_fine)
                    .map_err(|errno| WriteError::new("stdout".as_ref(), errno))
            });
            Written {
                format,
                path: None,
                result,
            }
        }
        Target::File(path) => {
            let result = export(format, report, options, path)
                .and_then(|bytes| atomic::write(path, &bytes, owner));
            Written {
                format,
                path: Some(path.clone()),
                result,
            }
        }
    }
}

impl Destination {
    /// A file beside this one; `None` where there can be none.
    fn aside(&self, label: &str, owner: Option<Owner>) -> Option<Self> {
        let Target::File(path) = &self.target else {
            return None;
        };
        let mut name = path.file_stem()?.to_owned();
        if !atomic::makes_a_file(path, owner) {
            return None;
        }
        name.push(".");
        name.push(label);
        if let Some(extension) = path.extension() {
            name.push(".");
            name.push(extension);
        }
        Some(Self {
            format: self.format,
            target: Target::File(path.with_file_name(name)),
        })
    }
}

fn export(
    format: Format,
    report: &Report,
    options: &ExportOptions,
    path: &Path,
) -> Result<Vec<u8>, WriteError> {
    format
        .exporter()
        .export(report, options)
        .map_err(|error| WriteError::because(path, format!("{error:#}")))
}

/// `live-bytes.svg`, `report.json`.
fn file_name(format: Format, weight: Weight) -> String {
    let stem = match (format, weight) {
        (Format::Json | Format::Txt, _) => "report",
        (_, Weight::LiveBytes) => "live-bytes",
        (_, Weight::LiveBlocks) => "live-blocks",
        (_, Weight::AllocBytes) => "alloc-bytes",
        (_, Weight::AllocBlocks) => "alloc-blocks",
    };
    format!("{stem}.{format}")
}
