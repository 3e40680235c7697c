//! Symbols of targets whose files are large, and what reading them costs.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    build, debug_info,
    fixture::{Fixture, Start},
    suite::{self, Case, Need, NotHere, case},
    tracer,
};

const RUST: &[Need] = &[Need::Tracing, Need::Rust];

fn main() -> ExitCode {
    suite::main(cases())
}

fn cases() -> Vec<Case> {
    vec![
        case("much_debug_information_is_read", RUST, || {
            let read = with_debug_info(suite::scaled(400 << 20, 20 << 20))?;
            ensure!(read.line.is_some(), "no source line: {read:?}");
            ensure!(!read.notes.contains("debug information"), "{}", read.notes);
            read.is_bounded()
        }),
        case("two_gib_of_debug_information_are_left_alone", RUST, || {
            if suite::is_quick() {
                return Err(NotHere("writes 2 GiB: in the whole suite only".into()).into());
            }
            let read = with_debug_info(2 << 30)?;
            ensure!(read.line.is_none(), "a source line: {read:?}");
            ensure!(
                read.notes.contains(
                    " MiB of debug information (at most 512 are read): its functions are \
                                     named from its symbol table"
                ),
                "not said: {}",
                read.notes
            );
            read.is_bounded()
        }),
        case("debug_information_is_fetched_only_when_asked", RUST, || {
            let stripped = Stripped::new()?;
            let server = Server::start(Some(stripped.debug_information()))?;
            let caller = stripped.traced(&server.address, &[])?.caller;
            ensure!(caller.is_none(), "found: {caller:?}");
            ensure!(server.requests() == 0, "asked without being told to");

            let fetched = stripped.traced(&server.address, &["--debuginfod"])?;
            let (symbol, line) = fetched.caller.context("no caller")?;
            ensure!(
                symbol == "sites::site_box" && line.is_some(),
                "{symbol} {line:?}"
            );
            ensure!(server.requests() > 0, "not asked");
            ensure!(!fetched.notes.contains("fetched"), "{}", fetched.notes);

            // From the disk.
            let gone = Server::start(None)?;
            let kept = stripped.traced(&gone.address, &["--debuginfod"])?;
            ensure!(kept.caller.is_some(), "not kept");
            Ok(())
        }),
        case("a_server_without_an_answer_holds_up_nothing", RUST, || {
            let stripped = Stripped::new()?;
            // Connections are accepted by the kernel, and that is all.
            let silent = TcpListener::bind("127.0.0.1:0")?;
            let address = format!("http://{}", silent.local_addr()?);
            let traced = stripped.traced(&address, &["--debuginfod"])?;
            ensure!(traced.caller.is_none(), "found: {:?}", traced.caller);
            ensure!(
                traced.notes.contains("could not be fetched in time"),
                "{}",
                traced.notes
            );
            ensure!(traced.took < Duration::from_secs(45), "{:?}", traced.took);
            Ok(())
        }),
    ]
}

/// The program `sites` without symbols, and a cache of its own for leaktrace.
struct Stripped {
    directory: tempfile::TempDir,
}

/// What a trace of it gave.
#[derive(Debug)]
struct Traced {
    /// Name and line of the allocation's caller, if it has a name.
    caller: Option<(String, Option<u64>)>,
    notes: String,
    took: Duration,
}

impl Stripped {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let stripped = Self { directory };
        fs::create_dir(stripped.path("cache"))?;
        let whole = build::fixture("sites")?;
        let run = |tool: &str, arguments: &[&Path]| {
            let status = Command::new(tool).args(arguments).status();
            let status = status.with_context(|| format!("starting {tool}"))?;
            ensure!(status.success(), "{tool} failed");
            Ok(())
        };
        let only_debug = Path::new("--only-keep-debug");
        run(
            "objcopy",
            &[only_debug, &whole, &stripped.debug_information()],
        )?;
        let program = stripped.path("sites");
        run("strip", &[Path::new("-o"), &program, &whole])?;
        Ok(stripped)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn debug_information(&self) -> PathBuf {
        self.path("sites.debug")
    }

    fn traced(&self, servers: &str, options: &[&str]) -> Result<Traced> {
        let mut fixture: Fixture = Start::program(&self.path("sites"), &[""; 0]).start()?;
        let mut start = tracer::Start::attach(fixture.pid())?.args(options);
        start
            .command()
            .env("DEBUGINFOD_URLS", servers)
            .env("XDG_CACHE_HOME", self.path("cache"));
        let mut tracer = start.attached()?;
        fixture.tell("work")?;
        tracer.signal(libc::SIGINT)?;
        let ended = tracer.ended()?;
        let report = ended.report()?;
        fixture.finish_well()?;
        let frames = report.stacks.iter().flat_map(|stack| &stack.frames);
        let named = |name: &str| name.starts_with("sites::site_box");
        let caller = frames
            .filter(|frame| frame.symbol.as_deref().is_some_and(named))
            .find_map(|frame| Some((frame.symbol.clone()?, frame.line)));
        Ok(Traced {
            caller,
            notes: report.notes.join(" "),
            took: ended.took,
        })
    }
}

/// A server of debug information that has one file, or none.
struct Server {
    address: String,
    requests: Arc<AtomicU32>,
}

impl Server {
    fn start(file: Option<PathBuf>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = format!("http://{}", listener.local_addr()?);
        let requests = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&requests);
        // Ends with the tests.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::Relaxed);
                // A client that is gone is no concern.
                let _ = Self::answer(stream, file.as_deref());
            }
        });
        Ok(Self { address, requests })
    }

    /// Any build id: what does not belong to it must be found out.
    fn answer(mut stream: TcpStream, file: Option<&Path>) -> Result<()> {
        let request = BufReader::new(stream.try_clone()?);
        let mut lines = request.lines();
        while lines
            .next()
            .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
        {}
        match file {
            Some(file) => {
                let bytes = fs::read(file)?;
                let length = bytes.len();
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
                )?;
                stream.write_all(&bytes)?;
            }
            None => stream.write_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")?,
        }
        Ok(())
    }

    fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// What came of a trace.
#[derive(Debug)]
struct Read {
    /// Line of the allocation's caller.
    line: Option<u64>,
    /// What the report says about how far it can be trusted.
    notes: String,
    /// Most anonymous memory of leaktrace and its children, bytes.
    memory: u64,
}

impl Read {
    fn is_bounded(&self) -> Result<()> {
        ensure!(self.memory > 1 << 20, "not measured: {}", self.memory);
        ensure!(self.memory <= 500 << 20, "{} bytes", self.memory);
        Ok(())
    }
}

/// Traces a program that has so many bytes of `.debug_info`.
fn with_debug_info(size: u64) -> Result<Read> {
    // Not below /tmp, which may be memory.
    let directory = tempfile::tempdir_in(build::target_directory()?)?;
    let program = directory.path().join("sites");
    debug_info::multiply(&build::fixture("sites")?, &program, size)?;
    let mut fixture: Fixture = Start::program(&program, &[""; 0]).start()?;
    let mut tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    let memory = MemoryWatch::start(tracer.pid());
    fixture.tell("work")?;
    // Stacks are learned while it runs as well.
    thread::sleep(Duration::from_secs(2));
    tracer.signal(libc::SIGINT)?;
    let ended = tracer.ended()?;
    let memory = memory.most()?;
    let report = ended.report()?;
    let caller = report
        .stacks
        .iter()
        .flat_map(|stack| &stack.frames)
        .find(|frame| frame.symbol.as_deref() == Some("sites::site_box"))
        .context("the caller has no name")?;
    let line = caller.line;
    ensure!(ended.took < Duration::from_secs(10), "{:?}", ended.took);
    fixture.finish_well()?;
    Ok(Read {
        line,
        notes: report.notes.join(" "),
        memory,
    })
}

/// Watches the anonymous memory of a process and its children.
struct MemoryWatch {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl MemoryWatch {
    fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                let all = children(pid).into_iter().chain([pid]);
                most = all.filter_map(anonymous_memory).sum::<u64>().max(most);
                thread::sleep(Duration::from_millis(2));
            }
            most
        });
        Self { stop, thread }
    }

    fn most(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the watch broke down"))
    }
}

/// Children of every thread of a process.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let ids = list.split_whitespace().filter_map(|id| id.parse().ok());
            ids.collect::<Vec<u32>>()
        })
        .collect()
}

/// `RssAnon`, bytes.
fn anonymous_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}
