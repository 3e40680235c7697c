//! The functions in an ELF file's symbol tables, by address.
//!
//! blazesym could do this too, but gives any one of several names for an
//! address (`__libc_malloc` for `malloc`), extends symbols without a size over
//! all that follows, and unpacks `.gnu_debugdata` into any amount of memory.

use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, elf::SHF_EXECINSTR,
};

/// Functions of one file, from `.symtab` and `.dynsym`. 24 B each; the names
/// stay in the file.
pub struct SymbolTable {
    image: Box<dyn AsRef<[u8]>>,
    /// By start, which is unique.
    functions: Vec<Function>,
}

#[derive(Clone, Copy)]
struct Function {
    start: u64,
    end: u64,
    /// Where its name is in the image; ends with NUL.
    name: u64,
}

/// A function that covers an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covering<'a> {
    /// As it is in the file, mangled.
    pub name: &'a str,
    /// Its first address.
    pub start: u64,
}

/// How far back a function is searched that begins before a smaller one inside.
const NESTING: usize = 16;

/// A symbol that may become a [`Function`].
struct Candidate {
    start: u64,
    size: u64,
    section_end: u64,
    name: u64,
    /// Of several names for one address the lowest is shown.
    rank: (u8, usize),
}

impl SymbolTable {
    /// Reads the tables. What makes no sense is left out.
    #[must_use]
    pub fn new(image: impl AsRef<[u8]> + 'static) -> Self {
        let bytes = image.as_ref();
        let functions = object::File::parse(bytes)
            .map_or_else(|_| Vec::new(), |file| functions(candidates(bytes, &file)));
        Self {
            image: Box::new(image),
            functions,
        }
    }

    /// The function that an address belongs to. One without a size reaches to
    /// the next or to the end of its section.
    #[must_use]
    pub fn covering(&self, address: u64) -> Option<Covering<'_>> {
        let after = self
            .functions
            .partition_point(|function| function.start <= address);
        let function = self.functions[..after]
            .iter()
            .rev()
            .take(NESTING)
            .find(|function| address < function.end)?;
        Some(Covering {
            name: self.name(function.name)?,
            start: function.start,
        })
    }

    /// The file's bytes from an offset on.
    pub fn bytes_from(&self, offset: u64) -> &[u8] {
        usize::try_from(offset)
            .ok()
            .and_then(|offset| (*self.image).as_ref().get(offset..))
            .unwrap_or_default()
    }

    fn name(&self, offset: u64) -> Option<&str> {
        let bytes = self.bytes_from(offset);
        let end = memchr::memchr(0, bytes)?;
        std::str::from_utf8(&bytes[..end])
            .ok()
            .filter(|name| !name.is_empty())
    }
}

fn candidates(image: &[u8], file: &object::File) -> Vec<Candidate> {
    let mut code_sections = Vec::new();
    for section in file.sections() {
        let executable = matches!(
            section.flags(),
            SectionFlags::Elf { sh_flags } if sh_flags & u64::from(SHF_EXECINSTR) != 0
        );
        let index = section.index().0;
        if executable && index < 0x1_0000 {
            code_sections.resize(code_sections.len().max(index + 1), None);
            code_sections[index] = section.address().checked_add(section.size());
        }
    }
    let mut found = Vec::new();
    for (symbols, complete) in [(file.symbols(), true), (file.dynamic_symbols(), false)] {
        for symbol in symbols {
            let section_end = symbol
                .section_index()
                .and_then(|index| code_sections.get(index.0).copied().flatten());
            let (Some(section_end), Ok(name)) = (section_end, symbol.name_bytes()) else {
                continue;
            };
            let function = symbol.kind() == object::SymbolKind::Text;
            let label = symbol.kind() == object::SymbolKind::Unknown;
            // The dynamic table has few of a file's functions: nothing says how
            // far one without a size reaches.
            let usable = (function || label) && (complete || symbol.size() > 0);
            if !usable || name.is_empty() {
                continue;
            }
            // The name is a part of the image.
            let Some(offset) = (name.as_ptr() as usize).checked_sub(image.as_ptr() as usize) else {
                continue;
            };
            let internal =
                name.starts_with(b"_") && !name.starts_with(b"_Z") && !name.starts_with(b"_R");
            found.push(Candidate {
                start: symbol.address(),
                size: symbol.size(),
                section_end,
                name: offset as u64,
                rank: (
                    u8::from(label) << 2 | u8::from(internal) << 1 | u8::from(symbol.is_local()),
                    name.len(),
                ),
            });
        }
    }
    found
}

/// One function for each address, ends settled.
fn functions(mut candidates: Vec<Candidate>) -> Vec<Function> {
    candidates.sort_unstable_by_key(|candidate| (candidate.start, candidate.rank));
    let mut functions: Vec<Function> = Vec::with_capacity(candidates.len());
    let mut covered_to = 0;
    let mut rest = candidates.iter().peekable();
    while let Some(first) = rest.next() {
        let mut size = first.size;
        while let Some(alias) = rest.next_if(|next| next.start == first.start) {
            size = size.max(alias.size);
        }
        if size == 0 && first.start < covered_to {
            continue; // a label inside a function
        }
        let end = if size == 0 {
            rest.peek()
                .map_or(first.section_end, |next| next.start.min(first.section_end))
        } else {
            first.start.saturating_add(size)
        };
        covered_to = covered_to.max(end);
        functions.push(Function {
            start: first.start,
            end,
            name: first.name,
        });
    }
    functions.shrink_to_fit();
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(start: u64, size: u64, name: u64, rank: u8) -> Candidate {
        Candidate {
            start,
            size,
            section_end: 0x2000,
            name,
            rank: (rank, 4),
        }
    }

    fn table(candidates: Vec<Candidate>) -> SymbolTable {
        // Names "n0", "n1", …, three bytes each.
        let names: String = (0..9).map(|n| format!("n{n}\0")).collect();
        SymbolTable {
            image: Box::new(names),
            functions: functions(candidates),
        }
    }

    fn named(table: &SymbolTable, address: u64) -> Option<(String, u64)> {
        table
            .covering(address)
            .map(|function| (function.name.to_owned(), function.start))
    }

    #[test]
    fn an_address_beyond_the_end_of_a_function_has_none() {
        let table = table(vec![
            candidate(0x1000, 0x10, 0, 0),
            candidate(0x1040, 0x10, 3, 0),
        ]);
        assert_eq!(named(&table, 0xfff), None);
        assert_eq!(named(&table, 0x100f), Some(("n0".into(), 0x1000)));
        assert_eq!(named(&table, 0x1010), None, "in the gap");
        assert_eq!(named(&table, 0x1040), Some(("n1".into(), 0x1040)));
        assert_eq!(named(&table, 0x1050), None);
    }

    #[test]
    fn a_function_without_a_size_ends_at_the_next_or_with_its_section() {
        let table = table(vec![candidate(0x1000, 0, 0, 0), candidate(0x1100, 0, 3, 0)]);
        assert_eq!(named(&table, 0x10ff), Some(("n0".into(), 0x1000)));
        assert_eq!(named(&table, 0x1fff), Some(("n1".into(), 0x1100)));
        assert_eq!(named(&table, 0x2000), None);
    }

    #[test]
    fn of_several_names_the_plain_one_is_taken_with_the_largest_size() {
        let table = table(vec![
            candidate(0x1000, 0x40, 0, 2),
            candidate(0x1000, 0x10, 3, 0),
        ]);
        assert_eq!(named(&table, 0x1030), Some(("n1".into(), 0x1000)));
    }

    #[test]
    fn after_a_function_inside_another_the_outer_one_goes_on() {
        let table = table(vec![
            candidate(0x1000, 0x100, 0, 0),
            candidate(0x1020, 0x10, 3, 0),
            candidate(0x1050, 0, 6, 4),
        ]);
        assert_eq!(named(&table, 0x1025), Some(("n1".into(), 0x1020)));
        assert_eq!(named(&table, 0x1030), Some(("n0".into(), 0x1000)));
        assert_eq!(
            named(&table, 0x1055),
            Some(("n0".into(), 0x1000)),
            "labels do not count"
        );
    }

    #[test]
    fn bytes_that_are_no_elf_file_have_no_functions() {
        assert_eq!(SymbolTable::new([0; 100]).covering(50), None);
    }
}
