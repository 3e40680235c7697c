//! Which files a command will map before its first own instruction: predicted
//! as the kernel and glibc's loader would choose them (execve(2), ld.so(8)), so
//! that probes can be set on them before. A wrong guess is found out afterwards
//! from the command's mappings.

use std::{
    collections::{HashSet, VecDeque},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use super::{command::Command, ld_cache::LdCache};
use crate::{
    arch,
    elf::{ElfError, ElfFile, Linkage},
    file_map,
};

/// What a command will map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prediction {
    /// The program that the kernel executes: for a script its interpreter.
    pub program: PathBuf,
    /// Scripts that lead to it, the command itself first.
    pub scripts: Vec<PathBuf>,
    /// The loader that the program names; `None` for a static program, whose
    /// `libraries` are empty.
    pub loader: Option<PathBuf>,
    /// The shared libraries, in the order in which they are mapped.
    pub libraries: Vec<PathBuf>,
    /// Names of libraries that were not found; the loader will complain too.
    pub missing: Vec<OsString>,
}

impl Prediction {
    /// Whether the program has no loader, and so none of its libraries' malloc.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.loader.is_none()
    }

    /// All files: the program, its loader, the libraries.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.program]
            .into_iter()
            .chain(&self.loader)
            .chain(&self.libraries)
            .map(PathBuf::as_path)
    }
}

/// Why nothing can be predicted.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// A file can't be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no program that leaktrace can trace.
    #[error("cannot trace {path}: it is {source}")]
    NotElf {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ElfError,
    },
    /// Scripts that name each other.
    #[error("cannot run {path}: scripts are nested too deeply, which the kernel refuses as well")]
    TooManyScripts {
        /// The command.
        path: PathBuf,
    },
}

/// The surroundings on which the loader's choice depends.
#[derive(Clone, Debug, Default)]
pub struct LoaderContext {
    /// `LD_LIBRARY_PATH`.
    pub library_path: Option<OsString>,
    /// `LD_PRELOAD`.
    pub preload: Option<OsString>,
    /// Content of `/etc/ld.so.preload`.
    pub preload_file: Option<OsString>,
    /// `/etc/ld.so.cache`.
    pub cache: LdCache,
    /// Directories that are searched last.
    pub default_directories: Vec<PathBuf>,
    /// The processor's levels, best first.
    pub levels: Vec<&'static str>,
}

/// Where glibc looks last, as distributions configure it.
fn default_directories() -> Vec<PathBuf> {
    let multiarch = arch::MULTIARCH_DIRECTORY;
    [multiarch, "lib64", "lib"]
        .into_iter()
        .flat_map(|directory| [format!("/{directory}"), format!("/usr/{directory}")])
        .map(PathBuf::from)
        .collect()
}

impl LoaderContext {
    /// For a command on this machine.
    #[must_use]
    pub fn of(command: &Command) -> Self {
        let variable = |name| command.variable(name).map(OsStr::to_os_string);
        Self {
            library_path: variable("LD_LIBRARY_PATH"),
            preload: variable("LD_PRELOAD"),
            preload_file: fs::read("/etc/ld.so.preload").ok().map(OsString::from_vec),
            cache: LdCache::system(),
            default_directories: default_directories(),
            levels: arch::processor_levels(),
        }
    }
}

/// Predicts what the command at `path` will map.
///
/// # Errors
/// When it, or the interpreter that it names, is no program that can be read.
pub fn predict(path: &Path, context: &LoaderContext) -> Result<Prediction, PredictError> {
    let (program, scripts) = follow_scripts(path)?;
    let object = Object::read(&program).map_err(|error| match error {
        ReadError::Io(source) => PredictError::Unreadable {
            path: program.clone(),
            source,
        },
        ReadError::Elf(source) => PredictError::NotElf {
            path: program.clone(),
            source,
        },
    })?;
    let mut prediction = Prediction {
        program,
        scripts,
        loader: object.linkage.interpreter.clone(),
        ..Prediction::default()
    };
    if prediction.loader.is_some() {
        Search::new(context, object, &prediction).run(&mut prediction);
    }
    Ok(prediction)
}

/// How many scripts the kernel follows.
const MOST_SCRIPTS: usize = 5;

/// The program behind a command, and the scripts on the way there.
fn follow_scripts(path: &Path) -> Result<(PathBuf, Vec<PathBuf>), PredictError> {
    let mut current = path.to_path_buf();
    let mut scripts = Vec::new();
    loop {
        // The kernel looks at as many bytes (`BINPRM_BUF_SIZE`).
        let mut start = Vec::new();
        File::open(&current)
            .and_then(|file| file.take(256).read_to_end(&mut start))
            .map_err(|source| PredictError::Unreadable {
                path: current.clone(),
                source,
            })?;
        let next = match interpreter_of(&start) {
            Some(interpreter) => interpreter,
            // execvp(3) gives what the kernel refuses to the shell.
            None if !start.starts_with(b"\x7fELF") => "/bin/sh".into(),
            None => return Ok((current, scripts)),
        };
        scripts.push(std::mem::replace(&mut current, next));
        if scripts.len() > MOST_SCRIPTS {
            return Err(PredictError::TooManyScripts {
                path: path.to_path_buf(),
            });
        }
    }
}

/// The interpreter of a script that starts so; `None` when it is none.
fn interpreter_of(start: &[u8]) -> Option<PathBuf> {
    let line = start
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let line = line.trim_ascii_start();
    let end = line
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t' | 0));
    let name = &line[..end.unwrap_or(line.len())];
    (!name.is_empty()).then(|| OsStr::from_bytes(name).into())
}

/// A file that the loader maps.
struct Object {
    linkage: Linkage,
    /// Its directory, for `$ORIGIN`.
    origin: PathBuf,
    identity: (u64, u64),
    /// Index of the object that asked for it.
    parent: Option<usize>,
}

enum ReadError {
    Io(io::Error),
    Elf(ElfError),
}

impl Object {
    fn read(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(ReadError::Io)?;
        let metadata = file.metadata().map_err(ReadError::Io)?;
        if !metadata.is_file() {
            return Err(ReadError::Io(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            )));
        }
        let bytes = file_map::map(&file).map_err(ReadError::Io)?;
        let elf = ElfFile::parse(&bytes).map_err(ReadError::Elf)?;
        if elf.machine() != arch::ELF_MACHINE {
            return Err(ReadError::Elf(ElfError::Damaged(
                "for another kind of processor".into(),
            )));
        }
        let directory = fs::canonicalize(path).map_err(ReadError::Io)?;
        Ok(Self {
            linkage: elf.linkage(),
            origin: directory.parent().unwrap_or(Path::new("/")).to_path_buf(),
            identity: (metadata.dev(), metadata.ino()),
            parent: None,
        })
    }
}

/// The breadth-first search of the loader.
struct Search<'a> {
    context: &'a LoaderContext,
    objects: Vec<Object>,
    names: HashSet<OsString>,
    identities: HashSet<(u64, u64)>,
}

impl<'a> Search<'a> {
    fn new(context: &'a LoaderContext, program: Object, prediction: &Prediction) -> Self {
        let loader = prediction.loader.as_deref();
        let identities = loader
            .and_then(|loader| fs::metadata(loader).ok())
            .map(|metadata| (metadata.dev(), metadata.ino()))
            .into_iter()
            .chain([program.identity])
            .collect();
        // The loader is itself a library that others need by name.
        let names = loader.and_then(Path::file_name).map(OsStr::to_os_string);
        Self {
            context,
            objects: vec![program],
            names: names.into_iter().collect(),
            identities,
        }
    }

    fn run(mut self, prediction: &mut Prediction) {
        let mut queue: VecDeque<(OsString, usize)> =
            self.preloaded().into_iter().map(|name| (name, 0)).collect();
        let preloaded = queue.len();
        let mut taken = 0;
        let needed = |search: &Self, index: usize| {
            let names = search.objects[index].linkage.needed.clone();
            names.into_iter().map(move |name| (name, index))
        };
        queue.extend(needed(&self, 0));
        while let Some((name, parent)) = queue.pop_front() {
            taken += 1;
            if !self.names.insert(name.clone()) {
                continue;
            }
            match self.find(&name, parent) {
                Some((path, mut object)) => {
                    self.names.extend(object.linkage.soname.clone());
                    if self.identities.insert(object.identity) {
                        object.parent = Some(parent);
                        self.objects.push(object);
                        queue.extend(needed(&self, self.objects.len() - 1));
                        prediction.libraries.push(path);
                    }
                }
                // What can't be preloaded is only warned of.
                None if taken <= preloaded => {}
                None => prediction.missing.push(name),
            }
        }
    }

    fn preloaded(&self) -> Vec<OsString> {
        let split = |list: &Option<OsString>, separators: &[u8]| -> Vec<OsString> {
            list.iter()
                .flat_map(|list| list.as_bytes().split(|byte| separators.contains(byte)))
                .filter(|name| !name.is_empty())
                .map(|name| OsString::from_vec(name.to_vec()))
                .collect()
        };
        let mut names = split(&self.context.preload, b" :");
        names.extend(split(&self.context.preload_file, b" :\t\n"));
        names
    }

    /// The file that a name leads to, when the object at index `parent` needs it.
    fn find(&self, name: &OsStr, parent: usize) -> Option<(PathBuf, Object)> {
        let usable = |path: PathBuf| Object::read(&path).ok().map(|object| (path, object));
        if name.as_bytes().contains(&b'/') {
            return usable(expand(name, &self.objects[parent].origin));
        }
        let in_directories = |list: &OsStr, separators: &[u8], origin: &Path| {
            list.as_bytes()
                .split(|byte| separators.contains(byte))
                .find_map(|directory| {
                    let directory = if directory.is_empty() {
                        b"."
                    } else {
                        directory
                    };
                    self.in_directory(&expand(OsStr::from_bytes(directory), origin), name)
                })
        };
        let asking = &self.objects[parent];
        let by_rpath = || {
            if asking.linkage.runpath.is_some() {
                return None;
            }
            // Its own, that of whoever asked for it, and so on; at last the program's.
            let mut chain: Vec<usize> =
                std::iter::successors(Some(parent), |index| self.objects[*index].parent).collect();
            if chain.last() != Some(&0) {
                chain.push(0);
            }
            chain
                .into_iter()
                .map(|index| &self.objects[index])
                .filter(|object| object.linkage.runpath.is_none())
                .find_map(|object| {
                    in_directories(object.linkage.rpath.as_deref()?, b":", &object.origin)
                })
        };
        let by_variable = || {
            let list = self
                .context
                .library_path
                .as_deref()
                .filter(|list| !list.is_empty())?;
            in_directories(list, b":;", &self.objects[0].origin)
        };
        let by_runpath =
            || in_directories(asking.linkage.runpath.as_deref()?, b":", &asking.origin);
        let by_cache = || {
            let path = self.context.cache.look_up(name, &self.context.levels)?;
            usable(path.to_path_buf())
        };
        let by_default = || {
            let directories = &self.context.default_directories;
            directories
                .iter()
                .find_map(|directory| self.in_directory(directory, name))
        };
        by_rpath()
            .or_else(by_variable)
            .or_else(by_runpath)
            .or_else(by_cache)
            .or_else(by_default)
    }

    /// The library of this name in a directory, in the form for this processor.
    /// A file for another one is passed over, as the loader does.
    fn in_directory(&self, directory: &Path, name: &OsStr) -> Option<(PathBuf, Object)> {
        let variants = directory.join("glibc-hwcaps");
        let levels = self.context.levels.iter().map(|level| variants.join(level));
        levels
            .chain([directory.to_path_buf()])
            .find_map(|directory| {
                let path = directory.join(name);
                Object::read(&path).ok().map(|object| (path, object))
            })
    }
}

/// Replaces the loader's variables, `$ORIGIN` or `${ORIGIN}`.
fn expand(text: &OsStr, origin: &Path) -> PathBuf {
    let library = if Path::new("/").join(arch::MULTIARCH_DIRECTORY).is_dir() {
        arch::MULTIARCH_DIRECTORY
    } else {
        "lib64"
    };
    let variables: [(&[u8], &[u8]); 3] = [
        (b"ORIGIN", origin.as_os_str().as_bytes()),
        (b"LIB", library.as_bytes()),
        (b"PLATFORM", arch::LD_PLATFORM.as_bytes()),
    ];
    let mut result = Vec::new();
    let mut rest = text.as_bytes();
    'next: while let Some((&byte, after)) = rest.split_first() {
        if byte == b'$' {
            for (name, value) in variables {
                let braced = after
                    .strip_prefix(b"{")
                    .and_then(|after| after.strip_prefix(name)?.strip_prefix(b"}"));
                // `$LIBS` is no `$LIB`.
                let plain = || {
                    let after = after.strip_prefix(name)?;
                    let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                    (!after.first().is_some_and(goes_on)).then_some(after)
                };
                if let Some(after) = braced.or_else(plain) {
                    result.extend(value);
                    rest = after;
                    continue 'next;
                }
            }
        }
        result.push(byte);
        rest = after;
    }
    OsString::from_vec(result).into()
}

#[cfg(test)]
mod tests;
