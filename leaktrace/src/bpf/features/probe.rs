//! How each feature is found.

use std::{io, os::fd::AsFd as _, sync::OnceLock};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};
use leaktrace_common::vma::VmaLayout;

use super::super::{
    batch, kernel_types, probes::Scope, syscall, uprobe_multi as multi, uprobe_perf,
};
use crate::arch;

/// Either kind of them will do.
pub fn uprobes() -> bool {
    uprobe_perf::is_supported() || uprobe_multi()
}

/// A program that counts from 0 to 8 in a loop.
pub fn bounded_loops() -> bool {
    // r0 = 0; r0 += 1; if r0 < 8 goto -2; r0 = 0; exit
    loads(&[
        0x0000_0000_0000_00b7,
        0x0000_0001_0000_0007,
        0x0000_0008_fffe_00a5,
        0x0000_0000_0000_00b7,
        0x0000_0000_0000_0095,
    ])
}

pub fn read_user_memory() -> bool {
    has_helper(BpfHelper::BPF_FUNC_probe_read_user)
}

pub fn mapped_arrays() -> bool {
    const BPF_F_MMAPABLE: u32 = 1 << 10;
    syscall::create_map(syscall::BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE).is_ok()
}

/// The kernel looks at the arguments of such a link only if it knows them, and
/// then finds that `/` is no regular file.
pub fn uprobe_multi() -> bool {
    // r0 = 0; exit
    let instructions = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
    let Ok(program) = multi::load_trial(&instructions, multi::BPF_TRACE_UPROBE_MULTI) else {
        return false;
    };
    let probe = multi::MultiProbe {
        offset: 1,
        cookie: 0,
    };
    multi::link(program.as_fd(), c"/", &[probe], Scope::Everyone, false)
        .is_err_and(|error| error.raw_os_error() == Some(libc::EBADF))
}

pub fn perf_link() -> bool {
    aya::features().bpf_perf_link()
}

pub fn attach_cookie() -> bool {
    aya::features().bpf_cookie()
}

/// A program that compares and exchanges a word of its own stack.
pub fn compare_exchange() -> bool {
    // r0 = 0; *(u64 *)(r10 - 8) = r0; r1 = 1;
    // r0 = cmpxchg_64(r10 - 8, r0, r1); r0 = 0; exit
    loads(&[
        0x0000_0000_0000_00b7,
        0x0000_0000_fff8_0a7b,
        0x0000_0001_0000_01b7,
        0x0000_00f1_fff8_1adb,
        0x0000_0000_0000_00b7,
        0x0000_0000_0000_0095,
    ])
}

pub fn btf() -> bool {
    !kernel_btf().is_empty()
}

/// BPF has an allocator of its own.
pub fn map_memory_on_demand() -> bool {
    kernel_btf_names(b"\0bpf_mem_alloc\0")
}

/// The trial reads no entries of a map that has none.
pub fn batched_lookup() -> bool {
    syscall::create_map(syscall::BPF_MAP_TYPE_HASH, 0)
        .is_ok_and(|map| batch::look_up_nothing(map.as_fd()).is_ok())
}

/// Whether the system call through which replaced no-operations enter the
/// kernel exists. It came with (or after) the emulation of the other ones.
pub fn long_nop_emulated() -> bool {
    let Some(uprobe) = arch::UPROBE_SYSTEM_CALL else {
        return false;
    };
    // SAFETY: takes no arguments, and does nothing but fail when it isn't
    // called from the kernel's own trampoline.
    let result = unsafe { libc::syscall(uprobe) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO)
}

/// The function that does it, or that there are no shadow stacks; where neither
/// is so, a process that has one dies at its first return.
pub fn returns_keep_shadow_stack() -> bool {
    !arch::has_shadow_stacks() || kernel_btf_names(b"\0shstk_update_last_frame\0")
}

pub fn ring_buffer() -> bool {
    is_map_supported(MapType::RingBuf).unwrap_or(false)
}

/// The helper, and types that tell what it gives.
pub fn find_vma() -> bool {
    has_helper(BpfHelper::BPF_FUNC_find_vma) && vma_layout().is_some()
}

/// Where mappings have what identifies their files.
pub fn vma_layout() -> Option<VmaLayout> {
    static LAYOUT: OnceLock<Option<VmaLayout>> = OnceLock::new();
    *LAYOUT.get_or_init(|| kernel_types::vma_layout(kernel_btf()))
}

fn has_helper(helper: BpfHelper) -> bool {
    is_helper_supported(ProgramType::KProbe, helper).unwrap_or(false)
}

fn loads(instructions: &[u64]) -> bool {
    multi::load_trial(instructions, 0).is_ok()
}

/// Whether the kernel's BTF has this name among its strings. A search of the
/// raw bytes, since what the name is of does not matter.
fn kernel_btf_names(name: &[u8]) -> bool {
    memchr::memmem::find(kernel_btf(), name).is_some()
}

fn kernel_btf() -> &'static [u8] {
    static BTF: OnceLock<Vec<u8>> = OnceLock::new();
    BTF.get_or_init(|| std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default())
}
