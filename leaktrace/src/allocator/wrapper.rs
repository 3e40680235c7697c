//! Functions that allocate on someone else's behalf: the interesting frame of
//! a stack is the first one beyond them.

use super::catalogue::FAMILIES;

/// Whole names of C functions whose result the caller has to free, and of
/// what libraries name them inside.
const C_NAMES: &[&str] = &[
    "asprintf",
    "vasprintf",
    "__asprintf",
    "__asprintf_chk",
    "__vasprintf_chk",
    "__vasprintf_internal",
    "getdelim",
    "getline",
    "__getdelim",
    "_IO_getdelim",
    "_IO_getline",
    "strdup",
    "__strdup",
    "strndup",
    "__strndup",
    "wcsdup",
    "__wcsdup",
    // What debug symbols call glibc's own functions.
    "__libc_malloc",
    "__libc_calloc",
    "__libc_realloc",
    "__libc_reallocarray",
    "__libc_memalign",
    "__libc_valloc",
    "__libc_pvalloc",
    "__libc_free",
    "__posix_memalign",
    "_int_malloc",
    "_int_realloc",
    "_int_memalign",
    "_mid_memalign",
    "sysmalloc",
    "tcache_init",
];

/// Beginnings of mangled and demangled C++ names (Itanium ABI: `nw` is
/// `operator new`, `na` is `operator new[]`).
const CPP_PREFIXES: &[&str] = &[
    "_Znw",
    "_Zna",
    "operator new(",
    "operator new[](",
    "std::__new_allocator<",
    "__gnu_cxx::new_allocator<",
    "std::allocator<",
    "std::allocator_traits<",
    "std::_Vector_base<",
    "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >::_M_create(",
    // libc++
    "std::__1::allocator<",
    "std::__1::allocator_traits<",
    "std::__1::__libcpp_allocate",
    "std::__1::__libcpp_operator_new",
];

/// Methods that a C++ allocator's frames are about, when the prefix matches a
/// whole class.
const CPP_METHODS: &[&str] = &["::allocate(", "::_M_allocate(", "::_M_create("];

/// Beginnings of Rust names, demangled (both manglings).
const RUST_PREFIXES: &[&str] = &[
    "__rust_alloc",
    "__rust_realloc",
    "__rdl_alloc",
    "__rdl_realloc",
    "__rg_alloc",
    "__rg_realloc",
    "__rustc::__rust_alloc",
    "__rustc::__rust_realloc",
    "__rustc::__rdl_alloc",
    "__rustc::__rdl_realloc",
    "alloc::alloc::alloc",
    "alloc::alloc::realloc",
    "alloc::alloc::exchange_malloc",
    "alloc::alloc::Global::alloc_impl",
    "alloc::alloc::Global::grow_impl",
    "alloc::raw_vec::",
    "<alloc::alloc::Global as core::alloc::Allocator>::",
    "<alloc::raw_vec::",
    "std::alloc::System::alloc_impl",
    "std::sys::alloc::",
    "std::sys::pal::unix::alloc::",
    "<std::alloc::System as core::alloc::",
];

/// Whether a function of this name only allocates for its caller: `operator
/// new`, `strdup`, an allocator class of a standard library, or a function of
/// an allocator itself. Takes names mangled or not, with or without `@VERSION`
/// and Rust's hash. A class's own `operator new` is the program's.
#[must_use]
pub fn is_allocation_wrapper(symbol_name: &str) -> bool {
    let name = symbol_name.split('@').next().unwrap_or(symbol_name);
    let name = name.strip_prefix("__GI_").unwrap_or(name).trim_start();
    if C_NAMES.contains(&name) || is_watched(name) {
        return true;
    }
    if RUST_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return true;
    }
    CPP_PREFIXES.iter().any(|prefix| {
        name.starts_with(prefix)
            && (!prefix.ends_with('<') || CPP_METHODS.iter().any(|method| name.contains(method)))
    })
}

fn is_watched(name: &str) -> bool {
    // glibc's internal aliases have the prefix.
    let plain = name.strip_prefix("___").unwrap_or(name);
    FAMILIES
        .iter()
        .flat_map(|family| family.functions)
        .any(|function| function.name == name || function.name == plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_known_by_all_their_names() {
        for name in [
            "malloc",
            "__libc_malloc",
            "__GI___libc_malloc",
            "strdup",
            "__GI___strdup",
            "strndup",
            "asprintf",
            "getline",
            "_Znwm",
            "_Znam",
            "_ZnwmRKSt9nothrow_t",
            "_ZnwmSt11align_val_t",
            "operator new(unsigned long)",
            "operator new[](unsigned long, std::nothrow_t const&)",
            "operator new(unsigned long)@@GLIBCXX_3.4",
            "__gnu_cxx::new_allocator<int>::allocate(unsigned long, void const*)",
            "std::_Vector_base<int, std::allocator<int> >::_M_allocate(unsigned long)",
            "__rust_alloc",
            "alloc::alloc::alloc::h0123456789abcdef",
            "alloc::raw_vec::RawVec<T,A>::allocate_in",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
        ] {
            assert!(is_allocation_wrapper(name), "{name}");
        }
    }

    #[test]
    fn functions_of_the_program_are_not_wrappers() {
        for name in [
            "main",
            "Session::create(int)",
            "Session::operator new(unsigned long)",
            "_ZN7SessionnwEm",
            "my_strdup",
            "malloc_everything",
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "alloc::vec::Vec<T,A>::push",
            "allocate",
            "",
        ] {
            assert!(!is_allocation_wrapper(name), "{name}");
        }
    }
}
