//! Finds the allocator's functions in a file that a target maps, and the
//! places to probe them.
//!
//! Every mapped file that exports a family of the [`catalogue`] is watched, and a
//! static program that has one by its symbol table. If
//! several do (a preloaded library and libc), all of them are: which one a call
//! reaches depends on who calls, and a call from one into the other is part of
//! the outer call, which the programs recognise by the stack pointer. Old
//! loaders (glibc before 2.32) export a small malloc of their own for the time
//! before libc is there, and count as well.

pub mod catalogue;
pub mod return_probe;
mod wrapper;

use leaktrace_common::function::Signature;

use crate::{
    arch,
    elf::{ElfError, ElfFile, ExecutableSegment, ExportedFunction, FunctionKind},
    probe_site::{self, FunctionCode, KernelAbility, Need, ProbeSite},
};
use catalogue::{FAMILIES, Family, Function};
use return_probe::{Facts, ReturnProbe};
pub use wrapper::is_allocation_wrapper;

/// How much code is looked at when nothing tells where a function ends.
const UNKNOWN_EXTENT: u64 = 4096;

/// The watched functions of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedFunctions {
    /// The family's name.
    pub family: &'static str,
    /// The file's build id, hexadecimal.
    pub build_id: Option<String>,
    /// What is watched, by rising address. Never empty.
    pub functions: Vec<WatchedFunction>,
    /// What can't be.
    pub refused: Vec<RefusedFunction>,
}

/// One function, and where to probe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedFunction {
    /// Its names: aliases at one address are one function, probed once.
    pub names: Vec<&'static str>,
    /// What a call does.
    pub signature: Signature,
    /// Virtual address of the entry, before relocation.
    pub address: u64,
    /// Offset of the entry in the file.
    pub file_offset: u64,
    /// Sites for the entry probe, best first, never empty: the next is to be
    /// tried when the kernel refuses one. A return probe goes on the same
    /// instruction, so that both share one trap.
    pub sites: Vec<ProbeSite>,
    /// Whether a return probe goes there too.
    pub returns: bool,
}

/// A function of the catalogue that can't be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedFunction {
    /// Its names.
    pub names: Vec<&'static str>,
    /// A sentence without its end, for a person.
    pub reason: String,
}

/// Why a file can't be looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoverError {
    /// Not an ELF file that can be read.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// For another kind of processor.
    #[error("for another kind of machine (ELF machine {0}); leaktrace knows {known}", known = arch::NAME)]
    OtherMachine(u16),
    /// It has a family, and nothing of it can be watched.
    #[error("no function of its {family} can be watched: {reason}")]
    NothingWatchable {
        /// The family's name.
        family: &'static str,
        /// Why the first one can't.
        reason: String,
    },
}

/// Finds an allocator in a file, given as its bytes; `Ok(None)` when it has
/// none. Pure: nothing but the bytes decides.
///
/// # Errors
/// When the file can't be read, or has an allocator that can't be watched.
pub fn discover(
    file: &[u8],
    ability: KernelAbility,
) -> Result<Option<WatchedFunctions>, DiscoverError> {
    let file = ElfFile::parse(file)?;
    let Some((family, exported)) = FAMILIES.iter().find_map(|family| family_of(&file, family))
    else {
        return Ok(None);
    };
    if file.machine() != arch::ELF_MACHINE {
        return Err(DiscoverError::OtherMachine(file.machine()));
    }
    let groups = by_address(family, &exported);
    let entries: Vec<u64> = groups.iter().map(|group| group.address).collect();
    let branched_to = jumps_to(&file, &entries);
    let search = Search {
        file: &file,
        ability,
        branched_to,
        is_go: file.is_go(),
    };
    let (mut functions, mut refused) = (Vec::new(), Vec::new());
    for group in groups {
        match search.watch(&group) {
            Ok(function) => functions.push(function),
            Err(reason) => refused.push(RefusedFunction {
                names: group.names(),
                reason,
            }),
        }
    }
    if functions.is_empty() {
        let reason = refused.swap_remove(0).reason;
        return Err(DiscoverError::NothingWatchable {
            family: family.name,
            reason,
        });
    }
    Ok(Some(WatchedFunctions {
        family: family.name,
        build_id: file.build_id(),
        functions,
        refused,
    }))
}

/// Whether the file has an allocator of the catalogue.
#[must_use]
pub fn is_in(file: &ElfFile<'_>) -> bool {
    FAMILIES
        .iter()
        .any(|family| family_of(file, family).is_some())
}

/// The family with what the file has of it, if it has the family: of what it
/// exports, or, in a static program, of its symbols.
fn family_of<'f>(
    file: &ElfFile<'_>,
    family: &'f Family,
) -> Option<(&'f Family, Vec<ExportedFunction>)> {
    let names: Vec<&str> = family
        .functions
        .iter()
        .map(|function| function.name)
        .collect();
    let exported = if file.is_static() {
        file.linked_functions(&names)
    } else {
        file.exported_functions(&names)
    };
    let has = |name: &&str| exported.iter().any(|function| function.name == **name);
    family
        .recognised_by
        .iter()
        .all(has)
        .then_some((family, exported))
}

/// Names of one address.
struct Group {
    address: u64,
    /// The largest that a name tells.
    size: u64,
    kind: FunctionKind,
    functions: Vec<&'static Function>,
}

impl Group {
    fn names(&self) -> Vec<&'static str> {
        self.functions
            .iter()
            .map(|function| function.name)
            .collect()
    }
}

/// By rising address; names in the catalogue's order.
fn by_address(family: &'static Family, exported: &[ExportedFunction]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for function in family.functions {
        for export in exported
            .iter()
            .filter(|export| export.name == function.name)
        {
            let same = groups
                .iter_mut()
                .find(|group| group.address == export.address && group.kind == export.kind);
            match same {
                Some(group) => {
                    group.size = group.size.max(export.size);
                    if !group
                        .functions
                        .iter()
                        .any(|known| known.name == function.name)
                    {
                        group.functions.push(function);
                    }
                }
                None => groups.push(Group {
                    address: export.address,
                    size: export.size,
                    kind: export.kind,
                    functions: vec![function],
                }),
            }
        }
    }
    groups.sort_by_key(|group| group.address);
    groups
}

/// Where code of the same segments jumps to behind the entries. (Not of all
/// segments: a hostile file may have thousands, each as large as itself.)
fn jumps_to(file: &ElfFile<'_>, entries: &[u64]) -> Vec<u64> {
    let mut segments: Vec<ExecutableSegment<'_>> = Vec::new();
    for segment in entries
        .iter()
        .filter_map(|entry| file.executable_segment(*entry))
    {
        if !segments
            .iter()
            .any(|known| known.address == segment.address)
        {
            segments.push(segment);
        }
    }
    segments
        .iter()
        .flat_map(|segment| probe_site::branches_into(segment.bytes, segment.address, entries))
        .collect()
}

/// What is the same for all functions of a file.
struct Search<'a> {
    file: &'a ElfFile<'a>,
    ability: KernelAbility,
    branched_to: Vec<u64>,
    is_go: bool,
}

impl Search<'_> {
    /// # Errors
    /// Why the function can't be watched.
    fn watch(&self, group: &Group) -> Result<WatchedFunction, String> {
        let Some((first, others)) = group.functions.split_first() else {
            return Err("it has no name".to_owned());
        };
        if group.kind == FunctionKind::Indirect {
            return Err("its address is chosen at run time (an indirect function)".to_owned());
        }
        if let Some(other) = others
            .iter()
            .find(|other| other.signature != first.signature)
        {
            return Err(format!(
                "{} has the same code but takes its arguments differently",
                other.name
            ));
        }
        let Some(segment) = self.file.executable_segment(group.address) else {
            return Err("its address is not in executable code of the file".to_owned());
        };
        let unwind = self.file.unwind_entry(group.address);
        let returns = match return_probe::decide(&Facts {
            role: first.signature.role,
            symbol: first.name,
            file_is_go: self.is_go,
            handles_exceptions: unwind
                .clone()
                .map(|entry| entry.is_some_and(|it| it.has_lsda)),
        }) {
            ReturnProbe::NotNeeded => false,
            ReturnProbe::Allowed => true,
            ReturnProbe::Refused(reason) => return Err(format!("no return probe: {reason}")),
        };
        let covered = unwind.ok().flatten().map_or(0, |entry| {
            entry
                .start
                .saturating_add(entry.length)
                .saturating_sub(group.address)
        });
        let extent = match group.size.max(covered) {
            0 => UNKNOWN_EXTENT,
            known => known,
        };
        let start = group.address - segment.address;
        let code = FunctionCode {
            bytes: slice(segment.bytes, start, extent),
            address: group.address,
            branched_to: &self.branched_to,
        };
        Ok(WatchedFunction {
            names: group.names(),
            signature: first.signature,
            address: group.address,
            file_offset: segment.file_offset.saturating_add(start),
            sites: probe_site::candidates(&code, Need::of(&first.signature), self.ability)?,
            returns,
        })
    }
}

/// The part of `bytes` that starts at `start`, at most `length` long.
fn slice(bytes: &[u8], start: u64, length: u64) -> &[u8] {
    let start = usize::try_from(start)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let rest = &bytes[start..];
    &rest[..usize::try_from(length)
        .unwrap_or(usize::MAX)
        .min(rest.len())]
}

impl WatchedFunction {
    /// Offset of a site in the file: where a probe attaches.
    #[must_use]
    pub fn site_offset(&self, site: &ProbeSite) -> u64 {
        self.file_offset.saturating_add(site.offset.into())
    }

    /// One line that says where the function's probes are and why, such as
    /// `malloc libc.so.6+0x98930: entry at +0 push %r12 (emulated), return at +0`.
    #[must_use]
    pub fn explain(&self, file_name: &str, site: &ProbeSite) -> String {
        let how = if site.emulated {
            "emulated"
        } else {
            "single-stepped"
        };
        let mut line = format!(
            "{} {file_name}+{:#x}: entry at +{} {} ({how}",
            self.names.join("/"),
            self.file_offset,
            site.offset,
            site.instruction,
        );
        // Nothing is to be explained about the ordinary case.
        if !(site.emulated && site.offset == 0 && !site.reason.contains(';')) {
            line.push_str(": ");
            line.push_str(&site.reason);
        }
        line.push(')');
        if self.returns {
            line.push_str(&format!(", return at +{}", site.offset));
        }
        line
    }
}

#[cfg(test)]
mod tests;
