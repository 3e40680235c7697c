//! How callers are found in stacks that pass through a file's code.

use super::Check;
use crate::{
    report::quantity,
    target::mapping::Mapping,
    unwind::{self, Reason, evaluate::Functions},
};

const NAME: &str = "unwinding";
const JIT: &str = "nothing to do, if it is code that a program makes for itself (JIT)";

/// Code that the kernel puts into every process.
const KERNEL_CODE: [&str; 3] = ["[vdso]", "[vsyscall]", "[uprobes]"];

/// What leads from a function of a file to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwinding {
    section: &'static str,
    functions: Functions,
    keeps_frame_pointers: bool,
}

impl Unwinding {
    /// Makes the file's table, to see that it can be made.
    ///
    /// # Errors
    /// Why there is none.
    pub fn read(bytes: &[u8]) -> Result<Self, Reason> {
        let (table, section) = unwind::compile_with_section(bytes)?;
        Ok(Self {
            section,
            functions: table.functions,
            keeps_frame_pointers: table.keeps_frame_pointers(),
        })
    }
}

/// The check of a file; `file` is how it is named.
pub fn unwinding_check(file: &str, found: &Result<Unwinding, Reason>) -> Check {
    let unwinding = match found {
        Ok(unwinding) => unwinding,
        Err(reason) => {
            let mend = match reason {
                Reason::NoInformation => {
                    "build it without -fno-asynchronous-unwind-tables, which leaves that out"
                }
                Reason::Elf(_) | Reason::Machine => JIT,
                _ => "build or install the file anew; stacks that do not pass through it are right",
            };
            return Check::warning(
                NAME,
                format!("{file}: stacks end in its functions: {reason}"),
                mend,
            );
        }
    };
    let Functions { total, damaged, .. } = unwinding.functions;
    let mut text = format!(
        "{file}: by {}, {}",
        unwinding.section,
        quantity::things(total.into(), "function")
    );
    if unwinding.keeps_frame_pointers {
        text.push_str("; by frame pointers where that has nothing (a guess)");
    }
    if damaged == 0 {
        return Check::ok(NAME, text);
    }
    text.push_str(&format!(
        "; {} damaged: stacks end there",
        match damaged {
            1 => "1 entry is".to_owned(),
            _ => format!("{} entries are", quantity::grouped(damaged.into())),
        }
    ));
    Check::warning(NAME, text, "build or install the file anew")
}

/// The check of code in no file; `None` when there is none.
pub fn code_without_file(mappings: &[Mapping]) -> Option<Check> {
    let is_kernel_s = |mapping: &Mapping| KERNEL_CODE.iter().any(|name| mapping.is_special(name));
    let code = mappings
        .iter()
        .filter(|mapping| mapping.executable && mapping.inode == 0 && !is_kernel_s(mapping));
    let bytes: u64 = code.map(|mapping| mapping.end - mapping.start).sum();
    (bytes > 0).then(|| {
        Check::warning(
            NAME,
            format!(
                "{} of code in no file: stacks that pass through it are not complete",
                quantity::bytes(bytes)
            ),
            JIT,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};
    use crate::{elf::running_libc, target::mapping::parse};

    fn text(check: Check) -> String {
        match check.outcome {
            Outcome::Ok(text) => format!("ok {text}"),
            Outcome::Warning { text, mend } => format!("warn {text} -> {mend}"),
            Outcome::Failed { .. } => panic!("tracing works in any case"),
        }
    }

    fn of(keeps_frame_pointers: bool, damaged: u32) -> String {
        text(unwinding_check(
            "/lib/x.so",
            &Ok(Unwinding {
                section: ".debug_frame",
                functions: Functions {
                    total: 2000,
                    with_frame_pointer: 3,
                    damaged,
                },
                keeps_frame_pointers,
            }),
        ))
    }

    #[test]
    fn libc_has_a_table() {
        let found = Unwinding::read(&running_libc()).unwrap();
        assert_eq!(found.section, ".eh_frame");
        assert!(found.functions.total > 1000);
        let text = text(unwinding_check("libc", &Ok(found)));
        assert!(text.starts_with("ok libc: by .eh_frame, "), "{text}");
    }

    #[test]
    fn what_a_file_has_is_said() {
        let plain = "/lib/x.so: by .debug_frame, 2 000 functions";
        assert_eq!(of(false, 0), format!("ok {plain}"));
        assert_eq!(
            of(true, 0),
            format!("ok {plain}; by frame pointers where that has nothing (a guess)")
        );
        assert_eq!(
            of(false, 2),
            format!(
                "warn {plain}; 2 entries are damaged: stacks end there -> build or install the \
                 file anew"
            )
        );
    }

    #[test]
    fn a_file_without_a_table_says_why() {
        let of = |reason| text(unwinding_check("/lib/x.so", &Err(reason)));
        assert_eq!(
            of(Reason::NoInformation),
            "warn /lib/x.so: stacks end in its functions: it has no unwind information -> build \
             it without -fno-asynchronous-unwind-tables, which leaves that out"
        );
        let script = Unwinding::read(b"#!/bin/sh").unwrap_err();
        assert_eq!(
            of(script),
            format!("warn /lib/x.so: stacks end in its functions: not an ELF file -> {JIT}")
        );
    }

    #[test]
    fn code_in_no_file_is_added_up() {
        let of = |lines: &str| code_without_file(&parse(lines.as_bytes())).map(text);
        assert_eq!(
            of(
                "1000-2000 r-xp 0 8:1 7 /a\n3000-4000 rw-p 0 0:0 0 \n5000-6000 r-xp 0 0:0 0 [vdso]\n"
            ),
            None
        );
        assert_eq!(
            of("1000-2000 rwxp 0 0:0 0 \n4000-6000 r-xp 0 0:0 0 [anon:code]\n").unwrap(),
            format!(
                "warn 12.0 KiB of code in no file: stacks that pass through it are not complete -> \
                 {JIT}"
            )
        );
    }
}
