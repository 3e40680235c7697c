//! A tracer at work on a load: leaktrace, or what it is compared with.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

use super::lines::Lines;
use super::load::Load;
use super::proc;
use crate::process;

/// How long attaching or ending may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a tracer is started, and what it says when all probes are in.
pub struct Start {
    pub command: Command,
    pub attached: &'static str,
}

/// A tracer whose probes are in. Killed when this goes: the kernel then takes
/// its probes out.
pub struct Tracer {
    child: Child,
    pub lines: Lines,
    /// From its start until it said that it was attached.
    pub attach: Duration,
    since: Instant,
    cpu_before: Duration,
}

/// A tracer's use of a CPU in some time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu: Duration,
    pub wall: Duration,
}

/// How a tracer ended.
pub struct Ending {
    /// From Ctrl-C until the load had its speed again.
    pub gone: Option<Duration>,
    /// From Ctrl-C until the process had ended.
    pub exit: Duration,
    /// Peak of its resident memory, bytes; looked at every millisecond.
    pub peak_rss: u64,
}

impl Tracer {
    /// Starts a tracer and waits until it is attached.
    ///
    /// # Errors
    /// It can't be started, or ends before it is attached.
    pub fn start(mut start: Start) -> Result<Self> {
        let shown = process::shown(&start.command);
        let started = Instant::now();
        let mut child = start
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        let lines = Lines::of(&format!("`{shown}`"), &mut child);
        let mut tracer = Self {
            child,
            lines,
            attach: Duration::ZERO,
            since: started,
            cpu_before: Duration::ZERO,
        };
        let is_attached = |line: &str| line.starts_with(start.attached).then_some(());
        let (at, ()) = tracer.lines.wait_for(PATIENCE, is_attached)?;
        tracer.attach = at - started;
        tracer.restart_usage()?;
        Ok(tracer)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Forgets what it used until now.
    pub fn restart_usage(&mut self) -> Result<()> {
        self.since = Instant::now();
        self.cpu_before = proc::cpu_time(self.pid())?;
        Ok(())
    }

    /// What it used since it was attached, or since the last restart.
    pub fn usage(&self) -> Result<Usage> {
        Ok(Usage {
            cpu: proc::cpu_time(self.pid())?.saturating_sub(self.cpu_before),
            wall: self.since.elapsed(),
        })
    }

    /// Memory of all its maps, bytes.
    pub fn map_bytes(&self) -> Result<u64> {
        Ok(proc::map_bytes(self.pid())?.values().sum())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let pid = pid.context("a tracer without a process id")?;
        kill_process(pid, signal).context("cannot signal a tracer")
    }

    /// Ends it as Ctrl-C does, while nothing is allocated.
    pub fn stop(mut self) -> Result<Ending> {
        let at = Instant::now();
        self.signal(Signal::INT)?;
        let (exit, peak_rss) = self.wait(at)?;
        Ok(Ending {
            gone: None,
            exit,
            peak_rss,
        })
    }

    /// Ends it as Ctrl-C does, while the load makes pairs, and watches when
    /// these take less than `limit_ns` again: then no probe is left.
    pub fn stop_watched(mut self, load: &mut Load, limit_ns: f64) -> Result<Ending> {
        load.watch(limit_ns)?;
        // The load's own clock, for its answer.
        let at_ns = monotonic_ns();
        let at = Instant::now();
        self.signal(Signal::INT)?;
        let (exit, peak_rss) = self.wait(at)?;
        let gone_ns = load.watched()?;
        let Some(gone) = gone_ns.checked_sub(at_ns) else {
            bail!(
                "the load ran at full speed ({limit_ns:.0} ns a pair at most) before the tracer \
                 was ended: its probes were not hit"
            );
        };
        Ok(Ending {
            gone: Some(Duration::from_nanos(gone)),
            exit,
            peak_rss,
        })
    }

    fn wait(&mut self, since: Instant) -> Result<(Duration, u64)> {
        let mut peak_rss = 0;
        loop {
            // Fails as soon as it has given its memory back.
            peak_rss = proc::peak_rss(self.pid()).unwrap_or(0).max(peak_rss);
            if let Some(status) = self.child.try_wait().context("cannot wait for a tracer")? {
                if !status.success() {
                    bail!("a tracer failed ({status}); {}", self.lines.last());
                }
                return Ok((since.elapsed(), peak_rss));
            }
            if since.elapsed() > PATIENCE {
                bail!("a tracer does not end on Ctrl-C");
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
