//! Where the kernel's trampoline is in the target: while a watched call runs, that
//! is what its return probe has put in place of its return address.

use crate::{
    bpf::Maps,
    target::{
        Process,
        mapping::{self, Mapping},
    },
};

/// Tells the programs where it is; false while the process has none. The kernel maps
/// it at the first call that needs one.
pub fn find(maps: &Maps, process: &Process) -> bool {
    let found = mapping::read_mappings(process)
        .ok()
        .and_then(|mappings| place(&mappings));
    if found.is_some() {
        maps.control().set_trampoline(found);
    }
    found.is_some()
}

/// Tells the programs where it will be in a process that maps these. Then no call is
/// counted before that is known, or the programs know that it is not.
pub fn expect(maps: &Maps, mapped: &[Mapping]) {
    let own = Process::own()
        .ok()
        .and_then(|own| mapping::read_mappings(&own).ok())
        .unwrap_or_default();
    maps.control().set_trampoline(expected(&own, mapped));
}

fn place(mappings: &[Mapping]) -> Option<u64> {
    let is_it = |mapping: &&Mapping| mapping.is_special("[uprobes]");
    mappings.iter().find(is_it).map(|mapping| mapping.start)
}

/// Where it is in `mapped`, or will be: at the end of the address space, as in
/// leaktrace, which has probed itself. Where that is depends on the machine. In a
/// process without randomisation (`setarch -R`) the stack is there, and the kernel
/// puts it anywhere.
fn expected(own: &[Mapping], mapped: &[Mapping]) -> Option<u64> {
    place(mapped).or_else(|| {
        place(own).filter(|usual| {
            let is_below_stack =
                |mapping: &Mapping| mapping.is_special("[stack]") && mapping.start > *usual;
            let is_taken = |mapping: &Mapping| (mapping.start..mapping.end).contains(usual);
            !own.iter().any(is_below_stack) && !mapped.iter().any(is_taken)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: &str = "7fffffffe000-7ffffffff000 --xp 00000000 00:00 0   [uprobes]\n";
    const ELSEWHERE: &str = "7ffff7fba000-7ffff7fbb000 --xp 00000000 00:00 0   [uprobes]\n";
    const STACK: &str = "7ffcb6a58000-7ffcb6a79000 rw-p 00000000 00:00 0   [stack]\n";
    const STACK_AT_THE_END: &str = "7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0   [stack]\n";

    fn maps(lines: &[&str]) -> Vec<Mapping> {
        mapping::parse(lines.concat().as_bytes())
    }

    #[test]
    fn it_is_where_the_process_has_it() {
        let own = maps(&[STACK, USUAL]);
        let mapped = maps(&[ELSEWHERE, STACK_AT_THE_END]);
        assert_eq!(expected(&own, &mapped), Some(0x7fff_f7fb_a000));
    }

    #[test]
    fn it_will_be_where_leaktrace_has_it() {
        let own = maps(&[STACK, USUAL]);
        assert_eq!(expected(&own, &maps(&[STACK])), Some(0x7fff_ffff_e000));
        assert_eq!(expected(&own, &[]), Some(0x7fff_ffff_e000));
    }

    #[test]
    fn where_the_stack_is_in_its_place_nobody_knows() {
        let own = maps(&[STACK, USUAL]);
        assert_eq!(expected(&own, &maps(&[STACK_AT_THE_END])), None);
    }

    #[test]
    fn a_leaktrace_whose_own_place_was_taken_does_not_know() {
        let own = maps(&[ELSEWHERE, STACK_AT_THE_END]);
        assert_eq!(expected(&own, &maps(&[STACK])), None);
        assert_eq!(expected(&own, &[]), None);
    }
}
