//! From the files that a process maps to the probes that are to be set.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use anyhow::{Context as _, Result};

use crate::{
    allocator::{self, WatchedFunction},
    arch,
    bpf::{PlannedFile, PlannedProbe},
    doctor::allocators::KnownAllocator,
    elf::{ElfFile, LoaderHook},
    file_map,
    model::WatchedFileInfo,
    probe_site::KernelAbility,
    target::{
        Process,
        mapped_file::{FileIdentity, MappedFile},
        mapping,
    },
};

/// The probes of a trace.
#[derive(Default)]
pub struct Plan {
    /// What to probe.
    pub files: Vec<PlannedFile>,
    /// The same, for reports.
    pub watched: Vec<WatchedFileInfo>,
    /// Each site that may be taken, explained in a line.
    explanations: HashMap<(usize, u64), String>,
    /// What could not be watched, a sentence each.
    pub problems: Vec<String>,
    /// How many functions of watched allocators can't be watched.
    pub unwatched: u64,
    /// What tells of code that is loaded and unloaded: a probe in the loader.
    pub loader: Vec<PlannedFile>,
    /// See [`LoaderHook`]; 0 when it is not known.
    pub loader_state_distance: i64,
    /// Every file that was looked at.
    pub examined: HashSet<FileIdentity>,
    /// Keeps the files open that `files` names.
    opened: Vec<Arc<MappedFile>>,
    /// Likewise for `loader`.
    opened_loader: Option<Arc<MappedFile>>,
}

impl Plan {
    /// Looks for allocators in these files.
    ///
    /// # Errors
    /// When a file that has an allocator can't be watched.
    pub fn of(files: &[Arc<MappedFile>], ability: KernelAbility) -> Result<Self> {
        let mut plan = Self::default();
        for file in files {
            if !plan.examined.insert(file.identity()) {
                continue;
            }
            plan.add(file, ability).with_context(|| {
                format!("looking for an allocator in {}", file.path().display())
            })?;
        }
        Ok(plan)
    }

    /// Whether malloc is the C library's, glibc, and no other allocator is watched.
    #[must_use]
    pub fn is_glibc_alone(&self) -> bool {
        !self.watched.is_empty()
            && self.watched.iter().all(|file| {
                let name = file.path.file_name().unwrap_or_default();
                let known = KnownAllocator::by_file_name(&name.to_string_lossy());
                known.is_some_and(|known| known.name == "glibc")
            })
    }

    fn add(&mut self, file: &Arc<MappedFile>, ability: KernelAbility) -> Result<()> {
        let bytes = match file.map() {
            Ok(bytes) => bytes,
            Err(error) => {
                self.problems
                    .push(format!("{} can't be read: {error}", file.path().display()));
                return Ok(());
            }
        };
        if let Ok(elf) = ElfFile::parse(&bytes)
            && let Some(hook) = elf.loader_hook()
        {
            self.add_loader(file, hook);
        }
        let missing_before = file_map::cut_short();
        let discovered = allocator::discover(&bytes, ability);
        if file_map::cut_short() > missing_before {
            self.problems.push(format!(
                "{} was cut short while it was read, so it is not watched",
                file.path().display()
            ));
            return Ok(());
        }
        let watched = match discovered {
            Ok(Some(watched)) => watched,
            Ok(None) => return Ok(()),
            // Mapped for execution, but no ELF file: a JIT's, most likely.
            Err(allocator::DiscoverError::Elf(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let name = file_name(file);
        self.watched.push(WatchedFileInfo {
            path: file.path().to_owned(),
            build_id: watched.build_id.clone(),
            functions: watched
                .functions
                .iter()
                .map(|function| function.names.join("/"))
                .collect(),
        });
        for function in &watched.functions {
            for site in &function.sites {
                let place = (self.files.len(), function.site_offset(site));
                let line = function.explain(&name, site);
                self.explanations.insert(place, line);
            }
        }
        for refused in &watched.refused {
            self.unwatched += 1;
            self.problems.push(format!(
                "{} in {name} is not watched: {}",
                refused.names.join("/"),
                refused.reason
            ));
        }
        self.files.push(PlannedFile {
            path: file.descriptor_path(),
            name,
            probes: watched.functions.iter().map(probe).collect(),
        });
        self.opened.push(Arc::clone(file));
        Ok(())
    }

    /// A process has one loader; libraries for others may be mapped as well.
    fn add_loader(&mut self, file: &Arc<MappedFile>, hook: LoaderHook) {
        if !self.loader.is_empty() {
            return;
        }
        self.loader_state_distance = hook.state_distance.unwrap_or(0);
        self.loader.push(PlannedFile {
            path: file.descriptor_path(),
            name: file_name(file),
            probes: vec![PlannedProbe {
                function: "the function for debuggers".to_owned(),
                cookie: 0,
                entry_sites: vec![hook.function],
                return_sites: Vec::new(),
            }],
        });
        self.opened_loader = Some(Arc::clone(file));
    }

    /// Whether the kernel's breakpoint is at the first function's site in the
    /// process; false also when that can't be read.
    pub fn has_breakpoint(&self, process: &Process) -> bool {
        let breakpoint = || {
            let (file, opened) = (self.files.first()?, self.opened.first()?);
            let offset = *file.probes.first()?.entry_sites.first()?;
            let mappings = mapping::read_mappings(process).ok()?;
            let mapping = mappings.iter().find(|mapping| {
                let length = mapping.end - mapping.start;
                mapping.executable
                    && opened.backs(mapping)
                    && (mapping.offset..mapping.offset + length).contains(&offset)
            })?;
            let address = mapping.start + (offset - mapping.offset);
            let mut instruction = [0; arch::BREAKPOINT.len()];
            let memory = File::open(process.directory().ok()?.join("mem")).ok()?;
            memory.read_exact_at(&mut instruction, address).ok()?;
            Some(instruction == arch::BREAKPOINT)
        };
        breakpoint().unwrap_or(false)
    }

    /// Why its entries are seen where they are, a line for each function.
    pub fn explain(&self, entry_sites: &[Vec<u64>]) -> Vec<&str> {
        let taken = entry_sites.iter().enumerate();
        taken
            .flat_map(|(file, sites)| sites.iter().map(move |site| (file, *site)))
            .filter_map(|place| self.explanations.get(&place).map(String::as_str))
            .collect()
    }

    /// How many functions are watched.
    pub fn function_count(&self) -> usize {
        self.watched.iter().map(|file| file.functions.len()).sum()
    }

    /// `libc.so.6`, or `2 files`.
    pub fn file_names(&self) -> String {
        match self.files.as_slice() {
            [file] => file.name.clone(),
            [one, other] => format!("{} and {}", one.name, other.name),
            files => format!("{} files", files.len()),
        }
    }
}

fn file_name(file: &MappedFile) -> String {
    file.path().file_name().map_or_else(
        || file.path().display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn probe(function: &WatchedFunction) -> PlannedProbe {
    let sites: Vec<u64> = function
        .sites
        .iter()
        .map(|site| function.site_offset(site))
        .collect();
    PlannedProbe {
        function: function.names.join("/"),
        cookie: function.signature.to_cookie(),
        return_sites: if function.returns {
            sites.clone()
        } else {
            Vec::new()
        },
        entry_sites: sites,
    }
}
