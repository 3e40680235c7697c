//! The workspace's test programs, built all at once.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{process, project, toolchain};

/// The package whose integration tests trace real processes.
const END_TO_END: &str = "tests";

/// A compiled test program.
#[derive(Debug, PartialEq, Eq)]
pub struct Binary {
    /// As cargo calls it, with the kind: `leaktrace (lib)`.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Where cargo would start it.
    pub package_dir: PathBuf,
    /// Whether it traces processes.
    pub needs_root: bool,
}

/// Builds the tests of all members.
///
/// # Errors
/// They do not compile.
pub fn build() -> Result<Vec<Binary>> {
    let mut cargo = toolchain::cargo();
    cargo
        .current_dir(project::root())
        .args(["test", "--quiet", "--locked", "--workspace", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(std::process::Stdio::inherit());
    let built = cargo
        .output()
        .with_context(|| format!("cannot start `{}`", process::shown(&cargo)))?;
    if !built.status.success() {
        bail!("the tests do not compile");
    }
    let end_to_end = project::root().join(END_TO_END);
    let messages = String::from_utf8_lossy(&built.stdout);
    let mut binaries: Vec<_> = messages
        .lines()
        .filter_map(|line| binary(line, &end_to_end))
        .collect();
    // Cargo names them as they get ready; the same order each time is easier to follow.
    binaries.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(binaries)
}

/// Reads one message of cargo's; `None` when it is of no test program.
fn binary(message: &str, end_to_end: &Path) -> Option<Binary> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let kind = message["target"]["kind"][0].as_str()?;
    let package_dir = Path::new(message["manifest_path"].as_str()?)
        .parent()?
        .to_path_buf();
    Some(Binary {
        name: format!("{} ({kind})", message["target"]["name"].as_str()?),
        path: message["executable"].as_str()?.into(),
        needs_root: kind == "test" && package_dir == end_to_end,
        package_dir,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(dir: &str, kind: &str, test: bool) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"{dir}/Cargo.toml",
                "target":{{"kind":["{kind}"],"name":"n"}},"profile":{{"test":{test}}},
                "executable":"/target/n-1"}}"#
        )
    }

    #[test]
    fn only_integration_tests_of_the_end_to_end_package_need_root() {
        let needs_root = |dir, kind| {
            binary(&message(dir, kind, true), Path::new("/p/tests")).map(|binary| binary.needs_root)
        };
        assert_eq!(needs_root("/p/tests", "test"), Some(true));
        assert_eq!(needs_root("/p/tests", "lib"), Some(false));
        assert_eq!(needs_root("/p/leaktrace", "test"), Some(false));
    }

    #[test]
    fn programs_that_are_no_tests_are_left_out() {
        let end_to_end = Path::new("/p/tests");
        assert_eq!(
            binary(&message("/p/leaktrace", "bin", false), end_to_end),
            None
        );
        assert_eq!(
            binary(r#"{"reason":"build-finished","success":true}"#, end_to_end),
            None
        );
        assert_eq!(binary("Compiling", end_to_end), None);
    }
}
