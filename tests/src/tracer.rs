//! The release binary, run as a user would run it.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build, features,
    fixture::{last_error, wait_for},
    report::Report,
    suite,
};

/// How long attaching, and ending with all outputs, may take on a busy machine.
fn patience() -> Duration {
    Duration::from_secs(if suite::is_emulated() { 180 } else { 60 })
}

/// The binary that is tested: `LEAKTRACE_BIN`, or the workspace's release build.
#[must_use]
pub fn binary() -> PathBuf {
    match std::env::var_os("LEAKTRACE_BIN") {
        Some(path) if !path.is_empty() => path.into(),
        _ => build::target_directory()
            .unwrap_or_default()
            .join("release/leaktrace"),
    }
}

/// How to start leaktrace.
pub struct Start {
    command: Command,
    directory: tempfile::TempDir,
}

/// A running leaktrace. Killed when dropped.
pub struct Tracer {
    child: Child,
    errors: Receiver<String>,
    /// What it said on stderr up to now.
    said: Vec<String>,
    stdout: Option<JoinHandle<Vec<u8>>>,
    directory: tempfile::TempDir,
}

/// A leaktrace that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its stdout.
    pub stdout: String,
    /// All of its stderr, line by line.
    pub stderr: Vec<String>,
    /// Time from the call that ended it to its end.
    pub took: Duration,
    directory: tempfile::TempDir,
}

impl Start {
    /// leaktrace with these arguments and nothing else.
    ///
    /// # Errors
    /// When no directory for its outputs can be made.
    pub fn bare<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("leaktrace-test-")
            .tempdir()?;
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(directory.path())
            .env("LEAKTRACE_DISABLE_FEATURES", features::switched_off());
        Ok(Self { command, directory })
    }

    /// `attach PID` with a JSON report, final tables only, and no brake: tests
    /// drive their fixtures as hard as they can.
    ///
    /// # Errors
    /// When no directory for its outputs can be made.
    pub fn attach(pid: u32) -> Result<Self> {
        let mut start = Self::bare(&["attach", &pid.to_string()])?;
        start.report_to_json();
        start.command.args(["--max-overhead", "off"]);
        Ok(start)
    }

    /// `run -- COMMAND…` with a JSON report.
    ///
    /// # Errors
    /// When no directory for its outputs can be made.
    pub fn run<S: AsRef<OsStr>>(options: &[&str], command: &[S]) -> Result<Self> {
        let mut start = Self::bare(&["run"])?;
        start.report_to_json();
        start.command.args(options).arg("--").args(command);
        Ok(start)
    }

    fn report_to_json(&mut self) {
        let mut output = std::ffi::OsString::from("json:");
        output.push(self.directory.path().join("report.json"));
        self.command.arg("-o").arg(output).args(["--no-save", "-q"]);
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// The same in a PID namespace of its own, as in a container.
    #[must_use]
    pub fn in_a_pid_namespace(self) -> Self {
        self.by(&["unshare", "--pid", "--fork", "--mount-proc"])
    }

    /// The same where `/sys` is not mounted.
    #[must_use]
    pub fn without_sysfs(self) -> Self {
        let script = "umount -l /sys && exec \"$0\" \"$@\"";
        self.by(&["unshare", "--mount", "sh", "-c", script])
    }

    /// The same command as the last arguments of another one.
    fn by(mut self, words: &[&str]) -> Self {
        let mut outer = Command::new(words[0]);
        outer
            .args(&words[1..])
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .current_dir(self.directory.path());
        for (name, value) in self.command.get_envs() {
            outer.env(name, value.unwrap_or_default());
        }
        self.command = outer;
        self
    }

    /// The command, for what has no method here.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Starts it, stdin closed unless set on the command, stdout collected.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(self) -> Result<Tracer> {
        self.start_with(true)
    }

    /// Starts it with stdout left to the caller ([`Start::command`]).
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_with_own_stdout(self) -> Result<Tracer> {
        self.start_with(false)
    }

    fn start_with(mut self, collect: bool) -> Result<Tracer> {
        self.keep_tables_small();
        if collect {
            self.command.stdout(Stdio::piped());
        }
        self.command.stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("starting {:?}", self.command))?;
        let stdout = collect
            .then(|| child.stdout.take())
            .flatten()
            .map(|mut stdout| {
                std::thread::spawn(move || {
                    let mut bytes = Vec::new();
                    let _ = stdout.read_to_end(&mut bytes);
                    bytes
                })
            });
        let stderr = child.stderr.take().context("no stderr")?;
        let (sender, errors) = channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stderr);
            let mut line = Vec::new();
            while lines
                .read_until(b'\n', &mut line)
                .is_ok_and(|read| read > 0)
            {
                let text = String::from_utf8_lossy(&line)
                    .trim_end_matches('\n')
                    .to_string();
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        Ok(Tracer {
            child,
            errors,
            said: Vec::new(),
            stdout,
            directory: self.directory,
        })
    }

    /// In an emulated machine it takes a second to clear the memory of tables that
    /// no case there fills.
    fn keep_tables_small(&mut self) {
        let traces = |word: &OsStr| word == "attach" || word == "run";
        let arguments = || self.command.get_args();
        if suite::is_emulated()
            && arguments().any(traces)
            && !arguments().any(|word| word == "--max-blocks" || word == "--")
        {
            self.command.args(["--max-blocks", "100k"]);
        }
    }

    /// Starts it and waits until its probes are live.
    ///
    /// # Errors
    /// When it ends before, or takes too long.
    pub fn attached(self) -> Result<Tracer> {
        let mut tracer = self.start()?;
        tracer.wait_until_attached()?;
        Ok(tracer)
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    /// When it does not end by itself in time.
    pub fn ended(self) -> Result<Ended> {
        self.start()?.ended()
    }
}

impl Tracer {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the line on stderr that says that the probes are live.
    ///
    /// # Errors
    /// When leaktrace ends before, or takes too long.
    pub fn wait_until_attached(&mut self) -> Result<()> {
        self.wait_for_line(|line| line.starts_with("attached to "))?;
        Ok(())
    }

    /// Waits for a line on stderr and gives it.
    ///
    /// # Errors
    /// When leaktrace ends before, or takes too long.
    pub fn wait_for_line(&mut self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let patience = patience();
        let deadline = Instant::now() + patience;
        loop {
            match self
                .errors
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    let found = wanted(&line);
                    self.said.push(line.clone());
                    if found {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("not yet after {patience:?}; it said: {:#?}", self.said)
                }
                Err(RecvTimeoutError::Disconnected) => bail!(
                    "leaktrace ended ({:?}); it said: {:#?}",
                    wait_for(&mut self.child, Duration::from_secs(5)),
                    self.said
                ),
            }
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "leaktrace has ended: {:#?}",
            self.said
        );
        // SAFETY: plain system call; the child was not waited for, so the id is
        // still its own.
        let result = unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        ensure!(
            result == 0,
            "signal {signal} to leaktrace: {}",
            last_error()
        );
        Ok(())
    }

    /// Ctrl-C, then the report.
    ///
    /// # Errors
    /// When it does not end with status 0 and a report.
    pub fn report(mut self) -> Result<Report> {
        self.signal(libc::SIGINT)?;
        self.ended()?.report()
    }

    /// Ctrl-C, then the whole JSON report as it was written.
    ///
    /// # Errors
    /// When it does not end with status 0 and a report.
    pub fn json_report(mut self) -> Result<serde_json::Value> {
        self.signal(libc::SIGINT)?;
        self.ended()?.json_report()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn ended(mut self) -> Result<Ended> {
        self.end_within(patience())
    }

    fn end_within(&mut self, patience: Duration) -> Result<Ended> {
        let started = Instant::now();
        let status = wait_for(&mut self.child, patience).with_context(|| {
            let said: Vec<String> = self.errors.try_iter().collect();
            format!("leaktrace said: {:#?} {said:#?}", self.said)
        })?;
        let took = started.elapsed();
        // A child that leaktrace ran may still hold stderr: don't wait for it.
        while let Ok(line) = self.errors.recv_timeout(Duration::from_millis(500)) {
            self.said.push(line);
        }
        let stdout = self
            .stdout
            .take()
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default();
        Ok(Ended {
            status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: std::mem::take(&mut self.said),
            took,
            directory: std::mem::replace(&mut self.directory, tempfile::tempdir()?),
        })
    }

    /// Whether the JSON report exists.
    #[must_use]
    pub fn has_written(&self) -> bool {
        self.directory.path().join("report.json").exists()
    }

    /// The JSON report as it is now, if it was written.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn report_so_far(&self) -> Result<Report> {
        Report::read(&self.directory.path().join("report.json"))
    }

    /// Kills it with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn kill(mut self) -> Result<Ended> {
        self.signal(libc::SIGKILL)?;
        self.ended()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The JSON report; anything but status 0 is an error.
    ///
    /// # Errors
    /// When leaktrace failed, or its report can't be read.
    pub fn report(&self) -> Result<Report> {
        ensure!(
            self.status.success(),
            "leaktrace ended with {}; it said: {:#?}",
            self.status,
            self.stderr
        );
        self.report_whatever_status()
    }

    /// The JSON report, also of a leaktrace that ended with another status.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn report_whatever_status(&self) -> Result<Report> {
        Report::read(&self.directory.path().join("report.json"))
            .with_context(|| format!("leaktrace said: {:#?}", self.stderr))
    }

    /// The whole JSON report as it was written; anything but status 0 is an error.
    ///
    /// # Errors
    /// As for [`Self::report`].
    pub fn json_report(&self) -> Result<serde_json::Value> {
        self.report()?;
        Ok(serde_json::from_str(&self.file("report.json")?)?)
    }

    /// The text of a file in its working directory.
    ///
    /// # Errors
    /// When there is none, or it is no text.
    pub fn file(&self, name: &str) -> Result<String> {
        let path = self.directory.path().join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Files it left in its working directory.
    ///
    /// # Errors
    /// When the directory can't be listed.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(self.directory.path())? {
            files.push(entry?.path());
        }
        files.sort();
        Ok(files)
    }

    /// Checks the exit status, showing what it said when it is another.
    ///
    /// # Errors
    /// When it is another.
    pub fn expect_status(&self, code: i32) -> Result<()> {
        ensure!(
            self.status.code() == Some(code),
            "status {}, not {code}; stderr: {:#?}",
            self.status,
            self.stderr
        );
        Ok(())
    }
}
