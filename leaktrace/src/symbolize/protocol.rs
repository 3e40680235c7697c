//! What leaktrace and its reader of symbols say to each other: JSON after its
//! length (4 bytes, little-endian), with an open file passed along (unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::limits::Limits;

/// Longest message, bytes. The reader may have lost its mind.
const LONGEST: usize = 64 << 20;

/// The first message, with the target's root directory if it has one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Directories of separate debug files.
    pub debug_directories: Vec<PathBuf>,
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
pub struct Channel(UnixStream);

impl Channel {
    /// Takes a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// How long [`Self::receive`] and [`Self::send`] wait: `None` is for ever.
    ///
    /// # Errors
    /// Those of `setsockopt`.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        // Zero would mean for ever.
        let patience = patience.map(|it| it.max(Duration::from_millis(1)));
        self.0.set_read_timeout(patience)?;
        self.0.set_write_timeout(patience)
    }

    /// Sends a message, and a file with it.
    ///
    /// # Errors
    /// Those of `sendmsg`; `WouldBlock` when patience ran out.
    pub fn send(&mut self, message: &impl Serialize, file: Option<BorrowedFd>) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        let length = u32::try_from(body.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?
            .to_le_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<BorrowedFd> = file.into_iter().collect();
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(
                &self.0,
                &[IoSlice::new(&length)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )
        })?;
        self.0.write_all(&length[sent..])?;
        self.0.write_all(&body)
    }

    /// Waits for a message, and the file that came with it.
    ///
    /// # Errors
    /// Those of `recvmsg`; `WouldBlock` when patience ran out, `UnexpectedEof`
    /// when the other end is gone.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Option<OwnedFd>)> {
        let mut length = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut length)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        let file = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        self.0.read_exact(&mut length[received.bytes..])?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((serde_json::from_slice(&body)?, file))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd as _};

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
        let mut kind = || receiver.receive::<String>().unwrap_err().kind();
        receiver_patience(&sender);
        let mut raw = sender.0;
        raw.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(kind(), io::ErrorKind::InvalidData);
        raw.write_all(&3_u32.to_le_bytes()).unwrap();
        raw.write_all(b"{]}").unwrap();
        assert_eq!(kind(), io::ErrorKind::InvalidData);
        drop(raw);
        assert_eq!(kind(), io::ErrorKind::UnexpectedEof);
    }

    fn receiver_patience(channel: &Channel) {
        channel.set_patience(Some(Duration::ZERO)).unwrap();
        let mut other = Channel(channel.0.try_clone().unwrap());
        let error = other.receive::<String>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
