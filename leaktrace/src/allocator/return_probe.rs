//! Where a return probe may go: the one place that decides it.
//!
//! While a call runs, a return probe has the kernel's trampoline in place of
//! the return address on the target's stack. Whatever walks or moves that
//! stack meanwhile may kill the target: an exception that unwinds through it
//! ends in `std::terminate`; Go copies its stacks; a function entered on a
//! higher stack (a fibre, an alternate signal stack) that is return-probed as
//! well makes the kernel lose the real address. So a return probe goes only on
//! functions of which none of that is to be expected: C's, which run no code
//! of others, switch no stacks, and through which nothing unwinds.

use leaktrace_common::function::Role;

/// What is known of a function, of the file that has it, and of its role.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What a call does. Functions of the catalogue's roles run no code of
    /// others and switch no stacks.
    pub role: Role,
    /// The function's symbol.
    pub symbol: &'a str,
    /// The file holds Go code.
    pub file_is_go: bool,
    /// Whether exceptions that pass through the function run code of its own
    /// (`has_lsda`), or why that can't be told.
    pub handles_exceptions: Result<bool, String>,
}

/// Whether a return probe may go on a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReturnProbe {
    /// The result does not matter: `free`.
    NotNeeded,
    /// It may.
    Allowed,
    /// It may not, since it could kill the target; a sentence why.
    Refused(String),
}

/// Decides whether a return probe may go on a function.
#[must_use]
pub fn decide(facts: &Facts<'_>) -> ReturnProbe {
    if !facts.role.needs_return() {
        return ReturnProbe::NotNeeded;
    }
    if facts.file_is_go {
        return refused(
            "the file holds Go code, whose runtime moves stacks and finds the probe's address there",
        );
    }
    if throws_by_name(facts.symbol) {
        return refused(
            "C++ exceptions leave this function, and one that meets the probe ends the program",
        );
    }
    match &facts.handles_exceptions {
        Ok(false) => ReturnProbe::Allowed,
        Ok(true) => refused(
            "exceptions may pass through this function (it has a language-specific data area), \
             and one that meets the probe ends the program",
        ),
        Err(why) => ReturnProbe::Refused(format!(
            "whether exceptions pass through this function is unknown: {why}"
        )),
    }
}

fn refused(why: &str) -> ReturnProbe {
    ReturnProbe::Refused(why.to_owned())
}

/// C++ functions, by mangled names: they may throw without having a data area
/// of their own, as `operator new` does.
fn throws_by_name(symbol: &str) -> bool {
    symbol.starts_with("_Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn malloc() -> Facts<'static> {
        Facts {
            role: Role::Alloc,
            symbol: "malloc",
            file_is_go: false,
            handles_exceptions: Ok(false),
        }
    }

    #[test]
    fn c_functions_that_nothing_unwinds_through_are_allowed() {
        assert_eq!(decide(&malloc()), ReturnProbe::Allowed);
    }

    #[test]
    fn free_needs_none_whatever_the_file_is() {
        let free = Facts {
            role: Role::Free,
            symbol: "free",
            file_is_go: true,
            ..malloc()
        };
        assert_eq!(decide(&free), ReturnProbe::NotNeeded);
    }

    #[test]
    fn whatever_could_kill_the_target_is_refused_with_its_reason() {
        let go = Facts {
            file_is_go: true,
            ..malloc()
        };
        let handler = Facts {
            handles_exceptions: Ok(true),
            ..malloc()
        };
        let unknown = Facts {
            handles_exceptions: Err("it is torn".to_owned()),
            ..malloc()
        };
        let operator_new = Facts {
            symbol: "_Znwm",
            ..malloc()
        };
        for (facts, word) in [
            (go, "Go"),
            (handler, "language-specific data area"),
            (unknown, "it is torn"),
            (operator_new, "C++"),
        ] {
            let ReturnProbe::Refused(reason) = decide(&facts) else {
                panic!("{facts:?}")
            };
            assert!(reason.contains(word), "{reason}");
        }
    }
}
