//! What tracing would cost: calls of the allocator's functions are counted for
//! half a second by the cheapest probe there is.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{brake::Estimate, plan::Plan};
use crate::{
    bpf::{LinkKind, Program, Scope, Tracer},
    target::cpu::CpuClock,
};

/// How long calls are counted.
pub const COUNTING: Duration = Duration::from_millis(500);

/// A count of calls under way.
pub struct Tally {
    /// Entries only, at the sites where they would be traced.
    pub attachment: crate::bpf::Attachment,
    started: Instant,
    cpu: crate::target::cpu::CpuTime,
    calls: u64,
}

impl Tally {
    /// Begins to count.
    pub fn start(
        tracer: &mut Tracer,
        kind: LinkKind,
        plan: &Plan,
        scope: Scope,
        clock: &CpuClock,
    ) -> Result<Self> {
        let attachment = tracer.attach(kind, &plan.files, Program::Tally, scope, 0)?;
        let calls = tracer.maps().tally()?;
        Ok(Self {
            attachment,
            started: Instant::now(),
            cpu: clock.read()?,
            calls,
        })
    }

    /// Waits for the rest of the time, takes the probes out and says what
    /// tracing would cost, and the target's system time per second.
    pub fn finish(
        mut self,
        tracer: &Tracer,
        clock: &CpuClock,
        pair_cost: Duration,
    ) -> Result<(Estimate, f64)> {
        std::thread::sleep(COUNTING.saturating_sub(self.started.elapsed()));
        let calls = tracer.maps().tally()?.saturating_sub(self.calls);
        let wall = self.started.elapsed();
        let cpu = clock.read().unwrap_or(self.cpu);
        self.attachment.detach(|_, _| {});
        let used = cpu.total.saturating_sub(self.cpu.total);
        let counting = calls as f64 * pair_cost.as_secs_f64() / 3.0;
        let system = cpu.system.saturating_sub(self.cpu.system).as_secs_f64() - counting;
        let system_rate = system.max(0.0) / wall.as_secs_f64();
        Ok((Estimate::new(calls, wall, used, pair_cost), system_rate))
    }
}
