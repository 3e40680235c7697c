//! A terminal (a pseudo-terminal's two ends) with a shell script in it: what
//! job control, and a user who reads or does not, do to leaktrace.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::fixture::{last_error, wait_for};

/// How long something may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal whose session leader is a shell that plays a script. The shell is
/// killed when this is dropped, and the terminal hung up.
pub struct Terminal {
    shell: Child,
    user: File,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// Plays `script` with job control, in `directory`; `$0` is leaktrace.
    /// Nobody reads what it writes until [`Terminal::read`].
    ///
    /// # Errors
    /// When there are no terminals, or no shell.
    pub fn play(script: &str, directory: &Path) -> Result<Self> {
        let (user, programs) = pair()?;
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("set -m\n{script}")])
            .arg(crate::tracer::binary())
            .current_dir(directory)
            .env_remove("LEAKTRACE_DISABLE_FEATURES")
            .stdin(programs.try_clone()?)
            .stdout(programs.try_clone()?)
            .stderr(programs);
        let lead = || {
            // SAFETY: plain system calls on the child's own descriptor 0.
            let result = unsafe {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0)
            };
            if result == 0 {
                Ok(())
            } else {
                Err(last_error())
            }
        };
        // SAFETY: between fork and exec it makes system calls only.
        unsafe { command.pre_exec(lead) };
        let shell = command.spawn().context("starting a shell")?;
        Ok(Self {
            shell,
            user,
            shown: Arc::default(),
        })
    }

    /// Begins to read what is written, as fast as it comes.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn read(&self) -> Result<()> {
        let (mut user, shown) = (self.user.try_clone()?, Arc::clone(&self.shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // An error is the end: nobody has the terminal open any more.
            while let Ok(length @ 1..) = user.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]).replace('\r', "");
                shown
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        Ok(())
    }

    /// What was read so far.
    #[must_use]
    pub fn shown(&self) -> String {
        self.shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until `text` was read.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.shown().contains(text) {
            if Instant::now() > deadline {
                bail!("no {text:?} after {PATIENCE:?} in {:?}", self.shown());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Presses keys: `\x03` is Ctrl-C, `\x1a` Ctrl-Z, `\x13` Ctrl-S.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.user.write_all(keys.as_bytes()).context("typing")
    }

    /// The one process that the shell has started and that still exists.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn job(&self) -> Result<u32> {
        crate::children::only_child(self.shell.id())
    }

    /// Waits for the end of the script.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn ended(mut self) -> Result<(ExitStatus, String)> {
        let status = wait_for(&mut self.shell, PATIENCE)
            .with_context(|| format!("the terminal shows {:?}", self.shown()))?;
        // What was written last may still be on its way.
        std::thread::sleep(Duration::from_millis(50));
        Ok((status, self.shown()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// The user's end and the programs' end.
fn pair() -> Result<(File, File)> {
    // SAFETY: a plain system call; the descriptor is owned at once.
    let user = unsafe {
        let raw = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        ensure!(raw >= 0, "opening a terminal: {}", last_error());
        OwnedFd::from_raw_fd(raw)
    };
    let mut name = [0_u8; 64];
    // SAFETY: the descriptor is open, and the buffer is as long as it says.
    let result = unsafe {
        libc::unlockpt(user.as_raw_fd())
            | libc::ptsname_r(user.as_raw_fd(), name.as_mut_ptr().cast(), name.len())
    };
    ensure!(result == 0, "finding the terminal: {}", last_error());
    let name = std::ffi::CStr::from_bytes_until_nul(&name)?.to_str()?;
    let programs = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(name)
        .with_context(|| format!("opening {name}"))?;
    Ok((user.into(), programs))
}

/// The state of process `pid`, as `ps` shows it: `T` is stopped, `Z` a zombie.
///
/// # Errors
/// When there is no such process.
pub fn state(pid: u32) -> Result<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(") ").context("a process without a name")?;
    after_name.1.chars().next().context("no state")
}

/// Waits until process `pid` is in state `wanted`.
///
/// # Errors
/// When it is not, in time.
pub fn wait_for_state(pid: u32, wanted: char) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while state(pid)? != wanted {
        ensure!(
            Instant::now() < deadline,
            "process {pid} is in state {}, not {wanted}",
            state(pid)?
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Sends a signal to a process that is known to exist.
///
/// # Errors
/// When it does not.
pub fn send(pid: u32, signal: i32) -> Result<()> {
    // SAFETY: a plain system call.
    let result = unsafe { libc::kill(pid.cast_signed(), signal) };
    ensure!(result == 0, "signal {signal} to {pid}: {}", last_error());
    Ok(())
}
