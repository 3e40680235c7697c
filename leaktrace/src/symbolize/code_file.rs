//! A file whose code the target runs, as far as symbols need it.

use std::{fs::File, sync::Arc};

use crate::target::mapped_file::MappedFile;

/// An opened file with an ELF image in it.
#[derive(Clone, Debug)]
pub enum Image {
    /// One that the target maps.
    Mapped(Arc<MappedFile>),
    /// One that leaktrace made or found itself.
    Own(Arc<File>),
}

impl Image {
    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        match self {
            Self::Mapped(mapped) => mapped.file(),
            Self::Own(file) => file,
        }
    }
}

/// A mapped file, under the name it has in the target.
#[derive(Clone, Debug)]
pub struct CodeFile {
    /// Its path in the target, or `[vdso]` and the like.
    pub path: Arc<str>,
    /// The image; `None` when it could not be opened.
    pub image: Option<Image>,
}
