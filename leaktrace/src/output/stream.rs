//! Writing to descriptors that others may share: stdout, pipes, terminals.

use std::os::fd::AsFd;

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, write},
};

/// Writes all of `bytes`, also to a descriptor that somebody has set to
/// non-blocking.
///
/// # Errors
/// The kernel's error, [`Errno::PIPE`] when nobody reads any more.
pub fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(&fd, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_writable(&fd)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Whether nobody reads any more, found out without writing.
#[must_use]
pub fn is_closed(fd: impl AsFd) -> bool {
    // Without any event asked for, a pipe tells only that its reader is gone.
    let mut fds = [PollFd::new(&fd, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok()
        && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

fn wait_writable(fd: &impl AsFd) -> Result<(), Errno> {
    match poll(&mut [PollFd::new(fd, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Prints a line on stderr, as `eprintln!` does, which panics when nobody reads
/// any more (`2>&1 | head`, a connection that is lost).
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use ::std::io::Write as _;
        let _ = ::std::writeln!(::std::io::stderr(), $($argument)*);
    }};
}

/// Makes success of a reader who has read enough (`leaktrace … | head`).
///
/// # Errors
/// Every other error.
pub fn closed_is_fine(errno: Errno) -> Result<(), Errno> {
    match errno {
        Errno::PIPE => Ok(()),
        _ => Err(errno),
    }
}
