//! Names of instances of C++'s standard templates, as people write them:
//! without the arguments that nobody gives.

use std::borrow::Cow;

use super::name::operator_length;

/// Aliases of the standard's, by template and argument.
const ALIASES: [(&str, &str, &str); 8] = [
    ("std::basic_string", "char", "std::string"),
    ("std::basic_string", "wchar_t", "std::wstring"),
    ("std::basic_string_view", "char", "std::string_view"),
    ("std::basic_ostream", "char", "std::ostream"),
    ("std::basic_istream", "char", "std::istream"),
    ("std::basic_stringstream", "char", "std::stringstream"),
    ("std::basic_ostringstream", "char", "std::ostringstream"),
    ("std::basic_istringstream", "char", "std::istringstream"),
];

/// Namespaces that the libraries put their own into, unseen in the source.
const INLINE_NAMESPACES: [&str; 3] = ["std::__cxx11::", "std::__1::", "std::__ndk1::"];

/// Templates that are the default for an argument of others, with the first of
/// these as their own.
const DEFAULTS: [&str; 5] = [
    "std::char_traits<",
    "std::default_delete<",
    "std::less<",
    "std::hash<",
    "std::equal_to<",
];

/// How deeply instances may nest in a name that is shortened. Hostile ones go on.
const DEEPEST: usize = 64;

/// The name with the arguments of standard templates that are the default left
/// out: `std::vector<int, std::allocator<int> >` is `std::vector<int>`.
#[must_use]
pub fn without_defaults(name: &str) -> Cow<'_, str> {
    // Nothing else has any.
    if !name.contains("std::") {
        return Cow::Borrowed(name);
    }
    match shortened(name, DEEPEST) {
        Some(short) if short != name => Cow::Owned(short),
        _ => Cow::Borrowed(name),
    }
}

/// `None` when brackets do not match, or nest too deeply.
fn shortened(text: &str, deepest: usize) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let at = text.len() - rest.len();
        let operator = operator_length(text, at);
        if operator > 0 {
            out.push_str(&rest[..operator]);
            rest = &rest[operator..];
        } else if character == '<' {
            let inner = &rest[1..closing(rest)?];
            let deeper = deepest.checked_sub(1)?;
            let arguments = split(inner).into_iter();
            let arguments: Option<Vec<_>> = arguments.map(|it| shortened(it, deeper)).collect();
            push_instance(&mut out, arguments?);
            rest = &rest[inner.len() + 2..];
        } else if let Some(inside) = inline_namespace(rest) {
            out.push_str("std::");
            rest = inside;
        } else {
            out.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    Some(out)
}

fn inline_namespace(text: &str) -> Option<&str> {
    let mut all = INLINE_NAMESPACES.iter();
    all.find_map(|namespace| text.strip_prefix(namespace))
}

/// Adds arguments to the name of a template that is at the end of the text.
fn push_instance(out: &mut String, mut arguments: Vec<String>) {
    let start = out
        .rfind(|character: char| !(character.is_alphanumeric() || "_:".contains(character)))
        .map_or(0, |before| before + 1);
    let template = &out[start..];
    if template.starts_with("std::") {
        while arguments.len() > 1 && is_default(&arguments) {
            arguments.pop();
        }
        let alias = ALIASES
            .iter()
            .find(|(name, argument, _)| *name == template && arguments == [*argument]);
        if let Some((.., alias)) = alias {
            out.truncate(start);
            out.push_str(alias);
            return;
        }
    }
    out.push('<');
    out.push_str(&arguments.join(", "));
    out.push('>');
}

/// Whether the last of a standard template's arguments is what it is when none
/// is given.
fn is_default(arguments: &[String]) -> bool {
    let (Some(first), Some(last)) = (arguments.first(), arguments.last()) else {
        return false;
    };
    // An allocator's argument follows from the others.
    let is_of_first = |template: &str| {
        let argument = last.strip_prefix(template);
        argument.and_then(|rest| rest.strip_suffix('>')) == Some(first.as_str())
    };
    last.starts_with("std::allocator<") && last.ends_with('>')
        || DEFAULTS.iter().any(|template| is_of_first(template))
}

/// Where the `>` is that closes the `<` at the beginning.
fn closing(text: &str) -> Option<usize> {
    let mut end = None;
    walk(text, |at, depth, byte| {
        if byte == b'>' && depth == 0 {
            end = Some(at);
        }
        end.is_none()
    });
    end
}

/// The parts between commas outside of brackets.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    walk(text, |at, depth, byte| {
        if byte == b',' && depth == 0 {
            parts.push(text[start..at].trim());
            start = at + 1;
        }
        true
    });
    parts.push(text[start..].trim());
    parts
}

/// Goes over the bytes that are not parts of operators' names, with how many
/// brackets are open after each, until told to stop.
fn walk(text: &str, mut on: impl FnMut(usize, usize, u8) -> bool) {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        let operator = operator_length_at(text, at);
        if operator > 0 {
            at += operator;
            continue;
        }
        match byte {
            b'-' if bytes.get(at + 1) == Some(&b'>') => {
                at += 2;
                continue;
            }
            b'(' | b'<' | b'[' | b'{' => depth += 1,
            b')' | b'>' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !on(at, depth, byte) {
            return;
        }
        at += 1;
    }
}

fn operator_length_at(text: &str, at: usize) -> usize {
    if text.is_char_boundary(at) {
        operator_length(text, at)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arguments_that_nobody_gives_are_left_out() {
        for (name, short) in [
            (
                "std::vector<std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >, std::allocator<std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > > >::push_back(std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > const&)",
                "std::vector<std::string>::push_back(std::string const&)",
            ),
            (
                "std::map<int, float, std::less<int>, std::allocator<std::pair<int const, float> > >::operator[](int const&)",
                "std::map<int, float>::operator[](int const&)",
            ),
            (
                "std::map<int, float, std::greater<int>, std::allocator<std::pair<int const, float> > >::find",
                "std::map<int, float, std::greater<int>>::find",
            ),
            (
                "std::set<int, std::less<void>, std::allocator<int> >::find",
                "std::set<int, std::less<void>>::find",
            ),
            (
                "std::__1::unique_ptr<Order, std::__1::default_delete<Order> >::reset(Order*)",
                "std::unique_ptr<Order>::reset(Order*)",
            ),
            (
                "std::basic_ostream<char, std::char_traits<char> >& std::operator<< <std::char_traits<char> >(std::basic_ostream<char, std::char_traits<char> >&, char const*)",
                "std::ostream& std::operator<< <std::char_traits<char>>(std::ostream&, char const*)",
            ),
            (
                "std::basic_string<char16_t, std::char_traits<char16_t>, std::allocator<char16_t> >::size() const",
                "std::basic_string<char16_t>::size() const",
            ),
            // Somebody else's may have other defaults.
            (
                "pool::vector<int, std::allocator<int> >::grow()",
                "pool::vector<int, std::allocator<int>>::grow()",
            ),
            (
                "std::vector<int, pool::allocator<int> >::grow()",
                "std::vector<int, pool::allocator<int>>::grow()",
            ),
            (
                "std::allocator<int>::allocate(unsigned long)",
                "std::allocator<int>::allocate(unsigned long)",
            ),
            (
                "std::function<void (std::vector<int, std::allocator<int> >)>::operator()() const",
                "std::function<void (std::vector<int>)>::operator()() const",
            ),
            (
                "bool std::operator< <int>(int)",
                "bool std::operator< <int>(int)",
            ),
            (
                "<alloc::vec::Vec<T> as std::ops::Drop>::drop",
                "<alloc::vec::Vec<T> as std::ops::Drop>::drop",
            ),
            (
                "<fn() -> std::io::Error as Call>::call",
                "<fn() -> std::io::Error as Call>::call",
            ),
            ("std::unbalanced<(", "std::unbalanced<("),
        ] {
            assert_eq!(without_defaults(name), short);
        }
    }

    proptest! {
        #[test]
        fn any_name_is_no_longer_than_before(name in "(std::(allocator|vector)?|[a-c漢<>(), -]|operator){0,30}") {
            let short = without_defaults(&name).into_owned();
            prop_assert!(short.len() <= name.len() + name.matches(',').count());
            prop_assert_eq!(without_defaults(&short).into_owned(), short.clone());
        }
    }
}
