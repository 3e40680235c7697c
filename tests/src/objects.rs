//! BPF programs, maps and links: which ones a process holds, and whether they
//! still exist.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};

/// What a BPF object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A program.
    Program,
    /// A map.
    Map,
    /// A link.
    Link,
}

/// A BPF object by kind and id. Ids are not used again soon.
pub type Object = (Kind, u32);

/// `bpf(2)` commands that open an object by its id.
const BPF_PROG_GET_FD_BY_ID: i64 = 13;
const BPF_MAP_GET_FD_BY_ID: i64 = 14;
const BPF_LINK_GET_FD_BY_ID: i64 = 30;

/// Objects that process `pid` has descriptors of, from `/proc/PID/fdinfo`.
///
/// # Errors
/// When its descriptors can't be listed.
pub fn held_by(pid: u32) -> Result<Vec<Object>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut objects = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("listing {directory}"))? {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            text.lines().find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(':')?
                    .trim()
                    .parse()
                    .ok()
            })
        };
        // A link's entry names its program too.
        if let Some(id) = field("link_id") {
            objects.push((Kind::Link, id));
        }
        if let Some(id) = field("prog_id") {
            objects.push((Kind::Program, id));
        }
        if let Some(id) = field("map_id") {
            objects.push((Kind::Map, id));
        }
    }
    objects.sort_unstable();
    objects.dedup();
    Ok(objects)
}

/// Those of `objects` that still exist.
///
/// # Errors
/// When the kernel can't tell.
pub fn surviving(objects: &[Object]) -> Result<Vec<Object>> {
    let mut survivors = Vec::new();
    for object in objects {
        if exists(*object)? {
            survivors.push(*object);
        }
    }
    Ok(survivors)
}

/// Waits until none of `objects` exists; the kernel frees them a little after
/// their last descriptor is closed.
///
/// # Errors
/// When some are left after a second.
pub fn expect_gone(objects: &[Object]) -> Result<()> {
    ensure!(
        !objects.is_empty(),
        "leaktrace held no BPF objects: nothing to check"
    );
    let mut left = Vec::new();
    for _ in 0..50 {
        left = surviving(objects)?;
        if left.is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn exists((kind, id): Object) -> Result<bool> {
    let command = match kind {
        Kind::Program => BPF_PROG_GET_FD_BY_ID,
        Kind::Map => BPF_MAP_GET_FD_BY_ID,
        Kind::Link => BPF_LINK_GET_FD_BY_ID,
    };
    // union bpf_attr: the id comes first, then next_id and open_flags.
    let attributes = [id, 0, 0, 0];
    // SAFETY: the kernel reads `size` bytes of `attributes`.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if descriptor >= 0 {
        // SAFETY: the descriptor was just made and belongs to nobody else.
        unsafe { libc::close(i32::try_from(descriptor)?) };
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    ensure!(
        error.raw_os_error() == Some(libc::ENOENT),
        "opening BPF object {id}: {error}"
    );
    Ok(false)
}
