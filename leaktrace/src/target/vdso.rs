//! The code that the kernel maps into every process.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use rustix::fs::MemfdFlags;

use super::{code_files::Image, mapping};

/// Name of its mapping.
pub const NAME: &str = "[vdso]";

/// A copy of leaktrace's own vDSO, which all 64-bit processes of one kernel
/// share, as a file in memory.
///
/// # Errors
/// When leaktrace has none, or its memory can't be read.
pub fn own_image() -> io::Result<Image> {
    let mappings = mapping::parse(&fs::read("/proc/self/maps")?);
    let vdso = mappings
        .iter()
        .find(|mapping| mapping.is_special(NAME))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "leaktrace has no vDSO"))?;
    let mut bytes = vec![0; (vdso.end - vdso.start) as usize];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, vdso.start)?;
    let mut file = File::from(rustix::fs::memfd_create(c"vdso", MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    Ok(Image::Own(Arc::new(file)))
}
