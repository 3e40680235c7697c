//! Companions: processes of leaktrace's own that do what its first one must not,
//! and end with it. They are leaktrace's program with a hidden subcommand, and
//! stdin is their line to it.

mod channel;

use std::{
    ffi::CStr,
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
};

use rustix::process::DumpableBehavior;

pub use self::channel::Channel;

/// What a companion is for.
#[derive(Debug)]
pub struct Service {
    /// leaktrace's subcommand that does it.
    pub subcommand: &'static str,
    /// Name of the process.
    pub name: &'static CStr,
    /// The test that does it in unit tests, where leaktrace's program is not there.
    #[cfg(test)]
    pub as_a_test: &'static str,
}

impl Service {
    /// Starts a companion. It is killed by nobody but who gets it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self) -> io::Result<(Child, Channel)> {
        let (own, its) = UnixStream::pair()?;
        let process = self
            .program()
            .stdin(OwnedFd::from(its))
            // Its messages would only spoil the screen.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for leaktrace, and so is a kill of its group.
            .process_group(0)
            .spawn()?;
        Ok((process, Channel::new(own)))
    }

    /// leaktrace as it runs, also when its file was replaced.
    #[cfg(not(test))]
    fn program(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("leaktrace").arg(self.subcommand);
        command
    }

    #[cfg(test)]
    fn program(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--exact", self.as_a_test, "--nocapture"])
            .env(tests::VARIABLE, self.subcommand);
        command
    }

    /// What a companion does first: signals to a whole service are leaktrace's
    /// affair.
    pub fn begin(&self) {
        for signal in [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGTSTP,
            libc::SIGUSR1,
            libc::SIGUSR2,
        ] {
            // SAFETY: ignoring a signal runs no code.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        // Neither matters enough to fail.
        let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let _ = rustix::thread::set_name(self.name);
    }
}

#[cfg(test)]
pub mod tests {
    //! For the tests of companions.

    use super::*;

    /// Set to the subcommand in companions that are tests.
    pub const VARIABLE: &str = "LEAKTRACE_TEST_COMPANION";

    /// The body of a test that is a companion when [`Service::start`] starts it.
    /// Otherwise it looks what becomes of one without a line: it fails, and does
    /// not hang.
    pub fn serve(service: &Service, run: fn() -> io::Result<()>) {
        if std::env::var_os(VARIABLE).is_some_and(|it| it == service.subcommand) {
            return run().unwrap();
        }
        let status = service
            .program()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success());
    }
}
