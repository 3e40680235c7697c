//! Functions that a file exports, or has by its symbol table.

use std::collections::HashSet;

use object::{LittleEndian, elf, pod, read::elf::SectionHeader as _};

use super::{ENDIAN, ElfFile};

type Symbol = elf::Sym64<LittleEndian>;
/// Symbols and their names.
type Table<'a> = (&'a [Symbol], &'a [u8]);

/// Longer names are not looked at: it bounds the work on a string table
/// without terminators.
const MAX_NAME: usize = 96;

/// More versions of one name than this no library has.
const MAX_VERSIONS: usize = 8;

/// A function that others can call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedFunction {
    /// Its name, without version.
    pub name: String,
    /// Virtual address before relocation.
    pub address: u64,
    /// Bytes; 0 when the file does not tell.
    pub size: u64,
    /// What is at the address.
    pub kind: FunctionKind,
}

/// What an exported function's address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// The function itself.
    Code,
    /// A function that the loader calls to get the function's address
    /// (`STT_GNU_IFUNC`).
    Indirect,
}

impl ElfFile<'_> {
    /// Which of the names the file exports as functions, in the order of its
    /// table. A name appears once for each address: several versions of it
    /// (`name@VERSION`) may have code of their own.
    ///
    /// One pass over the dynamic symbols, without building any map of them: a
    /// file may have half a million.
    #[must_use]
    pub fn exported_functions(&self, names: &[&str]) -> Vec<ExportedFunction> {
        self.dynamic_symbols()
            .map_or_else(Vec::new, |table| functions(table, names, is_exported))
    }

    /// The same from the symbol table, which nobody needs to run the file: a
    /// program without a loader exports nothing. Linkers make hidden names local
    /// there, as glibc's own of malloc is; such a name counts when the file has it
    /// once: else who knows which source file's it is.
    #[must_use]
    pub fn linked_functions(&self, names: &[&str]) -> Vec<ExportedFunction> {
        let Some(table) = self.symbols_of(elf::SHT_SYMTAB) else {
            return Vec::new();
        };
        let mut found = functions(table, names, is_global);
        let is_local = |symbol: &Symbol| !is_global(symbol);
        let local = functions(table, names, is_local);
        let count = |name: &str| local.iter().filter(|it| it.name == name).count();
        let known: HashSet<String> = found.iter().map(|it| it.name.clone()).collect();
        found.extend(
            local
                .iter()
                .filter(|it| !known.contains(&it.name) && count(&it.name) == 1)
                .cloned(),
        );
        found
    }

    /// The address of a variable that the file exports under this name.
    #[must_use]
    pub fn exported_variable(&self, name: &str) -> Option<u64> {
        let (symbols, strings) = self.dynamic_symbols()?;
        let symbol = symbols.iter().find(|symbol| {
            symbol.st_type() == elf::STT_OBJECT
                && symbol.st_shndx.get(ENDIAN) != elf::SHN_UNDEF
                && short_name(strings, symbol.st_name.get(ENDIAN), name.len())
                    == Some(name.as_bytes())
        })?;
        Some(symbol.st_value.get(ENDIAN))
    }

    /// The symbols and names of the first section of this type.
    fn symbols_of(&self, kind: u32) -> Option<Table<'_>> {
        let mut sections = self.sections.iter();
        let section = sections.find(|section| section.sh_type(ENDIAN) == kind)?;
        let symbols = section.data_as_array(ENDIAN, self.data).ok()?;
        let strings = self.sections.section(section.link(ENDIAN)).ok()?;
        Some((symbols, strings.data(ENDIAN, self.data).ok()?))
    }

    /// The dynamic symbols and their names: by section, else by what the
    /// loader itself uses.
    fn dynamic_symbols(&self) -> Option<Table<'_>> {
        if let Some(table) = self.symbols_of(elf::SHT_DYNSYM) {
            return Some(table);
        }
        let tables = self.dynamic_tables();
        let (symbols, strings) = (tables.symbols?, tables.strings?);
        // Nothing tells how many symbols there are, but every linker puts the
        // strings right after them.
        let length = usize::try_from(strings.checked_sub(symbols)?).ok()?;
        let bytes = self.bytes_from(symbols)?.get(..length)?;
        let (symbols, _) = pod::slice_from_bytes(bytes, length / size_of::<Symbol>()).ok()?;
        Some((symbols, self.bytes_from(strings)?))
    }
}

/// Those of a table's symbols that are functions with one of the names.
fn functions(
    (symbols, strings): Table<'_>,
    names: &[&str],
    counts: impl Fn(&Symbol) -> bool,
) -> Vec<ExportedFunction> {
    let wanted: HashSet<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    let longest = names
        .iter()
        .map(|name| name.len())
        .max()
        .unwrap_or(0)
        .min(MAX_NAME);
    let mut found: Vec<ExportedFunction> = Vec::new();
    for symbol in symbols.iter().filter(|symbol| counts(symbol)) {
        let Some(kind) = function_kind(symbol) else {
            continue;
        };
        let Some(name) = short_name(strings, symbol.st_name.get(ENDIAN), longest) else {
            continue;
        };
        if !wanted.contains(name) {
            continue;
        }
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        let function = ExportedFunction {
            name: name.to_owned(),
            address: symbol.st_value.get(ENDIAN),
            size: symbol.st_size.get(ENDIAN),
            kind,
        };
        if !found.contains(&function) {
            found.push(function);
        }
        if found.len() >= names.len().saturating_mul(MAX_VERSIONS) {
            break;
        }
    }
    found
}

/// Whether other files can see a symbol.
fn is_exported(symbol: &Symbol) -> bool {
    let visible = matches!(
        symbol.st_visibility(),
        elf::STV_DEFAULT | elf::STV_PROTECTED
    );
    visible && is_global(symbol)
}

/// Whether a symbol is known beyond its source file.
fn is_global(symbol: &Symbol) -> bool {
    symbol.st_bind() != elf::STB_LOCAL
}

/// What a symbol is, if it's a function.
fn function_kind(symbol: &Symbol) -> Option<FunctionKind> {
    let section = symbol.st_shndx.get(ENDIAN);
    if section == elf::SHN_UNDEF
        || section >= elf::SHN_LORESERVE && section != elf::SHN_XINDEX
        || symbol.st_value.get(ENDIAN) == 0
    {
        return None;
    }
    match symbol.st_type() {
        // Assembler code often has no type.
        elf::STT_FUNC | elf::STT_NOTYPE => Some(FunctionKind::Code),
        elf::STT_GNU_IFUNC => Some(FunctionKind::Indirect),
        _ => None,
    }
}

/// The name at an offset of a string table, without `@VERSION`, unless it is
/// longer than `longest`.
fn short_name(strings: &[u8], offset: u32, longest: usize) -> Option<&[u8]> {
    let from = strings.get(offset as usize..)?;
    let end = from
        .iter()
        .take(longest + 1)
        .position(|byte| matches!(byte, 0 | b'@'))?;
    from.get(..end)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The libc of this very process.
    pub(crate) fn running_libc() -> Vec<u8> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.contains("/libc.so") || path.contains("/libc-2."))
            .expect("this process maps a libc");
        std::fs::read(path).unwrap()
    }

    #[test]
    fn versioned_and_default_names_are_found() {
        let bytes = running_libc();
        let file = ElfFile::parse(&bytes).unwrap();
        let found = file.exported_functions(&["malloc", "cfree", "no_such_function", "stdout"]);
        let malloc = found
            .iter()
            .find(|function| function.name == "malloc")
            .unwrap();
        assert!(malloc.size > 100);
        assert_eq!(malloc.kind, FunctionKind::Code);
        // stdout is data, and nobody exports the other.
        assert!(
            found
                .iter()
                .all(|function| ["malloc", "cfree"].contains(&&*function.name))
        );
        // In glibc's table it exists only as `cfree@GLIBC_2.2.5`, a version
        // that nothing new is linked against; since 2.26 it may be missing.
        if let Some(cfree) = found.iter().find(|function| function.name == "cfree") {
            let free = file.exported_functions(&["free"]);
            assert_eq!(free[0].address, cfree.address);
        }
    }

    #[test]
    fn a_file_without_section_headers_is_read_by_its_dynamic_section() {
        let mut bytes = running_libc();
        let with = ElfFile::parse(&bytes)
            .unwrap()
            .exported_functions(&["malloc", "free"]);
        // e_shoff, e_shnum and e_shstrndx of the header.
        bytes[40..48].fill(0);
        bytes[60..64].fill(0);
        let file = ElfFile::parse(&bytes).unwrap();
        assert!(file.sections.is_empty());
        assert_eq!(file.exported_functions(&["malloc", "free"]), with);
    }

    #[test]
    fn names_end_at_zero_or_version() {
        let strings = b"\0malloc\0cfree@GLIBC_2.2.5\0unterminated";
        assert_eq!(short_name(strings, 1, 12), Some(&b"malloc"[..]));
        assert_eq!(short_name(strings, 8, 12), Some(&b"cfree"[..]));
        assert_eq!(short_name(strings, 26, 40), None);
        assert_eq!(short_name(strings, 26, 3), None);
        assert_eq!(short_name(strings, 4000, 3), None);
    }
}
