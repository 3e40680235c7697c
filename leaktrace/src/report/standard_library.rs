//! Functions of the standard libraries of C++ and Rust, by their names: what a
//! person's own code called to get memory, and nothing that says whose it is.

use crate::{model::Frame, report::name};

/// Beginnings of paths that no program has.
const LIBRARIES: &[&str] = &[
    "std::",
    "__gnu_cxx::",
    "__cxxabiv1::",
    "alloc::",
    "core::",
    "hashbrown::",
];

/// The frames from the first on that is not the library's; all, when only the
/// beginning of a thread would be left.
#[must_use]
pub fn own_frames(frames: &[Frame]) -> &[Frame] {
    let is_left_out = |frame: &Frame| frame.symbol.as_deref().is_some_and(is_standard);
    let own = frames.iter().position(|frame| !is_left_out(frame));
    match own {
        Some(own) if !frames[own..].iter().all(Frame::is_beginning) => &frames[own..],
        _ => frames,
    }
}

/// Whether a function of this name, demangled, is the standard library's own. What
/// a program implements for its own types is the program's.
#[must_use]
pub fn is_standard(symbol: &str) -> bool {
    let name = name::without_signature(symbol);
    let Some(rest) = name.strip_prefix('<') else {
        return is_in_library(name);
    };
    // Rust's `<Type as Trait>::method`, `<Type>::method`, `<impl Trait for Type>::method`.
    let Some(implementation) = name::first_in_angles(name) else {
        return is_in_library(rest);
    };
    let parts = match implementation.strip_prefix("impl ") {
        Some(of) => name::split_outside(of, " for ").map(|(trait_, subject)| (subject, trait_)),
        None => name::split_outside(implementation, " as "),
    };
    match parts {
        Some((subject, trait_)) => is_library_type(subject) && is_in_library(trait_),
        None => is_library_type(implementation.trim_start_matches("impl ")),
    }
}

fn is_in_library(path: &str) -> bool {
    LIBRARIES.iter().any(|library| path.starts_with(library))
}

/// Of the library, of the language, or any (`T`).
fn is_library_type(text: &str) -> bool {
    let mut text = text;
    while let Some(rest) = ["&", "*", "[", "(", "<", "mut ", "const ", "dyn "]
        .iter()
        .find_map(|before| text.strip_prefix(before))
    {
        text = rest;
    }
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let after = text.trim_start_matches(is_word);
    // `name::`, or with a hash, `name[1234]::`.
    let is_path = after.starts_with("::") || after.starts_with('[');
    is_in_library(text) || !text.is_empty() && !is_path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FrameKind;

    #[test]
    fn functions_of_the_libraries_are_known() {
        for symbol in [
            "std::vector<Order, std::allocator<Order> >::push_back(Order&&)",
            "void std::vector<int>::_M_realloc_insert<int>(int*, int&&)",
            "std::string::_M_construct",
            "std::unique_ptr<A> std::make_unique<A, B&>(B&)",
            "std::_Rb_tree<K, V>::_M_emplace_hint_unique<V>(int, V&&)",
            "std::__cxx11::basic_string<char>::reserve(unsigned long)",
            "__gnu_cxx::__stoa<long>(int)",
            "alloc::vec::Vec<T,A>::push::h0123456789abcdef",
            "alloc::slice::<impl [T]>::to_vec",
            "core::iter::adapters::map::map_fold::{{closure}}",
            "hashbrown::map::HashMap<K,V,S,A>::insert",
            "std::collections::hash::map::HashMap<K,V,S>::insert",
            "<std::collections::HashMap<u32, program::Order>>::insert",
            "<alloc::vec::Vec<program::Order>>::push",
            "<alloc::string::String as core::fmt::Write>::write_str",
            "<alloc::vec::Vec<T> as core::iter::Extend<program::X>>::extend",
            "<T as alloc::string::ToString>::to_string",
            "<str as alloc::borrow::ToOwned>::to_owned",
            "<&mut I as core::iter::Iterator>::next",
            "<[u8]>::to_vec",
            "<impl core::ops::FnOnce<A> for &F>::call_once",
            "<impl alloc::borrow::ToOwned for [T]>::to_owned",
            "<dyn core::fmt::Write>::write_fmt",
        ] {
            assert!(is_standard(symbol), "{symbol}");
        }
    }

    #[test]
    fn what_is_the_programs_is_not_taken_for_the_library_s() {
        for symbol in [
            "",
            "main",
            "malloc",
            "Session::create(std::string const&)",
            "std::string load<int>(std::string)",
            "stdio::open",
            "(anonymous namespace)::std_like()",
            "program::std::read",
            "coreutils::run",
            "operator<<(std::ostream&, Order const&)",
            "<program::Order as core::clone::Clone>::clone",
            "<&program::Order as core::fmt::Debug>::fmt",
            "<[program::Order] as core::fmt::Debug>::fmt",
            "<alloc::vec::Vec<u8> as program::Store>::store",
            "<program::Order>::new",
            "<impl core::fmt::Display for program::Order>::fmt",
            "<impl program::Store for u8>::store",
            "<<program::Order as core::iter::Iterator>::Item as core::fmt::Debug>::fmt",
            "<(program[0123456789abcdef]::Order,) as core::fmt::Debug>::fmt",
            "<",
            "<>",
            "<<<",
        ] {
            assert!(!is_standard(symbol), "{symbol}");
        }
    }

    fn frames(symbols: &[&str]) -> Vec<Frame> {
        let frame = |symbol: &&str| Frame {
            symbol: (!symbol.is_empty()).then(|| (*symbol).into()),
            symbol_offset: 0,
            module: None,
            file_offset: 0,
            build_id: None,
            source: None,
            line: None,
            inlined: false,
            kind: FrameKind::Program,
        };
        symbols.iter().map(frame).collect()
    }

    #[test]
    fn own_code_comes_first_unless_there_is_none() {
        let left = |symbols: &[&str]| symbols.len() - own_frames(&frames(symbols)).len();
        assert_eq!(left(&["std::a", "std::b", "mine", "std::c", "main"]), 2);
        assert_eq!(left(&["mine", "std::a"]), 0);
        assert_eq!(left(&["std::a", ""]), 1, "who knows whose it is");
        assert_eq!(left(&["std::a", "std::b"]), 0);
        assert_eq!(left(&["std::a", "start_thread", "clone3"]), 0);
        assert_eq!(left(&[]), 0);
    }
}
