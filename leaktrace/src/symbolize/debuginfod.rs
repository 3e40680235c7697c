//! Fetches debug information by build id from servers on the network
//! (debuginfod(8)), in the background, and keeps it on disk.
//!
//! It is kept below leaktrace's own directory ([`crate::output::cache`]), named
//! as in `/usr/lib/debug`. Servers may be slow, gone or hostile: each file may
//! take so long and be so large, it must have the build id that was asked for,
//! and a server that fails once is not asked again. The files are read like any
//! other debug file, by the reader.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, statat, unlinkat};
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{
    debug_file::{build_id_path, hexadecimal},
    elf_image::ElfImage,
};
use crate::{
    file_map,
    output::{atomic, cache},
    target::code_files::FileNumber,
};

/// Where clients of debuginfod find the servers' addresses, separated by blanks.
pub const VARIABLE: &str = "DEBUGINFOD_URLS";

/// How far fetching may go.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until a file is there.
    pub file: Duration,
    /// Largest file, bytes.
    pub size: u64,
    /// Most that is kept on disk, bytes.
    pub kept: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            file: Duration::from_secs(60),
            size: 1 << 30,
            kept: 4 << 30,
        }
    }
}

/// Fetches what is wanted on a thread of its own, which ends with this.
#[derive(Debug)]
pub struct Fetcher {
    jobs: Sender<String>,
    results: Receiver<Result>,
    directory: Arc<OwnedFd>,
    /// Who wants what, by build id; all that was ever wanted.
    wanted: HashMap<String, HashSet<FileNumber>>,
    /// How many results are to come.
    pending: usize,
}

/// What came of a file.
#[derive(Debug)]
struct Result {
    build_id: String,
    outcome: Outcome,
    /// A sentence for each server that failed.
    failures: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    IsThere,
    /// Every server said that it has none.
    Nowhere,
    /// Some server could not be asked.
    Unknown,
}

/// What came since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Files whose debug information is there now.
    pub files: HashSet<FileNumber>,
    /// Files of which no server has any.
    pub nowhere: HashSet<FileNumber>,
    /// A sentence for each server that failed.
    pub failures: Vec<String>,
}

impl Fetcher {
    /// Fetches from these servers (addresses separated by blanks), and keeps
    /// files in leaktrace's directory.
    ///
    /// # Errors
    /// A sentence that says why nothing can be fetched.
    pub fn start(servers: &str) -> std::result::Result<Self, String> {
        if servers.trim().is_empty() {
            return Err(format!(
                "{VARIABLE} is not set (sudo takes it away: \
                 `sudo --preserve-env={VARIABLE} leaktrace …`)"
            ));
        }
        let directory = cache::open().map_err(|error| error.to_string())?;
        Self::start_in(&directory, servers, Bounds::default()).map_err(|error| error.to_string())
    }

    /// As [`Self::start`], with files in the directory `debug` of another.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start_in(place: &OwnedFd, servers: &str, bounds: Bounds) -> io::Result<Self> {
        let directory = Arc::new(cache::open_below(place, "debug")?);
        let (jobs, waiting) = mpsc::channel();
        let (finished, results) = mpsc::channel();
        let servers = servers.split_whitespace().map(str::to_owned).collect();
        let store = Arc::clone(&directory);
        thread::Builder::new()
            .name("debuginfod".into())
            .spawn(move || {
                let mut client = Client::new(servers, store, bounds);
                for build_id in waiting {
                    if finished.send(client.provide(build_id)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            jobs,
            results,
            directory,
            wanted: HashMap::new(),
            pending: 0,
        })
    }

    /// A directory of debug files, by build id.
    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Asks for the debug information of a file.
    pub fn want(&mut self, build_id: &str, file: FileNumber) {
        let askers = self.wanted.entry(build_id.to_owned()).or_default();
        let is_new = askers.is_empty();
        askers.insert(file);
        if is_new {
            // Should the thread have failed, nothing comes.
            _ = self.jobs.send(build_id.to_owned());
            self.pending += 1;
        }
    }

    /// What came since the last time.
    pub fn arrived(&mut self) -> Arrived {
        let mut arrived = Arrived::default();
        loop {
            match self.results.try_recv() {
                Ok(result) => self.take(result, &mut arrived),
                Err(TryRecvError::Empty) => return arrived,
                Err(TryRecvError::Disconnected) => break,
            }
        }
        self.give_up(&mut arrived);
        arrived
    }

    /// Waits for all that is wanted, so long at most.
    pub fn wait(&mut self, most: Duration) -> Arrived {
        let deadline = Instant::now() + most;
        let mut arrived = Arrived::default();
        while self.pending > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.results.recv_timeout(left) {
                Ok(result) => self.take(result, &mut arrived),
                Err(RecvTimeoutError::Timeout) => {
                    arrived.failures.push(format!(
                        "Debug information of {} could not be fetched in time.",
                        match self.pending {
                            1 => "1 file".to_owned(),
                            many => format!("{many} files"),
                        }
                    ));
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => self.give_up(&mut arrived),
            }
        }
        arrived
    }

    /// The thread has ended, though nobody told it to. Said once.
    fn give_up(&mut self, arrived: &mut Arrived) {
        if std::mem::take(&mut self.pending) > 0 {
            arrived.failures.push(
                "Debug information is not fetched any more: the thread that does it has failed."
                    .to_owned(),
            );
        }
    }

    fn take(&mut self, result: Result, arrived: &mut Arrived) {
        self.pending = self.pending.saturating_sub(1);
        let askers = self.wanted.get(&result.build_id).into_iter().flatten();
        match result.outcome {
            Outcome::IsThere => arrived.files.extend(askers),
            Outcome::Nowhere => arrived.nowhere.extend(askers),
            Outcome::Unknown => {}
        }
        arrived.failures.extend(result.failures);
    }
}

/// The thread's side.
struct Client {
    agent: Agent,
    /// Those that have not failed.
    servers: Vec<String>,
    has_failed_ones: bool,
    store: Arc<OwnedFd>,
    bounds: Bounds,
}

impl Client {
    fn new(servers: Vec<String>, store: Arc<OwnedFd>, bounds: Bounds) -> Self {
        // Those that the machine trusts; some may be unreadable.
        let roots = rustls_native_certs::load_native_certs().certs;
        let roots: RootCerts = roots
            .iter()
            .map(|certificate| Certificate::from_der(certificate).to_owned())
            .into();
        let tls = TlsConfig::builder()
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .timeout_connect(Some(bounds.connect))
            .timeout_global(Some(bounds.file))
            .user_agent(concat!("leaktrace/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self {
            agent,
            servers,
            has_failed_ones: false,
            store,
            bounds,
        }
    }

    /// Makes sure that a file is there, and what it shares with others.
    fn provide(&mut self, build_id: String) -> Result {
        let mut failures = Vec::new();
        let mut provide = |build_id: &str| {
            self.stored(build_id)
                .or_else(|| self.fetch(build_id, &mut failures))
        };
        let found = provide(&build_id);
        if let Some(shared) = found.as_ref().and_then(|image| image.shared_debug.as_ref()) {
            _ = provide(&hexadecimal(&shared.build_id));
        }
        self.make_room();
        Result {
            build_id,
            outcome: match found {
                Some(_) => Outcome::IsThere,
                None if self.has_failed_ones => Outcome::Unknown,
                None => Outcome::Nowhere,
            },
            failures,
        }
    }

    /// What is kept under a build id.
    fn stored(&self, build_id: &str) -> Option<ElfImage> {
        let path = build_id_path(build_id)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&*self.store, path, flags, Mode::empty()).ok()?;
        checked(&file.into(), build_id).ok()
    }

    fn fetch(&mut self, build_id: &str, failures: &mut Vec<String>) -> Option<ElfImage> {
        let mut at = 0;
        while let Some(server) = self.servers.get(at) {
            match self.fetch_from(server, build_id) {
                Ok(Some(image)) => return Some(image),
                Ok(None) => at += 1,
                Err(why) => {
                    failures.push(format!(
                        "Debug information can't be fetched from {server}: {why}. It was not asked \
                         again."
                    ));
                    self.servers.remove(at);
                    self.has_failed_ones = true;
                }
            }
        }
        None
    }

    /// `None` when the server has no such file. It may be about anything: it is
    /// stored only when it is what was asked for.
    fn fetch_from(
        &self,
        server: &str,
        build_id: &str,
    ) -> std::result::Result<Option<ElfImage>, String> {
        let url = format!(
            "{}/buildid/{build_id}/debuginfo",
            server.trim_end_matches('/')
        );
        let response = match self.agent.get(&url).call() {
            Ok(response) => response,
            Err(ureq::Error::StatusCode(404)) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let stored = build_id_path(build_id).ok_or("a build id that is too short")?;
        let (directory, name) = self.place_for(&stored).map_err(|error| error.to_string())?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = openat(&directory, ".", flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| error.to_string())?;
        let mut file = File::from(file);
        let most = self.bounds.size;
        let mut body = response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader()
            .take(most + 1);
        let size = io::copy(&mut body, &mut file).map_err(|error| error.to_string())?;
        if size > most {
            return Err(format!("a file of more than {} MiB", most >> 20));
        }
        let image = checked(&file, build_id)?;
        atomic::put_into_place(&file.into(), directory.as_fd(), OsStr::new(&name))
            .map_err(|error| error.to_string())?;
        Ok(Some(image))
    }

    /// The directory and the name of a file to be stored.
    fn place_for(&self, path: &str) -> io::Result<(OwnedFd, String)> {
        let mut parts = path.split('/');
        let name = parts.next_back().unwrap_or_default().to_owned();
        let mut directory = self.store.try_clone()?;
        for part in parts {
            directory = cache::open_below(&directory, part)?;
        }
        Ok((directory, name))
    }

    /// Removes what was fetched longest ago when there is too much.
    fn make_room(&self) {
        let mut files = Vec::new();
        let mut total = 0;
        for (directory, first) in directories(&self.store, ".build-id") {
            for name in names(&directory) {
                let Ok(found) = statat(&directory, &*name, AtFlags::SYMLINK_NOFOLLOW) else {
                    continue;
                };
                let size = u64::try_from(found.st_size).unwrap_or(0);
                total += size;
                files.push((found.st_mtime, size, format!(".build-id/{first}/{name}")));
            }
        }
        files.sort_unstable();
        for (_, size, path) in files {
            if total <= self.bounds.kept {
                break;
            }
            // Another process may have done it.
            _ = unlinkat(&*self.store, &*path, AtFlags::empty());
            total -= size;
        }
    }
}

/// The image of a file, if it is debug information with this build id.
fn checked(file: &File, build_id: &str) -> std::result::Result<ElfImage, String> {
    let bytes = file_map::map(file).map_err(|error| error.to_string())?;
    let image = ElfImage::headers(&bytes).map_err(|_| "what it sent is no ELF file")?;
    match image.build_id.as_deref().map(hexadecimal) {
        Some(id) if id == build_id => Ok(image),
        _ => Err("what it sent belongs to another file".to_owned()),
    }
}

/// The directories in one, with their names.
fn directories(place: &OwnedFd, name: &str) -> Vec<(OwnedFd, String)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |place: &OwnedFd, name: &str| openat(place, name, flags, Mode::empty()).ok();
    let Some(parent) = open(place, name) else {
        return Vec::new();
    };
    let children = names(&parent).into_iter();
    children
        .filter_map(|name| Some((open(&parent, &name)?, name)))
        .collect()
}

fn names(directory: &OwnedFd) -> Vec<String> {
    let Ok(entries) = Dir::read_from(directory) else {
        return Vec::new();
    };
    let names = entries.flatten();
    let names = names.filter_map(|entry| entry.file_name().to_str().map(str::to_owned).ok());
    names.filter(|name| !name.starts_with('.')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fetcher whose thread has ended.
    fn without_thread() -> Fetcher {
        let (directory, (jobs, _), (_, results)) = (
            File::open("/").unwrap().into(),
            mpsc::channel(),
            mpsc::channel(),
        );
        Fetcher {
            jobs,
            results,
            directory: Arc::new(directory),
            wanted: HashMap::new(),
            pending: 0,
        }
    }

    #[test]
    fn a_thread_that_failed_is_not_waited_for_and_not_kept_secret() {
        let looks: [fn(&mut Fetcher) -> Arrived; 2] =
            [Fetcher::arrived, |it| it.wait(Duration::from_secs(60))];
        for look in looks {
            let mut fetcher = without_thread();
            assert_eq!(look(&mut fetcher), Arrived::default(), "nothing is missed");
            fetcher.want("0123456789", FileNumber(1));
            let [failure] = &look(&mut fetcher).failures[..] else {
                panic!("it is not said");
            };
            assert!(failure.contains("has failed"), "{failure}");
            assert_eq!(look(&mut fetcher), Arrived::default(), "said once");
        }
    }
}
