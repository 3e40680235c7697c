//! tracefs, where tracepoints have their numbers. Not mounted everywhere; then
//! leaktrace mounts it for itself alone.

use std::{
    ffi::CStr,
    io,
    path::{Path, PathBuf},
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags},
    thread::UnshareFlags,
};

/// Where tracefs may be mounted, the usual place first.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// `TRACEFS_MAGIC` of `linux/magic.h`.
const TRACEFS: rustix::fs::FsWord = 0x7472_6163;

/// tracefs can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TracefsError {
    /// The kernel has none.
    #[error(
        "this kernel has no tracefs (/sys/kernel/tracing does not exist), which tracepoints need; \
         it was built without CONFIG_TRACING, or /sys is not mounted"
    )]
    Unavailable,
    /// It could not be mounted.
    #[error(
        "tracefs is not mounted, and mounting it for leaktrace alone failed: {step}: {source}; \
         mount it yourself: sudo mount -t tracefs none /sys/kernel/tracing"
    )]
    Mount {
        /// What failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Where tracefs is mounted; `None` when it is not.
#[must_use]
pub fn mounted() -> Option<PathBuf> {
    PLACES
        .iter()
        .map(PathBuf::from)
        .find(|place| is_tracefs(place))
}

fn is_tracefs(place: &Path) -> bool {
    rustix::fs::statfs(place).is_ok_and(|status| status.f_type == TRACEFS)
}

/// Makes sure that leaktrace sees tracefs. Where it is missing, leaktrace gets a
/// mount namespace of its own and mounts it there: nobody else sees it, and it
/// goes away with leaktrace, however that ends. What others mount and unmount
/// still reaches leaktrace.
///
/// A mount namespace belongs to a thread and is inherited: call this before
/// threads are started, and after the child of `leaktrace run` is.
///
/// # Errors
/// When the kernel has no tracefs, or leaktrace may not mount it.
pub fn ensure() -> Result<PathBuf, TracefsError> {
    if let Some(place) = mounted() {
        return Ok(place);
    }
    let place = PathBuf::from(PLACES[0]);
    if !place.is_dir() {
        return Err(TracefsError::Unavailable);
    }
    let failed = |step| {
        move |error: rustix::io::Errno| TracefsError::Mount {
            step,
            source: error.into(),
        }
    };
    // SAFETY: a mount namespace changes what paths lead to, not the validity
    // of descriptors or memory; leaktrace keeps no mount by path from before.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(failed("unshare(CLONE_NEWNS)"))?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(failed("making the mounts downstream"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("none", &place, "tracefs", flags, None::<&CStr>)
        .map_err(failed("mount"))?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_one_s_own_is_seen_by_nobody_else() {
        if mounted().is_some() || !Path::new(PLACES[0]).is_dir() {
            eprintln!("not run: tracefs is mounted already, or the kernel has none");
            return;
        }
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: needs root");
            return;
        }
        std::thread::spawn(|| {
            // The namespace is this thread's only, and ends with it.
            let place = ensure().unwrap();
            assert_eq!(mounted(), Some(place.clone()));
            assert!(place.join("events/sched").is_dir());
            assert_eq!(ensure().unwrap(), place);
        })
        .join()
        .unwrap();
        assert_eq!(mounted(), None);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains("tracefs"), "{mounts}");
    }

    #[test]
    fn the_messages_say_what_to_do() {
        assert_eq!(
            TracefsError::Unavailable.to_string(),
            "this kernel has no tracefs (/sys/kernel/tracing does not exist), which tracepoints \
             need; it was built without CONFIG_TRACING, or /sys is not mounted"
        );
        let error = TracefsError::Mount {
            step: "mount",
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        assert_eq!(
            error.to_string(),
            "tracefs is not mounted, and mounting it for leaktrace alone failed: mount: Operation \
             not permitted (os error 1); mount it yourself: sudo mount -t tracefs none \
             /sys/kernel/tracing"
        );
    }
}
