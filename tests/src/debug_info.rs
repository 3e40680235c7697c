//! Programs with more debug information than anyone has patience for.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    ops::Range,
    path::Path,
};

use anyhow::{Context, Result, ensure};

/// Copies the program `from` to `to`, and lets its `.debug_info` be there as
/// many times as makes `size` bytes. All of it can be read: units refer to
/// others by offsets within themselves, and to other sections.
///
/// # Errors
/// When `from` is no 64-bit ELF file with debug information, or `to` can't be
/// written.
pub fn multiply(from: &Path, to: &Path, size: u64) -> Result<()> {
    let mut bytes = fs::read(from)?;
    let header = section_header(&bytes, b".debug_info")
        .with_context(|| format!("{} has no .debug_info", from.display()))?;
    let (offset, length) = (
        number(&bytes, header + 0x18, 8)?,
        number(&bytes, header + 0x20, 8)?,
    );
    ensure!(length > 0, "an empty section");
    let info = bytes[offset..offset + length].to_vec();
    let copies = size.div_ceil(length as u64);
    let end = bytes.len() as u64;
    for (field, value) in [(0x18, end), (0x20, copies * length as u64)] {
        bytes[header + field..header + field + 8].copy_from_slice(&value.to_le_bytes());
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(to)?);
    file.write_all(&bytes)?;
    for _ in 0..copies {
        file.write_all(&info)?;
    }
    file.flush()?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    Ok(())
}

/// Where the header of a section is (gABI, `Elf64_Ehdr` and `Elf64_Shdr`).
fn section_header(bytes: &[u8], name: &[u8]) -> Option<usize> {
    let headers = number(bytes, 0x28, 8).ok()?;
    let header = |index: usize| headers + index * 64;
    let names = number(bytes, header(number(bytes, 0x3e, 2).ok()?) + 0x18, 8).ok()?;
    (0..number(bytes, 0x3c, 2).ok()?)
        .map(header)
        .find(|header| {
            number(bytes, *header, 4)
                .ok()
                .and_then(|own| bytes.get(names + own..)?.strip_prefix(name))
                .is_some_and(|rest| rest.first() == Some(&0))
        })
}

fn number(bytes: &[u8], at: usize, width: usize) -> Result<usize> {
    let range: Range<usize> = at..at + width;
    let field = bytes.get(range).context("a field beyond the file's end")?;
    let mut all = [0; 8];
    all[..width].copy_from_slice(field);
    Ok(usize::try_from(u64::from_le_bytes(all))?)
}
