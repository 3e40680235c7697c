//! The maps, all of them. Sizes and flags given here are replaced at load by
//! userspace (`--max-blocks` and so on).

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, ProgramArray},
};
use leaktrace_common::{
    control::Control,
    counter::CounterBlock,
    in_flight::InFlight,
    live::{Bucket, LiveKey, LiveValue},
    remembered::{HINTS, REMEMBERED_WALKS, RememberedWalk},
    stack::{StackRecord, StackSums},
    unwind::{Chunk, FileRecord, MAX_FILES, MAX_RULES, MappingTable, Page, Rule},
};

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// How userspace steers the programs.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Blocks that were allocated and not given back.
#[map]
pub static LIVE: HashMap<LiveKey, LiveValue> = HashMap::with_max_entries(1 << 20, 0);

/// The same as an array of our own; one of the two is used.
#[map]
pub static LIVE_SLOTS: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Calls in flight, by thread id.
#[map]
pub static IN_FLIGHT: HashMap<u32, InFlight> = HashMap::with_max_entries(8192, 0);

/// Frames of each stack, by its id; written once.
#[map]
pub static STACKS: HashMap<u64, StackRecord> = HashMap::with_max_entries(16384, 0);

/// Sums of each stack, by its id.
#[map]
pub static SUMS: PerCpuHashMap<u64, StackSums> = PerCpuHashMap::with_max_entries(16384, 0);

/// A record of zeros, from which new entries of [`STACKS`] are made: too large
/// for a program's own stack.
#[map]
pub static EMPTY_STACK: Array<StackRecord> = Array::with_max_entries(1, 0);

/// A record of zeros, from which new entries of [`IN_FLIGHT`] are made.
#[map]
pub static EMPTY_IN_FLIGHT: Array<InFlight> = Array::with_max_entries(1, 0);

/// Counters.
#[map]
pub static COUNTERS: PerCpuArray<CounterBlock> = PerCpuArray::with_max_entries(1, 0);

/// Calls seen by the estimate.
#[map]
pub static TALLY: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Nothing: see `keep_to_the_threads_stack`.
#[map]
pub static NO_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Rows of the unwind tables.
#[map]
pub static ROWS: Array<Chunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Pages of the unwind tables.
#[map]
pub static PAGES: Array<Page> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Rules of the unwind tables.
#[map]
pub static RULES: Array<Rule> = Array::with_max_entries(MAX_RULES as u32, BPF_F_MMAPABLE);

/// Files, by number.
#[map]
pub static FILES: Array<FileRecord> = Array::with_max_entries(MAX_FILES as u32, BPF_F_MMAPABLE);

/// Numbers of files, by the addresses of their inodes.
#[map]
pub static FILE_NUMBERS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_FILES as u32, 0);

/// The executable mappings of the process, twice: one holds while the other is
/// written.
#[map]
pub static MAPPINGS: Array<MappingTable> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// In which word of a stack's first segment a return address is, by the return
/// addresses below it: as far as is known, to choose from [`WALKS`].
#[map]
pub static CALLER_HINTS: Array<u32> = Array::with_max_entries(HINTS, 0);

/// Walks that need not be made again.
#[map]
pub static WALKS: Array<RememberedWalk> = Array::with_max_entries(REMEMBERED_WALKS, 0);
