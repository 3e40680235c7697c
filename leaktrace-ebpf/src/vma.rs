//! Asking the kernel which file is mapped at an address that no known mapping
//! holds: for the time until userspace has heard of new mappings. Takes some
//! 0.35 us, so it is done for nothing else.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_get_current_task_btf,
    generated::{bpf_find_vma, bpf_probe_read_kernel},
};
use leaktrace_common::{
    unwind::Mapping,
    vma::{EXECUTABLE, PAGE_SHIFT, VmaLayout},
};

use crate::maps::FILE_NUMBERS;

/// Written by userspace before the programs are loaded, so that the verifier
/// leaves out what older kernels do not know.
#[unsafe(no_mangle)]
static VMA_LAYOUT: VmaLayout = VmaLayout {
    is_known: 0,
    start: 0,
    end: 0,
    page_offset: 0,
    flags: 0,
    file: 0,
    file_inode: 0,
};

/// A field of the layout. Volatile: the compiler knows other values.
#[inline(always)]
fn offset(field: *const u32) -> usize {
    // SAFETY: callers name a field of the constant.
    unsafe { field.read_volatile() as usize }
}

/// What the kernel knows of a mapping.
#[repr(C)]
#[derive(Default)]
struct Vma {
    start: u64,
    end: u64,
    page_offset: u64,
    flags: u64,
    /// Address of the file's inode; 0 for none.
    inode: u64,
}

/// What the kernel answers. Without the mapping itself: verifiers before 6.3 mind
/// when a copy of nothing is made.
pub enum Answer {
    /// An executable mapping of a file whose number is known.
    Found,
    /// No code is there.
    Nothing,
    /// There may be code of which nothing is known.
    Unknown,
    /// The same, since the target is just changing its mappings.
    Busy,
}

/// Errors of the helper, and one of our own: it may not be asked.
const ENOENT: i64 = -2;
const EPERM: i64 = -1;

/// Asks for the mapping at an address of the current process.
#[inline(always)]
pub fn ask(address: u64, into: &mut Mapping) -> Answer {
    let vma = match find(address) {
        Ok(vma) => vma,
        Err(ENOENT) => return Answer::Nothing,
        Err(EPERM) => return Answer::Unknown,
        Err(_) => return Answer::Busy,
    };
    if vma.flags & EXECUTABLE == 0 {
        return Answer::Nothing;
    }
    let Some(number) = FILE_NUMBERS.get_ptr(vma.inode) else {
        return Answer::Unknown;
    };
    *into = Mapping {
        start: vma.start,
        end: vma.end,
        bias: vma.start.wrapping_sub(vma.page_offset << PAGE_SHIFT),
        // SAFETY: a value of the map.
        file: unsafe { *number },
        padding: 0,
    };
    Answer::Found
}

/// Gives the file that leaktrace, the current process, maps at this address its
/// number.
#[inline(always)]
pub fn learn(address: u64, number: u32) -> i64 {
    match find(address) {
        Ok(vma) if vma.inode != 0 => match FILE_NUMBERS.insert(vma.inode, number, 0) {
            Ok(()) => 0,
            Err(error) => error.into(),
        },
        Ok(_) => EPERM,
        Err(error) => error,
    }
}

/// The mapping at an address of the current process, or the helper's error.
#[inline(always)]
fn find(address: u64) -> Result<Vma, i64> {
    if offset(&raw const VMA_LAYOUT.is_known) == 0 {
        return Err(EPERM);
    }
    let mut vma = Vma::default();
    // SAFETY: the current task is valid, the callback is as the helper wants it,
    // and writes to what it is given here.
    let result = unsafe {
        let task = bpf_get_current_task_btf();
        let callback = copy as unsafe extern "C" fn(*mut c_void, *const u8, *mut Vma) -> i64;
        let into = (&raw mut vma).cast();
        bpf_find_vma(task.cast(), address, callback as *mut c_void, into, 0)
    };
    if result == 0 { Ok(vma) } else { Err(result) }
}

/// Copies what is wanted of a mapping, which is locked meanwhile.
#[inline(never)]
unsafe extern "C" fn copy(_task: *mut c_void, vma: *const u8, into: *mut Vma) -> i64 {
    let (start, end) = (&raw const VMA_LAYOUT.start, &raw const VMA_LAYOUT.end);
    let (page_offset, flags) = (
        &raw const VMA_LAYOUT.page_offset,
        &raw const VMA_LAYOUT.flags,
    );
    let (file, inode) = (&raw const VMA_LAYOUT.file, &raw const VMA_LAYOUT.file_inode);
    let mut of_file = core::ptr::null::<u8>();
    // SAFETY: pointers into structures of the kernel, which the helper checks;
    // `into` is the caller's.
    unsafe {
        read(&raw mut (*into).start, vma.add(offset(start)));
        read(&raw mut (*into).end, vma.add(offset(end)));
        read(&raw mut (*into).page_offset, vma.add(offset(page_offset)));
        read(&raw mut (*into).flags, vma.add(offset(flags)));
        read(&raw mut of_file, vma.add(offset(file)));
        read(&raw mut (*into).inode, of_file.wrapping_add(offset(inode)));
    }
    0
}

/// Reads a value of the kernel's; zeros when it can't be.
#[inline(always)]
unsafe fn read<T>(into: *mut T, from: *const u8) {
    // SAFETY: the caller's; the helper checks the source.
    unsafe { bpf_probe_read_kernel(into.cast(), size_of::<T>() as u32, from.cast()) };
}
