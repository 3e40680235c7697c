//! Names as people wrote them.

use std::fmt::{self, Write};

use cpp_demangle::{BorrowedSymbol, DemangleOptions};

/// Longest name that is kept, bytes. Templates and hostile files can make names
/// of any length.
const LONGEST_NAME: usize = 4096;

/// The demangled form of a C++ or Rust name (Rust's without its hash), or the
/// name itself. A symbol's version (`malloc@@GLIBC_2.2.5`) is left out.
#[must_use]
pub fn demangle(name: &str) -> String {
    let name = match name.split_once('@') {
        Some((plain, _)) if !plain.is_empty() => plain,
        _ => name,
    };
    let mut text = Bounded::default();
    // Rust first: its old scheme is valid as C++'s.
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        if write!(text, "{rust:#}").is_ok() {
            return text.0;
        }
    } else if name.starts_with("_Z")
        && let Ok((symbol, tail)) = BorrowedSymbol::with_tail(name.as_bytes())
    {
        // What follows tells parts of a function apart (`.cold`, `.part.0`). If it is
        // anything else, only the name itself was understood.
        let is_whole = tail.is_empty() || tail.starts_with(b".");
        let (options, tail) = if is_whole {
            (options(name), tail)
        } else {
            (options(name).no_params().no_return_type(), &b""[..])
        };
        if symbol.structured_demangle(&mut text, &options).is_ok()
            && write!(text, "{}", String::from_utf8_lossy(tail)).is_ok()
        {
            return text.0;
        }
    }
    shorten(name).to_owned()
}

fn options(name: &str) -> DemangleOptions {
    let options = DemangleOptions::new().hide_expression_literal_types();
    // cpp_demangle 0.5.1 takes the first parameter of a constructor that is a
    // template for a result. Rather none than wrong ones.
    let constructors = ["C1I", "C2I", "C3I", "C4I", "C5I"];
    if constructors.iter().any(|mark| name.contains(mark)) {
        options.no_params()
    } else {
        options
    }
}

/// As much of a text as is kept.
pub fn shorten(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST_NAME)]
}

/// A text that refuses to grow beyond [`LONGEST_NAME`].
#[derive(Default)]
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > LONGEST_NAME {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_each_language_are_as_in_the_source() {
        for (mangled, plain) in [
            ("malloc", "malloc"),
            ("_ZN3app5Cache6insertEi", "app::Cache::insert(int)"),
            ("_ZN3app5Cache6insertEi.cold", "app::Cache::insert(int)"),
            ("_Znwm", "operator new(unsigned long)"),
            (
                "_ZN5alloc7raw_vec6finish17h0123456789abcdefE",
                "alloc::raw_vec::finish",
            ),
            ("_RNvCs15kBYyAo9fc_7mycrate7example", "mycrate::example"),
            // By rustc 1.95, `-C symbol-mangling-version=v0`, and legacy.
            (
                "_RNCNvXNtCs6GmmlP4bgsG_1r4deepINtB4_1SReENtB4_4Make4make0B6_",
                "<r::deep::S<&str> as r::deep::Make>::make::{closure#0}",
            ),
            (
                "_ZN53_$LT$r..deep..S$LT$T$GT$$u20$as$u20$r..deep..Make$GT$4make28_$u7b$$u7b$closure$u7d$$u7d$17h1b4b54e8bd884636E",
                "<r::deep::S<T> as r::deep::Make>::make::{{closure}}",
            ),
            // By g++ 12: a template's constructor, which is one itself.
            (
                "_ZNSt10_Head_baseILm0EOiLb0EEC2IiEEOT_",
                "std::_Head_base<0, int&&, false>::_Head_base<int>",
            ),
            // The same as debug information names it, before it is in a file.
            (
                "_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEC4IS3_EEmcRKS3_",
                "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >\
                 ::basic_string<std::allocator<char> >",
            ),
            ("_Zbroken", "_Zbroken"),
            ("", ""),
        ] {
            assert!(
                demangle(mangled).starts_with(plain),
                "{mangled}: {}",
                demangle(mangled)
            );
        }
    }

    #[test]
    fn versions_and_wrong_parameters_are_not_shown() {
        assert_eq!(demangle("malloc@@GLIBC_2.2.5"), "malloc");
        assert_eq!(demangle("@strange"), "@strange");
        let constructor = demangle("_ZNSt10_Head_baseILm0EOiLb0EEC2IiEEOT_");
        assert!(!constructor.contains('('), "{constructor}");
    }

    /// cpp_demangle 0.5.1 does not know `!` among the arguments of a template.
    #[test]
    fn of_a_result_that_is_not_understood_nothing_is_shown() {
        let name = "_ZSt11make_sharedIiJiEESt10shared_ptrINSt9enable_ifIXntsrSt8is_arrayIT_E5value\
                    ESC_E4typeEEDpOT0_";
        assert_eq!(demangle(name), "std::make_shared<int, int>");
    }

    #[test]
    fn a_name_that_expands_without_end_stays_mangled() {
        // f(), whose argument is a pair of two pairs of two pairs, and so on:
        // the second is always a reference to the first.
        let depth = 12;
        let seconds: String = ('0'..='9')
            .chain('A'..)
            .take(depth)
            .map(|n| format!("S{n}_E"))
            .collect();
        let name = format!("_Z1fSt4pairI{}iiE{seconds}", "S_I".repeat(depth));
        let unbounded = cpp_demangle::Symbol::new(&name)
            .unwrap()
            .demangle()
            .unwrap();
        assert!(unbounded.len() > LONGEST_NAME, "{unbounded}");
        assert_eq!(demangle(&name), name);
        let long = "é".repeat(LONGEST_NAME);
        assert!(demangle(&long).len() <= LONGEST_NAME);
    }
}
