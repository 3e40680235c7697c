//! What leaktrace and its reader of symbols say to each other: JSON after its
//! length (4 bytes, little-endian), with an open file passed along (unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::limits::Limits;

/// Longest message, bytes. The reader may have lost its mind.
const LONGEST: usize = 64 << 20;

/// The first message, with the target's root directory if it has one. The second
/// has nothing in it, and a directory of debug files that were fetched, if there
/// is one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Directories of separate debug files.
    pub debug_directories: Vec<PathBuf>,
    /// Whether inlined functions are told.
    pub inlined: bool,
    /// What symbols may cost.
    pub limits: Limits,
}

/// Look-ups in one file, which is passed along.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Its number.
    pub file: u16,
    /// Its path in the target.
    pub path: String,
    /// Whether what was read of files is to be forgotten before, since there are
    /// new debug files.
    pub anew: bool,
    /// Whether to use debug information; without, only symbol tables.
    pub debug: bool,
    /// The offsets in it.
    pub offsets: Vec<u64>,
}

/// What the reader answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// What some of the offsets are.
    Resolved {
        /// The file's build id, hexadecimal.
        build_id: Option<String>,
        /// Each offset with what is there.
        places: Vec<(u64, Found)>,
    },
    /// Build ids, hexadecimal, of debug files that the file has not and that
    /// were not found.
    Missing(Vec<String>),
    /// A sentence for the report.
    Note(String),
    /// The request is done.
    Finished,
}

/// What an address is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The functions inlined there, innermost first, and the one they are in:
    /// at least one.
    pub functions: Vec<Function>,
    /// It's a call in a function in which a thread begins.
    pub begins_thread: bool,
}

/// One function at an address; fields as in [`Frame`](crate::model::Frame).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Demangled name.
    pub symbol: Option<String>,
    /// Bytes from its start; 0 for inlined functions.
    pub symbol_offset: u64,
    /// Source file.
    pub source: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// It was inlined into the next one.
    pub inlined: bool,
}

/// One end of the line between the two.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    deadline: Option<Instant>,
}

impl Channel {
    /// Takes a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            deadline: None,
        }
    }

    /// Until when [`Self::receive`] and [`Self::send`] wait for whole messages:
    /// `None` is for ever, as at first.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Whether nothing comes for so long; a message that begins is left where
    /// it is.
    ///
    /// # Errors
    /// Those of `poll`.
    pub fn is_silent_for(&self, time: Duration) -> io::Result<bool> {
        match self.wait(PollFlags::IN, Some(Instant::now() + time)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            result => result.map(|()| false),
        }
    }

    /// Sends a message, and a file with it.
    ///
    /// # Errors
    /// Those of `sendmsg`; `WouldBlock` when it took too long. Then, as after any
    /// other error, half of it may have been sent.
    pub fn send(&mut self, message: &impl Serialize, file: Option<BorrowedFd>) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        let length = u32::try_from(body.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?
            .to_le_bytes();
        self.send_bytes(&length, file)?;
        self.send_bytes(&body, None)
    }

    fn send_bytes(&self, mut bytes: &[u8], mut file: Option<BorrowedFd>) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let files: Vec<BorrowedFd> = file.into_iter().collect();
            if !files.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(&files));
            }
            self.wait(PollFlags::OUT, self.deadline)?;
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    // It went with the first byte.
                    file = None;
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for a message, and the file that came with it.
    ///
    /// # Errors
    /// Those of `recvmsg`; `WouldBlock` when it took too long, `UnexpectedEof`
    /// when the other end is gone.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Option<OwnedFd>)> {
        let mut length = [0; 4];
        let file = self.receive_bytes(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        self.receive_bytes(&mut body)?;
        Ok((serde_json::from_slice(&body)?, file))
    }

    fn receive_bytes(&self, mut bytes: &mut [u8]) -> io::Result<Option<OwnedFd>> {
        let mut file = None;
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            self.wait(PollFlags::IN, self.deadline)?;
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(bytes)],
                &mut ancillary,
                flags,
            );
            match received.map(|message| message.bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => bytes = &mut bytes[count..],
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(error) => return Err(error.into()),
            }
            file = file.or(ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut files) => files.next(),
                _ => None,
            }));
        }
        Ok(file)
    }

    /// Waits until the line is ready; `WouldBlock` when it is not by then.
    fn wait(&self, what: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            let left = deadline.map(|it| it.saturating_duration_since(Instant::now()));
            let left = left.and_then(|it| Timespec::try_from(it).ok());
            match poll(&mut [PollFd::new(&self.stream, what)], left.as_ref()) {
                Ok(0) => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::fd::AsFd as _};

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().unwrap();
        (Channel::new(one), Channel::new(other))
    }

    #[test]
    fn messages_arrive_in_order_with_their_files() {
        let (mut sender, mut receiver) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        sender.send(&Answer::Finished, None).unwrap();
        sender.send(&"text", Some(file.as_fd())).unwrap();
        let (first, none): (Answer, _) = receiver.receive().unwrap();
        assert!(matches!(first, Answer::Finished) && none.is_none());
        let (second, passed): (String, _) = receiver.receive().unwrap();
        assert_eq!(second, "text");
        assert_eq!(File::from(passed.unwrap()).metadata().unwrap().len(), 7);
    }

    #[test]
    fn silence_nonsense_and_the_end_are_errors() {
        let (sender, mut receiver) = pair();
        receiver.set_deadline(Some(Instant::now()));
        let error = receiver.receive::<String>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        receiver.set_deadline(None);
        let mut kind = || receiver.receive::<String>().unwrap_err().kind();
        let mut raw = sender.stream;
        raw.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(kind(), io::ErrorKind::InvalidData);
        raw.write_all(&3_u32.to_le_bytes()).unwrap();
        raw.write_all(b"{]}").unwrap();
        assert_eq!(kind(), io::ErrorKind::InvalidData);
        drop(raw);
        assert_eq!(kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_message_may_pause_in_its_middle() {
        let (sender, mut receiver) = pair();
        let file = tempfile::tempfile().unwrap();
        assert!(receiver.is_silent_for(Duration::ZERO).unwrap());
        let body = b"\"whole\"";
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        sender.send_bytes(&length[..1], Some(file.as_fd())).unwrap();
        assert!(!receiver.is_silent_for(Duration::ZERO).unwrap());
        let slow = std::thread::spawn(move || {
            for piece in [&length[1..], &body[..3], &body[3..]] {
                std::thread::sleep(Duration::from_millis(20));
                sender.send_bytes(piece, None).unwrap();
            }
            sender
        });
        let (text, passed): (String, _) = receiver.receive().unwrap();
        assert!(text == "whole" && passed.is_some());
        drop(slow.join().unwrap());
    }

    #[test]
    fn a_trickle_does_not_put_off_the_deadline() {
        let (sender, mut receiver) = pair();
        sender.send_bytes(&1000_u32.to_le_bytes(), None).unwrap();
        let trickle = std::thread::spawn(move || {
            while sender.send_bytes(b"x", None).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        receiver.set_deadline(Some(Instant::now() + Duration::from_millis(50)));
        let error = receiver.receive::<String>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(receiver);
        trickle.join().unwrap();
    }
}
