//! BPF programs, maps and links: which ones a process holds, and whether they
//! still exist.

use std::{
    fs,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::memory;

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
/// Those that give the next id of a kind.
const BPF_PROG_GET_NEXT_ID: i64 = 11;
const BPF_MAP_GET_NEXT_ID: i64 = 12;
const BPF_LINK_GET_NEXT_ID: i64 = 31;
/// Describes an object.
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;

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

/// Those of `objects` that still exist. None of them is opened to find that out: an
/// array of programs whose last descriptor was closed, and that is opened and closed
/// again before the kernel has emptied it, is never freed (`prog_array_map_clear`
/// takes a reference for each time, and its work runs once).
///
/// # Errors
/// When the kernel can't tell.
pub fn surviving(objects: &[Object]) -> Result<Vec<Object>> {
    let mut survivors = all()?;
    survivors.retain(|object| objects.contains(object));
    Ok(survivors)
}

/// Waits until none of `objects` exists; the kernel frees them a little after
/// their last descriptor is closed.
///
/// # Errors
/// When some are left after [`memory::RESTORED`].
pub fn expect_gone(objects: &[Object]) -> Result<()> {
    ensure!(
        !objects.is_empty(),
        "leaktrace held no BPF objects: nothing to check"
    );
    let deadline = Instant::now() + memory::RESTORED;
    loop {
        let left = surviving(objects)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let names: Vec<String> = left.iter().map(|object| named(*object)).collect();
            bail!("left behind: {names:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every object that there is on this machine.
///
/// # Errors
/// When the kernel can't tell.
pub fn all() -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for (kind, command) in [
        (Kind::Program, BPF_PROG_GET_NEXT_ID),
        (Kind::Map, BPF_MAP_GET_NEXT_ID),
        (Kind::Link, BPF_LINK_GET_NEXT_ID),
    ] {
        let mut id = 0;
        loop {
            // union bpf_attr: start_id, next_id, open_flags.
            let mut attributes = [id, 0, 0, 0];
            match bpf(command, &mut attributes) {
                Ok(_) => id = attributes[1],
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => bail!("listing BPF objects: {error}"),
            }
            objects.push((kind, id));
        }
    }
    objects.sort_unstable();
    Ok(objects)
}

/// An object with its name if it is a map: which one it is of several is of
/// interest when it is left behind.
#[must_use]
pub fn named(object: Object) -> String {
    let name = match object.0 {
        Kind::Map => map_name(object).ok().flatten(),
        Kind::Program | Kind::Link => None,
    };
    format!("{object:?} {}", name.unwrap_or_default())
}

fn map_name(object: Object) -> Result<Option<String>> {
    /// Words of `struct bpf_map_info` up to `name`, and those that it takes.
    const BEFORE: usize = 6;
    const NAME: usize = 4;
    let Some(descriptor) = open(object)? else {
        return Ok(None);
    };
    let mut info = [0_u32; BEFORE + NAME];
    let address = info.as_mut_ptr() as u64;
    let (low, high) = (address as u32, (address >> 32) as u32);
    let length = u32::try_from(size_of_val(&info))?;
    let mut attributes = [u32::try_from(descriptor.as_raw_fd())?, length, low, high];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let bytes: Vec<u8> = info[BEFORE..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Some(String::from_utf8_lossy(name).into_owned()))
}

/// What the kernel says of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its name, at most 15 bytes of it.
    pub name: String,
    /// How many instructions the verifier went through; `None` where the kernel
    /// does not keep that (before 5.16).
    pub verified_instructions: Option<u32>,
}

/// Asks the kernel about a program; `None` when it is gone.
///
/// # Errors
/// When the kernel can't tell.
pub fn program_info(id: u32) -> Result<Option<ProgramInfo>> {
    /// Words of `struct bpf_prog_info` up to `verified_insns`, which is the last.
    const WORDS: usize = 55;
    const NAME: usize = 64;
    let Some(descriptor) = open((Kind::Program, id))? else {
        return Ok(None);
    };
    let mut info = [0_u32; WORDS];
    let address = info.as_mut_ptr() as u64;
    let (low, high) = (address as u32, (address >> 32) as u32);
    let length = u32::try_from(size_of_val(&info))?;
    let mut attributes = [u32::try_from(descriptor.as_raw_fd())?, length, low, high];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)
        .with_context(|| format!("asking about BPF program {id}"))?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = bytes[NAME..NAME + 16].split(|byte| *byte == 0).next();
    let verified = info[WORDS - 1];
    Ok(Some(ProgramInfo {
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        verified_instructions: (verified > 0).then_some(verified),
    }))
}

/// Opens an object by its id; `None` when it is gone.
fn open((kind, id): Object) -> Result<Option<OwnedFd>> {
    let command = match kind {
        Kind::Program => BPF_PROG_GET_FD_BY_ID,
        Kind::Map => BPF_MAP_GET_FD_BY_ID,
        Kind::Link => BPF_LINK_GET_FD_BY_ID,
    };
    // union bpf_attr: the id comes first, then next_id and open_flags.
    match bpf(command, &mut [id, 0, 0, 0]) {
        Ok(descriptor) => {
            // SAFETY: the descriptor was just made and belongs to nobody else.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => bail!("opening BPF object {id}: {error}"),
    }
}

fn bpf(command: i64, attributes: &mut [u32; 4]) -> std::io::Result<i32> {
    // SAFETY: the kernel reads and writes `size` bytes of `attributes`; what they
    // point to is the caller's, and as large as they say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(attributes),
        )
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(std::io::Error::last_os_error()),
    }
}
