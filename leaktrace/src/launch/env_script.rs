//! Scripts that begin with `#!/usr/bin/env NAME`: env(1) does nothing but find
//! NAME in PATH and replace itself by it, so the command that it would execute
//! is executed at once, and traced from its first instruction.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use super::command::Command;

/// How many such scripts lead to each other at most, as the kernel has it for
/// scripts.
const MOST_SCRIPTS: usize = 5;

impl Command {
    /// What this command executes in the end when it is a script for env(1) and
    /// all that env would do is clear; otherwise this command.
    #[must_use]
    pub fn past_env(self) -> Self {
        let mut command = self;
        for _ in 0..MOST_SCRIPTS {
            match command.behind_env() {
                // Else env says best that it does not find it.
                Some(behind) if behind.resolve().is_some() => command = behind,
                _ => break,
            }
        }
        command
    }

    fn behind_env(&self) -> Option<Self> {
        let script = self.resolve()?;
        let mut start = Vec::new();
        // The kernel looks at as many bytes (`BINPRM_BUF_SIZE`).
        File::open(&script)
            .and_then(|file| file.take(256).read_to_end(&mut start))
            .ok()?;
        let mut words = env_words(&start)?.into_iter();
        let program = words.next()?;
        Some(Self {
            program,
            arguments: words
                .chain([script.into_os_string()])
                .chain(self.arguments.iter().cloned())
                .collect(),
            ..self.clone()
        })
    }
}

/// The words that env executes for a script that starts so. `None` when it is
/// no script for env, or env would do more than that: options other than `-S`,
/// variables, quotes.
fn env_words(start: &[u8]) -> Option<Vec<OsString>> {
    let (line, _) = start
        .strip_prefix(b"#!")?
        .split_at_checked(start.iter().position(|byte| *byte == b'\n')? - 2)?;
    let line = line.trim_ascii();
    let end = line.iter().position(u8::is_ascii_whitespace)?;
    let (interpreter, rest) = (&line[..end], line[end..].trim_ascii());
    if Path::new(OsStr::from_bytes(interpreter)).file_name() != Some(OsStr::new("env")) {
        return None;
    }
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+=:,@%".contains(byte);
    let words: Vec<&[u8]> = match rest.strip_prefix(b"-S") {
        Some(words) => words
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .collect(),
        // The kernel passes all the rest as one argument.
        None => vec![rest],
    };
    let first = words.first()?;
    let is_program = !first.starts_with(b"-") && !first.contains(&b'=');
    let is_plain = words.iter().all(|word| word.iter().all(plain));
    (is_program && is_plain).then(|| {
        let words = words.into_iter();
        words.map(|word| OsStr::from_bytes(word).into()).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;

    #[test]
    fn only_what_env_does_plainly_is_done_for_it() {
        let words = |line: &str| env_words(format!("{line}\nprint(1)\n").as_bytes());
        let some = |all: &[&str]| Some(all.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(words("#!/usr/bin/env python3"), some(&["python3"]));
        assert_eq!(words("#! /bin/env  perl "), some(&["perl"]));
        assert_eq!(
            words("#!/usr/bin/env -S python3 -u -X a=b"),
            some(&["python3", "-u", "-X", "a=b"])
        );
        for other in [
            "#!/usr/bin/python3",
            "#!/usr/bin/env",
            "#!/usr/bin/env -i sh",
            "#!/usr/bin/env -S A=1 sh",
            "#!/usr/bin/env -S 'a b'",
            "#!/usr/bin/env -S ${HOME}/x",
            "#!/usr/bin/env python3 -u",
            "python3",
        ] {
            assert_eq!(words(other), None, "{other}");
        }
        assert_eq!(env_words(b"#!/usr/bin/env py"), None, "it may go on");
    }

    #[test]
    fn a_script_becomes_an_argument_of_what_it_names() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let script = |name: &str, text: &str| {
            fs::write(at(name), text).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        fs::copy("/bin/true", at("real")).unwrap();
        script("shim", "#!/usr/bin/env -S real -x\n");
        script("script", "#!/usr/bin/env shim\n");
        script("lost", "#!/usr/bin/env nowhere-at-all\n");
        let run = |program: PathBuf| {
            let command = Command {
                environment: vec![("PATH".into(), directory.path().into())],
                ..Command::new(program.into(), vec!["1".into()])
            };
            let behind = command.past_env();
            (behind.program, behind.arguments)
        };
        let paths = [at("shim"), at("script")].map(PathBuf::into_os_string);
        let [shim, name] = paths;
        assert_eq!(
            run(at("script")),
            ("real".into(), vec!["-x".into(), shim, name, "1".into()])
        );
        let lost = at("lost").into_os_string();
        assert_eq!(run(at("lost")), (lost, vec!["1".into()]));
    }
}
