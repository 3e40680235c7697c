//! Debug information from servers, all of them in this process.

use std::{
    fs::File,
    io::Read as _,
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, channel},
};

use super::{debuginfod::Bounds, *};

/// What a server does with a request.
enum Reply {
    File(PathBuf),
    Status(u16),
    /// Nothing, for as long as the client waits.
    Silence,
    /// A byte now and then, without end.
    Trickle,
    /// Bytes without end.
    Flood,
}

/// Serves on a port of its own until it is dropped; tells the paths that were
/// asked for.
struct Server {
    address: String,
    asked: Receiver<String>,
}

impl Server {
    fn start(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (tell, asked) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                let mut request = BufReader::new(stream.try_clone().unwrap());
                request.read_line(&mut line).unwrap();
                let path = line.split(' ').nth(1).unwrap().to_owned();
                while line.trim() != "" {
                    line.clear();
                    request.read_line(&mut line).unwrap();
                }
                let reply = reply(&path);
                if tell.send(path).is_err() {
                    break;
                }
                // The client may have had enough.
                let _ = Self::answer(&mut stream, &reply);
            }
        });
        Self { address, asked }
    }

    fn answer(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
        match reply {
            Reply::File(path) => {
                let bytes = std::fs::read(path)?;
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    bytes.len()
                )?;
                stream.write_all(&bytes)
            }
            Reply::Status(status) => {
                write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n")
            }
            Reply::Silence => stream.read(&mut [0]).map(|_| ()),
            Reply::Trickle | Reply::Flood => {
                write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
                let block = vec![
                    7;
                    if matches!(reply, Reply::Flood) {
                        1 << 16
                    } else {
                        1
                    }
                ];
                loop {
                    stream.write_all(&block)?;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    fn requests(&self) -> Vec<String> {
        self.asked.try_iter().collect()
    }
}

/// The program, stripped, with its debug information elsewhere.
struct Stripped {
    workshop: Workshop,
    target: Target,
    cache: OwnedFd,
    build_id: String,
}

impl Stripped {
    fn new(test: &str) -> Option<Self> {
        let workshop = Workshop::open(test)?;
        let program = workshop.program("program");
        workshop.run("objcopy", &["--only-keep-debug", "program", "whole"]);
        workshop.run("strip", &["--strip-all", "program"]);
        let bytes = std::fs::read(&program).unwrap();
        let image = elf_image::ElfImage::parse(&bytes).unwrap();
        let target = Target::start(&program, &[]);
        std::fs::create_dir(workshop.path("cache")).unwrap();
        let cache = File::open(workshop.path("cache")).unwrap().into();
        Some(Self {
            target,
            cache,
            build_id: debug_file::hexadecimal(&image.build_id.unwrap()),
            workshop,
        })
    }

    fn symbolizer(&self, servers: &str, bounds: Bounds) -> Symbolizer {
        let mut symbolizer = self.target.symbolizer(plain());
        let fetcher = Fetcher::start_in(&self.cache, servers, bounds).unwrap();
        symbolizer.fetcher = Some(fetcher);
        symbolizer
    }

    fn names(&self, symbolizer: &mut Symbolizer) -> Vec<String> {
        // Not malloc: nobody has libc's here.
        let address = self.target.address("in_innermost");
        let frames = symbolizer.resolve_addresses(&[self.target.address("main"), address]);
        frames[1..]
            .iter()
            .map(|frame| name(frame).to_owned())
            .collect()
    }

    fn path(&self) -> String {
        format!("/buildid/{}/debuginfo", self.build_id)
    }
}

const ALL: [&str; 3] = ["innermost", "middle", "outer_function"];
const SOON: Duration = Duration::from_secs(20);

#[test]
fn debug_information_is_fetched_once_and_kept() {
    let Some(stripped) = Stripped::new("debug_information_is_fetched…") else {
        return;
    };
    let whole = stripped.workshop.path("whole");
    let empty = Server::start(|_| Reply::Status(404));
    let server = Server::start(move |_| Reply::File(whole.clone()));
    let servers = format!("{} {}/", empty.address, server.address);
    let mut symbolizer = stripped.symbolizer(&servers, Bounds::default());
    assert_eq!(
        stripped.names(&mut symbolizer),
        ["?"],
        "nobody waits for it"
    );
    assert!(symbolizer.wait_for_fetched(SOON));
    assert_eq!(stripped.names(&mut symbolizer), ALL);
    assert!(!symbolizer.wait_for_fetched(SOON), "nothing is new");
    assert!(symbolizer.notes().is_empty(), "{:?}", symbolizer.notes());
    assert_eq!(empty.requests(), [stripped.path()]);
    assert_eq!(server.requests(), [stripped.path()]);

    let mut again = stripped.symbolizer(&servers, Bounds::default());
    assert_eq!(stripped.names(&mut again), ALL);
    assert_eq!(server.requests(), [""; 0]);
    // Without a word of it, nothing of that is used.
    let mut without = stripped.target.symbolizer(plain());
    assert_eq!(stripped.names(&mut without), ["?"]);
}

#[test]
fn servers_that_fail_are_named_and_hold_up_nothing() {
    let Some(stripped) = Stripped::new("servers_that_fail…") else {
        return;
    };
    let workshop = &stripped.workshop;
    std::fs::write(workshop.path("garbage"), [b'x'; 5000]).unwrap();
    let other = workshop.library("library.so");
    let garbage = workshop.path("garbage");
    let bounds = Bounds {
        connect: Duration::from_secs(1),
        file: Duration::from_secs(1),
        size: 1 << 20,
        ..Bounds::default()
    };
    type Serve = Box<dyn Fn() -> Reply + Send + Sync>;
    let cases: [(Serve, &str); 6] = [
        (
            Box::new(move || Reply::File(garbage.clone())),
            "no ELF file",
        ),
        (
            Box::new(move || Reply::File(other.clone())),
            "belongs to another file",
        ),
        (Box::new(|| Reply::Status(500)), "500"),
        (Box::new(|| Reply::Silence), "timeout"),
        (Box::new(|| Reply::Trickle), "timeout"),
        (Box::new(|| Reply::Flood), "more than 1 MiB"),
    ];
    for (reply, why) in cases {
        let server = Server::start(move |_| reply());
        let mut symbolizer = stripped.symbolizer(&server.address, bounds);
        let start = Instant::now();
        assert_eq!(stripped.names(&mut symbolizer), ["?"]);
        assert!(start.elapsed() < Duration::from_secs(1), "it waited");
        assert!(!symbolizer.wait_for_fetched(SOON), "{why}");
        assert_eq!(stripped.names(&mut symbolizer), ["?"]);
        let notes = symbolizer.notes();
        assert!(
            matches!(&notes[..], [note] if note.contains(&server.address) && note.contains(why)),
            "{why}: {notes:?}"
        );
        // Another file's: it may well be there.
        let main = symbolizer.located(&[stripped.target.address("main")])[0];
        let fetcher = symbolizer.fetcher.as_mut().unwrap();
        fetcher.want(&"ab".repeat(20), FileNumber(main.file()));
        assert!(!symbolizer.wait_for_fetched(SOON));
        assert_eq!(symbolizer.notes(), notes);
        assert_eq!(server.requests().len(), 1, "{why}: it was asked again");
    }
    // Nothing was kept, nor left half.
    let kept = Command::new("find")
        .arg(workshop.path("cache"))
        .args(["-type", "f"])
        .output();
    assert_eq!(String::from_utf8(kept.unwrap().stdout).unwrap(), "");

    // A port that nobody listens on.
    let mut symbolizer = stripped.symbolizer("http://127.0.0.1:9", bounds);
    stripped.names(&mut symbolizer);
    assert!(!symbolizer.wait_for_fetched(SOON));
    let notes = symbolizer.notes();
    assert!(notes[0].contains("http://127.0.0.1:9"), "{notes:?}");
    // None has it.
    let empty = Server::start(|_| Reply::Status(404));
    let mut symbolizer = stripped.symbolizer(&empty.address, bounds);
    stripped.names(&mut symbolizer);
    assert!(!symbolizer.wait_for_fetched(SOON));
    let notes = symbolizer.notes();
    assert!(
        matches!(&notes[..], [note] if note.starts_with("No server in DEBUGINFOD_URLS")),
        "{notes:?}"
    );
    // One that is not waited for.
    let silent = Server::start(|_| Reply::Silence);
    let mut symbolizer = stripped.symbolizer(&silent.address, Bounds::default());
    stripped.names(&mut symbolizer);
    assert!(!symbolizer.wait_for_fetched(Duration::from_millis(50)));
    let notes = symbolizer.notes();
    assert_eq!(
        notes,
        ["Debug information of 1 file could not be fetched in time."]
    );
}

#[test]
fn what_was_fetched_longest_ago_makes_room() {
    let Some(stripped) = Stripped::new("what_was_fetched_longest…") else {
        return;
    };
    let workshop = &stripped.workshop;
    let old = workshop.path("cache/debug/.build-id/00");
    // With what it shares with others, as it says.
    let shared = workshop.library("shared.so");
    let image = elf_image::ElfImage::parse(&std::fs::read(&shared).unwrap()).unwrap();
    let build_id = image.build_id.unwrap();
    let link = [b"shared.so\0", &build_id[..]].concat();
    std::fs::write(workshop.path("link"), link).unwrap();
    let section = ".gnu_debugaltlink=link";
    workshop.run("objcopy", &["--add-section", section, "whole"]);
    let whole = workshop.path("whole");
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    let bounds = Bounds {
        kept: size(&whole) + size(&shared) + 10,
        ..Bounds::default()
    };
    let build_id = debug_file::hexadecimal(&build_id);
    let server = Server::start(move |path| {
        Reply::File(if path.contains(&build_id) {
            shared.clone()
        } else {
            whole.clone()
        })
    });
    let mut symbolizer = stripped.symbolizer(&server.address, bounds);
    std::fs::create_dir_all(&old).unwrap();
    let old = old.join("11.debug");
    std::fs::write(&old, [0; 1000]).unwrap();
    let time = std::time::SystemTime::now() - Duration::from_secs(900);
    File::options()
        .write(true)
        .open(&old)
        .unwrap()
        .set_modified(time)
        .unwrap();
    stripped.names(&mut symbolizer);
    assert!(symbolizer.wait_for_fetched(SOON));
    assert_eq!(stripped.names(&mut symbolizer), ALL);
    assert!(!old.exists());
    assert_eq!(server.requests().len(), 2);
}
