//! Stacks of this very process, unwound by tables of the files that it maps and
//! by the C compiler's own unwinder, frame by frame.

use std::{
    arch::asm,
    cell::Cell,
    ffi::{c_int, c_void},
    fs::{self, File},
    os::unix::fs::FileExt as _,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use leaktrace_common::{
    stack::{MAX_FRAMES, StackEnd},
    unwind::Mapping,
};

use crate::{
    target::mapping,
    unwind::{
        compile,
        tables::Tables,
        walk::{Registers, Start, walk},
    },
};

/// What a walk in this process needs.
struct Own {
    tables: Tables,
    mappings: Vec<Mapping>,
    memory: File,
}

impl Own {
    fn get() -> &'static Self {
        static OWN: OnceLock<Own> = OnceLock::new();
        OWN.get_or_init(|| {
            let memory = File::open("/proc/self/mem").unwrap();
            let mut tables = Tables::new(u32::MAX);
            let mut mappings = Vec::new();
            for found in mapping::parse(&fs::read("/proc/self/maps").unwrap()) {
                let bytes = if found.is_file() {
                    fs::read(&found.path).unwrap()
                } else {
                    let mut bytes = vec![0; (found.end - found.start) as usize];
                    // `[vsyscall]` can't be read.
                    _ = memory.read_at(&mut bytes, found.start);
                    bytes
                };
                if !found.executable {
                    continue;
                }
                let Ok(table) = compile(&bytes) else { continue };
                mappings.push(Mapping {
                    start: found.start,
                    end: found.end,
                    bias: found.start.wrapping_sub(found.offset),
                    file: tables.add(&table).unwrap(),
                    padding: 0,
                });
            }
            Self {
                tables,
                mappings,
                memory,
            }
        })
    }

    fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, address).ok()?;
        Some(u64::from_le_bytes(word))
    }
}

/// The frames of a stack. Without allocating, for signal handlers.
struct Frames {
    ips: [u64; 2 * MAX_FRAMES],
    count: usize,
}

impl Frames {
    const NONE: Self = Self {
        ips: [0; 2 * MAX_FRAMES],
        count: 0,
    };

    fn push(&mut self, ip: u64) {
        if let Some(place) = self.ips.get_mut(self.count) {
            *place = ip;
            self.count += 1;
        }
    }

    /// Those above the function that both unwinders were started in.
    fn callers(&self) -> &[u64] {
        &self.ips[1..self.count]
    }
}

unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

extern "C" fn collect(context: *mut c_void, frames: *mut c_void) -> c_int {
    // SAFETY: both pointers are what `compare` and the unwinder pass.
    let (ip, frames) = unsafe { (_Unwind_GetIP(context), &mut *frames.cast::<Frames>()) };
    // At the end it shows the address 0.
    if ip != 0 {
        frames.push(ip as u64);
    }
    0
}

/// Unwinds the caller's stack in both ways: ours, how it ended, theirs.
#[inline(never)]
fn unwind() -> (Frames, StackEnd, Frames) {
    let own = Own::get();
    let (mut ours, mut theirs) = (Frames::NONE, Frames::NONE);
    let (ip, sp, fp);
    // SAFETY: only reads registers.
    unsafe {
        asm!("lea {ip}, [rip]", "mov {sp}, rsp", "mov {fp}, rbp",
            ip = out(reg) ip, sp = out(reg) sp, fp = out(reg) fp,
            options(nomem, nostack, preserves_flags));
    }
    let registers = Registers { ip, sp, fp };
    let end = walk(
        &own.tables,
        &own.mappings,
        Start::Inside,
        registers,
        |address| own.word(address),
        |frame| ours.push(frame.ip),
    );
    // SAFETY: the argument is what `collect` expects.
    unsafe { _Unwind_Backtrace(collect, (&raw mut theirs).cast()) };
    (ours, end, theirs)
}

thread_local! {
    static DEPTHS: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// The stack here is complete, and the same in both ways.
#[inline(never)]
fn assert_same() {
    let (ours, end, theirs) = unwind();
    assert_eq!(end, StackEnd::Complete, "{:x?}", ours.callers());
    assert_eq!(ours.callers(), theirs.callers());
    let (stacks, deepest) = DEPTHS.get();
    DEPTHS.set((stacks + 1, deepest.max(ours.count)));
}

/// How many stacks this thread compared, and the deepest of them.
fn compared() -> (usize, usize) {
    DEPTHS.get()
}

extern "C" fn by_value(a: *const c_void, b: *const c_void) -> c_int {
    assert_same();
    // SAFETY: elements of the array.
    let (a, b) = unsafe { (*a.cast::<i32>(), *b.cast::<i32>()) };
    a.cmp(&b) as c_int
}

fn sort(values: &mut [i32]) {
    // SAFETY: an array of `i32`.
    unsafe { libc::qsort(values.as_mut_ptr().cast(), values.len(), 4, Some(by_value)) };
}

#[repr(align(128))]
struct Aligned([u8; 200]);

/// Frames that are realigned, then a sort.
#[inline(never)]
fn recurse(depth: u32, values: &mut [i32]) -> u8 {
    let local = std::hint::black_box(Aligned([depth as u8; 200]));
    let below = if depth == 0 {
        sort(values);
        0
    } else {
        recurse(depth - 1, values)
    };
    std::hint::black_box(&local).0[depth as usize].wrapping_add(below)
}

#[test]
fn callbacks_of_the_c_library_are_unwound() {
    let mut values = [5, 3, 9, 1, 7, -4, 0, 2];
    sort(&mut values);
    assert_eq!(values, [-4, 0, 1, 2, 3, 5, 7, 9]);
    assert!(compared().0 >= 8, "{:?}", compared());
}

#[test]
fn deep_and_realigned_frames_are_unwound() {
    recurse(60, &mut [3, 2, 1]);
    assert!(compared().1 > 60, "{:?}", compared());
}

#[test]
fn rust_code_that_calls_back_is_unwound() {
    let mut values: Vec<u32> = (0..50).map(|value| value * 7919 % 50).collect();
    values.sort_by(|a, b| {
        assert_same();
        a.cmp(b)
    });
    let caught = std::panic::catch_unwind(|| {
        assert_same();
        compared().0
    });
    assert!(caught.unwrap() > 49);
}

#[test]
fn other_threads_are_unwound() {
    thread::scope(|scope| {
        for depth in 1..5 {
            scope.spawn(move || {
                recurse(depth, &mut [2, 1]);
                assert!(compared().0 > 0);
            });
        }
    });
}

#[test]
fn a_stack_that_is_too_deep_ends_there() {
    fn bottom() -> usize {
        let (ours, end, theirs) = unwind();
        assert_eq!(end, StackEnd::TooDeep);
        assert_eq!(ours.count, MAX_FRAMES);
        assert_eq!(ours.callers(), &theirs.callers()[..MAX_FRAMES - 1]);
        0
    }
    #[inline(never)]
    fn deep(left: usize) -> usize {
        match left {
            0 => bottom(),
            _ => std::hint::black_box(deep(left - 1) + 1),
        }
    }
    assert_eq!(deep(2 * MAX_FRAMES), 2 * MAX_FRAMES);
}

/// That of Rust's threads is too small for what the handler does.
fn use_large_signal_stack() {
    const SIZE: usize = 1 << 18;
    let stack = libc::stack_t {
        ss_sp: Vec::leak(vec![0_u8; SIZE]).as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: SIZE,
    };
    // SAFETY: the memory is never given back.
    let result = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);
static COMPLETE: AtomicUsize = AtomicUsize::new(0);
static WRONG: AtomicUsize = AtomicUsize::new(0);

/// Compares a stack that goes through a signal's frame. Must not allocate or
/// panic.
extern "C" fn interrupt(_: c_int) {
    let (ours, end, theirs) = unwind();
    INTERRUPTED.fetch_add(1, Ordering::Relaxed);
    let (ours, theirs) = (ours.callers(), theirs.callers());
    let is_right = if end == StackEnd::Complete {
        COMPLETE.fetch_add(1, Ordering::Relaxed);
        ours == theirs
    } else {
        theirs.starts_with(ours)
    };
    if !is_right {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
}

/// A thread sorts, allocates and prints, and is interrupted wherever it is:
/// also in prologues and epilogues, and on another stack.
#[test]
fn interrupted_code_is_unwound() {
    extern "C" fn by_byte(a: *const c_void, b: *const c_void) -> c_int {
        // SAFETY: elements of the array.
        unsafe { c_int::from(*a.cast::<u8>()) - c_int::from(*b.cast::<u8>()) }
    }
    Own::get();
    // SAFETY: the handler is for that, and only touches its own data.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = interrupt as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        assert_eq!(
            libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()),
            0
        );
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let stop = &stop;
        scope.spawn(move || {
            use_large_signal_stack();
            // SAFETY: names this thread.
            sender.send(unsafe { libc::pthread_self() }).unwrap();
            let mut round = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let mut bytes = format!("{:?} {round:x} {:.3}", thread::current().id(), 0.1)
                    .repeat(10)
                    .into_bytes();
                // SAFETY: an array of bytes.
                unsafe { libc::qsort(bytes.as_mut_ptr().cast(), bytes.len(), 1, Some(by_byte)) };
                round += u64::from(bytes[0]);
            }
        });
        let target = receiver.recv().unwrap();
        let start = Instant::now();
        while INTERRUPTED.load(Ordering::Relaxed) < 2000
            && start.elapsed() < Duration::from_secs(10)
        {
            // SAFETY: the thread ends only when it is told to, below.
            unsafe { libc::pthread_kill(target, libc::SIGUSR2) };
            thread::sleep(Duration::from_micros(200));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let [interrupted, complete, wrong] =
        [&INTERRUPTED, &COMPLETE, &WRONG].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(wrong, 0, "of {interrupted}");
    assert!(interrupted >= 200, "{interrupted}");
    assert!(
        complete * 100 >= interrupted * 95,
        "{complete} of {interrupted}"
    );
}
