//! The symbol table that some distributions leave in stripped files: a small ELF
//! file, compressed with xz, in the section `.gnu_debugdata` ("MiniDebugInfo" in
//! gdb's manual). It has the functions that the dynamic symbol table has not.

use std::io::Read as _;

use lzma_rust2::XzReader;
use object::{Object as _, ObjectSection as _};

/// Where it is.
pub const SECTION: &str = ".gnu_debugdata";
/// Most memory that unpacking takes besides its result, KiB: as much as the
/// highest preset of xz wants.
const WINDOW: u32 = 66 << 10;

/// The ELF file inside of another, of at most `most` bytes; `None` when there is
/// none.
///
/// # Errors
/// When it can't be unpacked, with the reason.
pub fn unpack(bytes: &[u8], most: u64) -> Option<Result<Vec<u8>, String>> {
    let file = object::File::parse(bytes).ok()?;
    let section = file.section_by_name(SECTION)?;
    let packed = match section.data() {
        Ok([]) => return None,
        Ok(packed) => packed,
        Err(error) => return Some(Err(error.to_string())),
    };
    Some(unpack_xz(packed, most))
}

fn unpack_xz(packed: &[u8], most: u64) -> Result<Vec<u8>, String> {
    let too_large = || format!("more than {} MiB", most >> 20);
    if packed.len() as u64 > most {
        return Err(too_large());
    }
    let mut unpacked = Vec::new();
    XzReader::new_mem_limit(packed, true, WINDOW)
        .take(most + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| error.to_string())?;
    if unpacked.len() as u64 > most {
        return Err(too_large());
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `printf 'mini debug info, mini debug info\n' | xz --check=crc32`
    const PACKED: [u8; 84] = [
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x00, 0x20, 0x00, 0x19, 0x5d,
        0x00, 0x36, 0x9a, 0x4a, 0x1f, 0x61, 0xdb, 0xcb, 0x20, 0xc8, 0x3a, 0x0d, 0x19, 0x36, 0x87,
        0xdd, 0x49, 0x0c, 0xa8, 0xa2, 0x85, 0x55, 0xa3, 0xb4, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0xfd, 0xcb, 0xcd, 0xf2, 0x00, 0x01, 0x31, 0x21, 0xc7, 0xa2, 0xb2, 0xaa, 0x90, 0x42, 0x99,
        0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    #[test]
    fn what_is_packed_comes_out_and_never_more_than_allowed() {
        let text = b"mini debug info, mini debug info\n";
        assert_eq!(unpack_xz(&PACKED, 100).as_deref(), Ok(&text[..]));
        assert_eq!(unpack_xz(&PACKED, 33), Err("more than 0 MiB".to_owned()));
    }

    proptest! {
        #[test]
        fn damage_is_an_error_and_nothing_worse(
            place in any::<prop::sample::Index>(),
            bits in 1..=255_u8,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut damaged = PACKED;
            damaged[place.index(PACKED.len())] ^= bits;
            prop_assert!(unpack_xz(&damaged, 1000).is_err());
            prop_assert!(unpack_xz(&PACKED[..cut.index(PACKED.len())], 1000).is_err());
        }
    }
}
