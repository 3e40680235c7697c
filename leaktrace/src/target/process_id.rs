//! What BPF programs know a process by: the id that the kernel gave it in the
//! first PID namespace. In a namespace of its own, such as a container's,
//! leaktrace can't see that one; there the programs translate.

use std::{fs, io, os::unix::fs::MetadataExt as _};

use rustix::fs::{major, minor};

use super::status::Status;

/// Inode of the first PID namespace (`PROC_PID_INIT_INO` in
/// `include/linux/proc_ns.h`).
const FIRST: u64 = 0xefff_fffc;

/// A process, as BPF programs find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    /// Its id in the namespace.
    pub tgid: u32,
    /// Its PID namespace; `None` is the first one.
    pub namespace: Option<Namespace>,
}

/// A PID namespace, as the helper `bpf_get_ns_current_pid_tgid` takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Inode of its file in `/proc/PID/ns`.
    pub inode: u64,
    /// Device of that file, in the kernel's own notation.
    pub device: u64,
}

impl ProcessId {
    /// The process that leaktrace knows as `pid`.
    ///
    /// # Errors
    /// When it is gone or hidden.
    pub fn of(pid: u32) -> io::Result<Self> {
        if fs::metadata("/proc/self/ns/pid")?.ino() == FIRST {
            return Ok(Self {
                tgid: pid,
                namespace: None,
            });
        }
        let file = fs::metadata(format!("/proc/{pid}/ns/pid"))?;
        let status = Status::parse(&fs::read(format!("/proc/{pid}/status"))?);
        Ok(Self {
            // Kernels without the line have no namespaces within.
            tgid: status.innermost_tgid.unwrap_or(pid),
            namespace: Some(Namespace {
                inode: file.ino(),
                device: kernel_device(file.dev()),
            }),
        })
    }
}

/// `MKDEV` of the kernel: 12 bits, 20 bits.
fn kernel_device(device: u64) -> u64 {
    u64::from(major(device)) << 20 | u64::from(minor(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_as_the_kernel_does() {
        let device = rustix::fs::makedev(3, 0x12345);
        assert_eq!(kernel_device(device), 0x0031_2345);
        assert_eq!(kernel_device(4), 4);
    }
}
