//! The BPF object: its bytes, the sizes and flags of its maps, its programs.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{Ebpf, EbpfLoader, maps::Map};
use leaktrace_common::{
    counter::CounterBlock,
    in_flight::InFlight,
    live::{Bucket, LiveKey, LiveValue, buckets_for},
    remembered::RememberedWalk,
    stack::{StackRecord, StackSums},
    unwind::{CHUNK_ROWS, Chunk, FileRecord, MAX_FILES, MAX_RULES, MappingTable, Page, Rule},
    vma::VmaLayout,
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::{
    debug_log,
    features::{Feature, Features},
    probes::LiveForm,
    syscall::{self, BPF_BTF_LOAD},
    uprobe_multi,
};

static EMBEDDED: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/leaktrace.bpf.o"));

/// Where the BPF object comes from.
#[derive(Clone, Debug, Default)]
pub enum ObjectSource {
    /// The one in this binary.
    #[default]
    Embedded,
    /// A file, for debugging.
    File(PathBuf),
}

/// How much the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Live blocks.
    pub max_blocks: u32,
    /// Distinct stacks.
    pub max_stacks: u32,
    /// Threads that are inside an allocator's function or have been.
    pub max_threads: u32,
    /// Unwind tables.
    pub tables: TableRoom,
}

/// How large unwind tables may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRoom {
    /// Rows.
    pub rows: u32,
    /// Pages of text.
    pub pages: u32,
}

impl TableRoom {
    /// None but what the maps have at least.
    pub const NONE: Self = Self { rows: 1, pages: 1 };

    fn chunks(self) -> u32 {
        self.rows.div_ceil(CHUNK_ROWS).max(1)
    }

    /// Kernel memory of all maps by which stacks are unwound, bytes.
    fn memory(self) -> u64 {
        u64::from(self.chunks()) * size_of::<Chunk>() as u64
            + u64::from(self.pages) * size_of::<Page>() as u64
            + (MAX_RULES * size_of::<Rule>()) as u64
            + (MAX_FILES * size_of::<FileRecord>()) as u64
            + 2 * size_of::<MappingTable>() as u64
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_blocks: 1 << 20,
            max_stacks: 16384,
            max_threads: 8192,
            tables: TableRoom::NONE,
        }
    }
}

/// Maps whose memory can be taken as they fill.
const GROWING_MAPS: [&str; 5] = ["LIVE", "IN_FLIGHT", "STACKS", "SUMS", "FILE_NUMBERS"];
const BPF_F_NO_PREALLOC: u32 = 1;

impl Limits {
    /// Entries of the live table in its two forms: buckets, and elements of the
    /// hash map; the one that is not used has the least.
    fn live_entries(&self, form: LiveForm) -> (u32, u32) {
        match form {
            LiveForm::Slots => (buckets_for(self.max_blocks), 1),
            LiveForm::Hash => (1, self.max_blocks),
        }
    }

    /// The options with which the maps take at most `bytes`: the larger table
    /// shrinks alone if that is enough.
    pub fn fitting(&self, bytes: u64, features: &Features) -> String {
        let blocks = |max_blocks| Self {
            max_blocks,
            ..*self
        };
        let stacks = |max_stacks| Self {
            max_stacks,
            ..*self
        };
        let fits = |limits: Self| limits.memory_when_full(features) <= bytes;
        let without = |limits: Self| limits.memory_when_full(features);
        let blocks_are_larger = without(blocks(1)) <= without(stacks(1));
        if blocks_are_larger && fits(blocks(1)) {
            let fitting = largest(self.max_blocks, |number| fits(blocks(number)));
            return format!("--max-blocks {fitting}");
        }
        if !blocks_are_larger && fits(stacks(1)) {
            let fitting = largest(self.max_stacks, |number| fits(stacks(number)));
            return format!("--max-stacks {fitting}");
        }
        // Both then, in their proportion.
        const WHOLE: u32 = 1 << 16;
        let part = |limit: u32, part: u32| {
            let scaled = u64::from(limit) * u64::from(part) / u64::from(WHOLE);
            u32::try_from(scaled).unwrap_or(limit).max(1)
        };
        let both = |size| Self {
            max_blocks: part(self.max_blocks, size),
            max_stacks: part(self.max_stacks, size),
            ..*self
        };
        let fitting = both(largest(WHOLE, |size| fits(both(size))));
        format!(
            "--max-blocks {} --max-stacks {}",
            fitting.max_blocks, fitting.max_stacks
        )
    }

    /// Kernel memory that full maps take, bytes. An element of a hash map has
    /// a head of 48 bytes (`struct htab_elem`); taken on demand it comes from
    /// the next size class, else from one array. Buckets are 16 bytes,
    /// rounded up to a power of two.
    pub fn memory_when_full(&self, features: &Features) -> u64 {
        let on_demand = features.has(Feature::MapMemoryOnDemand);
        let cpus = possible_cpus() as u64;
        let hash = |entries: u32, key: usize, value: usize| {
            let element = (48 + key.next_multiple_of(8) + value.next_multiple_of(8)) as u64;
            let element = if on_demand {
                size_class(element)
            } else {
                element
            };
            u64::from(entries) * element + u64::from(entries.next_power_of_two()) * 16
        };
        let sums = u64::from(self.max_stacks) * cpus * size_class(size_of::<StackSums>() as u64);
        let form = LiveForm::of(features);
        let (slots, live) = self.live_entries(form);
        u64::from(slots) * size_of::<Bucket>() as u64
            + hash(live, size_of::<LiveKey>(), size_of::<LiveValue>())
            + hash(self.max_threads, size_of::<u32>(), size_of::<InFlight>())
            + hash(self.max_stacks, size_of::<u64>(), size_of::<StackRecord>())
            + hash(self.max_stacks, size_of::<u64>(), size_of::<u64>())
            + hash(MAX_FILES as u32, size_of::<u64>(), size_of::<u32>())
            + sums
            + cpus * size_of::<CounterBlock>() as u64
            + self.tables.memory()
            + u64::from(form.remembered_walks()) * size_of::<RememberedWalk>() as u64
    }
}

/// The largest number below `most` that fits, at least 1. Hash buckets come in
/// powers of two, so it is searched.
fn largest(most: u32, fits: impl Fn(u32) -> bool) -> u32 {
    let (mut fitting, mut too_many) = (0, most);
    while too_many - fitting > 1 {
        let middle = fitting + (too_many - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            too_many = middle;
        }
    }
    fitting.max(1)
}

/// The kernel's size class (`kmalloc` caches) that holds `bytes`.
fn size_class(bytes: u64) -> u64 {
    match bytes {
        0..=64 => bytes.next_power_of_two().max(16),
        65..=96 => 96,
        97..=128 => 128,
        129..=192 => 192,
        _ => bytes.next_power_of_two(),
    }
}

/// CPUs that the kernel keeps per-CPU values for.
pub fn possible_cpus() -> usize {
    aya::util::nr_cpus().unwrap_or(1)
}

impl ObjectSource {
    fn bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Embedded => Ok(EMBEDDED.to_vec()),
            Self::File(path) => {
                std::fs::read(path).with_context(|| format!("reading {}", path.display()))
            }
        }
    }
}

/// The object's bytes with its maps' flags set, and what is needed to load
/// programs from it.
pub struct Object {
    bytes: Vec<u8>,
    vma_layout: VmaLayout,
}

impl Object {
    /// Reads the object and chooses flags of its maps by what the kernel can.
    pub fn read(source: &ObjectSource, features: &Features) -> Result<Self> {
        let mut bytes = source.bytes()?;
        if features.has(Feature::MapMemoryOnDemand) {
            for name in GROWING_MAPS {
                set_map_flags(&mut bytes, name, BPF_F_NO_PREALLOC)
                    .with_context(|| format!("the BPF object's map {name}"))?;
            }
        }
        Ok(Self {
            bytes,
            vma_layout: features.vma_layout(),
        })
    }

    /// Creates the maps (and makes aya's programs ready to be loaded).
    pub fn create_maps(&self, limits: &Limits, form: LiveForm) -> Result<(Ebpf, MapSet)> {
        let (slots, hash) = limits.live_entries(form);
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("VMA_LAYOUT", &self.vma_layout, true)
            .map_max_entries("LIVE", hash)
            .map_max_entries("LIVE_SLOTS", slots)
            .map_max_entries("STACKS", limits.max_stacks)
            .map_max_entries("SUMS", limits.max_stacks + 1)
            .map_max_entries("IN_FLIGHT", limits.max_threads)
            .map_max_entries("ROWS", limits.tables.chunks())
            .map_max_entries("PAGES", limits.tables.pages)
            .map_max_entries("WALKS", form.remembered_walks())
            .load(&self.bytes)
            .map_err(|error| explain_load_error(error.into()))?;
        let maps = MapSet::of(&ebpf)?;
        debug_log::print(&mut ebpf);
        Ok((ebpf, maps))
    }

    /// Loads programs for uprobe-multi links, against these maps.
    pub fn load_multi_programs(
        &self,
        maps: &MapSet,
        names: &[&'static str],
    ) -> Result<HashMap<&'static str, OwnedFd>> {
        let mut object = aya_obj::Object::parse(&self.bytes).context("parsing the BPF object")?;
        let btf = load_btf(&mut object);
        let definitions = std::mem::take(&mut object.maps);
        let maps: Vec<_> = definitions
            .iter()
            .filter_map(|(name, definition)| {
                let fd = maps.fd(name).ok()?;
                Some((name.as_str(), fd.as_raw_fd(), definition))
            })
            .collect();
        let text_sections = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        object.relocate_maps(maps.into_iter(), &text_sections)?;
        object.relocate_calls(&text_sections)?;
        object.sanitize_functions(aya::features());
        let mut programs = HashMap::new();
        for name in names {
            let program = object
                .programs
                .get(*name)
                .ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
            let function = object
                .functions
                .get(&program.function_key())
                .ok_or_else(|| anyhow!("the BPF object has no code for {name}"))?;
            let btf = btf.as_ref().map(|fd| fd.as_fd());
            let fd = uprobe_multi::load(name, &program.license, function, btf)
                .map_err(|error| explain_load_error(error.into()))?;
            programs.insert(*name, fd);
        }
        Ok(programs)
    }
}

/// Adds to an error of loading what usually is behind it.
fn explain_load_error(error: anyhow::Error) -> anyhow::Error {
    let denied = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.raw_os_error() == Some(libc::EPERM))
    });
    if denied {
        return error.context(
            "the kernel did not let leaktrace load its BPF programs: run it with sudo \
             (`leaktrace doctor` says what else may forbid it)",
        );
    }
    error.context("the kernel did not accept leaktrace's BPF programs (see `leaktrace doctor`)")
}

/// Loads the object's type information; without it programs load as well.
fn load_btf(object: &mut aya_obj::Object) -> Option<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct BtfAttributes {
        btf: u64,
        log_buf: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        padding: u32,
    }
    let features = aya::features().btf()?;
    let bytes = object.fixup_and_sanitize_btf(features).ok()??.to_bytes();
    let mut attributes = BtfAttributes {
        btf: bytes.as_ptr() as u64,
        size: bytes.len() as u32,
        ..BtfAttributes::default()
    };
    // SAFETY: the buffer lives through the call.
    unsafe { syscall::bpf_fd(BPF_BTF_LOAD, &mut attributes) }.ok()
}

/// An object's maps by name, through descriptors of their own.
pub struct MapSet(HashMap<String, OwnMap>);

struct OwnMap {
    fd: OwnedFd,
    max_entries: u32,
}

impl MapSet {
    fn of(ebpf: &Ebpf) -> Result<Self> {
        let mut maps = HashMap::new();
        for (name, map) in ebpf.maps() {
            let (Map::Array(data)
            | Map::HashMap(data)
            | Map::PerCpuArray(data)
            | Map::PerCpuHashMap(data)
            | Map::ProgramArray(data)
            | Map::RingBuf(data)) = map
            else {
                bail!("the BPF object's map {name} is of an unexpected type");
            };
            let fd = data.fd().as_fd().try_clone_to_owned()?;
            let max_entries = data.info()?.max_entries();
            maps.insert(name.to_owned(), OwnMap { fd, max_entries });
        }
        Ok(Self(maps))
    }

    fn get(&self, name: &str) -> Result<&OwnMap> {
        self.0
            .get(name)
            .ok_or_else(|| anyhow!("the BPF object has no map {name}"))
    }

    /// How many entries one of them holds.
    pub fn max_entries(&self, name: &str) -> Result<u32> {
        Ok(self.get(name)?.max_entries)
    }

    /// The descriptor of one of them.
    pub fn fd(&self, name: &str) -> Result<BorrowedFd<'_>> {
        Ok(self.get(name)?.fd.as_fd())
    }
}

/// Sets the flags in a map's definition (`struct bpf_map_def`: type, key
/// size, value size, entries, flags, 32 bits each). aya can change a map's
/// size at load, but not its flags.
fn set_map_flags(bytes: &mut [u8], name: &str, flags: u32) -> Result<()> {
    const FLAGS_OFFSET: u64 = 16;
    let file = object::File::parse(&*bytes)?;
    let symbol = file
        .symbols()
        .find(|symbol| symbol.name() == Ok(name))
        .ok_or_else(|| anyhow!("no such symbol"))?;
    let section = symbol
        .section_index()
        .and_then(|index| file.section_by_index(index).ok())
        .ok_or_else(|| anyhow!("no section"))?;
    let (start, size) = section.file_range().ok_or_else(|| anyhow!("no bytes"))?;
    let inside = symbol
        .address()
        .wrapping_sub(section.address())
        .wrapping_add(FLAGS_OFFSET);
    if inside.checked_add(4).is_none_or(|end| end > size) {
        bail!("definition too short");
    }
    let place = usize::try_from(start + inside)?;
    let target = bytes
        .get_mut(place..place + 4)
        .ok_or_else(|| anyhow!("outside the file"))?;
    target.copy_from_slice(&flags.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is suggested where half a GiB is to be had.
    fn suggested(max_blocks: u32, max_stacks: u32) -> Limits {
        const ROOM: u64 = 512 << 20;
        let features = Features::default();
        let asked = Limits {
            max_blocks,
            max_stacks,
            ..Limits::default()
        };
        let text = asked.fitting(ROOM, &features);
        let number = |option: &str, otherwise: u32| -> u32 {
            let mut words = text.split(' ').skip_while(|word| *word != option);
            words.nth(1).map_or(otherwise, |word| word.parse().unwrap())
        };
        let limits = Limits {
            max_blocks: number("--max-blocks", max_blocks),
            max_stacks: number("--max-stacks", max_stacks),
            ..asked
        };
        let needed = limits.memory_when_full(&features);
        assert!(needed <= ROOM && needed > ROOM / 3, "{text}: {needed}");
        limits
    }

    #[test]
    fn the_table_that_is_too_large_is_the_one_to_shrink() {
        let blocks = suggested(4_000_000_000, 16384);
        assert!(blocks.max_blocks < 4_000_000_000 && blocks.max_stacks == 16384);
        let stacks = suggested(1 << 20, 100_000_000);
        assert!(stacks.max_stacks < 100_000_000 && stacks.max_blocks == 1 << 20);
        let both = suggested(4_000_000_000, 100_000_000);
        assert!(both.max_blocks < 4_000_000_000 && both.max_stacks < 100_000_000);
    }
}
