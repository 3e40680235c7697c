//! Where the kernel's structures have their members, by the types that it
//! describes itself (BTF, `/sys/kernel/btf/vmlinux`; the format is in the kernel's
//! `Documentation/bpf/btf.rst`). Of some 150 000 types only those that are asked
//! for are looked at.

use leaktrace_common::vma::VmaLayout;

/// Types by their numbers.
struct Types<'a> {
    /// Where each type's record begins in `records`; the first type is number 1.
    places: Vec<u32>,
    records: &'a [u8],
    names: &'a [u8],
}

/// A structure or union within another is searched as well, but not deeper than
/// this.
const DEEPEST: u32 = 8;

/// Where mappings have what identifies their files; `None` when the types do not
/// tell.
pub fn vma_layout(btf: &[u8]) -> Option<VmaLayout> {
    let types = Types::parse(btf)?;
    let vma = |member| types.offset("vm_area_struct", member);
    Some(VmaLayout {
        is_known: 1,
        start: vma("vm_start")?,
        end: vma("vm_end")?,
        page_offset: vma("vm_pgoff")?,
        flags: vma("vm_flags")?,
        file: vma("vm_file")?,
        file_inode: types.offset("file", "f_inode")?,
    })
}

/// A record's head.
#[derive(Clone, Copy)]
struct Head {
    name: u32,
    kind: u32,
    count: u32,
    has_bit_fields: bool,
}

impl Head {
    const SIZE: usize = 12;
    const STRUCT: u32 = 4;
    const UNION: u32 = 5;

    fn at(records: &[u8], place: usize) -> Option<Self> {
        let info = word(records, place + 4)?;
        Some(Self {
            name: word(records, place)?,
            kind: info >> 24 & 0x1f,
            count: info & 0xffff,
            has_bit_fields: info >> 31 != 0,
        })
    }

    /// Bytes that follow the head.
    fn rest(self) -> Option<usize> {
        let count = self.count as usize;
        Some(match self.kind {
            // Pointers, forward declarations, names and qualifiers, functions, floats.
            2 | 7..=12 | 16 | 18 => 0,
            // Integers, variables, tags of declarations.
            1 | 14 | 17 => 4,
            3 => 12,
            Self::STRUCT | Self::UNION | 15 | 19 => 12 * count,
            6 | 13 => 8 * count,
            _ => return None,
        })
    }
}

impl<'a> Types<'a> {
    fn parse(btf: &'a [u8]) -> Option<Self> {
        const MAGIC: u32 = 0xeb9f;
        if word(btf, 0)? & 0xffff != MAGIC {
            return None;
        }
        let body = btf.get(word(btf, 4)? as usize..)?;
        let part = |offset: u32, length: u32| {
            let offset = offset as usize;
            body.get(offset..offset.checked_add(length as usize)?)
        };
        let records = part(word(btf, 8)?, word(btf, 12)?)?;
        let names = part(word(btf, 16)?, word(btf, 20)?)?;
        let mut places = Vec::with_capacity(records.len() / 24);
        let mut place = 0;
        while place < records.len() {
            places.push(u32::try_from(place).ok()?);
            place += Head::SIZE + Head::at(records, place)?.rest()?;
        }
        Some(Self {
            places,
            records,
            names,
        })
    }

    /// The offset of a member in the structure of this name, bytes; also of one
    /// in a structure without a name inside it.
    fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let mut places = self.places.iter().map(|place| *place as usize);
        places.find_map(|place| {
            let head = Head::at(self.records, place)?;
            let is_it = head.kind == Head::STRUCT && self.is_named(head.name, structure);
            let bits = is_it.then(|| self.member(place, member, DEEPEST))??;
            (bits % 8 == 0).then_some(bits / 8)
        })
    }

    /// The offset of a member in the structure or union at `place`, bits.
    fn member(&self, place: usize, wanted: &str, deepest: u32) -> Option<u32> {
        let head = Head::at(self.records, place)?;
        if head.kind != Head::STRUCT && head.kind != Head::UNION {
            return None;
        }
        (0..head.count as usize).find_map(|index| {
            let at = place + Head::SIZE + 12 * index;
            let name = word(self.records, at)?;
            let offset = word(self.records, at + 8)?;
            let offset = if head.has_bit_fields {
                offset & 0xff_ffff
            } else {
                offset
            };
            if name != 0 {
                return self.is_named(name, wanted).then_some(offset);
            }
            let number = word(self.records, at + 4)?.checked_sub(1)?;
            let inside = *self.places.get(number as usize)? as usize;
            let deeper = self.member(inside, wanted, deepest.checked_sub(1)?)?;
            offset.checked_add(deeper)
        })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let Some(text) = self.names.get(name as usize..) else {
            return false;
        };
        text.strip_prefix(wanted.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// A word of 32 bits, in the byte order of the machine, as the kernel writes it.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    /// Types with a structure `outer` of an integer member `a`, and a union
    /// without a name that holds `b`.
    fn small() -> Vec<u8> {
        let names = b"\0outer\0a\0b\0";
        let types: &[u32] = &[
            // 1: an integer.
            0,
            1 << 24,
            8,
            64, //
            // 2: union { int b; }
            0,
            5 << 24 | 1,
            8,
            9,
            1,
            0, //
            // 3: struct outer { int a; union 2 at 64 bits; }
            1,
            4 << 24 | 2,
            16,
            7,
            1,
            0,
            0,
            2,
            64,
        ];
        let length = types.len() as u32 * 4;
        let header = [0x0001_eb9f, 24, 0, length, length, names.len() as u32];
        let words = header.iter().chain(types);
        let mut bytes: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(names);
        bytes
    }

    #[test]
    fn members_are_found_also_inside_what_has_no_name() {
        let bytes = small();
        let types = Types::parse(&bytes).unwrap();
        assert_eq!(types.offset("outer", "a"), Some(0));
        assert_eq!(types.offset("outer", "b"), Some(8));
        assert_eq!(types.offset("outer", "outer"), None);
        assert_eq!(types.offset("oute", "a"), None);
    }

    #[test]
    fn this_kernel_s_layout_has_each_member_once() {
        const BTF: &str = "/sys/kernel/btf/vmlinux";
        let btf = match std::fs::read(BTF) {
            Ok(btf) => btf,
            Err(error) => {
                let test = "this_kernel_s_layout_has_each_member_once";
                testing::not_run(module_path!(), test, &format!("{BTF}: {error}"));
                return;
            }
        };
        let layout = vma_layout(&btf).unwrap();
        let mut offsets = [
            layout.start,
            layout.end,
            layout.page_offset,
            layout.flags,
            layout.file,
        ];
        offsets.sort_unstable();
        assert!(
            offsets.windows(2).all(|pair| pair[0] < pair[1]),
            "{layout:?}"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_panic(
            changes in proptest::collection::vec((0_usize..120, any::<u8>()), 0..8),
            length in 0_usize..140,
        ) {
            let mut bytes = small();
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            bytes.truncate(length);
            if let Some(types) = Types::parse(&bytes) {
                let _ = types.offset("outer", "b");
            }
        }
    }
}
