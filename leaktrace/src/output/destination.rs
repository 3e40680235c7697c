//! What `-o` says: a format and a place.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::report::export::{Format, UnknownFormat};

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// What is written.
    pub format: Format,
    /// Where to.
    pub target: Target,
}

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `-`, `/dev/stdout` and the like.
    Stdout,
    /// A file.
    File(PathBuf),
}

/// An `-o` that names no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// Neither a format nor an extension that is one.
    #[error(
        "cannot tell the format of `{0}`: write -o FORMAT:{0} with one of {names}, or use one of \
         these as the extension",
        names = Format::names()
    )]
    NoFormat(String),
    /// Something like a format, before a colon.
    #[error(transparent)]
    Unknown(#[from] UnknownFormat),
    /// Nothing after the colon.
    #[error("`{0}:` names no file: write -o {0}:PATH, or -o {0}:- for stdout")]
    NoPath(Format),
    /// Two outputs for one place.
    #[error("two outputs go to {0}: leave one out, or name another place")]
    Twice(String),
}

impl Destination {
    /// Reads `FORMAT:PATH`, or a path whose extension is the format.
    ///
    /// # Errors
    /// When the format is missing or unknown, or the path is.
    pub fn parse(text: &OsStr) -> Result<Self, DestinationError> {
        let bytes = text.as_bytes();
        if let Some(colon) = bytes.iter().position(|byte| *byte == b':') {
            let (before, after) = (&bytes[..colon], OsStr::from_bytes(&bytes[colon + 1..]));
            match std::str::from_utf8(before).map(str::parse::<Format>) {
                Ok(Ok(format)) if after.is_empty() => return Err(DestinationError::NoPath(format)),
                Ok(Ok(format)) => {
                    return Ok(Self {
                        format,
                        target: Target::of(after),
                    });
                }
                // A colon may as well be part of a path.
                Ok(Err(unknown)) if Format::of_extension(Path::new(text)).is_none() => {
                    return Err(unknown.into());
                }
                _ => {}
            }
        }
        match Format::of_extension(Path::new(text)) {
            Some(format) => Ok(Self {
                format,
                target: Target::of(text),
            }),
            None => Err(DestinationError::NoFormat(
                text.to_string_lossy().into_owned(),
            )),
        }
    }

    /// Checks that no two outputs have one place.
    ///
    /// # Errors
    /// When two have; names it.
    pub fn check_distinct(all: &[Self]) -> Result<(), DestinationError> {
        for (index, one) in all.iter().enumerate() {
            if all[..index].iter().any(|known| known.target == one.target) {
                return Err(DestinationError::Twice(match &one.target {
                    Target::Stdout => "stdout".to_owned(),
                    Target::File(path) => path.display().to_string(),
                }));
            }
        }
        Ok(())
    }
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        Self::parse(text.as_ref())
    }
}

impl Target {
    fn of(path: &OsStr) -> Self {
        const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
        if STDOUT.iter().any(|known| path == *known) {
            return Self::Stdout;
        }
        Self::File(path.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Destination, String> {
        Destination::parse(text.as_ref()).map_err(|error| error.to_string())
    }

    fn file(format: Format, path: &str) -> Result<Destination, String> {
        Ok(Destination {
            format,
            target: Target::File(path.into()),
        })
    }

    #[test]
    fn a_format_before_the_colon_wins_over_the_extension() {
        assert_eq!(parse("json:out.svg"), file(Format::Json, "out.svg"));
        assert_eq!(parse("dir.d/out.svg"), file(Format::Svg, "dir.d/out.svg"));
        assert_eq!(parse("10:30.folded"), file(Format::Folded, "10:30.folded"));
        assert_eq!(parse("txt:a:b"), file(Format::Txt, "a:b"));
    }

    #[test]
    fn stdout_has_more_than_one_name() {
        for name in ["-", "/dev/stdout", "/proc/self/fd/1"] {
            let parsed = parse(&format!("json:{name}")).unwrap();
            assert_eq!(parsed.target, Target::Stdout);
        }
        assert_eq!(parse("json:./-"), file(Format::Json, "./-"));
    }

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(
            parse("out").unwrap_err(),
            "cannot tell the format of `out`: write -o FORMAT:out with one of svg, folded, json, \
             txt, or use one of these as the extension"
        );
        assert_eq!(
            parse("pdf:out").unwrap_err(),
            "no such format: `pdf` (there are svg, folded, json, txt)"
        );
        assert_eq!(
            parse("svg:").unwrap_err(),
            "`svg:` names no file: write -o svg:PATH, or -o svg:- for stdout"
        );
    }

    #[test]
    fn two_outputs_do_not_share_a_place() {
        let all = |texts: &[&str]| {
            let all: Vec<Destination> = texts.iter().map(|text| text.parse().unwrap()).collect();
            Destination::check_distinct(&all).map_err(|error| error.to_string())
        };
        all(&["json:-", "svg:a.svg", "svg:b.svg"]).unwrap();
        assert_eq!(
            all(&["json:-", "svg:/dev/stdout"]).unwrap_err(),
            "two outputs go to stdout: leave one out, or name another place"
        );
        assert!(
            all(&["json:a", "svg:a"])
                .unwrap_err()
                .starts_with("two outputs go to a:")
        );
    }
}
