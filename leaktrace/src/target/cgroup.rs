//! How much memory and how many threads a control group uses and may use, in both
//! versions of cgroups (cgroups(7); the kernel's `cgroup-v1/memory.rst` and `cgroup-v2.rst`).

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Component, Path, PathBuf},
};

/// Where the hierarchies of cgroups are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupMounts {
    v1: Vec<Mount>,
    v2: Vec<Mount>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// Which cgroup of the hierarchy is at the mount point.
    root: PathBuf,
    point: PathBuf,
    /// Options of its file system, separated by commas: in version 1 its
    /// controllers are among them.
    options: Vec<u8>,
}

/// The cgroup of a process under one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    version: Version,
    /// Its directory.
    leaf: PathBuf,
    /// The topmost directory that can be seen.
    top: PathBuf,
}

/// A cgroup that accounts memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryCgroup(Place);

/// A cgroup that counts threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidsCgroup(Place);

/// What a cgroup, or one above it, may have of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// How much there may be.
    pub most: u64,
    /// How much more fits.
    pub room: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl CgroupMounts {
    /// The mounts that leaktrace itself sees.
    ///
    /// # Errors
    /// When `/proc/self/mountinfo` can't be read.
    pub fn own() -> io::Result<Self> {
        Ok(Self::parse(&fs::read("/proc/self/mountinfo")?))
    }

    /// Reads the text of a mountinfo file (proc_pid_mountinfo(5)).
    #[must_use]
    pub fn parse(mountinfo: &[u8]) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.split(|byte| *byte == b'\n') {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            // Optional fields end with a lone hyphen.
            let Some(hyphen) = fields.iter().position(|field| *field == b"-") else {
                continue;
            };
            let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else {
                continue;
            };
            let mount = || Mount {
                root: unescape(root),
                point: unescape(point),
                options: fields
                    .get(hyphen + 3)
                    .map_or_else(Vec::new, |options| options.to_vec()),
            };
            match fields.get(hyphen + 1) {
                Some(kind) if *kind == b"cgroup2" => mounts.v2.push(mount()),
                Some(kind) if *kind == b"cgroup" => mounts.v1.push(mount()),
                _ => {}
            }
        }
        mounts
    }

    /// The cgroup that accounts the memory of a process, given the text of its
    /// `/proc/PID/cgroup`. `None` when it can't be seen from here, or nothing
    /// accounts.
    #[must_use]
    pub fn locate(&self, cgroup_file: &[u8]) -> Option<MemoryCgroup> {
        self.place(cgroup_file, b"memory").map(MemoryCgroup)
    }

    /// The cgroup that counts its threads, likewise.
    #[must_use]
    pub fn locate_pids(&self, cgroup_file: &[u8]) -> Option<PidsCgroup> {
        self.place(cgroup_file, b"pids").map(PidsCgroup)
    }

    fn place(&self, cgroup_file: &[u8], controller: &[u8]) -> Option<Place> {
        let mut found = None;
        for line in cgroup_file.split(|byte| *byte == b'\n') {
            let mut fields = line.splitn(3, |byte| *byte == b':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            // The second field is empty for version 2, whose only hierarchy has
            // the controllers that no hierarchy of version 1 has.
            if has_word(controllers, controller) {
                found = Some((Version::V1, path));
                break;
            } else if controllers.is_empty() {
                found = Some((Version::V2, path));
            }
        }
        let (version, path) = found?;
        let path = PathBuf::from(OsString::from_vec(path.to_vec()));
        let mounts = match version {
            Version::V1 => &self.v1,
            Version::V2 => &self.v2,
        };
        mounts
            .iter()
            .filter(|mount| version == Version::V2 || has_word(&mount.options, controller))
            .find_map(|mount| {
                let leaf = mount.directory(&path)?;
                leaf.is_dir().then(|| Place {
                    version,
                    leaf,
                    top: mount.point.clone(),
                })
            })
    }
}

/// Whether a list that is separated by commas has this word.
fn has_word(list: &[u8], word: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|one| one == word)
}

impl Mount {
    /// The directory of a cgroup. Both paths are relative to leaktrace's cgroup
    /// namespace, and begin with `/..` where they lead out of it.
    fn directory(&self, cgroup: &Path) -> Option<PathBuf> {
        let below = cgroup.strip_prefix(&self.root).ok()?;
        let visible = below
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        visible.then(|| self.point.join(below))
    }
}

impl Place {
    /// The directories from its own to the topmost.
    fn levels(&self) -> impl Iterator<Item = &Path> {
        self.leaf
            .ancestors()
            .take_while(|level| level.starts_with(&self.top))
    }
}

impl PidsCgroup {
    /// How many threads it, or one above it, may have.
    #[must_use]
    pub fn allowance(&self) -> Option<Allowance> {
        self.0
            .levels()
            .filter_map(|level| {
                let most = number_in(&level.join("pids.max"))?;
                let used = number_in(&level.join("pids.current"))?;
                Some(Allowance {
                    most,
                    room: most.saturating_sub(used),
                })
            })
            .min_by_key(|allowance| allowance.room)
    }
}

impl MemoryCgroup {
    /// Memory in use, page cache included, bytes.
    #[must_use]
    pub fn usage(&self) -> Option<u64> {
        // A cgroup without the controller is accounted to the next above.
        self.levels().find_map(|level| self.usage_of(level))
    }

    /// The tightest limit of it and those above it, bytes; `None` without any.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.levels().filter_map(|level| self.limit_of(level)).min()
    }

    /// How much more memory fits into it and those above it, bytes; `None`
    /// without a limit. File pages that nobody used lately make room.
    #[must_use]
    pub fn room(&self) -> Option<u64> {
        self.allowance().map(|allowance| allowance.room)
    }

    /// The limit that leaves the least room. File pages that nobody used lately
    /// make room.
    #[must_use]
    pub fn allowance(&self) -> Option<Allowance> {
        self.tightest(|level| self.limit_of(level))
    }

    /// The same for the limit from where on it is slowed down (`memory.high`).
    #[must_use]
    pub fn allowance_at_full_speed(&self) -> Option<Allowance> {
        self.tightest(|level| match self.0.version {
            Version::V1 => None,
            Version::V2 => number_in(&level.join("memory.high")),
        })
    }

    fn tightest(&self, limit_of: impl Fn(&Path) -> Option<u64>) -> Option<Allowance> {
        self.levels()
            .filter_map(|level| {
                let most = limit_of(level)?;
                let used = self.usage_of(level)?;
                let used = used.saturating_sub(self.reclaimable_of(level));
                Some(Allowance {
                    most,
                    room: most.saturating_sub(used),
                })
            })
            .min_by_key(|allowance| allowance.room)
    }

    /// The directories from its own to the topmost whose limits hold for it.
    fn levels(&self) -> impl Iterator<Item = &Path> {
        self.0.levels().enumerate().map_while(|(index, level)| {
            // Version 1 before 5.11 may leave those below out of the account.
            let flat = index > 0
                && self.0.version == Version::V1
                && number_in(&level.join("memory.use_hierarchy")) == Some(0);
            (!flat).then_some(level)
        })
    }

    fn usage_of(&self, level: &Path) -> Option<u64> {
        number_in(&level.join(match self.0.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }))
    }

    fn limit_of(&self, level: &Path) -> Option<u64> {
        // "No limit" is the word `max` in version 2, and in version 1 a number:
        // the largest `long` rounded down to a page.
        const NO_LIMIT: u64 = 1 << 62;
        number_in(&level.join(match self.0.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        }))
        .filter(|limit| *limit < NO_LIMIT)
    }

    fn reclaimable_of(&self, level: &Path) -> u64 {
        let key = match self.0.version {
            Version::V1 => "total_inactive_file ",
            Version::V2 => "inactive_file ",
        };
        fs::read_to_string(level.join("memory.stat"))
            .ok()
            .and_then(|text| {
                text.lines()
                    .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            })
            .unwrap_or(0)
    }
}

fn number_in(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// In mountinfo blanks, tabs, newlines and backslashes are `\` and three octal
/// digits.
fn unescape(path: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match rest {
            [b'\\', digits @ ..] => digits
                .get(..3)
                .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()),
            _ => None,
        };
        match escaped {
            Some(byte) => {
                plain.push(byte);
                rest = &rest[4..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes files below a temporary directory.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = top.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        top
    }

    fn mounts(kind: &str, root: &str, point: &Path, options: &str) -> CgroupMounts {
        let line = format!(
            "31 23 0:28 {root} {} rw,relatime shared:7 master:1 - {kind} none rw,{options}\n",
            point.display()
        );
        CgroupMounts::parse(line.as_bytes())
    }

    #[test]
    fn version_2_takes_the_tightest_limit_above() {
        let top = tree(&[
            ("memory.stat", ""),
            ("a/memory.current", "5000\n"),
            ("a/memory.max", "8000\n"),
            ("a/memory.stat", "anon 12\ninactive_file 1000\n"),
            ("a/b/memory.current", "3000\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/c/cgroup.procs", ""),
        ]);
        let mounts = mounts("cgroup2", "/", top.path(), "nsdelegate");
        let cgroup = mounts.locate(b"1:name=systemd:/x\n0::/a/b/c\n").unwrap();
        assert_eq!(
            cgroup.usage(),
            Some(3000),
            "of the nearest with the controller"
        );
        assert_eq!(cgroup.limit(), Some(8000));
        assert_eq!(cgroup.room(), Some(4000), "8000 - (5000 - 1000)");
        let root = mounts.locate(b"0::/\n").unwrap();
        assert_eq!(
            (root.usage(), root.limit(), root.room()),
            (None, None, None)
        );
    }

    #[test]
    fn memory_high_and_threads_have_limits_of_their_own() {
        let top = tree(&[
            ("pids.max", "max\n"),
            ("a/memory.current", "5000\n"),
            ("a/memory.max", "max\n"),
            ("a/memory.high", "6000\n"),
            ("a/pids.current", "90\n"),
            ("a/pids.max", "100\n"),
            ("a/b/pids.current", "3\n"),
            ("a/b/pids.max", "50\n"),
        ]);
        let mounts = mounts("cgroup2", "/", top.path(), "nsdelegate");
        let cgroup = mounts.locate(b"0::/a/b\n").unwrap();
        let (most, room) = (6000, 1000);
        assert_eq!(cgroup.allowance(), None);
        assert_eq!(
            cgroup.allowance_at_full_speed(),
            Some(Allowance { most, room })
        );
        let pids = mounts.locate_pids(b"0::/a/b\n").unwrap();
        let (most, room) = (100, 10);
        assert_eq!(pids.allowance(), Some(Allowance { most, room }));
    }

    #[test]
    fn each_controller_of_version_1_has_its_hierarchy() {
        let memory = tree(&[("a/memory.limit_in_bytes", "1000\n")]);
        let pids = tree(&[("a/pids.max", "7\n"), ("a/pids.current", "2\n")]);
        let mut both = mounts("cgroup", "/", memory.path(), "memory");
        both.v1
            .extend(mounts("cgroup", "/", pids.path(), "pids").v1);
        let text = b"4:memory:/a\n3:pids:/a\n";
        assert_eq!(both.locate(text).unwrap().limit(), Some(1000));
        let (most, room) = (7, 5);
        let pids = both.locate_pids(text).unwrap();
        assert_eq!(pids.allowance(), Some(Allowance { most, room }));
    }

    #[test]
    fn version_1_has_a_huge_number_for_no_limit() {
        const NO_LIMIT: &str = "9223372036854771712\n";
        let top = tree(&[
            ("memory.usage_in_bytes", "90000\n"),
            ("memory.limit_in_bytes", NO_LIMIT),
            ("memory.use_hierarchy", "1\n"),
            ("a/memory.usage_in_bytes", "700\n"),
            ("a/memory.limit_in_bytes", "1000\n"),
            ("a/memory.use_hierarchy", "1\n"),
            (
                "a/memory.stat",
                "inactive_file 5\ntotal_inactive_file 100\n",
            ),
            ("a/b/memory.usage_in_bytes", "600\n"),
            ("a/b/memory.limit_in_bytes", NO_LIMIT),
        ]);
        let mounts = mounts("cgroup", "/", top.path(), "memory");
        let cgroup = mounts
            .locate(b"0::/elsewhere\n4:cpu,memory:/a/b\n")
            .unwrap();
        assert_eq!((cgroup.usage(), cgroup.limit()), (Some(600), Some(1000)));
        assert_eq!(cgroup.room(), Some(400), "1000 - (700 - 100)");
        assert_eq!(mounts.locate(b"4:memory:/\n").unwrap().limit(), None);
    }

    #[test]
    fn version_1_without_hierarchy_ignores_limits_above() {
        let top = tree(&[
            ("a/memory.limit_in_bytes", "1000\n"),
            ("a/memory.use_hierarchy", "0\n"),
            ("a/b/memory.limit_in_bytes", "5000\n"),
            ("a/b/memory.use_hierarchy", "0\n"),
        ]);
        let mounts = mounts("cgroup", "/", top.path(), "memory");
        assert_eq!(
            mounts.locate(b"4:memory:/a/b\n").unwrap().limit(),
            Some(5000)
        );
    }

    #[test]
    fn a_container_s_mount_shows_its_own_part_only() {
        let top = tree(&[("memory.max", "10\n"), ("inner/memory.max", "20\n")]);
        let mounts = mounts("cgroup2", "/docker/abc", top.path(), "rw");
        assert_eq!(
            mounts.locate(b"0::/docker/abc/inner\n").unwrap().limit(),
            Some(10)
        );
        assert_eq!(mounts.locate(b"0::/docker/other\n"), None);
    }

    #[test]
    fn cgroups_outside_of_the_namespace_are_found_only_where_mounted() {
        let top = tree(&[("memory.max", "10\n"), ("sibling/memory.max", "5\n")]);
        let inside = mounts("cgroup2", "/", top.path(), "rw");
        assert_eq!(inside.locate(b"0::/../sibling\n"), None);
        let outside = mounts("cgroup2", "/..", top.path(), "rw");
        assert_eq!(
            outside.locate(b"0::/../sibling\n").unwrap().limit(),
            Some(5)
        );
        assert_eq!(outside.locate(b"0::/../../etc\n"), None);
    }

    #[test]
    fn escaped_mount_points_and_other_controllers() {
        let mounts = CgroupMounts::parse(
            b"1 2 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
              1 2 0:3 / /with\\040blank\\134 rw - cgroup cgroup rw,memory\n",
        );
        assert_eq!(mounts.v1.len(), 2);
        assert_eq!(mounts.v1[1].point, Path::new("/with blank\\"));
        assert_eq!(
            mounts.locate(b"4:cpu:/\n3:memory:/\n"),
            None,
            "no directory"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mountinfo: Vec<u8>, cgroup: Vec<u8>) {
            let _ = CgroupMounts::parse(&mountinfo).locate(&cgroup);
            let _ = unescape(&mountinfo);
        }
    }
}
