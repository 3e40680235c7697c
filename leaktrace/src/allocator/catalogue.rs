//! Allocators as data: how each is recognised in a file, and its functions
//! with their roles.

use leaktrace_common::function::Signature;

/// Functions that belong together: a block of one is given back to another.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name, for a person.
    pub name: &'static str,
    /// A file has the family when it exports all of these.
    pub recognised_by: &'static [&'static str],
    /// Its functions.
    pub functions: &'static [Function],
}

/// One function of a family.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// The symbol, without version.
    pub name: &'static str,
    /// What a call does, and where its arguments are.
    pub signature: Signature,
}

const fn function(name: &'static str, signature: Signature) -> Function {
    Function { name, signature }
}

/// Every known family. Argument numbers count from 0.
pub const FAMILIES: &[Family] = &[Family {
    name: "malloc",
    recognised_by: &["malloc", "free"],
    functions: &[
        // malloc(3)
        function("malloc", Signature::alloc(0)),
        function("calloc", Signature::alloc_array(0, 1)),
        function("realloc", Signature::realloc(0, 1)),
        function("reallocarray", Signature::realloc_array(0, 1, 2)),
        function("free", Signature::free(0)),
        // Left glibc's headers with 2.26; old programs still call it.
        function("cfree", Signature::free(0)),
        // posix_memalign(3)
        function("posix_memalign", Signature::alloc_out(0, 2)),
        function("aligned_alloc", Signature::alloc(1)),
        function("memalign", Signature::alloc(1)),
        function("valloc", Signature::alloc(0)),
        // Rounds up to whole pages by itself; what was asked for counts.
        function("pvalloc", Signature::alloc(0)),
    ],
}];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use leaktrace_common::function::{NO_ARGUMENT, Role};

    use super::*;

    #[test]
    fn names_are_listed_once_and_recognised_ones_are_watched() {
        for family in FAMILIES {
            let names: HashSet<_> = family
                .functions
                .iter()
                .map(|function| function.name)
                .collect();
            assert_eq!(names.len(), family.functions.len(), "{}", family.name);
            assert!(family.recognised_by.iter().all(|name| names.contains(name)));
        }
    }

    #[test]
    fn each_role_has_the_arguments_it_is_about() {
        for function in FAMILIES.iter().flat_map(|family| family.functions) {
            let Signature {
                role,
                size,
                count,
                block,
                out,
            } = function.signature;
            let given = [size, count, block, out].map(|argument| argument != NO_ARGUMENT);
            let wanted = match role {
                Role::Alloc => [true, false, false, false],
                Role::AllocArray => [true, true, false, false],
                Role::Realloc => [true, false, true, false],
                Role::ReallocArray => [true, true, true, false],
                Role::AllocOut => [true, false, false, true],
                Role::Free => [false, false, true, false],
            };
            assert_eq!(given, wanted, "{}", function.name);
            assert!(
                [size, count, block, out]
                    .iter()
                    .all(|argument| *argument < 6 || *argument == NO_ARGUMENT)
            );
        }
    }
}
