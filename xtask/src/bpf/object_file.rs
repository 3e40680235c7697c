//! What of the linked object is shipped.

use anyhow::{Context as _, Result, bail};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Sections without which the kernel cannot show the programs' types and lines.
const NEEDED: [&str; 2] = [".BTF", ".BTF.ext"];

/// The object without DWARF, which only `--btf` needed and nothing reads.
///
/// # Errors
/// It is no ELF object, or the linker made no BTF.
pub fn stripped(linked: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(linked).context("the linker made no ELF object")?;
    for needed in NEEDED {
        if !builder
            .sections
            .iter()
            .any(|s| s.name.as_slice() == needed.as_bytes())
        {
            bail!("the linked object has no {needed}");
        }
    }
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    if !builder
        .sections
        .iter()
        .any(|s| matches!(s.data, SectionData::SectionString))
    {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    builder.delete_unused_versions();
    let mut object = Vec::new();
    builder
        .write(&mut object)
        .context("cannot write the object anew")?;
    Ok(object)
}
