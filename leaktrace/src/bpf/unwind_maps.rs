//! The maps by which stacks are unwound, mapped into our memory: writing
//! tables takes no system call. See `leaktrace_common::unwind` for what is in
//! them; the programs read while we write, so what is pointed to is there before
//! what points to it.

use std::{
    os::fd::AsRawFd as _,
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{Ordering, fence},
    },
};

use anyhow::{Context as _, Result};
use leaktrace_common::{
    control::Mappings,
    unwind::{
        Chunk, FileRecord, MAX_FILES, MAX_MAPPINGS, MAX_RULES, Mapping, MappingTable, Page, Row,
        Rule,
    },
};
use memmap2::{MmapOptions, MmapRaw};

use super::{control::ControlPage, object::MapSet};

/// The maps.
pub struct UnwindMaps {
    rows: Values<Row>,
    pages: Values<Page>,
    rules: Values<Rule>,
    files: Values<FileRecord>,
    mappings: Values<MappingTable>,
    /// The generation of the mappings that was published last.
    generation: Mutex<u32>,
}

/// The values of an array map.
struct Values<T> {
    memory: MmapRaw,
    count: usize,
    of: std::marker::PhantomData<T>,
}

impl UnwindMaps {
    pub(super) fn map(maps: &MapSet) -> Result<Self> {
        let rows = size_of::<Chunk>() / size_of::<Row>();
        Ok(Self {
            rows: Values::map(maps, "ROWS", rows)?,
            pages: Values::map(maps, "PAGES", 1)?,
            rules: Values::map(maps, "RULES", 1)?,
            files: Values::map(maps, "FILES", 1)?,
            mappings: Values::map(maps, "MAPPINGS", 1)?,
            generation: Mutex::new(0),
        })
    }

    /// How many rows there is room for.
    #[must_use]
    pub fn row_room(&self) -> usize {
        self.rows.count
    }

    /// How many pages there is room for.
    #[must_use]
    pub fn page_room(&self) -> usize {
        self.pages.count
    }

    /// Writes rows, rules and pages, each from an index on. What there is no room
    /// for is left out.
    pub fn write_tables(
        &self,
        rows: (usize, &[Row]),
        rules: (usize, &[Rule]),
        pages: (usize, &[Page]),
    ) {
        self.rows.write(rows.0, rows.1);
        self.rules.write(rules.0, rules.1);
        self.pages.write(pages.0, pages.1);
    }

    /// Says which pages are a file's, after they were written.
    pub fn write_file(&self, number: usize, record: FileRecord) {
        fence(Ordering::SeqCst);
        if number >= self.files.count {
            return;
        }
        // SAFETY: inside the map.
        unsafe {
            let place = self.files.first().add(number);
            (&raw mut (*place).pages).write_volatile(record.pages);
            (&raw mut (*place).first_page).write_volatile(record.first_page);
            (&raw mut (*place).flags).write_volatile(record.flags);
            fence(Ordering::SeqCst);
            // As long as this is 0 nothing is known of the file.
            (&raw mut (*place).page_count).write_volatile(record.page_count);
        }
    }

    /// Publishes the process's executable mappings, sorted, of which the first
    /// [`MAX_MAPPINGS`] are kept. They were read when the loader had `unloads`.
    pub fn publish(&self, control: &ControlPage, mappings: &[Mapping], unloads: u32) {
        let mut generation = self
            .generation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let next = generation.wrapping_add(1);
        let mappings = &mappings[..mappings.len().min(MAX_MAPPINGS)];
        control.begin_mappings(next);
        fence(Ordering::SeqCst);
        // SAFETY: there are two tables, and a table has room for as many; walks
        // that read this one meanwhile notice by what was stored above.
        unsafe {
            let table = self.mappings.first().add(next as usize % 2);
            let places = (&raw mut (*table).mappings).cast::<Mapping>();
            ptr::copy_nonoverlapping(mappings.as_ptr(), places, mappings.len());
            (&raw mut (*table).count).write_volatile(mappings.len() as u64);
        }
        fence(Ordering::SeqCst);
        control.set_mappings(Mappings::new(next, unloads));
        *generation = next;
    }
}

impl<T> Values<T> {
    /// Maps a map whose values hold `each` of these.
    fn map(maps: &MapSet, name: &str, each: usize) -> Result<Self> {
        let count = maps.max_entries(name)? as usize * each;
        let memory = MmapOptions::new()
            .len(count * size_of::<T>())
            .map_raw(maps.fd(name)?.as_raw_fd())
            .with_context(|| format!("mapping the BPF map {name}"))?;
        Ok(Self {
            memory,
            count,
            of: std::marker::PhantomData,
        })
    }

    fn first(&self) -> *mut T {
        self.memory.as_mut_ptr().cast()
    }

    /// Writes `values` from index `at` on, as far as there is room.
    fn write(&self, at: usize, values: &[T]) {
        let length = values.len().min(self.count.saturating_sub(at));
        // SAFETY: inside the mapping, as just computed; nobody has references
        // into it.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), self.first().add(at), length) };
    }
}

const _: () = assert!(MAX_RULES <= 1 << 16, "rows have 16 bits for a rule");
const _: () = assert!(MAX_FILES <= 1 << 16, "frames have 16 bits for a file");
