//! A running load (`tests/bench/`), which does what it is told and measures
//! itself.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::lines::Lines;
use crate::process;

/// Longer than anything that a load is told takes, traced or not.
const PATIENCE: Duration = Duration::from_secs(120);

/// A load. It ends when its stdin is closed, so it never outlives the
/// benchmark; killed when this goes.
pub struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines,
}

impl Load {
    /// Starts it, through another program or not, and waits until it is ready.
    ///
    /// # Errors
    /// It can't be started, or ends at once.
    pub fn start(command: &mut Command) -> Result<Self> {
        let shown = process::shown(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        let lines = Lines::of(&format!("the load `{shown}`"), &mut child);
        let stdin = child.stdin.take();
        let mut load = Self {
            child,
            stdin,
            lines,
        };
        load.wait_for("ready")?;
        Ok(load)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes pairs as fast as it can; their CPU time, ns each.
    pub fn round(&mut self, pairs: u64) -> Result<f64> {
        Ok(self.ask(&format!("round {pairs}"))? as f64 / pairs as f64)
    }

    /// As [`Self::round`], of pairs whose malloc fails.
    pub fn failing_round(&mut self, pairs: u64) -> Result<f64> {
        Ok(self.ask(&format!("failing {pairs}"))? as f64 / pairs as f64)
    }

    /// Makes a pair each millisecond; the process's CPU time, ns a pair.
    pub fn idle(&mut self, pairs: u64) -> Result<f64> {
        Ok(self.ask(&format!("idle {pairs}"))? as f64 / pairs as f64)
    }

    /// CPU time since it was started.
    pub fn cpu_time(&mut self) -> Result<Duration> {
        Ok(Duration::from_nanos(self.ask("cpu")?))
    }

    /// Allocates so many blocks and keeps them.
    pub fn fill(&mut self, blocks: u64) -> Result<()> {
        self.tell(&format!("fill {blocks}"))?;
        self.wait_for("done")
    }

    /// From now on it makes pairs until they take less than `limit_ns` again.
    pub fn watch(&mut self, limit_ns: f64) -> Result<()> {
        self.tell(&format!("watch {}", limit_ns.ceil()))?;
        self.wait_for("watching")
    }

    /// When pairs began to take less than the limit again, ns of
    /// `CLOCK_MONOTONIC`.
    pub fn watched(&mut self) -> Result<u64> {
        self.number()
    }

    /// Waits until it has ended by itself, as what traces it may want.
    pub fn finish(mut self) -> Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait().context("cannot wait for a load")?;
        if !status.success() {
            bail!("a load failed ({status})");
        }
        Ok(())
    }

    fn ask(&mut self, command: &str) -> Result<u64> {
        self.tell(command)?;
        self.number()
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("a load's stdin is closed")?;
        stdin
            .write_all(format!("{command}\n").as_bytes())
            .with_context(|| format!("cannot tell a load to {command}"))
    }

    fn number(&mut self) -> Result<u64> {
        let parse = |line: &str| line.parse().ok();
        Ok(self.lines.wait_for(PATIENCE, parse)?.1)
    }

    fn wait_for(&mut self, word: &str) -> Result<()> {
        let is_word = |line: &str| (line == word).then_some(());
        self.lines.wait_for(PATIENCE, is_word)?;
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
