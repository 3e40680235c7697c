//! Where threads begin.

use crate::model::Frame;

/// Functions that nothing called: the kernel enters them, or they switch to a
/// new thread's stack. glibc's and musl's names; `__clone3` and the `__GI_`
/// names are internal, so a libc without a symbol table does not tell them.
const THREAD_STARTS: [&str; 7] = [
    "_start",
    "clone",
    "__clone",
    "__GI___clone",
    "clone3",
    "__clone3",
    "__GI___clone3",
];

/// Whether a stack whose outermost frame this is begins where its thread did.
#[must_use]
pub fn is_thread_start(outermost: &Frame) -> bool {
    !outermost.inlined
        && outermost
            .symbol
            .as_deref()
            .is_some_and(|symbol| THREAD_STARTS.contains(&symbol))
}
