//! From an address to its mapping, its file and the rule to unwind it by: the
//! way that `leaktrace_common::unwind` describes.

use leaktrace_common::{
    unwind::{
        CHUNK_ROWS, FileRecord, MAX_MAPPINGS, Mapping, MappingTable, NO_FILE, PAGE_BITS, Page, Row,
        Rule, SEARCH_ROUNDS, low,
    },
    walk::flag,
};

use crate::{
    maps::{CONTROL, FILES, MAPPINGS, PAGES, ROWS, RULES},
    vma::{self, Answer},
    walk::{Walker, get, set},
};

/// The mapping of an address that is in none.
pub const NOWHERE: Mapping = Mapping {
    start: 0,
    end: 0,
    bias: 0,
    file: NO_FILE,
    padding: 0,
};

const NO_INFORMATION: FileRecord = FileRecord {
    pages: 0,
    first_page: 0,
    page_count: 0,
    flags: 0,
};

/// Makes the mapping that holds an address, and its file, the walk's; false
/// when there is none, or none is known and the kernel can't be asked (`ASKS`).
/// Callers of a function are mostly in the same file.
#[inline(always)]
pub fn locate<const ASKS: bool>(walker: Walker, address: u64) -> bool {
    let start = get!(walker, mapping.start);
    if address.wrapping_sub(start) < get!(walker, mapping.end).wrapping_sub(start) {
        return true;
    }
    let Some(table) = MAPPINGS.get_ptr(get!(walker, mappings) & 1) else {
        return false;
    };
    let mut mapping = find_mapping(table, address, u64::from(get!(walker, zero)));
    let is_outdated = get!(walker, flags) & flag::OUTDATED != 0;
    if is_outdated || address.wrapping_sub(mapping.start) >= mapping.end.wrapping_sub(mapping.start)
    {
        set!(walker, mapping, NOWHERE);
        let answer = if ASKS {
            vma::ask(address, &mut mapping)
        } else {
            Answer::Unknown
        };
        // Garbage leads to where nothing is: no reason for userspace to look.
        if matches!(answer, Answer::Nothing) {
            return false;
        }
        report_unmapped();
        if matches!(answer, Answer::Unknown) {
            return false;
        }
        // At another time the answer may be another.
        walker.do_not_remember();
        if !matches!(answer, Answer::Found) {
            return false;
        }
    }
    set!(walker, mapping, mapping);
    let file = match FILES.get_ptr(mapping.file) {
        // SAFETY: a value of the map. What is written last is read first.
        Some(file) => unsafe {
            let page_count = (&raw const (*file).page_count).read_volatile();
            FileRecord {
                page_count,
                ..file.read_volatile()
            }
        },
        None => NO_INFORMATION,
    };
    set!(walker, file, file);
    true
}

/// Tells userspace that there are mappings which it does not know.
#[inline(always)]
fn report_unmapped() {
    if let Some(control) = CONTROL.get_ptr_mut(0) {
        // SAFETY: the array lives as long as the program. Not atomic: that the
        // value changes is enough.
        unsafe {
            let unmapped = &raw mut (*control).unmapped;
            unmapped.write_volatile(unmapped.read_volatile().wrapping_add(1));
        }
    }
}

/// The rule for an instruction at this offset in the walk's file.
#[inline(always)]
pub fn rule(walker: Walker, offset: u64) -> Rule {
    let number = ((offset >> PAGE_BITS) as u32).wrapping_sub(get!(walker, file.first_page));
    if number >= get!(walker, file.page_count) {
        return Rule::GAP;
    }
    let Some(page) = PAGES.get_ptr(number.wrapping_add(get!(walker, file.pages))) else {
        return Rule::GAP;
    };
    // SAFETY: a value of the map.
    let page = unsafe { page.read_volatile() };
    let Some(chunk) = ROWS.get_ptr(page.first / CHUNK_ROWS) else {
        return Rule::GAP;
    };
    let row = find_row(chunk.cast(), page, low(offset), get!(walker, zero));
    match RULES.get_ptr(u32::from(row.rule())) {
        // SAFETY: a value of the map.
        Some(rule) => unsafe { rule.read_volatile() },
        None => Rule::GAP,
    }
}

/// The last mapping that begins at or below `address`, or the first. `zero`,
/// unknown to the verifier, keeps it from following each way through the search.
#[inline(always)]
fn find_mapping(table: *const MappingTable, address: u64, zero: u64) -> Mapping {
    const MASK: u64 = MAX_MAPPINGS as u64 - 1;
    // SAFETY: a value of the map; indices are masked.
    unsafe {
        let count = (&raw const (*table).count).read_volatile();
        let mappings = (&raw const (*table).mappings).cast::<Mapping>();
        let mut found = zero & MASK;
        let mut step = MAX_MAPPINGS as u64 / 2;
        while step != 0 {
            let middle = (found + step) & MASK;
            if middle < count
                && (&raw const (*mappings.add(middle as usize)).start).read_volatile() <= address
            {
                found = middle;
            }
            step /= 2;
        }
        mappings.add(found as usize).read_volatile()
    }
}

/// The last of a page's rows that is not above `low`; `zero` as above.
#[inline(always)]
fn find_row(rows: *const Row, page: Page, low: u16, zero: u32) -> Row {
    const MASK: u32 = CHUNK_ROWS - 1;
    let mut found = zero & MASK;
    let mut step = 1 << (SEARCH_ROUNDS - 1);
    // SAFETY: a value of the map; indices are masked.
    unsafe {
        while step != 0 {
            let middle = (found + step) & MASK;
            if middle < page.count
                && rows
                    .add(((page.first + middle) & MASK) as usize)
                    .read_volatile()
                    .low()
                    <= low
            {
                found = middle;
            }
            step /= 2;
        }
        rows.add(((page.first + found) & MASK) as usize)
            .read_volatile()
    }
}

const _: () = assert!(MAX_MAPPINGS.is_power_of_two());
