//! Finding the process that the user means by its name.

use std::{fs, path::Path};

use super::{
    Process, TargetError,
    error::{Match, MatchList},
    status::Stat,
    wall_clock,
};

/// What names the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// A process id.
    Pid(u32),
    /// A command name, or the file name of an executable.
    Name(String),
}

/// Finds and opens the one process that is meant.
///
/// # Errors
/// When there is none, or more than one, or it can't be traced.
pub fn find(selector: &Selector) -> Result<Process, TargetError> {
    match selector {
        Selector::Pid(pid) => Process::open(*pid),
        Selector::Name(name) => {
            let own = std::process::id();
            let candidates = candidates(name).filter(|candidate| candidate.pid != own);
            match choose(candidates.collect()) {
                Choice::One(pid) => Process::open(pid),
                Choice::None => Err(TargetError::NoneMatches { name: name.clone() }),
                Choice::Several(several) => Err(TargetError::SeveralMatch {
                    name: name.clone(),
                    matches: MatchList(several.iter().map(describe).collect()),
                }),
            }
        }
    }
}

/// A process whose name fits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    pid: u32,
    name: String,
    start_ticks: u64,
    /// Whether it is one that could be meant: no kernel thread, no zombie.
    can_be_meant: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    None,
    One(u32),
    Several(Vec<Candidate>),
}

/// Those that could be meant come first; with none of these, the others are
/// looked at, so that the error can say what is wrong with them.
fn choose(candidates: Vec<Candidate>) -> Choice {
    let (meant, others): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .partition(|candidate| candidate.can_be_meant);
    let mut chosen = if meant.is_empty() { others } else { meant };
    chosen.sort_by_key(|candidate| candidate.pid);
    match chosen.as_slice() {
        [] => Choice::None,
        [one] => Choice::One(one.pid),
        _ => Choice::Several(chosen),
    }
}

/// All processes with this command name or file name of the executable.
/// Processes that end meanwhile are left out.
fn candidates(name: &str) -> impl Iterator<Item = Candidate> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(move |pid| {
            let stat = Stat::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)?;
            let exe = fs::read_link(format!("/proc/{pid}/exe")).ok();
            let fits = stat.name == name || exe.is_some_and(|exe| has_file_name(&exe, name));
            // A main thread that ended before the others still has tasks beside it.
            let ended = stat.has_ended() && super::living_thread(pid, &stat).is_none();
            fits.then(|| Candidate {
                pid,
                can_be_meant: !stat.is_kernel_thread() && !ended,
                start_ticks: stat.start_ticks,
                name: stat.name,
            })
        })
}

/// Whether this is the file name of an executable, which may be deleted.
fn has_file_name(exe: &Path, name: &str) -> bool {
    exe.file_name().is_some_and(|file| {
        let file = file.to_string_lossy();
        file == name || file.strip_suffix(" (deleted)") == Some(name)
    })
}

fn describe(candidate: &Candidate) -> Match {
    let arguments = fs::read(format!("/proc/{}/cmdline", candidate.pid)).unwrap_or_default();
    let arguments = arguments.strip_suffix(b"\0").unwrap_or(&arguments);
    let command_line = String::from_utf8_lossy(arguments).replace('\0', " ");
    Match {
        pid: candidate.pid,
        started: wall_clock(candidate.start_ticks),
        command_line: if command_line.is_empty() {
            format!("[{}]", candidate.name)
        } else {
            command_line
        },
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{
        super::test_process::{Running, install},
        *,
    };

    fn candidate(pid: u32, can_be_meant: bool) -> Candidate {
        Candidate {
            pid,
            name: "x".into(),
            start_ticks: 0,
            can_be_meant,
        }
    }

    #[test]
    fn a_zombie_of_the_same_name_is_not_meant_but_alone_it_is_named() {
        assert_eq!(
            choose(vec![candidate(9, false), candidate(7, true)]),
            Choice::One(7)
        );
        assert_eq!(choose(vec![candidate(9, false)]), Choice::One(9));
        assert_eq!(choose(vec![]), Choice::None);
        assert_eq!(
            choose(vec![
                candidate(9, true),
                candidate(7, true),
                candidate(8, false)
            ]),
            Choice::Several(vec![candidate(7, true), candidate(9, true)])
        );
    }

    #[test]
    fn the_executable_s_file_name_fits_also_when_deleted() {
        assert!(has_file_name(Path::new("/usr/bin/orderd"), "orderd"));
        assert!(has_file_name(
            Path::new("/usr/bin/orderd (deleted)"),
            "orderd"
        ));
        assert!(!has_file_name(Path::new("/usr/bin/orderd2"), "orderd"));
        assert!(!has_file_name(
            Path::new("/usr/bin/orderd"),
            "/usr/bin/orderd"
        ));
    }

    /// `sleep` under a name that nothing else on the machine has.
    fn sleeper(directory: &Path, name: &str) -> Running {
        let exe = directory.join(name);
        if !exe.exists() {
            install(&fs::read("/bin/sleep").unwrap(), &exe);
        }
        Running::start(Command::new(&exe).arg("1000"))
    }

    #[test]
    fn by_name_one_is_found_and_several_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        // Longer than a command name can be: only the executable's name fits.
        let name = format!("leaktrace-select-{}", std::process::id());
        let selector = Selector::Name(name.clone());
        assert_eq!(
            find(&selector).unwrap_err().to_string(),
            format!(
                "no process has `{name}` as its command name or as the file name of its \
                 executable; `ps -eo pid,comm,args` lists the names"
            )
        );

        let first = sleeper(directory.path(), &name);
        let found = find(&selector).unwrap();
        assert_eq!(found.pid(), first.pid());
        assert_eq!(found.name(), &name[..15]);

        let second = sleeper(directory.path(), &name);
        let error = find(&selector).unwrap_err();
        let TargetError::SeveralMatch { matches, .. } = &error else {
            panic!("{error}");
        };
        let mut pids: Vec<_> = matches.0.iter().map(|entry| entry.pid).collect();
        pids.sort_unstable();
        let mut expected = [first.pid(), second.pid()];
        expected.sort_unstable();
        assert_eq!(pids, expected);
        assert!(matches.0[0].command_line.ends_with(&format!("{name} 1000")));
    }
}
