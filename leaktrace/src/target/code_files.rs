//! The files whose code the target runs, each with a number that stays its own:
//! the same in stack frames, in unwind tables and where symbols are read.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use leaktrace_common::stack::FrameWord;

use super::{
    mapped_file::{FileIdentity, MappedFile},
    mapping::{Mapping, ShownFile},
    vdso,
};

/// Number of a file; 0 is code without one (made at run time), or unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileNumber(pub u16);

/// An opened file with an ELF image in it.
#[derive(Clone, Debug)]
pub enum Image {
    /// One that the target maps.
    Mapped(Arc<MappedFile>),
    /// One that leaktrace made or found itself.
    Own(Arc<File>),
}

/// A mapped file, under the name it has in the target.
#[derive(Clone, Debug)]
pub struct CodeFile {
    /// Its path in the target, or `[vdso]`.
    pub path: Arc<str>,
    /// The image; `None` when it could not be opened.
    pub image: Option<Image>,
    /// Something else was mapped in its place, or it was changed, and nobody told
    /// when: frames in it may have been in that.
    pub is_doubtful: bool,
    /// The version of the image.
    version: Option<Version>,
}

/// When a file was written to, and its size: others when it is changed in place.
type Version = (u64, i64, i64);

/// A file that is written to all the time is not followed any further.
const MOST_VERSIONS: usize = 16;

/// All files met so far. None is ever forgotten: stacks captured while a file was
/// mapped may be looked at long after.
#[derive(Debug, Default)]
pub struct CodeFiles {
    files: Vec<CodeFile>,
    numbers: HashMap<ShownFile, FileNumber>,
}

impl FileNumber {
    /// No file.
    pub const NONE: Self = Self(0);

    /// Whether there is a file.
    #[must_use]
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }

    fn index(self) -> Option<usize> {
        usize::from(self.0).checked_sub(1)
    }
}

impl CodeFile {
    /// A file as it is now.
    #[must_use]
    pub fn new(path: Arc<str>, image: Option<Image>) -> Self {
        Self {
            path,
            version: image.as_ref().and_then(Image::version),
            image,
            is_doubtful: false,
        }
    }
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

    /// Which file it is; `None` for one of leaktrace's own.
    #[must_use]
    pub fn identity(&self) -> Option<FileIdentity> {
        match self {
            Self::Mapped(mapped) => Some(mapped.identity()),
            Self::Own(_) => None,
        }
    }

    fn version(&self) -> Option<Version> {
        let metadata = self.file().metadata().ok()?;
        Some((metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    }
}

impl CodeFiles {
    /// Those that several share. A thread that panics leaves nothing half done in
    /// them.
    pub fn lock(shared: &Mutex<Self>) -> MutexGuard<'_, Self> {
        shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the file behind a mapping, a new one when it was not met
    /// before; `files` are those opened so far. [`FileNumber::NONE`] for memory
    /// without a file, also when it has a name: nothing there has an offset that
    /// means something. So it is, too, for files beyond the largest number and
    /// offsets that no [`FrameWord`] can hold.
    pub fn number(&mut self, mapping: &Mapping, files: &[Arc<MappedFile>]) -> FileNumber {
        let is_vdso = mapping.is_special(vdso::NAME);
        if !is_vdso && (mapping.inode == 0 || !fits(mapping)) {
            return FileNumber::NONE;
        }
        let opened = || -> Option<Image> {
            if is_vdso {
                return vdso::own_image().ok();
            }
            let backing = files
                .iter()
                .find(|file| mapping.is_file() && file.backs(mapping))?;
            Some(Image::Mapped(Arc::clone(backing)))
        };
        self.number_of(mapping.shown_file(), opened)
    }

    /// The number of a file that nothing may map yet, under the path that mappings
    /// of it will show.
    pub fn number_expected(&mut self, file: &Arc<MappedFile>) -> FileNumber {
        let opened = || Some(Image::Mapped(Arc::clone(file)));
        self.number_of(file.shown().clone(), opened)
    }

    fn number_of(&mut self, shown: ShownFile, opened: impl Fn() -> Option<Image>) -> FileNumber {
        let number = match self.numbers.get(&shown) {
            Some(number) => *number,
            None => {
                let image = opened();
                let Some(number) = self.same(image.as_ref()) else {
                    return self.add(shown, image);
                };
                self.numbers.insert(shown.clone(), number);
                number
            }
        };
        let Some(file) = number.index().and_then(|index| self.files.get_mut(index)) else {
            return number;
        };
        // It may be that only now it could be opened.
        if file.image.is_none() {
            file.image = opened();
            file.version = file.image.as_ref().and_then(Image::version);
        }
        if file.image.as_ref().and_then(Image::version) == file.version {
            return number;
        }
        // Stacks that were seen through it may have gone by either.
        file.is_doubtful = true;
        let image = file.image.clone();
        let versions = self.files.iter().filter(|it| *it.path == *shown.path);
        if versions.count() >= MOST_VERSIONS {
            return number;
        }
        self.add(shown, image)
    }

    /// Gives a file a number of its own.
    fn add(&mut self, shown: ShownFile, image: Option<Image>) -> FileNumber {
        let Ok(number) = u16::try_from(self.files.len() + 1) else {
            return FileNumber::NONE;
        };
        let path = shown.path.to_string_lossy();
        self.files.push(CodeFile::new(path.into(), image));
        self.numbers.insert(shown, FileNumber(number));
        FileNumber(number)
    }

    /// The last version of this file, if it is known by another path, from before it was
    /// renamed, or from before it was mapped: on btrfs and overlayfs mappings show
    /// another device then.
    fn same(&self, image: Option<&Image>) -> Option<FileNumber> {
        let wanted = image?.identity()?;
        let identity = |file: &CodeFile| file.image.as_ref().and_then(Image::identity);
        let same = self
            .iter()
            .filter(|(_, file)| identity(file) == Some(wanted));
        same.last().map(|(number, _)| number)
    }

    /// One file, without a mapping.
    #[cfg(test)]
    pub fn of(file: CodeFile) -> Self {
        Self {
            files: vec![file],
            numbers: HashMap::new(),
        }
    }

    /// The file with a number.
    #[must_use]
    pub fn get(&self, number: FileNumber) -> Option<&CodeFile> {
        self.files.get(number.index()?)
    }

    /// Something else was mapped in the place of a file, and nobody told when.
    pub fn doubt(&mut self, number: FileNumber) {
        let file = number.index().and_then(|index| self.files.get_mut(index));
        if let Some(file) = file {
            file.is_doubtful = true;
        }
    }

    /// All files with their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (FileNumber, &CodeFile)> {
        (1..=u16::MAX).map(FileNumber).zip(&self.files)
    }
}

/// Whether each offset in a mapping is one that frames can have.
fn fits(mapping: &Mapping) -> bool {
    let last = mapping.offset.checked_add(mapping.end - mapping.start);
    last.is_some_and(|last| last <= FrameWord::OFFSET_MASK)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::mapping::parse, *};

    fn mapping(line: &str) -> Mapping {
        parse(line.as_bytes()).remove(0)
    }

    /// A mapping of this file.
    fn mapping_of(file: &MappedFile) -> Mapping {
        let shown = file.shown();
        Mapping {
            device: shown.device,
            inode: shown.inode,
            path: shown.path.clone(),
            ..mapping("1000-2000 r-xp 0 0:0 0")
        }
    }

    fn opened(path: &Path) -> Arc<MappedFile> {
        Arc::new(MappedFile::open_path(path).unwrap())
    }

    #[test]
    fn mappings_of_one_file_have_one_number_and_others_the_next() {
        let mut files = CodeFiles::default();
        let mut number = |line| files.number(&mapping(line), &[]).0;
        assert_eq!(number("1000-2000 r-xp 0 8:1 7 /a"), 1);
        assert_eq!(number("3000-4000 r-xp 0 8:1 9 /b"), 2);
        assert_eq!(number("8000-9000 r-xp 5000 8:1 7 /a"), 1);
        assert_eq!(number("1000-2000 r-xp 0 8:2 7 /a"), 3, "another device");
        assert_eq!(number("1000-2000 r-xp 0 8:1 8 /a"), 4, "replaced");
        assert_eq!(number("1000-2000 r-xp 0 8:1 7 /c"), 5, "another name");
        let paths: Vec<_> = files.iter().map(|(n, file)| (n.0, &*file.path)).collect();
        assert_eq!(
            paths,
            [(1, "/a"), (2, "/b"), (3, "/a"), (4, "/a"), (5, "/c")]
        );
        for (number, file) in files.iter() {
            assert_eq!(files.get(number).unwrap().path, file.path);
        }
        assert!(files.get(FileNumber::NONE).is_none());
        assert!(files.get(FileNumber(6)).is_none());
    }

    #[test]
    fn memory_without_a_file_has_no_number_but_the_vdso_has() {
        let mut files = CodeFiles::default();
        for line in [
            "1000-2000 rwxp 0 0:0 0",
            "1000-2000 rwxp 0 0:0 0 [heap]",
            "1000-2000 rwxp 0 0:0 0 [anon:code]",
            // Where it ends no frame could say.
            "1000-2000 r-xp fffffffffffff000 8:1 7 /a",
            "1000-2000 r-xp 1000000000000 8:1 7 /a",
        ] {
            assert_eq!(
                files.number(&mapping(line), &[]),
                FileNumber::NONE,
                "{line}"
            );
        }
        let vdso = files.number(&mapping("1000-2000 r-xp 0 0:0 0 [vdso]"), &[]);
        assert!(vdso.is_some());
        assert!(files.get(vdso).unwrap().image.is_some());
    }

    #[test]
    fn a_file_has_its_number_before_it_is_mapped() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&path, "text").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let file = Arc::new(MappedFile::open_path(&link).unwrap());
        let mut files = CodeFiles::default();
        let number = files.number_expected(&file);
        assert_eq!(files.number(&mapping_of(&file), &[]), number);
        assert!(!files.get(number).unwrap().is_doubtful);
        files.doubt(number);
        assert!(files.get(number).unwrap().is_doubtful);
    }

    #[test]
    fn a_renamed_file_keeps_its_number_in_every_version() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second, third] = ["1", "2", "3"].map(|name| directory.path().join(name));
        std::fs::write(&first, "text").unwrap();
        let mut files = CodeFiles::default();
        let number = files.number_expected(&opened(&first));
        std::fs::rename(&first, &second).unwrap();
        let renamed = opened(&second);
        let mapping = mapping_of(&renamed);
        let renamed = std::slice::from_ref(&renamed);
        assert_eq!(files.number(&mapping, renamed), number);
        assert!(!files.get(number).unwrap().is_doubtful);
        std::fs::write(&second, "another").unwrap();
        let changed = files.number(&mapping, renamed);
        assert_ne!(changed, number);
        std::fs::rename(&second, &third).unwrap();
        let again = opened(&third);
        assert_eq!(files.number(&mapping_of(&again), &[again]), changed);
        assert!(!files.get(changed).unwrap().is_doubtful);
    }

    #[test]
    fn files_are_told_apart_although_mappings_show_one_inode() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            let path = directory.path().join(name);
            std::fs::write(&path, name).unwrap();
            opened(&path)
        });
        // As in two subvolumes.
        let mut second = mapping_of(&one);
        second.path.clone_from(&two.shown().path);
        assert!(!one.backs(&second));
        let mut files = CodeFiles::default();
        let number = files.number(&mapping_of(&one), std::slice::from_ref(&one));
        assert_ne!(files.number(&second, &[one]), number);
    }

    #[test]
    fn a_file_that_is_changed_in_place_is_another_and_the_first_is_doubted() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        let file = Arc::new(MappedFile::open_path(temporary.path()).unwrap());
        let mut files = CodeFiles::default();
        let first = files.number_expected(&file);
        assert_eq!(files.number_expected(&file), first);
        for change in 1.. {
            std::fs::write(temporary.path(), vec![0; change]).unwrap();
            let number = files.number_expected(&file);
            assert!(files.get(first).unwrap().is_doubtful);
            if number.0 == MOST_VERSIONS as u16 {
                break;
            }
            assert_eq!(usize::from(number.0), change + 1);
            assert!(!files.get(number).unwrap().is_doubtful);
        }
        std::fs::write(temporary.path(), "").unwrap();
        let last = files.number_expected(&file);
        assert_eq!(usize::from(last.0), MOST_VERSIONS);
        assert!(files.get(last).unwrap().is_doubtful);
    }

    #[test]
    fn a_file_may_be_opened_later_than_it_was_met() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        let file = Arc::new(MappedFile::open_path(temporary.path()).unwrap());
        let mapped = mapping_of(&file);
        let mut files = CodeFiles::default();
        let number = files.number(&mapped, &[]);
        assert!(files.get(number).unwrap().image.is_none());
        assert_eq!(files.number(&mapped, std::slice::from_ref(&file)), number);
        assert!(files.get(number).unwrap().image.is_some());
    }

    #[test]
    fn when_numbers_run_out_files_have_none() {
        let mut files = CodeFiles::default();
        let mut number = |inode: u32| {
            let line = format!("1000-2000 r-xp 0 8:1 {inode} /a");
            files.number(&mapping(&line), &[]).0
        };
        for inode in 1..=0xffff {
            assert_eq!(u32::from(number(inode)), inode);
        }
        assert_eq!(number(0x1_0000), 0);
        assert_eq!(number(5), 5, "known ones keep theirs");
    }
}
