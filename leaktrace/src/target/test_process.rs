//! Processes for tests to look at.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::Process;

/// Ends its child when the test is over, however it ends.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let running = Self(command.spawn().unwrap());
        wait_until("exec is done", || super::is_loaded(running.pid()));
        running
    }
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

pub(crate) fn sleep() -> Running {
    Running::start(Command::new("sleep").arg("1000"))
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Makes an executable file. Never written by this process itself: another test
/// that forks at that moment would keep it open, and it could not be executed.
pub(crate) fn install(content: &[u8], to: &Path) {
    let source = to.with_extension("source");
    std::fs::write(&source, content).unwrap();
    let status = Command::new("install")
        .args(["-m", "755"])
        .args([&source, to])
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::remove_file(source).unwrap();
}

/// Waits until a process, which was just started, is the program `sleep` and sleeps:
/// before that its loader still opens and maps files.
pub(crate) fn wait_until_asleep(process: &Process) {
    wait_until("it sleeps", || {
        let stat = process.read("stat").unwrap_or_default();
        stat.windows(10).any(|words| words == b" (sleep) S")
    });
}
