//! Setting probes and taking them out again.

use std::{io, os::fd::BorrowedFd};

use anyhow::{Result, anyhow};

use super::{
    holder::{Holder, Probes},
    probes::{PlannedFile, PlannedProbe, Scope},
    syscall::ENOTSUPP,
    uprobe_multi::MultiProbe,
    uprobe_perf::Tie,
};

/// How probes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Uprobe-multi links: one a file and direction.
    Multi,
    /// One perf event and link a probe.
    Perf,
}

/// Probes that are in. Dropping it takes them out.
pub struct Attachment {
    /// How they are held.
    pub kind: LinkKind,
    /// Whose calls are seen.
    pub scope: Scope,
    /// How many sites are probed, entries and returns.
    pub sites: usize,
    /// The sites at which entries are seen, for each of the files set last.
    pub entry_sites: Vec<Vec<u64>>,
    /// `None` when they were taken out.
    pub(super) holder: Option<Holder>,
}

impl Attachment {
    /// How many links are held.
    #[must_use]
    pub fn links(&self) -> usize {
        self.holder.as_ref().map_or(0, Holder::held)
    }

    /// Whether the probes are still in, as far as the process that holds them
    /// goes: it may have been killed.
    pub fn is_held(&mut self) -> bool {
        self.holder.as_mut().is_some_and(Holder::is_alive)
    }

    /// Takes all probes out; `progress` is told how many links are closed.
    pub fn detach(&mut self, progress: impl FnMut(usize, usize)) {
        if let Some(holder) = self.holder.take() {
            holder.clear(progress);
        }
    }
}

/// Which of a function's probes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Entry,
    Return,
}

impl Direction {
    pub(super) fn sites(self, probe: &PlannedProbe) -> &[u64] {
        match self {
            Self::Entry => &probe.entry_sites,
            Self::Return => &probe.return_sites,
        }
    }
}

/// Sets all probes of a file with one link. A site that the kernel refuses is
/// found by trying each alone, and replaced by the function's next one. Tells the
/// sites that were taken: none if there are none to probe.
pub(super) fn link_multi(
    holder: &mut Holder,
    program: BorrowedFd<'_>,
    file: &PlannedFile,
    direction: Direction,
    scope: Scope,
) -> Result<Vec<u64>> {
    let mut link = |probes: &[MultiProbe], keep| {
        let probes = Probes::Multi {
            probes: probes.to_vec(),
            scope,
            at_return: direction == Direction::Return,
        };
        holder.set(program, &file.path, probes, keep)
    };
    let first = |probe: &PlannedProbe| {
        let offset = *direction.sites(probe).first()?;
        Some(MultiProbe {
            offset,
            cookie: probe.cookie,
        })
    };
    let chosen: Vec<MultiProbe> = file.probes.iter().filter_map(first).collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let error = match link(&chosen, true) {
        Ok(()) => return Ok(sites(&chosen)),
        Err(error) => error,
    };
    if !is_refusal(&error) {
        return Err(explain(error, file));
    }
    let mut accepted = Vec::new();
    for probe in file
        .probes
        .iter()
        .filter(|probe| !direction.sites(probe).is_empty())
    {
        let alone = |offset| MultiProbe {
            offset,
            cookie: probe.cookie,
        };
        let offset = first_accepted(file, probe, direction, |site| link(&[alone(site)], false))?;
        accepted.push(alone(offset));
    }
    link(&accepted, true).map_err(|error| explain(error, file))?;
    Ok(sites(&accepted))
}

fn sites(probes: &[MultiProbe]) -> Vec<u64> {
    probes.iter().map(|probe| probe.offset).collect()
}

/// Tries a function's sites, best first, until the kernel accepts one; anything
/// but its refusal of a site is an error.
fn first_accepted(
    file: &PlannedFile,
    probe: &PlannedProbe,
    direction: Direction,
    mut set: impl FnMut(u64) -> io::Result<()>,
) -> Result<u64> {
    let mut refused = None;
    for offset in direction.sites(probe) {
        match set(*offset) {
            Ok(()) => return Ok(*offset),
            Err(error) if is_refusal(&error) => refused = Some(error),
            Err(error) => return Err(explain(error, file)),
        }
    }
    let error = refused.map_or_else(|| anyhow!("it has no site"), anyhow::Error::from);
    Err(error.context(format!(
        "the kernel can't probe {} in {}",
        probe.function, file.name
    )))
}

/// Whether the kernel can't probe this instruction.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOEXEC)
    )
}

fn explain(error: io::Error, file: &PlannedFile) -> anyhow::Error {
    let gone = error.raw_os_error() == Some(libc::ESRCH);
    let error = anyhow::Error::from(error);
    if gone {
        error.context("the process ended while probes were being set")
    } else {
        error.context(format!("setting probes in {}", file.name))
    }
}

/// Sets one probe at the first site that the kernel accepts, and tells which.
pub(super) fn attach_perf(
    holder: &mut Holder,
    program: BorrowedFd<'_>,
    file: &PlannedFile,
    probe: &PlannedProbe,
    direction: Direction,
    scope: Scope,
    tie: Tie,
) -> Result<u64> {
    first_accepted(file, probe, direction, |offset| {
        let probe = Probes::Perf {
            offset,
            scope,
            at_return: direction == Direction::Return,
            tie,
        };
        holder.set(program, &file.path, probe, true)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of two sites, of which the kernel answers the first with this.
    fn second_site_after(errno: i32) -> Result<u64> {
        let probe = PlannedProbe {
            function: "malloc".to_owned(),
            cookie: 0,
            entry_sites: vec![16, 20],
            return_sites: Vec::new(),
        };
        let file = PlannedFile {
            path: "/proc/self/fd/3".into(),
            name: "libc.so.6".to_owned(),
            probes: Vec::new(),
        };
        let set = |offset| match offset {
            16 => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        };
        first_accepted(&file, &probe, Direction::Entry, set)
    }

    #[test]
    fn a_refused_site_is_replaced_by_the_next() {
        for errno in [ENOTSUPP, libc::EINVAL, libc::ENOEXEC] {
            assert_eq!(second_site_after(errno).unwrap(), 20);
        }
    }

    #[test]
    fn what_is_no_refusal_of_a_site_is_an_error() {
        let error = second_site_after(libc::ESRCH).unwrap_err();
        assert!(error.to_string().contains("the process ended"), "{error:#}");
        for errno in [libc::EMFILE, libc::EPERM, libc::ENOMEM] {
            let error = second_site_after(errno).unwrap_err();
            assert_eq!(error.to_string(), "setting probes in libc.so.6");
        }
    }
}
