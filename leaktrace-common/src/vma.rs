//! What programs need to ask the kernel itself which file is mapped at an
//! address: a mapping is a `vm_area_struct` there, and a file, as far as its
//! contents go, an `inode`. As long as leaktrace keeps a file open, the address of
//! its inode is nobody else's: so files have numbers by that. Neither device and
//! inode number nor what `/proc` shows tell as much on every file system (btrfs,
//! overlayfs).

/// Where the kernel keeps what is wanted, as its own types tell: offsets in its
/// structures, bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmaLayout {
    /// 0 when nothing may be asked.
    pub is_known: u32,
    /// `vm_area_struct.vm_start`.
    pub start: u32,
    /// `vm_area_struct.vm_end`.
    pub end: u32,
    /// `vm_area_struct.vm_pgoff`.
    pub page_offset: u32,
    /// `vm_area_struct.vm_flags`.
    pub flags: u32,
    /// `vm_area_struct.vm_file`.
    pub file: u32,
    /// `file.f_inode`.
    pub file_inode: u32,
}

/// `VM_EXEC` of [`VmaLayout::flags`].
pub const EXECUTABLE: u64 = 4;
/// Bits of an offset within a page, which `vm_pgoff` counts.
pub const PAGE_SHIFT: u32 = 12;

const _: () = assert!(size_of::<VmaLayout>() == 28);

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for VmaLayout {}
