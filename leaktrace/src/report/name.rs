//! Names of functions and files: made harmless, and made short.
//!
//! Symbol names, paths and command names belong to the target, which may be
//! hostile: they could carry escape sequences to the terminal of root.

use std::borrow::Cow;

use crate::{
    model::Frame,
    report::{
        line::{head, tail, width},
        templates::without_defaults,
    },
};

/// Stands for template arguments that are left out.
const COLLAPSED: &str = "<…>";

/// The text without what could steer a terminal, hide or reorder what is seen,
/// or make XML invalid: control and format characters become `U+FFFD`, line
/// breaks and tabs a space.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    text.chars()
        .map(|character| match character {
            '\n' | '\r' | '\t' => ' ',
            _ if is_unsafe(character) => char::REPLACEMENT_CHARACTER,
            _ => character,
        })
        .collect()
}

/// Control characters, Unicode's format characters (category Cf) with the
/// variation selectors, line separators and noncharacters.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            | '\u{600}'..='\u{605}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1345f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
        || character as u32 & 0xfffe == 0xfffe
}

/// The last component of a path.
#[must_use]
pub fn file_name(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => path,
    }
}

/// What a frame is called: its function, without a standard template's default
/// arguments, or where its code lies when no symbol
/// covers it (`[libfoo.so+0x1234]`).
#[must_use]
pub fn function(frame: &Frame) -> Cow<'_, str> {
    match (&frame.symbol, &frame.module) {
        (Some(symbol), _) if !symbol.is_empty() => match without_defaults(symbol) {
            Cow::Borrowed(symbol) => clean(symbol),
            Cow::Owned(short) => Cow::Owned(clean(&short).into_owned()),
        },
        (_, Some(module)) => {
            let module = clean(file_name(module));
            let module = module.trim_matches(['[', ']']);
            Cow::Owned(format!("[{module}+{:#x}]", frame.file_offset))
        }
        (_, None) => Cow::Owned(format!("[{:#x}]", frame.file_offset)),
    }
}

/// `file.cc:88`, or just the file without a line; `None` without a source.
#[must_use]
pub fn place(frame: &Frame, whole_path: bool) -> Option<String> {
    let source = frame.source.as_deref()?;
    let source = clean(if whole_path {
        source
    } else {
        file_name(source)
    });
    Some(match frame.line {
        Some(line) => format!("{source}:{line}"),
        None => source.into_owned(),
    })
}

/// The name without its parameters and result type:
/// `void foo<int>(int) const` is `foo<int>`. A name that is no C++ signature
/// (Rust, Go, C) stays as it is.
#[must_use]
pub fn without_signature(name: &str) -> &str {
    let Some(parts) = Parts::of(name) else {
        return name;
    };
    let end = parts.parameters.unwrap_or(name.len());
    // Only a template's instance has its result type in its name; a space after
    // `operator` belongs to the name (`operator new`).
    let before = parts.operator.unwrap_or(end);
    let start = match parts.parameters {
        Some(_) => parts.spaces.iter().rfind(|space| **space < before),
        None => None,
    };
    let start = start.map_or(0, |space| space + 1);
    match name[start..end].trim() {
        "" => name,
        rest => rest,
    }
}

/// The name with its template arguments left out: `map<int, string>::find` is
/// `map<…>::find`, `<Vec<T> as Extend<T>>::extend` is `<Vec<…>>::extend`.
#[must_use]
pub fn collapsed(name: &str) -> Cow<'_, str> {
    let Some(parts) = Parts::of(name) else {
        return Cow::Borrowed(name);
    };
    if parts.angles.is_empty() {
        return Cow::Borrowed(name);
    }
    let mut text = String::with_capacity(name.len());
    let mut copied = 0;
    for &(open, close) in &parts.angles {
        text.push_str(&name[copied..open]);
        let inner = &name[open + 1..close];
        if open == 0 {
            // Rust's `<Type as Trait>::method`: the type is what matters.
            let subject = split_outside(inner, " as ").map_or(inner, |(subject, _)| subject);
            text.push('<');
            text.push_str(&collapsed(subject));
            text.push('>');
        } else {
            text.push_str(COLLAPSED);
        }
        copied = close + 1;
    }
    text.push_str(&name[copied..]);
    Cow::Owned(text)
}

/// What is in the angle brackets that a name begins with.
pub(super) fn first_in_angles(name: &str) -> Option<&str> {
    let parts = Parts::of(name)?;
    let (open, close) = parts.angles.first().filter(|(open, _)| *open == 0)?;
    name.get(open + 1..*close)
}

/// What is before and after a separator that is in no brackets.
pub(super) fn split_outside<'a>(text: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    let mut depth = 0_u32;
    for (at, character) in text.char_indices() {
        match character {
            '<' | '(' | '[' | '{' => depth += 1,
            // An arrow's head closes nothing.
            '>' if text[..at].ends_with('-') => {}
            '>' | ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 && text[at..].starts_with(separator) => {
                return Some((&text[..at], &text[at + separator.len()..]));
            }
            _ => {}
        }
    }
    None
}

/// The name in at most `columns`, by giving up, in this order: parameters,
/// template arguments, leading qualifiers, its middle.
#[must_use]
pub fn fitted(name: &str, columns: usize) -> Cow<'_, str> {
    if width(name) <= columns {
        return Cow::Borrowed(name);
    }
    let bare = without_signature(name);
    if width(bare) <= columns {
        return Cow::Borrowed(bare);
    }
    let short = collapsed(bare);
    if width(&short) <= columns {
        return short;
    }
    for at in qualifier_ends(&short) {
        if width(&short[at..]) + 3 <= columns {
            return Cow::Owned(format!("…::{}", &short[at..]));
        }
    }
    let last = qualifier_ends(&short).pop().unwrap_or(0);
    Cow::Owned(middle_cut(&short[last..], columns))
}

/// Where each component after the first begins.
fn qualifier_ends(name: &str) -> Vec<usize> {
    Parts::of(name).map_or_else(Vec::new, |parts| parts.qualifiers)
}

/// Beginning and end with `…` between.
fn middle_cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let Some(room) = columns.checked_sub(1) else {
        return String::new();
    };
    // The beginning of a name says more than its end.
    let end = tail(text, room / 3);
    let start = head(text, room - width(end));
    format!("{start}…{end}")
}

/// Where a demangled name's parts are, as byte offsets outside of brackets.
#[derive(Debug, Default)]
struct Parts {
    /// Start of the list of parameters.
    parameters: Option<usize>,
    /// The word `operator`.
    operator: Option<usize>,
    /// Spaces.
    spaces: Vec<usize>,
    /// Outermost `<` with its `>`.
    angles: Vec<(usize, usize)>,
    /// First byte after each `::`.
    qualifiers: Vec<usize>,
}

impl Parts {
    /// `None` when brackets do not match.
    fn of(name: &str) -> Option<Self> {
        let bytes = name.as_bytes();
        let mut parts = Self::default();
        let mut open: Vec<(u8, usize)> = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let length = operator_length(name, at);
            if length > 0 {
                if open.is_empty() {
                    parts.operator = parts.operator.or(Some(at));
                }
                at += length;
                continue;
            }
            let byte = bytes[at];
            match byte {
                // An arrow's head closes nothing.
                b'-' if bytes.get(at + 1) == Some(&b'>') => at += 1,
                b'(' | b'<' | b'[' | b'{' => open.push((byte, at)),
                b')' | b'>' | b']' | b'}' => {
                    let (opener, start) = open.pop()?;
                    if opener != opposite(byte) {
                        return None;
                    }
                    if open.is_empty() && byte == b'>' {
                        parts.angles.push((start, at));
                    }
                    if open.is_empty() && byte == b')' && is_after_parameters(&name[at + 1..]) {
                        parts.parameters = parts.parameters.or(Some(start));
                    }
                }
                b' ' if open.is_empty() => parts.spaces.push(at),
                b':' if open.is_empty() && at > 0 && bytes[at - 1] == b':' => {
                    parts.qualifiers.push(at + 1);
                }
                _ => {}
            }
            at += 1;
        }
        // `(…)` as the whole name is no list of parameters.
        parts.parameters = parts.parameters.filter(|start| *start > 0);
        open.is_empty().then_some(parts)
    }
}

fn opposite(closer: u8) -> u8 {
    match closer {
        b')' => b'(',
        b'>' => b'<',
        b']' => b'[',
        _ => b'{',
    }
}

/// Length of the word `operator` at `at`, with the symbol after it, whose
/// brackets match nothing; 0 when it is not there.
pub(super) fn operator_length(name: &str, at: usize) -> usize {
    const WORD: &str = "operator";
    const SYMBOLS: [&str; 13] = [
        "()", "[]", "<=>", "<<=", ">>=", "->*", "<<", ">>", "<=", ">=", "->", "<", ">",
    ];
    let Some(rest) = name.get(at..).and_then(|rest| rest.strip_prefix(WORD)) else {
        return 0;
    };
    let part_of_word =
        |neighbour: Option<char>| neighbour.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if part_of_word(name[..at].chars().next_back()) || part_of_word(rest.chars().next()) {
        return 0;
    }
    let symbol = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol));
    WORD.len() + symbol.map_or(0, |symbol| symbol.len())
}

/// Whether `rest` is what may follow a list of parameters: qualifiers and the
/// compiler's `[clone .cold]`.
fn is_after_parameters(rest: &str) -> bool {
    let mut rest = rest.trim_start();
    'next: while !rest.is_empty() {
        for word in ["const", "volatile", "noexcept", "&&", "&"] {
            if let Some(shorter) = rest.strip_prefix(word) {
                rest = shorter.trim_start();
                continue 'next;
            }
        }
        return rest.starts_with("[clone") || rest.starts_with("(.") || rest.starts_with("[abi:");
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_sequences_and_reordering_do_not_survive() {
        assert_eq!(
            clean("a\x1b[31mb\u{9b}c\u{202e}d\ne"),
            "a\u{fffd}[31mb\u{fffd}c\u{fffd}d e"
        );
        assert!(matches!(clean("plain 漢字 e\u{301}"), Cow::Borrowed(_)));
    }

    #[test]
    fn parameters_and_result_types_are_dropped() {
        for (name, bare) in [
            ("malloc", "malloc"),
            ("Session::create(User const&)", "Session::create"),
            ("void emplace<int, char>(int&&)", "emplace<int, char>"),
            (
                "std::shared_ptr<A> std::make_shared<A>(B&&)",
                "std::make_shared<A>",
            ),
            ("Foo::bar(int) const [clone .cold]", "Foo::bar"),
            (
                "(anonymous namespace)::load(char const*)",
                "(anonymous namespace)::load",
            ),
            ("Table::operator()(int) const", "Table::operator()"),
            ("operator new(unsigned long)", "operator new"),
            ("operator new[](unsigned long)", "operator new[]"),
            (
                "Foo::operator std::string() const",
                "Foo::operator std::string",
            ),
            (
                "std::ostream& operator<< <char>(std::ostream&)",
                "operator<< <char>",
            ),
            (
                "std::function<void (int)>::operator()(int) const",
                "std::function<void (int)>::operator()",
            ),
            ("main.(*Server).handle", "main.(*Server).handle"),
            (
                "<alloc::vec::Vec<T> as core::ops::Drop>::drop",
                "<alloc::vec::Vec<T> as core::ops::Drop>::drop",
            ),
            (
                "core::ops::function::FnOnce::call_once{{vtable.shim}}",
                "core::ops::function::FnOnce::call_once{{vtable.shim}}",
            ),
            ("unbalanced<(", "unbalanced<("),
        ] {
            assert_eq!(without_signature(name), bare, "{name}");
        }
    }

    #[test]
    fn template_arguments_collapse_at_the_outermost_level() {
        for (name, short) in [
            ("std::map<int, std::vector<int>>::find", "std::map<…>::find"),
            ("a<b>::c<d>", "a<…>::c<…>"),
            ("operator<< <char>", "operator<< <…>"),
            ("Ptr<T>::operator->", "Ptr<…>::operator->"),
            (
                "<alloc::vec::Vec<T> as Extend<T>>::extend",
                "<alloc::vec::Vec<…>>::extend",
            ),
            ("<fn() -> u8 as Call>::call", "<fn() -> u8>::call"),
            ("plain", "plain"),
        ] {
            assert_eq!(collapsed(name), short, "{name}");
        }
    }

    #[test]
    fn the_innermost_component_is_kept_longest() {
        let name = "net::http::Server<Config, Handler>::accept_connection(int)";
        assert_eq!(fitted(name, 80), name);
        assert_eq!(
            fitted(name, 54),
            "net::http::Server<Config, Handler>::accept_connection"
        );
        assert_eq!(fitted(name, 40), "net::http::Server<…>::accept_connection");
        assert_eq!(fitted(name, 32), "…::Server<…>::accept_connection");
        assert_eq!(fitted(name, 20), "…::accept_connection");
        assert_eq!(fitted(name, 12), "accept_c…ion");
        assert_eq!(fitted(name, 0), "");
    }

    #[test]
    fn code_without_a_symbol_is_named_by_its_place() {
        let mut frame = Frame {
            symbol: None,
            symbol_offset: 0,
            module: Some("/usr/lib/libfoo.so.1".into()),
            file_offset: 0x1234,
            build_id: None,
            source: None,
            line: None,
            inlined: false,
            kind: crate::model::FrameKind::Program,
        };
        assert_eq!(function(&frame), "[libfoo.so.1+0x1234]");
        frame.module = Some("[vdso]".into());
        assert_eq!(function(&frame), "[vdso+0x1234]");
        frame.module = None;
        assert_eq!(function(&frame), "[0x1234]");
    }

    proptest! {
        #[test]
        fn any_name_fits_and_never_panics(name in "[a-c漢\u{301}<>(){}\\[\\]: &*,\\-]{0,40}|\\PC{0,40}", columns in 0_usize..50) {
            prop_assert!(width(&fitted(&name, columns)) <= columns);
            prop_assert!(name.contains(without_signature(&name)));
            let kept = collapsed(&name).matches("::").count();
            prop_assert!(kept <= name.matches("::").count());
        }
    }
}
