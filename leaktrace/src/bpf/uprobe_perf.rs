//! Probes by perf events, one each: what every supported kernel has.

use std::{
    ffi::CStr,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use serde::{Deserialize, Serialize};

use super::{
    probes::Scope,
    syscall::{self, BPF_LINK_CREATE},
};
use crate::perf_event::{self, Event, Request};

/// What the kernel says about events of this kind.
const KIND: &str = "/sys/bus/event_source/devices/uprobe/type";
const RETURN_BIT: &str = "/sys/bus/event_source/devices/uprobe/format/retprobe";

/// `BPF_PERF_EVENT` of the kernel's `enum bpf_attach_type`.
const BPF_PERF_EVENT: u32 = 41;

/// How a program is tied to an event.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Tie {
    /// By a link, which tells the program this (where that is possible).
    Link { cookie: u64 },
    /// By the older `ioctl`.
    Ioctl,
}

/// The `link_create.perf_event` member of `union bpf_attr`.
#[repr(C)]
struct LinkAttributes {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    bpf_cookie: u64,
}

/// Whether the kernel has such events.
pub fn is_supported() -> bool {
    number(KIND, "").is_ok()
}

/// Sets one probe; it is there until the descriptor is closed.
///
/// # Errors
/// That the kernel refuses the site, among others.
pub fn set(
    program: BorrowedFd<'_>,
    path: &CStr,
    offset: u64,
    at_return: bool,
    scope: Scope,
    tie: Tie,
) -> io::Result<OwnedFd> {
    let event = Event {
        kind: number(KIND, "")?,
        config: if at_return {
            1 << number(RETURN_BIT, "config:")?
        } else {
            0
        },
        config1: path.as_ptr() as u64,
        config2: offset,
        ..Event::default()
    };
    let (process, cpu) = match scope {
        Scope::Process(pid) => (
            i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?,
            -1,
        ),
        // The program runs on every CPU, whichever the event is on.
        Scope::Everyone => (-1, 0),
    };
    // SAFETY: the path lives through the call.
    let event = unsafe { perf_event::open(event, process, cpu) }?;
    match tie {
        // The link keeps the event.
        Tie::Link { cookie } => {
            let mut attributes = LinkAttributes {
                prog_fd: program.as_raw_fd() as u32,
                target_fd: event.as_raw_fd() as u32,
                attach_type: BPF_PERF_EVENT,
                flags: 0,
                bpf_cookie: cookie,
            };
            // SAFETY: nothing points anywhere.
            unsafe { syscall::bpf_fd(BPF_LINK_CREATE, &mut attributes) }
        }
        Tie::Ioctl => {
            perf_event::tell(event.as_fd(), Request::SetBpf, program)?;
            Ok(event)
        }
    }
}

/// Reads a number after a prefix.
fn number(path: &str, prefix: &str) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    text.trim()
        .strip_prefix(prefix)
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{path} says {text:?}")))
}
