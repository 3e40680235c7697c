//! Which file an address of the target belongs to, over time.

use std::collections::{BTreeMap, HashMap};

use leaktrace_common::stack::FrameWord;

use crate::target::code_files::FileNumber;

/// A stretch of the target's executable memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeMapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Offset in the file of the byte at `start`.
    pub offset: u64,
    /// The file; [`FileNumber::NONE`] for memory without one (code made at run
    /// time).
    pub file: FileNumber,
}

/// The executable mappings of one process. Those that are gone stay known until
/// others take their place, since stacks captured before may come later; and an
/// address that was resolved once stays what it was.
#[derive(Debug, Default)]
pub struct AddressSpace {
    /// Disjoint, by first address.
    mappings: BTreeMap<u64, CodeMapping>,
    resolved: HashMap<u64, FrameWord>,
}

impl AddressSpace {
    /// Takes the executable mappings as they are now. Give all of them, those
    /// without a file too: they replace what was at their addresses.
    pub fn update(&mut self, mappings: impl IntoIterator<Item = CodeMapping>) {
        for mapping in mappings {
            if mapping.start < mapping.end {
                self.carve_out(mapping.start, mapping.end);
                self.mappings.insert(mapping.start, mapping);
            }
        }
    }

    /// The file and offset of an address. `None` when no mapping ever covered
    /// it, or the latest one that does has no file.
    pub fn resolve(&mut self, address: u64) -> Option<FrameWord> {
        if let Some(location) = self.resolved.get(&address) {
            return Some(*location);
        }
        let (_, mapping) = self.mappings.range(..=address).next_back()?;
        if address >= mapping.end || !mapping.file.is_some() {
            return None;
        }
        let location = FrameWord::in_file(mapping.file.0, offset_of(mapping, address));
        self.resolved.insert(address, location);
        Some(location)
    }

    /// Removes what is known of `start..end`, cutting mappings that reach over
    /// its borders.
    fn carve_out(&mut self, start: u64, end: u64) {
        if let Some((_, before)) = self.mappings.range_mut(..start).next_back()
            && before.end > start
        {
            let whole = *before;
            before.end = start;
            self.insert_rest(whole, end);
        }
        while let Some((&key, &inside)) = self.mappings.range(start..end).next() {
            self.mappings.remove(&key);
            self.insert_rest(inside, end);
        }
    }

    /// Puts back the part of a mapping from `from` on, if there is one.
    fn insert_rest(&mut self, mapping: CodeMapping, from: u64) {
        if mapping.end > from {
            let rest = CodeMapping {
                start: from,
                offset: offset_of(&mapping, from),
                ..mapping
            };
            self.mappings.insert(from, rest);
        }
    }
}

/// The offset in its file of an address in (or at the end of) a mapping.
fn offset_of(mapping: &CodeMapping, address: u64) -> u64 {
    mapping.offset.wrapping_add(address - mapping.start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mapping(start: u64, end: u64, offset: u64, file: u16) -> CodeMapping {
        CodeMapping {
            start,
            end,
            offset,
            file: FileNumber(file),
        }
    }

    fn at(file: u16, offset: u64) -> Option<FrameWord> {
        Some(FrameWord::in_file(file, offset))
    }

    #[test]
    fn an_address_is_an_offset_in_the_file_of_its_mapping() {
        let mut space = AddressSpace::default();
        space.update([
            mapping(0x1000, 0x3000, 0x400, 1),
            mapping(0x3000, 0x4000, 0, 2),
        ]);
        assert_eq!(space.resolve(0xfff), None);
        assert_eq!(space.resolve(0x1000), at(1, 0x400));
        assert_eq!(space.resolve(0x2fff), at(1, 0x23ff));
        assert_eq!(space.resolve(0x3000), at(2, 0));
        assert_eq!(space.resolve(0x4000), None);
    }

    #[test]
    fn an_unmapped_library_still_resolves() {
        let mut space = AddressSpace::default();
        space.update([mapping(0x1000, 0x2000, 0, 1), mapping(0x5000, 0x6000, 0, 2)]);
        space.update([mapping(0x1000, 0x2000, 0, 1)]);
        assert_eq!(space.resolve(0x5010), at(2, 0x10));
    }

    #[test]
    fn a_library_loaded_over_another_takes_only_addresses_not_seen_before() {
        let mut space = AddressSpace::default();
        space.update([mapping(0x1000, 0x9000, 0, 1)]);
        assert_eq!(space.resolve(0x4010), at(1, 0x3010));
        space.update([mapping(0x4000, 0x5000, 0x200, 2)]);
        assert_eq!(space.resolve(0x4010), at(1, 0x3010), "seen before");
        assert_eq!(space.resolve(0x4020), at(2, 0x220));
        assert_eq!(space.resolve(0x3fff), at(1, 0x2fff));
        assert_eq!(space.resolve(0x5000), at(1, 0x4000));
    }

    #[test]
    fn memory_without_a_file_hides_what_was_there() {
        let mut space = AddressSpace::default();
        space.update([mapping(0x1000, 0x2000, 0, 1)]);
        space.update([CodeMapping {
            start: 0x1000,
            end: 0x1800,
            offset: 0,
            file: FileNumber::NONE,
        }]);
        assert_eq!(space.resolve(0x1010), None);
        assert_eq!(space.resolve(0x1810), at(1, 0x810));
    }

    /// Everything ever mapped, in order: the latest that covers an address
    /// counts, unless the address was resolved before.
    #[derive(Default)]
    struct Naive {
        history: Vec<CodeMapping>,
        seen: HashMap<u64, FrameWord>,
    }

    impl Naive {
        fn resolve(&mut self, address: u64) -> Option<FrameWord> {
            if let Some(location) = self.seen.get(&address) {
                return Some(*location);
            }
            let covering = self
                .history
                .iter()
                .rev()
                .find(|m| m.start <= address && address < m.end)?;
            let offset = covering.offset + (address - covering.start);
            let location = FrameWord::in_file(covering.file.0, offset);
            if !covering.file.is_some() {
                return None;
            }
            self.seen.insert(address, location);
            Some(location)
        }
    }

    fn any_mapping() -> impl Strategy<Value = CodeMapping> {
        (0_u64..60, 0_u64..20, 0_u64..1000, 0_u16..5).prop_map(|(start, length, offset, file)| {
            CodeMapping {
                start,
                end: start + length,
                offset,
                file: FileNumber(file),
            }
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_model_through_updates(
            rounds in proptest::collection::vec(
                (
                    proptest::collection::vec(any_mapping(), 0..6),
                    proptest::collection::vec(0_u64..80, 0..20),
                ),
                1..8,
            )
        ) {
            let mut space = AddressSpace::default();
            let mut naive = Naive::default();
            for (mappings, addresses) in rounds {
                space.update(mappings.clone());
                naive.history.extend(mappings);
                for address in addresses {
                    prop_assert_eq!(space.resolve(address), naive.resolve(address));
                }
            }
            for address in 0..80 {
                prop_assert_eq!(space.resolve(address), naive.resolve(address));
            }
        }
    }
}
