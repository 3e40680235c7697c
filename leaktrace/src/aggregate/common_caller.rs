//! What growing stacks have in common: one leak often shows as many stacks.

use std::collections::{HashMap, HashSet};

use crate::model::{CommonCaller, Frame, FrameKind};

/// A common caller explains at least this much of the growth.
const ENOUGH: f64 = 0.9;

/// The function nearest to the allocations that at least nine tenths of the
/// growth pass through, given stacks from the allocating function outwards with
/// their growth; `None` when there is none but those in which threads begin, or
/// there are not two stacks. `others` grow as well, but were not looked up: how
/// many, and by how much. Functions that `is_library` names are left out.
#[must_use]
pub fn of(
    growing: &[(&[Frame], f64)],
    others: (usize, f64),
    is_library: fn(&str) -> bool,
) -> Option<CommonCaller> {
    if growing.len() < 2 {
        return None;
    }
    let all = others.1 + growing.iter().map(|(_, growth)| growth).sum::<f64>();
    let mut functions: HashMap<&str, Function> = HashMap::new();
    for (frames, growth) in growing {
        let mut met = HashSet::new();
        let callers = frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Program && !frame.is_beginning())
            .filter_map(|frame| frame.symbol.as_deref())
            .filter(|name| !is_of_runtime(name) && !is_library(name));
        for (distance, name) in callers.enumerate() {
            // A function that calls itself counts once, where it is innermost.
            if met.insert(name) {
                let function = functions.entry(name).or_default();
                function.growth += growth;
                function.stacks += 1;
                function.distance = function.distance.max(distance);
            }
        }
    }
    let explains = |function: &Function| all > 0.0 && function.growth >= ENOUGH * all;
    let nearest = functions
        .into_iter()
        .filter(|(_, function)| function.stacks >= 2 && explains(function))
        .min_by(|(a_name, a), (b_name, b)| (a.distance, a_name).cmp(&(b.distance, b_name)));
    nearest.map(|(name, function)| CommonCaller {
        function: name.to_owned(),
        stacks: function.stacks,
        growing: growing.len() + others.0,
        share: (function.growth / all).min(1.0),
    })
}

/// What is known of a function that some growing stacks pass through.
#[derive(Default)]
struct Function {
    growth: f64,
    stacks: usize,
    /// From the allocation, where it is farthest.
    distance: usize,
}

/// Functions of the languages' runtimes that all stacks pass through as well, beside
/// [`Frame::is_beginning`], and that say nothing.
fn is_of_runtime(name: &str) -> bool {
    ["main", "execute_native_thread_routine"].contains(&name)
        || ["__rust_begin_short_backtrace", "lang_start"]
            .iter()
            .any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(names: &[&str]) -> Vec<Frame> {
        let frame = |name: &&str| Frame {
            symbol: Some((*name).to_owned()),
            symbol_offset: 0,
            module: None,
            file_offset: 0,
            build_id: None,
            source: None,
            line: None,
            inlined: false,
            kind: if *name == "malloc" {
                FrameKind::Allocator
            } else {
                FrameKind::Program
            },
        };
        names.iter().map(frame).collect()
    }

    fn cause(stacks: &[(&[&str], f64)]) -> Option<CommonCaller> {
        let stacks: Vec<_> = stacks
            .iter()
            .map(|(names, growth)| (stack(names), *growth))
            .collect();
        let growing: Vec<_> = stacks
            .iter()
            .map(|(frames, growth)| (frames.as_slice(), *growth))
            .collect();
        of(&growing, (0, 0.0), is_library)
    }

    fn is_library(name: &str) -> bool {
        name.starts_with("std::")
    }

    #[test]
    fn the_nearest_common_caller_is_named() {
        let found = cause(&[
            (&["malloc", "copy", "create", "handle", "main"], 10.0),
            (&["malloc", "create", "handle", "main"], 5.0),
            (
                &["malloc", "grow", "insert", "create", "handle", "main"],
                3.0,
            ),
        ])
        .unwrap();
        assert_eq!(found.function, "create");
        assert_eq!((found.stacks, found.growing), (3, 3));
        assert_eq!(found.share, 1.0);
    }

    #[test]
    fn a_tenth_may_be_elsewhere() {
        let found = cause(&[
            (&["malloc", "copy", "create", "main"], 60.0),
            (&["malloc", "create", "main"], 32.0),
            (&["malloc", "log", "main"], 8.0),
        ])
        .unwrap();
        assert_eq!(found.function, "create");
        assert_eq!((found.stacks, found.growing), (2, 3));
        assert!((found.share - 0.92).abs() < 1e-9);
        let apart = cause(&[
            (&["malloc", "create", "main"], 60.0),
            (&["malloc", "create", "x", "main"], 20.0),
            (&["malloc", "log", "main"], 20.0),
        ]);
        assert_eq!(apart, None);
    }

    #[test]
    fn one_stack_and_the_beginnings_of_threads_have_none() {
        assert_eq!(cause(&[(&["malloc", "create", "main"], 60.0)]), None);
        let beginnings = cause(&[
            (&["malloc", "a", "main", "__libc_start_main", "_start"], 1.0),
            (&["malloc", "b", "main", "__libc_start_main", "_start"], 1.0),
        ]);
        assert_eq!(beginnings, None);
        assert_eq!(
            cause(&[(&["malloc", "a"], 0.0), (&["malloc", "a"], 0.0)]),
            None
        );
    }

    #[test]
    fn what_was_not_looked_up_counts_as_elsewhere() {
        let stacks = [
            stack(&["malloc", "create", "main"]),
            stack(&["malloc", "copy", "create", "main"]),
        ];
        let growing: Vec<_> = stacks.iter().map(|frames| (&frames[..], 50.0)).collect();
        let found = of(&growing, (3, 5.0), is_library).unwrap();
        assert_eq!((found.stacks, found.growing), (2, 5));
        assert!((found.share - 100.0 / 105.0).abs() < 1e-9);
        assert_eq!(of(&growing, (300, 20.0), is_library), None);
    }

    #[test]
    fn what_is_in_a_module_called_main_is_the_programs() {
        let found = cause(&[
            (&["malloc", "main::load", "main::main", "main"], 1.0),
            (&["malloc", "main::parse", "main::load", "main"], 1.0),
        ])
        .unwrap();
        assert_eq!(found.function, "main::load");
    }

    #[test]
    fn a_standard_library_is_nobody_s_leak() {
        let found = cause(&[
            (&["malloc", "std::vector::grow", "add", "load", "main"], 1.0),
            (
                &["malloc", "std::vector::grow", "append", "load", "main"],
                1.0,
            ),
        ])
        .unwrap();
        assert_eq!(found.function, "load");
    }

    #[test]
    fn recursion_counts_once() {
        let found = cause(&[
            (&["malloc", "visit", "visit", "visit", "build"], 1.0),
            (&["malloc", "node", "visit", "build"], 1.0),
        ])
        .unwrap();
        assert_eq!(found.function, "visit");
        assert_eq!(found.stacks, 2);
    }
}
