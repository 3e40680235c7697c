//! The command of `--on-alert`: run on a thread of its own, so that neither
//! watching nor reporting ever waits for it.

use std::{
    ffi::OsString,
    io,
    os::{fd::AsFd as _, unix::process::CommandExt as _, unix::process::ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, SyncSender, TrySendError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use super::progress::say_aside;
use crate::{
    launch::{Inherited, child, inherited},
    report::quantity,
    say,
};

/// How long a command that took too long may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(2);
/// How long the end of leaktrace waits for commands without a word, and for what is
/// still being said.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is run for one alert.
pub struct Job {
    /// The condition, as it was written.
    pub alert: String,
    /// What the command is told.
    pub variables: Vec<(String, OsString)>,
}

/// The thread that runs commands, one after another.
pub struct Commands {
    jobs: SyncSender<Job>,
    thread: JoinHandle<()>,
    timeout: Duration,
}

/// What runs commands.
struct Runner {
    command: OsString,
    timeout: Duration,
    inherited: Inherited,
}

impl Commands {
    /// Starts the thread. As many as `waiting` may wait for their turn.
    ///
    /// # Errors
    /// When the system has no resources for it.
    pub fn start(
        command: OsString,
        timeout: Duration,
        waiting: usize,
        inherited: Inherited,
    ) -> Result<Self> {
        inherited::keep_descriptors();
        child::collect_children();
        let (jobs, receiver) = mpsc::sync_channel(waiting);
        let runner = Runner {
            command,
            timeout,
            inherited,
        };
        let thread = std::thread::Builder::new()
            .name("on-alert".into())
            .spawn(move || runner.run_all(&receiver))
            .context("starting the thread for --on-alert")?;
        Ok(Self {
            jobs,
            thread,
            timeout,
        })
    }

    /// Runs the command soon. Never blocks.
    pub fn run(&self, job: Job) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) =
            self.jobs.try_send(job)
        {
            say_aside(format!(
                "leaktrace: the command of --on-alert is not run for {}: earlier ones have not \
                 ended",
                job.alert
            ));
        }
    }

    /// Waits for those that run and are to run.
    pub fn finish(self) {
        let Self {
            jobs,
            thread,
            timeout,
        } = self;
        drop(jobs);
        let started = Instant::now();
        while !thread.is_finished() && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !thread.is_finished() {
            say!(
                "waiting for the command of --on-alert, which may take {}",
                quantity::duration(timeout)
            );
        }
        let _ = thread.join();
    }
}

impl Runner {
    fn run_all(&self, jobs: &Receiver<Job>) {
        let mut saying = None;
        while let Ok(job) = jobs.recv() {
            let problem = match self.run(&job) {
                Ok(problem) => problem,
                Err(error) => Some(format!("could not be started: {error}")),
            };
            if let Some(problem) = problem {
                // The next one does not wait for a terminal that is blocked.
                saying = Some(say_aside(format!(
                    "leaktrace: the command of --on-alert for {} {problem}",
                    job.alert
                )));
            }
        }
        if let Some(saying) = saying {
            let _ = saying.recv_timeout(PATIENCE);
        }
    }

    /// Runs it to its end; what is to be said of that.
    fn run(&self, job: &Job) -> io::Result<Option<String>> {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(&self.command)
            .envs(job.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .process_group(0);
        match io::stderr().as_fd().try_clone_to_owned() {
            Ok(stderr) => command.stdout(stderr),
            Err(_) => command.stdout(Stdio::null()),
        };
        self.inherited.give_back(&mut command);
        let may_write = || {
            // It is in the background of the terminal that it writes to.
            // SAFETY: ignoring a signal runs no code.
            unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: it makes one system call only.
        unsafe { command.pre_exec(may_write) };
        let mut child = command.spawn()?;
        let (status, in_time) = end_within(&mut child, self.timeout)?;
        Ok(if in_time {
            failure(status)
        } else {
            let limit = quantity::duration(self.timeout);
            Some(format!(
                "did not end within {limit} (--alert-timeout) and was killed"
            ))
        })
    }
}

/// How a command ended, if not well.
fn failure(status: ExitStatus) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("ended with status {code}")),
        (None, Some(signal)) => Some(format!("was killed by signal {signal}")),
        (None, None) => Some("ended in no known way".to_owned()),
    }
}

/// Waits for a command's end, or ends it with all of its process group; the latter
/// when false.
fn end_within(child: &mut Child, timeout: Duration) -> io::Result<(ExitStatus, bool)> {
    let group = Pid::from_child(child);
    let pidfd = pidfd_open(group, PidfdFlags::empty())?;
    let ends_within = |time: Duration| {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.map(|ended| ended > 0),
            }
        }
    };
    let in_time = ends_within(timeout)?;
    if !in_time {
        // Not waited for, its id is still that of its group.
        let _ = kill_process_group(group, Signal::TERM);
        ends_within(GRACE)?;
        let _ = kill_process_group(group, Signal::KILL);
    }
    Ok((child.wait()?, in_time))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn runner(command: &str, timeout: Duration) -> Runner {
        Runner {
            command: command.into(),
            timeout,
            inherited: Inherited::capture().unwrap(),
        }
    }

    fn run(runner: &Runner, file: &Path) -> Option<String> {
        let job = Job {
            alert: "live>1".to_owned(),
            variables: vec![("FILE".to_owned(), file.into())],
        };
        runner.run(&job).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_command_gets_its_variables_and_a_clean_process() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("said");
        let command = "{ grep -E 'SigBlk|SigIgn' /proc/self/status; ls /proc/self/fd | wc -l; \
                       readlink /proc/self/fd/0; ps -o pgid= -p $$; echo $$; } > \"$FILE\"";
        inherited::keep_descriptors();
        assert_eq!(run(&runner(command, LONG), &file), None);
        let said = fs::read_to_string(file).unwrap();
        let words: Vec<_> = said.split_whitespace().collect();
        let [_, blocked, _, ignored, descriptors, stdin, group, process] = words[..] else {
            panic!("{said}")
        };
        assert_eq!(u64::from_str_radix(blocked, 16), Ok(0));
        let bit = |signal: i32| 1_u64 << (signal - 1);
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let own = u64::from_str_radix(own.unwrap().trim(), 16).unwrap();
        // Rust's runtime ignores SIGPIPE for itself.
        let expected = own & !bit(libc::SIGPIPE) | bit(libc::SIGTTOU);
        assert_eq!(u64::from_str_radix(ignored, 16), Ok(expected));
        // Standard ones, and the directory that `ls` reads; `ls`'s stdout is the
        // pipe.
        assert_eq!(descriptors, "4");
        assert_eq!(stdin, "/dev/null");
        assert_eq!(group, process);
    }

    #[test]
    fn how_it_ended_is_told() {
        let nowhere = Path::new("");
        let told = |command| run(&runner(command, LONG), nowhere);
        assert_eq!(told("true"), None);
        assert_eq!(told("exit 3").unwrap(), "ended with status 3");
        assert_eq!(told("kill -9 $$").unwrap(), "was killed by signal 9");
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("child");
        // The shell ends when asked to, its child does not.
        let command =
            "sh -c 'trap \"\" TERM; echo $$ > \"$FILE\"; while :; do sleep 1; done' & wait";
        let started = Instant::now();
        let told = run(&runner(command, Duration::from_millis(500)), &file);
        assert_eq!(
            told.unwrap(),
            "did not end within 0.5 s (--alert-timeout) and was killed"
        );
        assert!(started.elapsed() < Duration::from_secs(20));
        let child = fs::read_to_string(file).unwrap();
        let status = format!("/proc/{}/status", child.trim());
        let is_gone =
            || fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ"));
        while !is_gone() {
            assert!(started.elapsed() < Duration::from_secs(20), "{child} lives");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn commands_that_can_not_wait_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("runs");
        let command = "sleep 0.5; echo ran >> \"$FILE\"";
        let inherited = Inherited::capture().unwrap();
        let commands = Commands::start(command.into(), LONG, 1, inherited).unwrap();
        let started = Instant::now();
        for _ in 0..5 {
            commands.run(Job {
                alert: "live>1".to_owned(),
                variables: vec![("FILE".to_owned(), file.clone().into())],
            });
        }
        assert!(started.elapsed() < Duration::from_millis(400), "it waited");
        commands.finish();
        // One that ran, if it was taken before the next came, and one that waited.
        let runs = fs::read_to_string(file).unwrap().lines().count();
        assert!((1..=2).contains(&runs), "{runs}");
    }
}
