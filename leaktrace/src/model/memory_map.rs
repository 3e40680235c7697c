//! What a process's address space is made of, by kinds of mappings.

use std::sync::Arc;

/// What a mapping is for, as far as it can be told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MappingKind {
    /// What `brk` made: glibc's main heap (`[heap]`).
    BrkHeap,
    /// glibc's other arenas.
    Arena,
    /// A block that glibc's malloc has mapped by itself.
    MappedBlock,
    /// Anonymous memory that has a name (`[anon:…]`): runtimes and some
    /// allocators call theirs so.
    Named,
    /// Other anonymous memory.
    Anonymous,
    /// Stacks, the main thread's and those of others that could be told.
    Stack,
    /// Files.
    File,
    /// Shared memory: memfd, `/dev/shm`, System V, shared anonymous memory.
    Shared,
    /// Huge pages from the reserved pool, which RSS does not have.
    HugePages,
    /// The kernel's own and devices.
    Special,
    /// Addresses that are only reserved (`PROT_NONE`).
    Reserved,
}

impl MappingKind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 11] = [
        Self::BrkHeap,
        Self::Arena,
        Self::MappedBlock,
        Self::Named,
        Self::Anonymous,
        Self::Stack,
        Self::File,
        Self::Shared,
        Self::HugePages,
        Self::Special,
        Self::Reserved,
    ];

    /// Whether glibc's malloc made it.
    #[must_use]
    pub const fn is_glibc_malloc(self) -> bool {
        matches!(self, Self::BrkHeap | Self::Arena | Self::MappedBlock)
    }

    /// Whether its memory counts as `RssAnon`.
    #[must_use]
    pub const fn is_anonymous(self) -> bool {
        matches!(self, Self::Named | Self::Anonymous | Self::Stack) || self.is_glibc_malloc()
    }
}

/// The address space at one time. The parts are ordered by kind and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    /// All mappings of one kind and one name each.
    pub parts: Vec<MapPart>,
    /// How many mappings there are, as the kernel counts them.
    pub mappings: u64,
    /// Whether malloc's mapped blocks could be told from other anonymous memory:
    /// only where memory may be read.
    pub blocks_told: bool,
}

/// The mappings of one kind and one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPart {
    /// What they are for.
    pub kind: MappingKind,
    /// The file's path, or the name of anonymous memory; empty for others.
    pub name: Arc<str>,
    /// How large they are together, bytes.
    pub bytes: u64,
    /// What is used of it; `None` when only the mappings were listed.
    pub used: Option<Used>,
}

/// How much of a mapping is used, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// In memory.
    pub resident: u64,
    /// Swapped out.
    pub swapped: u64,
}

impl Used {
    /// Both together: swapped memory is held, too.
    #[must_use]
    pub fn held(self) -> u64 {
        self.resident.saturating_add(self.swapped)
    }
}

impl MemoryMap {
    /// How large the mappings of a kind are together, bytes.
    #[must_use]
    pub fn bytes(&self, kind: MappingKind) -> u64 {
        self.of(kind).map(|part| part.bytes).sum()
    }

    /// What is used of the mappings of a kind, where that is known.
    #[must_use]
    pub fn held(&self, kind: MappingKind) -> Option<u64> {
        self.of(kind).map(|part| part.used.map(Used::held)).sum()
    }

    /// The parts of a kind.
    pub fn of(&self, kind: MappingKind) -> impl Iterator<Item = &MapPart> {
        self.parts.iter().filter(move |part| part.kind == kind)
    }

    /// Which of the mappings of a kind has grown most since `then`; if none has,
    /// which has most in memory.
    #[must_use]
    pub fn most_grown(&self, then: &Self, kind: MappingKind) -> Option<Arc<str>> {
        let key = |part: &&MapPart| {
            let before = then.part(kind, &part.name).map_or(0, |part| part.bytes);
            let growth = part.bytes.saturating_sub(before);
            match part.used {
                Some(used) => (growth.min(used.held()), used.held()),
                None => (growth, 0),
            }
        };
        let part = self.of(kind).max_by_key(key)?;
        (key(&part) != (0, 0)).then(|| Arc::clone(&part.name))
    }

    /// The part of this kind and name.
    #[must_use]
    pub fn part(&self, kind: MappingKind, name: &str) -> Option<&MapPart> {
        self.of(kind).find(|part| *part.name == *name)
    }
}
