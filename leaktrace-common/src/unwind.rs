//! Unwind tables: how to get from an instruction to the frame of its caller.
//!
//! A file's tables are addressed by the offset of an instruction in the file,
//! so they hold wherever the file is mapped. The way from an instruction to its
//! [`Rule`]:
//!
//! 1. the [`Mapping`] that holds the address: `offset = address - bias`;
//! 2. the [`FileRecord`] of its file: `page = page_number(offset) - first_page`,
//!    no information unless `page < page_count`;
//! 3. the [`Page`] at `pages + page`;
//! 4. among its `count` rows from `first` on, the last whose `low` is not above
//!    `low(offset)`. There is one: the first row of a page has `low` 0 and holds
//!    what is in force there. So no look-up leaves its page;
//! 5. the rule with that row's number.

/// Bits of a file offset within a page of text (64 KiB).
pub const PAGE_BITS: u32 = 16;
/// Rows that lie together: `Page::first >> 16` is the number of the chunk,
/// `Page::first & 0xffff` the row in it. No page crosses from one into another.
pub const CHUNK_ROWS: u32 = 1 << 16;
/// Most rows of one page: one for each byte of text.
pub const MAX_PAGE_ROWS: u32 = 1 << PAGE_BITS;
/// Rounds that a binary search over the rows of any page takes at most.
pub const SEARCH_ROUNDS: u32 = PAGE_BITS;
/// Most distinct rules of all files together.
pub const MAX_RULES: usize = 1 << 14;
/// The number of the rule that says that nothing is known. All zero, as memory
/// is that nobody has written to.
pub const GAP_RULE: u16 = 0;
/// The number of the file record of code without a file.
pub const NO_FILE: u32 = 0;

/// The number of the page that holds a file offset.
#[inline(always)]
#[must_use]
pub const fn page_number(offset: u64) -> u64 {
    offset >> PAGE_BITS
}

/// Where in its page a file offset is.
#[inline(always)]
#[must_use]
pub const fn low(offset: u64) -> u16 {
    offset as u16
}

/// From which instruction of a page on which rule holds.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row(pub u32);

impl Row {
    /// A row for the instructions from `low` on.
    #[inline(always)]
    #[must_use]
    pub const fn new(low: u16, rule: u16) -> Self {
        Self(low as u32 | (rule as u32) << 16)
    }
    /// Its first instruction, within the page.
    #[inline(always)]
    #[must_use]
    pub const fn low(self) -> u16 {
        self.0 as u16
    }
    /// The number of its rule.
    #[inline(always)]
    #[must_use]
    pub const fn rule(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// Values of [`Rule::cfa_kind`]: where the canonical frame address (CFA), the
/// stack pointer's value before the call, is. `a` is [`Rule::cfa_offset`], `b`
/// [`Rule::cfa_addend`].
pub mod cfa {
    /// Nothing is known of these instructions.
    pub const GAP: u8 = 0;
    /// `rsp + a`.
    pub const SP: u8 = 1;
    /// `rbp + a`.
    pub const FP: u8 = 2;
    /// In a procedure linkage table: `rsp + a`, and 8 more when
    /// `rip & 15 >= b`, where the entry has pushed a word.
    pub const PLT: u8 = 3;
    /// `*(rsp + a) + b`.
    pub const SP_DEREF: u8 = 4;
    /// `*(rbp + a) + b`.
    pub const FP_DEREF: u8 = 5;
    /// Where a signal handler returns to: the registers are in the `ucontext`
    /// at `rsp` (see [`crate::arch::signal_frame`]). The instruction above was
    /// interrupted, it has not called: its own address is looked up.
    pub const SIGNAL: u8 = 6;
    /// The outermost frame: there is no caller.
    pub const END: u8 = 7;
    /// There is information, of a kind that is not supported; `a` tells
    /// userspace which.
    pub const UNSUPPORTED: u8 = 8;
    /// How many there are.
    pub const KINDS: u8 = 9;
}

/// Values of [`Rule::fp_kind`]: where the caller's `rbp` is. `c` is
/// [`Rule::fp_offset`].
pub mod fp {
    /// Still in the register.
    pub const SAME: u8 = 0;
    /// At `*(CFA + c)`.
    pub const CFA: u8 = 1;
    /// At `*(rbp + c)`.
    pub const FP: u8 = 2;
    /// At `*(rsp + c)`.
    pub const SP: u8 = 3;
    /// Nowhere, or in a place that is not supported: callers that need it can't
    /// be unwound. It is then taken for 0.
    pub const LOST: u8 = 4;
    /// How many there are.
    pub const KINDS: u8 = 5;
}

/// How to get to the caller's registers: its `rsp` is the CFA, its `rip` at
/// `*(CFA + ra_offset)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// One of [`cfa`].
    pub cfa_kind: u8,
    /// One of [`fp`].
    pub fp_kind: u8,
    /// Where the return address is, from the CFA.
    pub ra_offset: i16,
    /// `a` of [`cfa`].
    pub cfa_offset: i32,
    /// `b` of [`cfa`].
    pub cfa_addend: i32,
    /// `c` of [`fp`].
    pub fp_offset: i32,
}

impl Rule {
    /// Nothing is known.
    pub const GAP: Self = Self::of_kind(cfa::GAP);
    /// The outermost frame.
    pub const END: Self = Self::of_kind(cfa::END);
    /// The frame of a signal.
    pub const SIGNAL: Self = Self::of_kind(cfa::SIGNAL);

    /// At a function's first instruction, with or without tables.
    pub const ENTRY: Self = Self {
        ra_offset: -8,
        cfa_offset: 8,
        ..Self::of_kind(cfa::SP)
    };
    /// Where `rbp` points to the caller's, with the return address above it:
    /// the guess that [`KEEPS_FRAME_POINTERS`] allows.
    pub const FRAME_POINTER: Self = Self {
        fp_kind: fp::CFA,
        ra_offset: -8,
        cfa_offset: 16,
        fp_offset: -16,
        ..Self::of_kind(cfa::FP)
    };

    const fn of_kind(cfa_kind: u8) -> Self {
        Self {
            cfa_kind,
            fp_kind: 0,
            ra_offset: 0,
            cfa_offset: 0,
            cfa_addend: 0,
            fp_offset: 0,
        }
    }
}

/// The rows of 64 KiB of a file's text.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Number of its first row.
    pub first: u32,
    /// How many there are; 0 for a page that was never written, which holds no
    /// information.
    pub count: u32,
}

/// A file's pages, which cover its text and what lies between.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRecord {
    /// Number of the [`Page`] of its first page of text.
    pub pages: u32,
    /// [`page_number`] of its first page of text.
    pub first_page: u32,
    /// How many pages; 0 while nothing is known of the file, so written last.
    pub page_count: u32,
    /// [`KEEPS_FRAME_POINTERS`], [`IS_EXAMINED`].
    pub flags: u32,
}

/// In [`FileRecord::flags`]: where nothing is known, `rbp` may be taken for a
/// frame pointer; the stack is then guessed.
pub const KEEPS_FRAME_POINTERS: u32 = 1;

/// In [`FileRecord::flags`]: its tables are made, or it has none. All zero is a file
/// that was met just now.
pub const IS_EXAMINED: u32 = 2;

/// An executable mapping of a process. Those of one process are sorted and do
/// not overlap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Address less file offset (modulo 2^64).
    pub bias: u64,
    /// Number of its [`FileRecord`].
    pub file: u32,
    /// Always 0.
    pub padding: u32,
}

/// Most executable mappings of a process that are known at a time.
pub const MAX_MAPPINGS: usize = 4096;

/// The executable mappings of a process.
#[repr(C)]
pub struct MappingTable {
    /// How many of them are valid.
    pub count: u64,
    /// Sorted by address; see [`Mapping`].
    pub mappings: [Mapping; MAX_MAPPINGS],
}

/// [`CHUNK_ROWS`] rows: a value of the map of rows.
#[repr(C)]
pub struct Chunk(pub [Row; CHUNK_ROWS as usize]);

/// Most files that have a [`FileRecord`]; of others nothing is known.
pub const MAX_FILES: usize = 4096;

const _: () = assert!(size_of::<Row>() == 4);
const _: () = assert!(size_of::<Rule>() == 16);
const _: () = assert!(size_of::<Page>() == 8);
const _: () = assert!(size_of::<FileRecord>() == 16);
const _: () = assert!(size_of::<Mapping>() == 32);
const _: () = assert!(size_of::<MappingTable>() == 8 + 32 * MAX_MAPPINGS);
const _: () = assert!(size_of::<Chunk>() == 4 << 16);

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for Row {}
#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for Rule {}
#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for Page {}
#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for FileRecord {}
#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for Mapping {}
