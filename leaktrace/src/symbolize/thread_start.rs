//! Where threads begin.

use super::protocol::Function;
use crate::arch::THREAD_EXITS;

/// Functions that nothing called: the kernel enters them, or they switch to a
/// new thread's stack. Names of glibc and musl; some are internal, and a libc
/// without a symbol table does not tell them.
const NAMES: [&str; 7] = [
    "_start",
    "clone",
    "__clone",
    "__GI___clone",
    "clone3",
    "__clone3",
    "__GI___clone3",
];

/// Longest distance from a program's entry point at which the code there calls
/// the C library: `_start` is some 40 bytes long.
const ENTRY_CODE: u64 = 64;

/// Whether a stack whose outermost function this is begins where its thread did,
/// as far as names tell.
pub fn is_thread_start(outermost: &Function) -> bool {
    !outermost.inlined
        && outermost
            .symbol
            .as_deref()
            .is_some_and(|symbol| NAMES.contains(&symbol))
}

/// Whether code tells it, where names do not: the byte looked up at `address`
/// ends a call in the code at the program's entry point, or one after which the
/// thread exits. `code` is what follows that byte.
pub fn is_thread_start_code(address: u64, entry: u64, code: &[u8]) -> bool {
    let at_entry = entry != 0
        && address
            .checked_sub(entry)
            .is_some_and(|distance| distance < ENTRY_CODE);
    at_entry || THREAD_EXITS.iter().any(|exit| code.starts_with(exit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_code_and_calls_before_an_exit_begin_threads() {
        assert!(is_thread_start_code(0x1026, 0x1000, &[0xf4]));
        assert!(!is_thread_start_code(0x1040, 0x1000, &[0xf4]));
        assert!(!is_thread_start_code(0xfff, 0x1000, &[0xf4]));
        assert!(
            !is_thread_start_code(0x10, 0, &[0xf4]),
            "a library has no entry point"
        );
        let clone3 = [THREAD_EXITS[0], &[0xf4]].concat();
        assert!(is_thread_start_code(0x9000, 0, &clone3));
        assert!(!is_thread_start_code(0x9000, 0, &clone3[1..]));
        assert!(!is_thread_start_code(0x9000, 0, &clone3[..8]), "cut off");
    }
}
