//! What loaders offer to debuggers (`<link.h>`, `struct r_debug`): a function
//! that they call whenever they add or remove files, and a word that says which.

use super::ElfFile;

/// Where a loader tells of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderHook {
    /// File offset of the function that it calls.
    pub function: u64,
    /// From that function to where it says what it is doing, wherever it is mapped;
    /// `None` when the file does not tell.
    pub state_distance: Option<i64>,
}

/// `offsetof(struct r_debug, r_state)`.
const STATE: u64 = 24;

impl ElfFile<'_> {
    /// The hook, if this file is a loader. The name of the function is not
    /// prescribed, but the same in glibc and musl; musl does not export the
    /// variable, and never unloads anything.
    #[must_use]
    pub fn loader_hook(&self) -> Option<LoaderHook> {
        // A loader needs no other library; most files do, and may have half a
        // million symbols.
        if !self.linkage().needed.is_empty() {
            return None;
        }
        let functions = self.exported_functions(&["_dl_debug_state"]);
        let address = functions.first()?.address;
        let state = self.exported_variable("_r_debug");
        Some(LoaderHook {
            function: self.file_offset(address)?,
            state_distance: state.map(|debug| {
                debug
                    .wrapping_add(STATE)
                    .wrapping_sub(address)
                    .cast_signed()
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// The test's own loader.
    #[test]
    fn the_loader_has_a_hook_and_libc_has_none() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let hook = |name: &str| {
            let line = maps.lines().find(|line| line.contains(name))?;
            let bytes = std::fs::read(line.split_whitespace().last()?).unwrap();
            Some(ElfFile::parse(&bytes).unwrap().loader_hook())
        };
        let (Some(loader), Some(libc)) = (hook("/ld-linux-x86-64.so.2"), hook("/libc.so.6")) else {
            let test = "the_loader_has_a_hook_and_libc_has_none";
            testing::not_run(module_path!(), test, "the test does not run by glibc");
            return;
        };
        let state_distance = loader.unwrap().state_distance;
        assert!(state_distance.is_some_and(|distance| distance > 0));
        assert_eq!(libc, None);
    }
}
