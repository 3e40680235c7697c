//! The periodic table's way to the terminal, which must hold up nobody.
//!
//! A terminal can be stopped (Ctrl-S) and a pipe can be full for as long as its
//! reader likes. So a thread of its own writes, and there is room for one table
//! that waits: a newer one takes its place. For tables that are read by programs
//! there is more room; the oldest go when it is full. The thread also notices, at
//! once and without writing, that nobody reads any more.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
};
use tokio::sync::{oneshot, watch};

use crate::output::stream;

/// Writes texts in the background. Dropped, it forgets what still waits.
#[derive(Debug)]
pub struct Screen {
    shared: Arc<Shared>,
    end: watch::Receiver<Option<ScreenEnd>>,
}

/// Why nothing can be written any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScreenEnd {
    /// The reader has closed its end, or the terminal is gone.
    Closed,
    /// The kernel refused, for this reason (a file on a full disk).
    Failed(String),
}

#[derive(Debug)]
struct Shared {
    slot: Mutex<Slot>,
    /// Bytes of tables that may wait besides the newest.
    room: usize,
    /// An eventfd: the slot has changed.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Slot {
    /// What waits, the oldest first.
    tables: VecDeque<String>,
    /// Tables that went without having been written.
    dropped: u64,
    last: Option<(String, oneshot::Sender<()>)>,
    quit: bool,
}

impl Slot {
    /// Adds a table and drops the oldest until those before it fit into `room`.
    fn push(&mut self, table: String, room: usize) {
        let mut waiting: usize = self.tables.iter().map(String::len).sum();
        while waiting > room
            && let Some(dropped) = self.tables.pop_front()
        {
            waiting -= dropped.len();
            self.dropped += 1;
        }
        self.tables.push_back(table);
    }
}

enum Work {
    Table(String),
    Last(String, oneshot::Sender<()>),
    Nothing,
    Quit,
}

impl Screen {
    /// Starts to write to a duplicate of `fd`. Tables of `room` bytes may wait, and
    /// the newest in any case.
    ///
    /// # Errors
    /// When the descriptor is closed, or no thread can be started.
    pub fn start(fd: impl AsFd, room: usize) -> io::Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            slot: Mutex::default(),
            room,
            wake,
        });
        let (sender, end) = watch::channel(None);
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("screen".to_owned())
            .spawn(move || {
                let end = match run(&fd, &theirs) {
                    Ok(()) => return,
                    Err(Errno::PIPE | Errno::IO | Errno::CONNRESET) => ScreenEnd::Closed,
                    Err(errno) => ScreenEnd::Failed(io::Error::from(errno).to_string()),
                };
                sender.send_replace(Some(end));
                // Whoever waits for the last text learns that it is not coming.
                theirs.lock().last = None;
            })?;
        Ok(Self { shared, end })
    }

    /// Shows a table as soon as possible, in place of those that wait and have no
    /// room. Never blocks.
    pub fn show(&self, table: String) {
        self.shared.lock().push(table, self.shared.room);
        self.shared.wake();
    }

    /// How many tables nobody read in time, so that newer ones took their place.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }

    /// Writes the last text, after the table that is being written and those that
    /// have room, and waits until it is out: for as long as the terminal is blocked.
    ///
    /// # Errors
    /// Why it could not be written.
    pub async fn finish(&self, text: String) -> Result<(), ScreenEnd> {
        let (sender, done) = oneshot::channel();
        {
            let mut slot = self.shared.lock();
            // The end is published before the slot is cleared for good.
            if let Some(end) = self.end.borrow().clone() {
                return Err(end);
            }
            if self.shared.room == 0 {
                slot.tables.clear();
            }
            slot.last = Some((text, sender));
        }
        self.shared.wake();
        match done.await {
            Ok(()) => Ok(()),
            // The thread lets go of the text before it tells why.
            Err(_) => Err(self.ended().await),
        }
    }

    /// Waits until nothing can be written any more.
    pub async fn ended(&self) -> ScreenEnd {
        let mut end = self.end.clone();
        let found = end.wait_for(Option::is_some).await;
        found
            .ok()
            .and_then(|end| end.clone())
            .unwrap_or(ScreenEnd::Closed)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.shared.lock().quit = true;
        self.shared.wake();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It can fail only when 2^64-2 wakes are pending, and then it is awake.
        _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn take(&self) -> Work {
        let mut slot = self.lock();
        if let Some(table) = slot.tables.pop_front() {
            return Work::Table(table);
        }
        match slot.last.take() {
            Some((text, done)) => Work::Last(text, done),
            None if slot.quit => Work::Quit,
            None => Work::Nothing,
        }
    }
}

fn run(fd: &OwnedFd, shared: &Shared) -> Result<(), Errno> {
    loop {
        match shared.take() {
            Work::Table(text) => stream::write_all(fd, text.as_bytes())?,
            Work::Last(text, done) => {
                stream::write_all(fd, text.as_bytes())?;
                // Nobody may be waiting any more.
                _ = done.send(());
            }
            Work::Nothing => wait(fd, shared)?,
            Work::Quit => return Ok(()),
        }
    }
}

/// Sleeps until the slot changes; an error when the reader is gone.
fn wait(fd: &OwnedFd, shared: &Shared) -> Result<(), Errno> {
    // Without any event asked for, a pipe tells only that its reader is gone.
    let mut fds = [
        PollFd::new(fd, PollFlags::empty()),
        PollFd::new(&shared.wake, PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
        return Err(Errno::PIPE);
    }
    let mut count = [0; 8];
    match rustix::io::read(&shared.wake, &mut count) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeReader, Read as _},
        time::Duration,
    };

    use super::*;

    fn screen() -> (Screen, PipeReader) {
        screen_with_room(0)
    }

    fn screen_with_room(room: usize) -> (Screen, PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        (Screen::start(&writer, room).unwrap(), reader)
    }

    /// More than a pipe holds.
    fn long(letter: &str) -> String {
        letter.repeat(200_000)
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), future)
            .await
            .unwrap()
    }

    fn read_in_background(mut reader: PipeReader) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        })
    }

    /// Waits until the thread has taken the table and is stuck with it.
    fn wait_until_taken(screen: &Screen) {
        while !screen.shared.lock().tables.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn a_blocked_reader_costs_old_tables_and_nobodys_time() {
        let (screen, reader) = screen();
        screen.show(long("a"));
        wait_until_taken(&screen);
        for table in ["b", "c", "d"] {
            screen.show(table.to_owned());
        }
        let text = read_in_background(reader);
        while !screen.shared.lock().tables.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        soon(screen.finish("end".to_owned())).await.unwrap();
        drop(screen);
        assert_eq!(text.join().unwrap(), long("a") + "dend");
    }

    #[tokio::test]
    async fn tables_that_have_room_are_all_read() {
        let (screen, reader) = screen_with_room(8);
        screen.show(long("a") + "\n");
        wait_until_taken(&screen);
        // Two fit besides the newest.
        for table in ["bbb\n", "ccc\n", "ddd\n"] {
            screen.show(table.to_owned());
        }
        assert_eq!(screen.dropped(), 0);
        screen.show("eeeeee\n".to_owned());
        assert_eq!(screen.dropped(), 1);
        let text = read_in_background(reader);
        soon(screen.finish("end\n".to_owned())).await.unwrap();
        drop(screen);
        let text = text.join().unwrap();
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines, ["ccc", "ddd", "eeeeee", "end"]);
    }

    #[tokio::test]
    async fn the_last_text_takes_the_place_of_a_table_that_waits() {
        let (screen, reader) = screen();
        screen.show(long("a"));
        wait_until_taken(&screen);
        screen.show("b".to_owned());
        let blocked =
            tokio::time::timeout(Duration::from_millis(50), screen.finish("end".to_owned()));
        blocked.await.unwrap_err();
        let text = read_in_background(reader);
        soon(screen.finish("end".to_owned())).await.unwrap();
        drop(screen);
        let text = text.join().unwrap();
        assert!(
            text == long("a") + "end" || text == long("a") + "endend",
            "{}",
            text.len()
        );
    }

    #[tokio::test]
    async fn a_closed_reader_is_noticed_without_writing() {
        let (screen, reader) = screen();
        drop(reader);
        assert_eq!(soon(screen.ended()).await, ScreenEnd::Closed);
        screen.show("a".to_owned());
        assert_eq!(
            soon(screen.finish("b".to_owned())).await,
            Err(ScreenEnd::Closed)
        );
    }

    #[tokio::test]
    async fn a_reader_who_goes_away_in_between_ends_the_wait() {
        let (screen, reader) = screen();
        let finish = screen.finish(long("a"));
        let close = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(reader);
        };
        let (finished, ()) = soon(async { tokio::join!(finish, close) }).await;
        assert_eq!(finished, Err(ScreenEnd::Closed));
    }

    #[tokio::test]
    async fn a_full_disk_is_no_closed_reader() {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let screen = Screen::start(&full, 0).unwrap();
        let Err(ScreenEnd::Failed(reason)) = soon(screen.finish("a".to_owned())).await else {
            panic!("a full disk must be an error");
        };
        assert!(reason.starts_with("No space left on device"), "{reason}");
    }
}
