//! Stacks, how they end, and the sums kept for each.

/// Most frames that are kept, the watched function's own included.
pub const MAX_FRAMES: usize = 128;

/// How the walk of a stack ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StackEnd {
    /// The chain of frame pointers, or of return addresses, ended with 0.
    /// Complete only if the last frame is where a thread begins, which userspace
    /// decides.
    ChainEnd = 0,
    /// [`MAX_FRAMES`] reached.
    TooDeep = 1,
    /// A frame pointer that can't be one: not above the last, not aligned, or
    /// far from the stack. The function keeps no frame pointers.
    BadFramePointer = 2,
    /// The stack's memory could not be read.
    Unreadable = 3,
    /// The stack itself could not be stored; there are no frames.
    NotStored = 4,
    /// Unwind tables say that the last frame has no caller, and led there all
    /// the way.
    Complete = 5,
    /// As complete, but a frame pointer was guessed on the way.
    Guessed = 6,
    /// An address that no known mapping holds.
    NoMapping = 7,
    /// Code that the unwind tables do not cover.
    Gap = 8,
    /// Code whose unwind information is of a kind that is not supported.
    UnsupportedRule = 9,
    /// The unwind tables led to a stack pointer that can't be one: not above the
    /// last, or not aligned.
    BadStackPointer = 10,
    /// A return address that a return probe has replaced, of another tracer or
    /// of a function that is watched: the real one is not known.
    ReturnProbe = 11,
    /// The stack or the mappings changed while it was walked.
    Changed = 12,
    /// Code of a file whose unwind tables were still being made.
    NotReady = 13,
}

impl StackEnd {
    /// Every end, in the order of its number.
    pub const ALL: [Self; 14] = [
        Self::ChainEnd,
        Self::TooDeep,
        Self::BadFramePointer,
        Self::Unreadable,
        Self::NotStored,
        Self::Complete,
        Self::Guessed,
        Self::NoMapping,
        Self::Gap,
        Self::UnsupportedRule,
        Self::BadStackPointer,
        Self::ReturnProbe,
        Self::Changed,
        Self::NotReady,
    ];

    /// The end with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|end| *end as u32 == number)
    }
}

/// Where a frame is, in one word: the number of a file (16 bits) and an offset in
/// it (48 bits), so that it does not depend on where the file is mapped; or, with
/// number 0, an address in code that has no file.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameWord(pub u64);

impl FrameWord {
    /// The bits of the offset, or of the address.
    pub const OFFSET_MASK: u64 = (1 << Self::OFFSET_BITS) - 1;
    const OFFSET_BITS: u32 = 48;

    /// A place in a file with a number other than 0.
    #[inline(always)]
    #[must_use]
    pub const fn in_file(file: u16, offset: u64) -> Self {
        Self((file as u64) << Self::OFFSET_BITS | offset & Self::OFFSET_MASK)
    }

    /// An address in no file. The higher bits of a wild one are lost: no code of
    /// a process is there, unless it asks for more than 47 bits of addresses.
    #[must_use]
    pub const fn at_address(address: u64) -> Self {
        Self(address & Self::OFFSET_MASK)
    }

    /// The file's number, 0 for none.
    #[must_use]
    pub const fn file(self) -> u16 {
        (self.0 >> Self::OFFSET_BITS) as u16
    }

    /// The offset in the file, or the address.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 & Self::OFFSET_MASK
    }

    /// The byte before, which a return address's call ends with.
    #[must_use]
    pub const fn before(self) -> Self {
        match self.offset() {
            0 => self,
            _ => Self(self.0 - 1),
        }
    }
}

/// Id under which blocks are accounted whose stack could not be stored.
pub const NOT_STORED: u64 = 1;

/// Value of the stack table; its key is the stack's id, a hash of all of this.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// A second hash, to tell apart stacks with the same id.
    pub check: u64,
    /// A [`StackEnd`].
    pub end: u32,
    /// How many of `frames` are valid.
    pub depth: u32,
    /// Frame 0 is the probed instruction in the watched function, the others
    /// are return addresses, from the caller outwards: the number of the file
    /// in the upper 16 bits with the offset there in the others, or an address
    /// where the number is 0.
    pub frames: [u64; MAX_FRAMES],
}

/// What was allocated and given back with one stack, since the start, on one
/// CPU. The sum over all CPUs is right; a single one may well have freed more
/// than it allocated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackSums {
    /// [`StackRecord::check`], or 0 when this CPU has not compared it yet.
    pub check: u64,
    /// Bytes requested.
    pub alloc_bytes: u64,
    /// Blocks allocated.
    pub alloc_blocks: u64,
    /// Bytes given back.
    pub freed_bytes: u64,
    /// Blocks given back, by how many of [`AGE_LIMITS_NS`] they had reached.
    pub freed_by_age: [u64; AGE_BANDS],
}

/// Ages that blocks are told apart by, in nanoseconds, rising.
pub const AGE_LIMITS_NS: [u64; AGE_BANDS - 1] = [
    1_000_000_000,
    10_000_000_000,
    60_000_000_000,
    600_000_000_000,
];
/// Bands of age: below the first limit, and from each of them on.
pub const AGE_BANDS: usize = 5;

/// How many of [`AGE_LIMITS_NS`] a block made at `made_ns` has reached at `now_ns`;
/// none when the two clocks disagree and it is not made yet.
#[inline(always)]
#[must_use]
pub const fn age_band(made_ns: u64, now_ns: u64) -> usize {
    let age = now_ns.wrapping_sub(made_ns) as i64;
    // As most blocks die young, one comparison decides for them.
    if age < AGE_LIMITS_NS[0] as i64 {
        return 0;
    }
    let mut band = 1;
    while band < AGE_BANDS - 1 && age >= AGE_LIMITS_NS[band] as i64 {
        band += 1;
    }
    band
}

impl StackRecord {
    /// No frames, no end.
    pub const EMPTY: Self = Self {
        check: 0,
        end: 0,
        depth: 0,
        frames: [0; MAX_FRAMES],
    };
}

const _: () = assert!(size_of::<StackRecord>() == 16 + 8 * MAX_FRAMES);
const _: () = assert!(size_of::<StackSums>() == 32 + 8 * AGE_BANDS);

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for StackRecord {}
#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for StackSums {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_word_holds_a_file_and_an_offset_or_an_address() {
        let last = FrameWord::in_file(u16::MAX, FrameWord::OFFSET_MASK);
        assert_eq!(last.0, u64::MAX);
        assert_eq!((last.file(), last.offset()), (0xffff, 0xffff_ffff_ffff));
        let frame = FrameWord::in_file(3, 0x1234);
        assert_eq!((frame.file(), frame.offset()), (3, 0x1234));
        assert_eq!(FrameWord::in_file(3, 1 << 48).file(), 3);
        let wild = FrameWord::at_address(0xdead_7fff_1234_5678);
        assert_eq!((wild.file(), wild.offset()), (0, 0x7fff_1234_5678));
    }

    #[test]
    fn a_block_is_in_the_band_of_the_limits_it_has_reached() {
        const SECOND: u64 = 1_000_000_000;
        for (age, band) in [
            (0, 0),
            (SECOND - 1, 0),
            (SECOND, 1),
            (10 * SECOND - 1, 1),
            (10 * SECOND, 2),
            (60 * SECOND, 3),
            (600 * SECOND - 1, 3),
            (600 * SECOND, 4),
            (90_000 * SECOND, 4),
        ] {
            assert_eq!(age_band(77, 77 + age), band, "{age}");
        }
        assert_eq!(age_band(77, 76), 0);
    }

    #[test]
    fn the_byte_before_is_in_the_same_file() {
        assert_eq!(
            FrameWord::in_file(3, 0x10).before(),
            FrameWord::in_file(3, 0xf)
        );
        for first in [FrameWord::in_file(3, 0), FrameWord::at_address(0)] {
            assert_eq!(first.before(), first);
        }
    }
}
