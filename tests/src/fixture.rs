//! A fixture that runs: started, told what to do line by line, ended for sure.
//!
//! The protocol: the fixture writes a line to its stdout when it is `ready`;
//! each line on its stdin is a command, answered by at least one line.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{build, comparison::Expected};

/// How long a fixture may take to answer.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running fixture. Killed when dropped.
pub struct Fixture {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    ledger: Option<tempfile::TempDir>,
}

/// How to start a fixture.
pub struct Start {
    name: String,
    command: Command,
    ledger: Option<tempfile::TempDir>,
}

impl Start {
    /// Fixture `name` with `arguments`.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn new<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> Result<Self> {
        Ok(Self::program(&build::fixture(name)?, arguments))
    }

    /// Any program that keeps to the protocol.
    #[must_use]
    pub fn program<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments);
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Self {
            name,
            command,
            ledger: None,
        }
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in a directory.
    #[must_use]
    pub fn current_dir(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs it as this user.
    #[must_use]
    pub fn user(mut self, id: u32) -> Self {
        self.command.uid(id).gid(id);
        self
    }

    /// Gives way to leaktrace, which is nice itself: for fixtures that would
    /// take all processors while it attaches.
    #[must_use]
    pub fn nice(mut self) -> Self {
        let lowest = || {
            // SAFETY: a plain system call, about the caller itself.
            match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } {
                0 => Ok(()),
                _ => Err(last_error()),
            }
        };
        // SAFETY: between fork and exec it makes one system call only.
        unsafe { self.command.pre_exec(lowest) };
        self
    }

    /// Starts it as `setarch -R` does, with its stack where the kernel otherwise puts
    /// what return probes need.
    #[must_use]
    pub fn unrandomised(mut self) -> Self {
        unrandomised(&mut self.command);
        self
    }

    /// Gives the fixture a directory for its ledger, in memory where possible,
    /// as `LEDGER`.
    ///
    /// # Errors
    /// When the directory can't be made.
    pub fn with_ledger(mut self) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() {
            memory.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let directory = tempfile::Builder::new()
            .prefix("leaktrace-ledger-")
            .tempdir_in(&parent)
            .with_context(|| format!("making a directory in {}", parent.display()))?;
        self.command.env("LEDGER", directory.path());
        self.ledger = Some(directory);
        Ok(self)
    }

    /// Makes `root` its root directory, where it keeps its ledger too. The program's
    /// path is one below that.
    ///
    /// # Errors
    /// When the ledger's directory can't be made.
    pub fn in_root(mut self, root: &Path) -> Result<Self> {
        let ledger = tempfile::Builder::new()
            .prefix("ledger-")
            .tempdir_in(root)
            .with_context(|| format!("making a directory in {}", root.display()))?;
        let inside = Path::new("/").join(ledger.path().strip_prefix(root)?);
        self.command.env("LEDGER", inside);
        self.ledger = Some(ledger);
        let root = std::ffi::CString::new(root.as_os_str().as_encoded_bytes())?;
        let enter = move || {
            // SAFETY: plain system calls with strings that end.
            match unsafe { libc::chroot(root.as_ptr()) | libc::chdir(c"/".as_ptr()) } {
                0 => Ok(()),
                _ => Err(last_error()),
            }
        };
        // SAFETY: between fork and exec it makes two system calls only.
        unsafe { self.command.pre_exec(enter) };
        Ok(self)
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it can't be started or ends before it is ready.
    pub fn start(mut self) -> Result<Fixture> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("starting {:?}", self.command))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a fixture without stdout")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let fixture = Fixture {
            name: self.name,
            child,
            stdin,
            lines,
            ledger: self.ledger,
        };
        fixture.expect("ready")?;
        Ok(fixture)
    }
}

impl Fixture {
    /// Fixture `name` with `arguments`, ready.
    ///
    /// # Errors
    /// When it can't be built or started.
    pub fn start(name: &str, arguments: &[&str]) -> Result<Self> {
        Start::new(name, arguments)?.start()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps its ledger.
    ///
    /// # Errors
    /// When it was started without.
    pub fn ledger(&self) -> Result<&Path> {
        self.ledger
            .as_ref()
            .map(tempfile::TempDir::path)
            .context("a fixture without a ledger")
    }

    /// Sends a command without waiting for an answer.
    ///
    /// # Errors
    /// When the fixture no longer listens.
    pub fn send(&mut self, command: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("the fixture's stdin is closed")?;
        stdin
            .write_all(format!("{command}\n").as_bytes())
            .with_context(|| format!("telling {} to {command}", self.name))
    }

    /// Sends a command and waits for `done`.
    ///
    /// # Errors
    /// When the fixture answers something else or nothing.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        self.send(command)?;
        self.expect("done")
            .with_context(|| format!("after the command {command:?}"))
    }

    /// Sends a command and gives the one line of its answer.
    ///
    /// # Errors
    /// When the fixture does not answer.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.send(command)?;
        self.line()
            .with_context(|| format!("after the command {command:?}"))
    }

    /// Asks for a number.
    ///
    /// # Errors
    /// When the answer is none.
    pub fn number(&mut self, command: &str) -> Result<u64> {
        let answer = self.ask(command)?;
        answer
            .parse()
            .with_context(|| format!("{answer:?} instead of a number"))
    }

    /// Asks for the sums that it keeps itself: lines `site NAME BYTES BLOCKS`,
    /// then `done`.
    ///
    /// # Errors
    /// When the answer has another form.
    pub fn sums(&mut self) -> Result<Expected> {
        self.send("sums")?;
        let mut sums = BTreeMap::new();
        loop {
            let line = self.line()?;
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["done"] => return Ok(Expected::new(sums)),
                ["site", name, bytes, blocks] => {
                    sums.insert((*name).to_string(), (bytes.parse()?, blocks.parse()?));
                }
                _ => bail!("{} answered {line:?}", self.name),
            }
        }
    }

    /// The next line that it writes.
    ///
    /// # Errors
    /// When none comes in time, or it has ended.
    pub fn line(&self) -> Result<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("fixture {} said nothing for {PATIENCE:?}", self.name)
            }
            Err(RecvTimeoutError::Disconnected) => bail!("fixture {} ended", self.name),
        }
    }

    /// Waits for exactly this line.
    ///
    /// # Errors
    /// When another one or none comes.
    pub fn expect(&self, wanted: &str) -> Result<()> {
        let line = self.line()?;
        ensure!(
            line == wanted,
            "fixture {} said {line:?}, not {wanted:?}",
            self.name
        );
        Ok(())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel can't tell.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended and been waited for.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        ensure!(self.is_alive()?, "fixture {} has ended", self.name);
        // SAFETY: plain system call; the child was not waited for, so the id is
        // still its own.
        let result = unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        ensure!(
            result == 0,
            "signal {signal} to {}: {}",
            self.name,
            last_error()
        );
        Ok(())
    }

    /// Closes its stdin, which ends it, and waits.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn finish(&mut self) -> Result<ExitStatus> {
        drop(self.stdin.take());
        self.wait(Duration::from_secs(20))
    }

    /// As [`Fixture::finish`]; anything but success is an error.
    ///
    /// # Errors
    /// When it was harmed.
    pub fn finish_well(&mut self) -> Result<()> {
        let status = self.finish()?;
        ensure!(
            status.success(),
            "fixture {} ended with {status}",
            self.name
        );
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        wait_for(&mut self.child, patience)
            .with_context(|| format!("waiting for the end of fixture {}", self.name))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has `command` started without randomisation of its address space, and all that it
/// starts.
pub fn unrandomised(command: &mut Command) {
    let without = || {
        // SAFETY: a plain system call, about the caller itself.
        match unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) } {
            -1 => Err(last_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec it makes one system call only.
    unsafe { command.pre_exec(without) };
}

/// Waits for the end of `child`.
///
/// # Errors
/// When it still runs after `patience`.
pub fn wait_for(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(
            Instant::now() < deadline,
            "process {} still runs after {patience:?}",
            child.id()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `errno` as an error.
#[must_use]
pub fn last_error() -> std::io::Error {
    std::io::Error::last_os_error()
}

/// A path from the root directory for `program`, found in `PATH`.
///
/// # Errors
/// When there is none.
pub fn which(program: &str) -> Result<PathBuf> {
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not in PATH"))
}
