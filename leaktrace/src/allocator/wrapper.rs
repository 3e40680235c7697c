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
    // GLib.
    "g_malloc",
    "g_malloc0",
    "g_malloc_n",
    "g_malloc0_n",
    "g_realloc",
    "g_realloc_n",
    "g_try_malloc",
    "g_try_malloc0",
    "g_try_realloc",
    "g_memdup2",
    "g_slice_alloc",
    "g_slice_alloc0",
    "g_strdup",
    "g_strndup",
    // OpenSSL.
    "CRYPTO_malloc",
    "CRYPTO_zalloc",
    "CRYPTO_realloc",
    "CRYPTO_strdup",
    // Python, which has several layers of them, and Perl.
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "_PyObject_Malloc",
    "_PyObject_Calloc",
    "_PyObject_Realloc",
    "PyMem_Malloc",
    "PyMem_Calloc",
    "PyMem_Realloc",
    "PyMem_RawMalloc",
    "PyMem_RawCalloc",
    "PyMem_RawRealloc",
    "_PyMem_RawMalloc",
    "_PyMem_RawCalloc",
    "_PyMem_RawRealloc",
    "Perl_safesysmalloc",
    "Perl_safesyscalloc",
    "Perl_safesysrealloc",
    // By custom, what ends the program when there is no memory.
    "xmalloc",
    "xcalloc",
    "xrealloc",
    "xstrdup",
];

/// Beginnings of mangled and demangled C++ names (Itanium ABI: `nw` is
/// `operator new`, `na` is `operator new[]`).
const CPP_PREFIXES: &[&str] = &[
    "_Znw",
    "_Zna",
    "operator new(",
    "operator new[](",
    // libstdc++
    "std::_Vector_base<",
    // libc++
    "std::__1::__libcpp_allocate",
    "std::__1::__libcpp_operator_new",
];

/// Beginnings of the names of C++'s allocators, which do other things besides.
const CPP_ALLOCATORS: &[&str] = &[
    "std::__new_allocator<",
    "__gnu_cxx::new_allocator<",
    "std::allocator<",
    "std::allocator_traits<",
    "std::__1::allocator<",
    "std::__1::allocator_traits<",
];

/// By what libstdc++'s containers and pointers get their memory: no program may use
/// such names. Templates of functions are named after what they return.
const CPP_RESERVED: &[&str] = &[
    "std::__allocate_guarded<",
    "::_Auto_node::_Auto_node",
    "::_M_allocate",
    "::_M_create",
    "::_M_get_node(",
    "::_M_initialize_map(",
    "::_M_mutate(",
];

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
    "alloc::alloc::Global::",
    "alloc::fmt::format::format_inner",
    "alloc::raw_vec::",
    "alloc::vec::from_elem",
    "hashbrown::raw::",
    "<alloc::alloc::Global>::",
    "<alloc::alloc::Global as core::alloc::Allocator>::",
    "<alloc::raw_vec::",
    "<hashbrown::raw::",
    "std::alloc::System::alloc_impl",
    "std::sys::alloc::",
    "std::sys::pal::unix::alloc::",
    "<std::alloc::System as core::alloc::",
];

/// Traits of Rust's library whose methods do nothing else, whoever has them.
const RUST_TRAITS: &[&str] = &[
    " as alloc::slice::hack::ConvertVec>::",
    " as alloc::vec::spec_from_elem::SpecFromElem>::",
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
    is_cpp(name) || is_rust(name)
}

fn is_cpp(name: &str) -> bool {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    begins(CPP_PREFIXES)
        || begins(CPP_ALLOCATORS) && name.contains("::allocate(")
        || CPP_RESERVED.iter().any(|part| name.contains(part))
}

fn is_rust(name: &str) -> bool {
    // What the library's functions are called that are told an allocator.
    let takes_allocator = || {
        let (path, last) = name.rsplit_once("::").unwrap_or_default();
        let is_hash = last.len() == 17 && last.starts_with('h');
        let path = if is_hash { path } else { name };
        path.ends_with("_in") && (path.starts_with("alloc::") || path.starts_with("<alloc::"))
    };
    RUST_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || RUST_TRAITS.iter().any(|name_of| name.contains(name_of))
        || takes_allocator()
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
            "std::_Vector_base<char, std::allocator<char> >::_M_create_storage(unsigned long)",
            "std::_Rb_tree<int, std::pair<int const, X> >::_M_get_node()",
            "void std::__cxx11::basic_string<char>::_M_mutate(unsigned long)",
            "std::__allocated_ptr<A> std::__allocate_guarded<A>(A&)",
            "g_malloc0",
            "_PyObject_Malloc",
            "xmalloc",
            "__rust_alloc",
            "<alloc::alloc::Global>::alloc_impl_runtime",
            "<u8 as alloc::vec::spec_from_elem::SpecFromElem>::from_elem",
            "alloc::vec::Vec<T,A>::with_capacity_in",
            "alloc::vec::Vec<T,A>::with_capacity_in::h0123456789abcdef",
            "<hashbrown::raw::RawTable<(i32, i32)>>::reserve_rehash",
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
            "std::allocator_traits<std::allocator<X> >::construct<X>(std::allocator<X>&, X*)",
            "std::thread::_State_impl<std::thread::_Invoker<std::tuple<X> > >::_M_run()",
            "alloc::vec::Vec<T,A>::push",
            "alloc::string::String::with_capacity",
            "program::read_in",
            "PyList_Append",
            "allocate",
            "",
        ] {
            assert!(!is_allocation_wrapper(name), "{name}");
        }
    }
}
