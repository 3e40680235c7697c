//! Setting probes and taking them out again.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use anyhow::{Result, anyhow, bail};

use super::{
    probes::{PlannedFile, PlannedProbe, Scope},
    syscall::ENOTSUPP,
    uprobe_multi::{self, MultiProbe},
    uprobe_perf::{self, Tie},
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
    pub(super) links: Vec<OwnedFd>,
}

impl Attachment {
    /// How many links are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether nothing is attached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Leaves an attachment without probes behind.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self {
            links: std::mem::take(&mut self.links),
            ..*self
        }
    }

    /// Takes all probes out; `progress` is told how many links are closed.
    /// Multi links close side by side; perf events wait for one another in the
    /// kernel anyway.
    pub fn detach(mut self, mut progress: impl FnMut(usize, usize)) {
        let links = std::mem::take(&mut self.links);
        let all = links.len();
        match self.kind {
            LinkKind::Multi => std::thread::scope(|scope| {
                for link in links {
                    scope.spawn(move || drop(link));
                }
            }),
            LinkKind::Perf => {
                for (closed, link) in links.into_iter().enumerate() {
                    progress(closed, all);
                    drop(link);
                }
            }
        }
        progress(all, all);
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
/// found by trying each alone, and replaced by the function's next one.
pub(super) fn link_multi(
    program: &OwnedFd,
    file: &PlannedFile,
    direction: Direction,
    scope: Scope,
) -> Result<Option<(OwnedFd, usize)>> {
    let path = file.c_path()?;
    let pid = match scope {
        Scope::Process(pid) => pid,
        Scope::Everyone => 0,
    };
    let link = |probes: &[MultiProbe]| {
        uprobe_multi::link(program, &path, probes, pid, direction == Direction::Return)
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
        return Ok(None);
    }
    let error = match link(&chosen) {
        Ok(fd) => return Ok(Some((fd, chosen.len()))),
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
        let site = direction.sites(probe).iter().find(|offset| {
            link(&[MultiProbe {
                offset: **offset,
                cookie: probe.cookie,
            }])
            .is_ok()
        });
        match site {
            Some(offset) => accepted.push(MultiProbe {
                offset: *offset,
                cookie: probe.cookie,
            }),
            None => bail!("the kernel can't probe {} in {}", probe.function, file.name),
        }
    }
    let fd = link(&accepted).map_err(|error| explain(error, file))?;
    Ok(Some((fd, accepted.len())))
}

/// Whether the kernel can't probe this instruction.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL)
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

/// Sets one probe at the first site that the kernel accepts.
pub(super) fn attach_perf(
    program: BorrowedFd<'_>,
    file: &PlannedFile,
    probe: &PlannedProbe,
    direction: Direction,
    scope: Scope,
    tie: Tie,
) -> Result<OwnedFd> {
    let path = file.c_path()?;
    let at_return = direction == Direction::Return;
    let mut refused = None;
    for offset in direction.sites(probe) {
        match uprobe_perf::set(program, &path, *offset, at_return, scope, tie) {
            Ok(probe) => return Ok(probe),
            Err(error) => refused = Some(error),
        }
    }
    let error = refused.map_or_else(|| anyhow!("it has no site"), anyhow::Error::from);
    Err(error.context(format!("probing {} in {}", probe.function, file.name)))
}
