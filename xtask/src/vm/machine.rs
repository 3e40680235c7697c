//! Boots one guest and waits for its end.
//!
//! The flags are those that were found to be reliable: no hardware acceleration,
//! and no `cmpxchg16b`, which QEMU 7.2 gets wrong.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use super::guest::Guest;
use super::kernel::{Kernel, MODULES};
use super::{image, suites};

/// How long a guest may take, on a machine that has other things to do as well; it
/// is taken for hung then.
const PATIENCE: Duration = Duration::from_secs(600);

/// Megabytes of a guest's memory.
const MEMORY: &str = "1024";

/// What a guest left behind.
#[derive(Debug, Default)]
pub struct Ended {
    /// The kernel's log.
    pub console: String,
    /// What the tests printed.
    pub results: String,
    /// It did not end by itself.
    pub timed_out: bool,
    /// What QEMU itself had to say.
    pub emulator: String,
}

/// Boots `kernel` as `guest` says, runs the tests there, and returns when the
/// machine has gone. Both outputs stay in `dir`.
///
/// # Errors
/// QEMU can't be started, or files can't be written.
pub fn boot(
    guest: &Guest,
    kernel: &Kernel,
    image: &Path,
    dir: &Path,
    filter: Option<&str>,
) -> Result<Ended> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let initramfs = dir.join("initramfs");
    fs::write(&initramfs, first_files(guest, kernel, filter)?)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let file = |name: &str| dir.join(name);
    let emulator = file("emulator.txt");
    let mut qemu = command(guest, kernel, image, &initramfs);
    for name in ["console.txt", "results.txt"] {
        qemu.arg("-serial").arg(prefixed("file:", &file(name)));
    }
    qemu.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&emulator).context("cannot make a file for QEMU's messages")?);
    let mut child = qemu.spawn().context("cannot start qemu-system-x86_64")?;
    let timed_out = !ends_within(&mut child, PATIENCE)?;
    fs::remove_file(&initramfs).context("cannot remove an initramfs")?;
    let read = |path: PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    };
    Ok(Ended {
        console: read(file("console.txt")),
        results: read(file("results.txt")),
        timed_out,
        emulator: read(emulator),
    })
}

fn command(guest: &Guest, kernel: &Kernel, image: &Path, initramfs: &Path) -> Command {
    // Whatever goes wrong is printed, and ends the machine if it is fatal. The
    // watchdogs would bark at how slow all is; to clear all memory that is handed
    // out takes a quarter of a guest's time.
    let mut words = "console=ttyS0 ignore_loglevel panic=-1 nowatchdog init_on_alloc=0".to_owned();
    if let Some(preemption) = guest.preemption {
        words.push_str(&format!(" preempt={preemption}"));
    }
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-accel", "tcg", "-cpu", "max,-cx16", "-m", MEMORY])
        .args(["-smp", &guest.processors.to_string()])
        .arg("-drive")
        .arg(prefixed("format=raw,if=virtio,readonly=on,file=", image))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &words]);
    qemu
}

fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut word = std::ffi::OsString::from(prefix);
    word.push(path);
    word
}

/// Whether `child` ends in time; it is killed if not.
fn ends_within(child: &mut Child, patience: Duration) -> Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        if child.try_wait().context("cannot wait for QEMU")?.is_some() {
            return Ok(true);
        }
        if Instant::now() > deadline {
            child.kill().context("cannot end QEMU")?;
            child.wait().context("cannot wait for QEMU")?;
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// What the kernel starts from: busybox, the modules that it needs to see the
/// image, and the first process's program.
fn first_files(guest: &Guest, kernel: &Kernel, filter: Option<&str>) -> Result<Vec<u8>> {
    let busybox = image::busybox().context("there is no static busybox")?;
    let mut archive = Archive::default();
    for dir in [
        "bin", "modules", "proc", "sys", "dev", "lower", "upper", "guest",
    ] {
        archive.directory(dir);
    }
    archive.file(
        "bin/busybox",
        &fs::read(busybox).context("cannot read busybox")?,
    );
    let mut modules = Vec::new();
    for module in MODULES {
        // One that is not there is built in.
        if let Ok(bytes) = fs::read(kernel.modules.join(format!("{module}.ko"))) {
            archive.file(&format!("modules/{module}.ko"), &bytes);
            modules.push(module);
        }
    }
    archive.file(
        "init",
        init(&modules, &suites::arguments(guest, image::TESTS, filter)).as_bytes(),
    );
    Ok(archive.finish())
}

/// The first process: mounts the image, with room to write above it, runs the
/// tests there and says how that ended. Results go to the second serial line, so
/// that the kernel's log does not get between them.
fn init(modules: &[&str], arguments: &[String]) -> String {
    let arguments: Vec<_> = arguments
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    format!(
        "#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module.ko; done
mount -t ext4 -o ro /dev/vda /lower
mount -t tmpfs tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /guest
for dir in proc sys dev; do mount --move /$dir /guest/$dir; done
mkdir /guest/dev/shm /guest/dev/pts
mount -t tmpfs tmpfs /guest/dev/shm
mount -t devpts devpts /guest/dev/pts
mount -t tmpfs tmpfs /guest/tmp
mount -t bpf bpf /guest/sys/fs/bpf
mount -t tracefs tracefs /guest/sys/kernel/tracing
mount -t debugfs debugfs /guest/sys/kernel/debug
ip link set lo up
exec >/guest/dev/ttyS1 2>&1
chroot /guest /bin/env \
 LEAKTRACE_BIN={leaktrace} LEAKTRACE_FIXTURES={fixtures} LEAKTRACE_SCALE=guest \
 {tests}/guest {arguments}
echo \"RC=$?\"
sync
poweroff -f
",
        modules = modules.join(" "),
        leaktrace = image::LEAKTRACE,
        fixtures = image::FIXTURES,
        tests = image::TESTS,
        arguments = arguments.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_ends_with_a_status() {
        let words = ["/tests/exactness", "it's"].map(str::to_owned);
        let script = init(&["virtio"], &words);
        assert!(script.starts_with("#!/bin/busybox sh\n"));
        assert!(script.contains("/tests/guest '/tests/exactness' 'it'\\''s'"));
        assert!(script.ends_with("echo \"RC=$?\"\nsync\npoweroff -f\n"));
    }

    #[test]
    fn a_process_that_hangs_is_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let ended = ends_within(&mut child, Duration::from_millis(50)).expect("a verdict");
        assert!(!ended);
    }
}
