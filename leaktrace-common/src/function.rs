//! What a watched function does, as data: which arguments are sizes, pointers
//! and out-pointers. Travels to the programs in the probe's attach cookie.

/// What a call does to the set of live blocks.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Returns a block of the requested size: `malloc`.
    Alloc = 0,
    /// Returns a block of count × size: `calloc`.
    AllocArray = 1,
    /// Takes a block and a size, returns a block: `realloc`.
    Realloc = 2,
    /// Takes a block, count and size, returns a block: `reallocarray`.
    ReallocArray = 3,
    /// Stores the block through a pointer and returns 0: `posix_memalign`.
    AllocOut = 4,
    /// Takes a block back: `free`.
    Free = 5,
}

impl Role {
    /// Every role, in the order of its number.
    pub const ALL: [Self; 6] = [
        Self::Alloc,
        Self::AllocArray,
        Self::Realloc,
        Self::ReallocArray,
        Self::AllocOut,
        Self::Free,
    ];
    /// How many roles there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether the result is known only when the call returns.
    #[must_use]
    pub const fn needs_return(self) -> bool {
        !matches!(self, Self::Free)
    }
}

/// Which argument register (0 is the first) a value comes in.
pub type Argument = u8;
/// The function has no such argument.
pub const NO_ARGUMENT: Argument = 0xf;

/// A watched function's role and where its arguments are. Packs into the 64
/// bits of an attach cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    /// What a call does.
    pub role: Role,
    /// The requested size, bytes, or of one element.
    pub size: Argument,
    /// The number of elements.
    pub count: Argument,
    /// The block given back or resized.
    pub block: Argument,
    /// The pointer through which the block is returned.
    pub out: Argument,
}

impl Signature {
    /// `f(size) -> block`, the size in argument `size`.
    #[must_use]
    pub const fn alloc(size: Argument) -> Self {
        Self {
            role: Role::Alloc,
            size,
            count: NO_ARGUMENT,
            block: NO_ARGUMENT,
            out: NO_ARGUMENT,
        }
    }
    /// `f(count, size) -> block`.
    #[must_use]
    pub const fn alloc_array(count: Argument, size: Argument) -> Self {
        Self {
            role: Role::AllocArray,
            size,
            count,
            block: NO_ARGUMENT,
            out: NO_ARGUMENT,
        }
    }
    /// `f(block, size) -> block`.
    #[must_use]
    pub const fn realloc(block: Argument, size: Argument) -> Self {
        Self {
            role: Role::Realloc,
            size,
            count: NO_ARGUMENT,
            block,
            out: NO_ARGUMENT,
        }
    }
    /// `f(block, count, size) -> block`.
    #[must_use]
    pub const fn realloc_array(block: Argument, count: Argument, size: Argument) -> Self {
        Self {
            role: Role::ReallocArray,
            size,
            count,
            block,
            out: NO_ARGUMENT,
        }
    }
    /// `f(&out, …, size) -> 0 or an error`.
    #[must_use]
    pub const fn alloc_out(out: Argument, size: Argument) -> Self {
        Self {
            role: Role::AllocOut,
            size,
            count: NO_ARGUMENT,
            block: NO_ARGUMENT,
            out,
        }
    }
    /// `f(block)`.
    #[must_use]
    pub const fn free(block: Argument) -> Self {
        Self {
            role: Role::Free,
            size: NO_ARGUMENT,
            count: NO_ARGUMENT,
            block,
            out: NO_ARGUMENT,
        }
    }

    /// As the attach cookie: role in bits 0-7, then four bits each for size,
    /// count, block, out.
    #[must_use]
    pub const fn to_cookie(self) -> u64 {
        self.role as u64
            | (self.size as u64) << 8
            | (self.count as u64) << 12
            | (self.block as u64) << 16
            | (self.out as u64) << 20
    }
}

/// Signatures that have an entry program of their own, for kernels whose probes
/// can't tell their program a cookie (before 5.15), with the programs' names.
pub const FIXED: [(&str, Signature); 7] = [
    ("enter_alloc_0", Signature::alloc(0)),
    ("enter_alloc_1", Signature::alloc(1)),
    ("enter_alloc_array_01", Signature::alloc_array(0, 1)),
    ("enter_realloc_01", Signature::realloc(0, 1)),
    ("enter_realloc_array_012", Signature::realloc_array(0, 1, 2)),
    ("enter_alloc_out_02", Signature::alloc_out(0, 2)),
    ("enter_free_0", Signature::free(0)),
];

/// Reads the fields of a cookie one by one; the programs never build a
/// [`Signature`], so that an unused field costs nothing.
#[derive(Clone, Copy)]
pub struct Cookie(pub u64);

impl Cookie {
    /// The role's number.
    #[inline(always)]
    #[must_use]
    pub const fn role(self) -> u8 {
        self.0 as u8
    }
    /// Argument number of the size.
    #[inline(always)]
    #[must_use]
    pub const fn size(self) -> Argument {
        (self.0 >> 8) as u8 & 0xf
    }
    /// Argument number of the count.
    #[inline(always)]
    #[must_use]
    pub const fn count(self) -> Argument {
        (self.0 >> 12) as u8 & 0xf
    }
    /// Argument number of the block.
    #[inline(always)]
    #[must_use]
    pub const fn block(self) -> Argument {
        (self.0 >> 16) as u8 & 0xf
    }
    /// Which set of probes the call comes from (see
    /// [`crate::control::Control::generation`]).
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u8 {
        (self.0 >> 56) as u8
    }
    /// A cookie for another set of probes.
    #[must_use]
    pub const fn with_generation(self, generation: u8) -> Self {
        Self(self.0 & (u64::MAX >> 8) | (generation as u64) << 56)
    }
    /// Argument number of the out-pointer.
    #[inline(always)]
    #[must_use]
    pub const fn out(self) -> Argument {
        (self.0 >> 20) as u8 & 0xf
    }
}
