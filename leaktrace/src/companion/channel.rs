//! The line between leaktrace and a companion: JSON after its length (4 bytes,
//! little-endian), with open files passed along (unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
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
use serde::{Serialize, de::DeserializeOwned};

/// Longest message, bytes. The other side may have lost its mind.
const LONGEST: usize = 64 << 20;
/// Most files that go with a message.
const MOST_FILES: usize = 2;

/// One end of the line.
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

    /// A companion's line to who started it.
    ///
    /// # Errors
    /// When stdin is not open.
    pub fn of_stdin() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self::new(stdin.into()))
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

    /// Sends a message, and at most two files with it.
    ///
    /// # Errors
    /// Those of `sendmsg`; `WouldBlock` when it took too long. Then, as after any
    /// other error, half of it may have been sent.
    pub fn send(&mut self, message: &impl Serialize, files: &[BorrowedFd]) -> io::Result<()> {
        if files.len() > MOST_FILES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let body = serde_json::to_vec(message)?;
        let length = u32::try_from(body.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?
            .to_le_bytes();
        self.send_bytes(&length, files)?;
        self.send_bytes(&body, &[])
    }

    fn send_bytes(&self, mut bytes: &[u8], mut files: &[BorrowedFd]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(files));
            }
            self.wait(PollFlags::OUT, self.deadline)?;
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    // They went with the first byte.
                    files = &[];
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for a message, and the files that came with it.
    ///
    /// # Errors
    /// Those of `recvmsg`; `WouldBlock` when it took too long, `UnexpectedEof`
    /// when the other end is gone.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut length = [0; 4];
        let files = self.receive_bytes(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        self.receive_bytes(&mut body)?;
        Ok((serde_json::from_slice(&body)?, files))
    }

    fn receive_bytes(&self, mut bytes: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
        let mut files = Vec::new();
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
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
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    files.extend(passed);
                }
            }
        }
        Ok(files)
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
    use std::{fs::File, io::Write as _};

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
        sender.send(&1, &[]).unwrap();
        let other = tempfile::tempfile().unwrap();
        let files = [file.as_fd(), other.as_fd()];
        sender.send(&"text", &files).unwrap();
        let (first, none): (u8, _) = receiver.receive().unwrap();
        assert!(first == 1 && none.is_empty());
        let (second, passed): (String, _) = receiver.receive().unwrap();
        assert_eq!(second, "text");
        let lengths = passed
            .into_iter()
            .map(|file| File::from(file).metadata().unwrap().len());
        assert!(lengths.eq([7, 0]));
        let too_many = [file.as_fd(); MOST_FILES + 1];
        assert!(sender.send(&"text", &too_many).is_err());
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
        sender.send_bytes(&length[..1], &[file.as_fd()]).unwrap();
        assert!(!receiver.is_silent_for(Duration::ZERO).unwrap());
        let slow = std::thread::spawn(move || {
            for piece in [&length[1..], &body[..3], &body[3..]] {
                std::thread::sleep(Duration::from_millis(20));
                sender.send_bytes(piece, &[]).unwrap();
            }
            sender
        });
        let (text, passed): (String, _) = receiver.receive().unwrap();
        assert!(text == "whole" && passed.len() == 1);
        drop(slow.join().unwrap());
    }

    #[test]
    fn a_trickle_does_not_put_off_the_deadline() {
        let (sender, mut receiver) = pair();
        sender.send_bytes(&1000_u32.to_le_bytes(), &[]).unwrap();
        let trickle = std::thread::spawn(move || {
            while sender.send_bytes(b"x", &[]).is_ok() {
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
