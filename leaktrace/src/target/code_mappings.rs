//! The executable mappings of a process as far as events and `/proc` have told.

use std::collections::BTreeMap;

use super::{mapping::Mapping, mapping_events::Drained};

/// Executable mappings, none over another. Those that were unmapped stay until
/// others take their place: nobody tells of their end, and stacks captured
/// before it may be looked up after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeMappings {
    by_start: BTreeMap<u64, Mapping>,
}

impl CodeMappings {
    /// All of them, in order of address.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.by_start.values()
    }

    /// Takes what events have told.
    pub fn apply(&mut self, drained: Drained) {
        if drained.exec {
            self.by_start.clear();
        }
        for mapping in drained.mappings {
            self.insert(mapping);
        }
    }

    /// Takes what the process maps now, as `/proc/PID/maps` shows it. Memory
    /// without a file that is gone is forgotten, or compilers at run time would
    /// let the list grow without end.
    pub fn settle(&mut self, now: &[Mapping]) {
        self.by_start
            .retain(|_, mapping| !mapping.path.as_os_str().is_empty());
        for mapping in now {
            self.insert(mapping.clone());
        }
    }

    /// Takes one mapping, if it is executable, in place of what it overlaps.
    fn insert(&mut self, mapping: Mapping) {
        if !mapping.executable || mapping.start >= mapping.end {
            return;
        }
        let before = self.by_start.range(..mapping.start).next_back();
        let first = before.map_or(mapping.start, |(start, _)| *start);
        let overlapped: Vec<Mapping> = self
            .by_start
            .range(first..mapping.end)
            .map(|(_, other)| other)
            .filter(|other| other.end > mapping.start)
            .cloned()
            .collect();
        for other in overlapped {
            self.by_start.remove(&other.start);
            for (start, end) in [(other.start, mapping.start), (mapping.end, other.end)] {
                self.keep_part(&other, start, end);
            }
        }
        self.by_start.insert(mapping.start, mapping);
    }

    /// Puts back `start..end` of a mapping, if there is such a part.
    fn keep_part(&mut self, whole: &Mapping, start: u64, end: u64) {
        if start < end {
            let part = Mapping {
                start,
                end,
                offset: whole.offset.wrapping_add(start - whole.start),
                ..whole.clone()
            };
            self.by_start.insert(start, part);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::mapping::parse, *};

    /// Mappings given as lines of a maps file.
    fn mappings(lines: &str) -> Vec<Mapping> {
        parse(lines.as_bytes())
    }

    fn told(lines: &str, exec: bool) -> Drained {
        Drained {
            mappings: mappings(lines),
            exec,
            lost: 0,
        }
    }

    fn all(code: &CodeMappings) -> Vec<Mapping> {
        code.iter().cloned().collect()
    }

    const OLD: &str = "1000-5000 r-xp 1000 8:1 7 /old\n";

    #[test]
    fn a_new_mapping_takes_the_place_of_what_it_overlaps() {
        let mut code = CodeMappings::default();
        code.apply(told(OLD, false));
        code.apply(told("2000-3000 r-xp 0 8:1 9 /new\n", false));
        let cut = "1000-2000 r-xp 1000 8:1 7 /old\n2000-3000 r-xp 0 8:1 9 /new\n\
            3000-5000 r-xp 3000 8:1 7 /old\n";
        assert_eq!(all(&code), mappings(cut));
        let over_all = "0-6000 r-xp 0 8:1 3 /whole\n";
        code.apply(told(over_all, false));
        assert_eq!(all(&code), mappings(over_all));
    }

    #[test]
    fn neighbours_stay() {
        let mut code = CodeMappings::default();
        let lines = "1000-2000 r-xp 0 8:1 1 /a\n2000-3000 r-xp 0 8:1 2 /b\n\
            3000-4000 r-xp 0 8:1 3 /c\n";
        code.apply(told(lines, false));
        code.apply(told("2000-3000 r-xp 0 8:1 2 /b\n", false));
        assert_eq!(all(&code), mappings(lines));
    }

    #[test]
    fn an_exec_ends_all_that_was_before() {
        let mut code = CodeMappings::default();
        code.apply(told(OLD, false));
        let new = "9000-a000 r-xp 0 8:1 9 /new\n";
        code.apply(told(new, true));
        assert_eq!(all(&code), mappings(new));
    }

    #[test]
    fn what_cannot_run_is_left_out() {
        let mut code = CodeMappings::default();
        code.apply(told("1000-2000 rw-p 0 8:1 1 /data\n", false));
        code.settle(&mappings("1000-2000 r--p 0 8:1 1 /data\n"));
        assert_eq!(all(&code), []);
    }

    #[test]
    fn libraries_that_were_unloaded_stay_but_not_anonymous_code() {
        let mut code = CodeMappings::default();
        code.apply(told(OLD, false));
        code.apply(told("7000-8000 rwxp 0 0:0 0 \n", false));
        code.settle(&mappings("a000-b000 r-xp 0 8:1 9 /new\n"));
        let expected = format!("{OLD}a000-b000 r-xp 0 8:1 9 /new\n");
        assert_eq!(all(&code), mappings(&expected));
    }

    proptest! {
        #[test]
        fn each_address_belongs_to_the_last_that_covered_it(
            spans in proptest::collection::vec((0_u64..40, 0_u64..12), 1..20),
        ) {
            let mut code = CodeMappings::default();
            let mut last = [None; 64];
            for (index, (start, length)) in spans.iter().enumerate() {
                let line = format!(
                    "{start:x}-{:x} r-xp {:x} 8:1 {} /f\n",
                    start + length, start * 2, index + 1,
                );
                code.apply(told(&line, false));
                for (address, cell) in (0_u64..).zip(&mut last) {
                    if (*start..start + length).contains(&address) {
                        *cell = Some((index as u64 + 1, start * 2 + (address - start)));
                    }
                }
            }
            for (address, expected) in (0_u64..).zip(last) {
                let found: Vec<_> = code
                    .iter()
                    .filter_map(|m| Some((m.inode, m.file_offset(address)?)))
                    .collect();
                prop_assert_eq!(found, Vec::from_iter(expected));
            }
        }
    }
}
