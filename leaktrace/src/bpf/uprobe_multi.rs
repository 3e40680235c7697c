//! Uprobe-multi links: one link for all probes of a file, which attaches and
//! detaches in milliseconds where perf events take 0.11 s each. aya 0.14 can't
//! load programs for them, so this module loads and links by itself.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya_obj::{Function, generated::bpf_prog_type::BPF_PROG_TYPE_KPROBE};

use serde::{Deserialize, Serialize};

use super::{
    probes::Scope,
    syscall::{self, BPF_LINK_CREATE, BPF_PROG_LOAD},
};

/// `BPF_TRACE_UPROBE_MULTI` of the kernel's `enum bpf_attach_type`.
pub const BPF_TRACE_UPROBE_MULTI: u32 = 48;
/// `BPF_F_UPROBE_MULTI_RETURN`.
const UPROBE_MULTI_RETURN: u32 = 1;

/// What `BPF_PROG_LOAD` reads of `union bpf_attr`, up to the attach type and
/// the line information.
#[repr(C)]
#[derive(Default)]
struct ProgramAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    padding: u32,
}

/// The `link_create.uprobe_multi` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct LinkAttributes {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    cnt: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}

/// Loads a relocated program so that it can be linked here.
pub fn load(
    name: &str,
    license: &CStr,
    function: &Function,
    btf: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut attributes = ProgramAttributes {
        prog_type: BPF_PROG_TYPE_KPROBE as u32,
        insn_cnt: function.instructions.len() as u32,
        insns: function.instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        ..ProgramAttributes::default()
    };
    let length = name.len().min(attributes.prog_name.len() - 1);
    attributes.prog_name[..length].copy_from_slice(&name.as_bytes()[..length]);
    let function_info = function.func_info.func_info_bytes();
    let line_info = function.line_info.line_info_bytes();
    if let Some(btf) = btf {
        attributes.prog_btf_fd = btf.as_raw_fd() as u32;
        if function.func_info_rec_size > 0 {
            attributes.func_info = function_info.as_ptr() as u64;
            attributes.func_info_cnt = function.func_info.len() as u32;
            attributes.func_info_rec_size = function.func_info_rec_size as u32;
        }
        if function.line_info_rec_size > 0 {
            attributes.line_info = line_info.as_ptr() as u64;
            attributes.line_info_cnt = function.line_info.len() as u32;
            attributes.line_info_rec_size = function.line_info_rec_size as u32;
        }
    }
    // SAFETY: all buffers live through the call.
    let error = match unsafe { syscall::bpf_fd(BPF_PROG_LOAD, &mut attributes) } {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    // Once more, this time asking the verifier for its reasons.
    let mut log = vec![0_u8; 1 << 20];
    attributes.log_level = 1;
    attributes.log_size = log.len() as u32;
    attributes.log_buf = log.as_mut_ptr() as u64;
    // SAFETY: as above.
    if let Ok(program) = unsafe { syscall::bpf_fd(BPF_PROG_LOAD, &mut attributes) } {
        return Ok(program);
    }
    if error.raw_os_error() == Some(libc::EPERM) {
        return Err(error);
    }
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let tail: Vec<&str> = text.lines().rev().take(12).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Err(io::Error::new(
        error.kind(),
        format!(
            "program {name} was not accepted: {error}\n{}",
            tail.join("\n")
        ),
    ))
}

/// One probe of a link.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct MultiProbe {
    /// Offset of the instruction in the file.
    pub offset: u64,
    /// What the program is told.
    pub cookie: u64,
}

/// Sets all `probes` of one file at once.
///
/// # Errors
/// One site that the kernel refuses (errno 524) fails the whole link; a
/// process that is gone gives `ESRCH`.
pub fn link(
    program: BorrowedFd<'_>,
    path: &CStr,
    probes: &[MultiProbe],
    scope: Scope,
    at_return: bool,
) -> io::Result<OwnedFd> {
    let offsets: Vec<u64> = probes.iter().map(|probe| probe.offset).collect();
    let cookies: Vec<u64> = probes.iter().map(|probe| probe.cookie).collect();
    let mut attributes = LinkAttributes {
        prog_fd: program.as_raw_fd() as u32,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        cookies: cookies.as_ptr() as u64,
        cnt: probes.len() as u32,
        multi_flags: if at_return { UPROBE_MULTI_RETURN } else { 0 },
        pid: match scope {
            Scope::Process(pid) => pid,
            Scope::Everyone => 0,
        },
        ..LinkAttributes::default()
    };
    // SAFETY: all buffers live through the call.
    unsafe { syscall::bpf_fd(BPF_LINK_CREATE, &mut attributes) }
}

/// Loads a few instructions to see what comes of it.
pub fn load_trial(instructions: &[u64], attach_type: u32) -> io::Result<OwnedFd> {
    let mut attributes = ProgramAttributes {
        prog_type: BPF_PROG_TYPE_KPROBE as u32,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: attach_type,
        ..ProgramAttributes::default()
    };
    // SAFETY: both buffers live through the call.
    unsafe { syscall::bpf_fd(BPF_PROG_LOAD, &mut attributes) }
}
