//! Whether the kernel compiles BPF programs. It refuses to interpret leaktrace's:
//! its interpreter knows no program that has both functions of its own and a tail
//! call (`fixup_call_args` in `kernel/bpf/verifier.c`).

use std::fs;

/// What makes it compile.
pub const SWITCH_ON: &str = "sudo sysctl net.core.bpf_jit_enable=1";

/// Whether it does; `None` when that can't be read, as in network namespaces.
#[must_use]
pub fn is_on() -> Option<bool> {
    let text = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok()?;
    Some(text.trim() != "0")
}

/// What is to be said when it does not.
#[must_use]
pub fn objection(is_on: Option<bool>) -> Option<String> {
    (is_on == Some(false)).then(|| {
        format!(
            "the kernel's BPF JIT is switched off, and leaktrace's programs can't be interpreted; \
             switch it on: {SWITCH_ON}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_compiler_known_to_be_off_is_objected_to() {
        assert_eq!(objection(Some(true)).or(objection(None)), None);
        let text = objection(Some(false)).unwrap();
        assert!(
            text.ends_with("sudo sysctl net.core.bpf_jit_enable=1"),
            "{text}"
        );
    }
}
