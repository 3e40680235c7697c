//! Which stacks are complete, and for a person, why the others are not.

use std::sync::Arc;

use leaktrace_common::stack::StackEnd;

use crate::model::Completeness;

/// What a stack's end means. `begins_thread` says whether its last frame is where
/// a thread begins, `file` is the path of the file that this frame is in.
pub fn completeness(
    end: Option<StackEnd>,
    begins_thread: impl FnOnce() -> bool,
    file: impl FnOnce() -> Option<Arc<str>>,
) -> Completeness {
    let is_complete = match end {
        Some(StackEnd::Complete) => true,
        // The kernel side saw no wrong frame, but garbage may end like that.
        Some(StackEnd::ChainEnd) => begins_thread(),
        _ => false,
    };
    if is_complete {
        return Completeness::Complete;
    }
    Completeness::Incomplete(reason(end, file().as_deref()).into())
}

/// What is said of stacks with frames in a file in whose place something else was
/// mapped, at a time that nobody told: they may be right.
pub fn replaced(path: &str) -> Completeness {
    let name = file_name(path);
    Completeness::Incomplete(format!("something else was mapped in place of {name}").into())
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// One text for each end, with the name of the file that is to blame, where one
/// is.
fn reason(end: Option<StackEnd>, file: Option<&str>) -> String {
    let name = file.map(file_name);
    let of = |what: &str| match name {
        Some(name) => format!("{what} {name}"),
        None => format!("{what} code without a file"),
    };
    let text = match end {
        Some(StackEnd::Gap) => return of("no unwind information in"),
        Some(StackEnd::NotReady) => return of("unwind tables that were not ready yet, of"),
        Some(StackEnd::UnsupportedRule) => {
            return of("unwind information that is not supported in");
        }
        Some(StackEnd::BadStackPointer) => return of("a wrong stack pointer in"),
        Some(StackEnd::BadFramePointer) => return of("a function keeps no frame pointer, in"),
        Some(StackEnd::ChainEnd) => return of("the chain of callers ends early, in"),
        Some(StackEnd::TooDeep) => "deeper than 127 frames",
        Some(StackEnd::Unreadable) => "stack memory could not be read",
        Some(StackEnd::NotStored) => "stack not stored",
        Some(StackEnd::Complete) => "complete",
        Some(StackEnd::Guessed) => "a frame was guessed by its frame pointer",
        Some(StackEnd::NoMapping) => "an address in no known mapping",
        Some(StackEnd::ReturnProbe) => "a return address that a return probe replaced",
        Some(StackEnd::Changed) => "the stack or the mappings changed meanwhile",
        None => "unknown end of stack",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn of(end: Option<StackEnd>, begins_thread: bool) -> Completeness {
        completeness(end, || begins_thread, || Some("/lib/libfoo.so".into()))
    }

    #[test]
    fn only_ends_that_cannot_be_wrong_are_complete() {
        for end in StackEnd::ALL {
            let always = of(Some(end), false).is_complete();
            let at_a_thread_s_start = of(Some(end), true).is_complete();
            let expected = match end {
                StackEnd::Complete => (true, true),
                StackEnd::ChainEnd => (false, true),
                _ => (false, false),
            };
            assert_eq!((always, at_a_thread_s_start), expected, "{end:?}");
        }
        assert!(!of(None, true).is_complete());
    }

    #[test]
    fn each_end_has_a_text_of_its_own() {
        let ends = || StackEnd::ALL.into_iter().map(Some).chain([None]);
        for file in [None, Some("/lib/libfoo.so")] {
            let texts: HashSet<String> = ends().map(|end| reason(end, file)).collect();
            assert_eq!(texts.len(), ends().count(), "{texts:?}");
        }
    }

    #[test]
    fn the_file_is_named_where_it_is_to_blame() {
        let text = |end, file| reason(Some(end), file);
        let path = Some("/opt/vendor/libfoo.so");
        assert_eq!(
            text(StackEnd::Gap, path),
            "no unwind information in libfoo.so"
        );
        assert_eq!(
            text(StackEnd::Gap, None),
            "no unwind information in code without a file"
        );
        for end in [
            StackEnd::TooDeep,
            StackEnd::Unreadable,
            StackEnd::NotStored,
            StackEnd::Guessed,
            StackEnd::NoMapping,
            StackEnd::ReturnProbe,
            StackEnd::Changed,
        ] {
            assert_eq!(text(end, path), text(end, None));
        }
    }
}
