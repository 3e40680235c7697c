//! Allocators that people use, as data: how to recognise them in a process.

/// One allocator.
#[derive(Debug, PartialEq, Eq)]
pub struct KnownAllocator {
    /// Its name, for a person.
    pub name: &'static str,
    /// File names of its shared library begin with one of these.
    pub files: &'static [&'static str],
    /// Functions that only it has; to recognise it when it is linked into
    /// something else.
    pub symbols: &'static [&'static str],
    /// A section that only it has.
    pub section: Option<&'static str>,
}

/// Go's own memory, which is not C's malloc.
pub const GO: KnownAllocator = KnownAllocator {
    name: "Go",
    files: &[],
    symbols: &["runtime.mallocgc"],
    section: Some(".go.buildinfo"),
};

/// Those that are recognised, the special ones first.
pub const KNOWN: [KnownAllocator; 6] = [
    KnownAllocator {
        name: "jemalloc",
        files: &["libjemalloc.so"],
        symbols: &["mallocx", "je_malloc", "je_mallocx", "_rjem_malloc"],
        section: None,
    },
    KnownAllocator {
        name: "tcmalloc",
        files: &["libtcmalloc"],
        symbols: &["tc_malloc", "TCMallocInternalMalloc"],
        section: None,
    },
    KnownAllocator {
        name: "mimalloc",
        files: &["libmimalloc"],
        symbols: &["mi_malloc"],
        section: None,
    },
    KnownAllocator {
        name: "musl",
        files: &["ld-musl-", "libc.musl-"],
        symbols: &["__libc_malloc_impl", "__malloc_donate"],
        section: None,
    },
    KnownAllocator {
        name: "glibc",
        files: &["libc.so.6", "libc-2."],
        symbols: &["__libc_memalign", "__libc_mallopt", "ptmalloc_init.part.0"],
        section: None,
    },
    GO,
];

impl KnownAllocator {
    /// The allocator whose shared library has this file name.
    #[must_use]
    pub fn by_file_name(name: &str) -> Option<&'static Self> {
        KNOWN
            .iter()
            .find(|known| known.files.iter().any(|prefix| name.starts_with(prefix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_recognised_by_their_file_names() {
        let name = |file| KnownAllocator::by_file_name(file).map(|known| known.name);
        assert_eq!(name("libjemalloc.so.2"), Some("jemalloc"));
        assert_eq!(name("libtcmalloc_minimal.so.4"), Some("tcmalloc"));
        assert_eq!(name("libmimalloc-secure.so.2.0"), Some("mimalloc"));
        assert_eq!(name("ld-musl-x86_64.so.1"), Some("musl"));
        assert_eq!(name("libc.so.6"), Some("glibc"));
        assert_eq!(name("libc-2.31.so"), Some("glibc"));
        assert_eq!(name("libcrypt.so.1"), None);
    }
}
