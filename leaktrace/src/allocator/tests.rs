use leaktrace_common::function::Role;

use super::*;

/// A file that this process maps and whose name has the word.
fn mapped(word: &str) -> Vec<u8> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.contains(word))
        .unwrap_or_else(|| panic!("this process maps nothing like {word}"));
    std::fs::read(path).unwrap()
}

fn libc() -> WatchedFunctions {
    discover(&mapped("/libc"), KernelAbility::BASE)
        .unwrap()
        .unwrap()
}

fn named<'w>(watched: &'w WatchedFunctions, name: &str) -> &'w WatchedFunction {
    watched
        .functions
        .iter()
        .find(|function| function.names.contains(&name))
        .unwrap_or_else(|| panic!("{name} is not watched"))
}

#[test]
fn the_running_libc_is_watched_whole() {
    let watched = libc();
    assert_eq!(watched.refused, []);
    assert!(watched.build_id.is_some());
    for name in [
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "free",
        "posix_memalign",
        "aligned_alloc",
        "memalign",
        "valloc",
        "pvalloc",
    ] {
        let function = named(&watched, name);
        assert_eq!(
            function.returns,
            function.signature.role != Role::Free,
            "{name}"
        );
    }
    // What runs all the time must not be single-stepped.
    assert!(named(&watched, "malloc").sites[0].emulated);
    assert!(named(&watched, "free").sites[0].emulated);
    let addresses: Vec<_> = watched
        .functions
        .iter()
        .map(|function| function.address)
        .collect();
    assert!(
        addresses.is_sorted_by(|first, second| first < second),
        "aliases are merged"
    );
}

/// The file offset of each site is that of the instruction that is shown: the
/// bytes there decode to it, seen through this process's own memory as well.
#[test]
fn site_offsets_lead_to_the_instruction() {
    let bytes = mapped("/libc");
    let watched = discover(&bytes, KernelAbility::BASE).unwrap().unwrap();
    for function in &watched.functions {
        for site in &function.sites {
            let at = function.site_offset(site) as usize;
            let code = &bytes[at..at + 16];
            let mut decoder =
                iced_x86::Decoder::with_ip(64, code, 0, iced_x86::DecoderOptions::NONE);
            let mnemonic = format!("{:?}", decoder.decode().mnemonic()).to_lowercase();
            let shown = site.instruction.split(' ').next().unwrap();
            assert!(
                shown.starts_with(&mnemonic[..2]),
                "{mnemonic} is not {shown}"
            );
        }
    }
    // SAFETY: only the address of malloc is taken.
    let malloc = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"malloc".as_ptr()) };
    let offset = named(&watched, "malloc").file_offset as usize;
    // SAFETY: 16 bytes of a loaded function's code are readable.
    let in_memory = unsafe { std::slice::from_raw_parts(malloc.cast::<u8>(), 16) };
    assert_eq!(in_memory, &bytes[offset..offset + 16]);
}

#[test]
fn explanations_are_one_line_each() {
    let watched = libc();
    for function in &watched.functions {
        let line = function.explain("libc.so.6", &function.sites[0]);
        assert!(!line.contains('\n'));
        assert!(line.starts_with(&function.names.join("/")), "{line}");
        assert!(line.contains(": entry at +"), "{line}");
        assert_eq!(line.contains(", return at +"), function.returns, "{line}");
    }
    let push = ProbeSite {
        offset: 0,
        emulated: true,
        stack_shift: 0,
        instruction: "push %r12".to_owned(),
        reason: "first instruction that the kernel emulates".to_owned(),
    };
    let mut malloc = named(&watched, "malloc").clone();
    malloc.names = vec!["malloc"];
    malloc.file_offset = 0x98930;
    assert_eq!(
        malloc.explain("libc.so.6", &push),
        "malloc libc.so.6+0x98930: entry at +0 push %r12 (emulated), return at +0"
    );
}

#[test]
fn files_without_an_allocator_have_none() {
    // This program imports malloc, and exports nothing.
    assert_eq!(
        discover(&mapped("leaktrace"), KernelAbility::BASE),
        Ok(None)
    );
    assert_eq!(
        discover(b"#!/bin/sh", KernelAbility::BASE),
        Err(DiscoverError::Elf(ElfError::NotElf))
    );
}

#[test]
fn a_file_with_go_code_gets_no_return_probes() {
    let mut bytes = mapped("/libc");
    // Rename a section: what a Go linker would have written.
    let old = b".gnu.version\0";
    let place = bytes
        .windows(old.len())
        .rposition(|window| window == old)
        .unwrap();
    bytes[place..place + old.len()].copy_from_slice(b".gopclntab\0\0\0");
    let watched = discover(&bytes, KernelAbility::BASE).unwrap().unwrap();
    assert!(watched.functions.iter().all(|function| !function.returns));
    assert!(
        watched
            .refused
            .iter()
            .any(|refused| refused.names.contains(&"malloc") && refused.reason.contains("Go"))
    );
}

#[test]
fn aliases_with_other_arguments_are_refused() {
    let family = &FAMILIES[0];
    let export = |name: &str| ExportedFunction {
        name: name.to_owned(),
        address: 0x1000,
        size: 4,
        kind: FunctionKind::Code,
    };
    let groups = by_address(
        family,
        &[export("malloc"), export("valloc"), export("memalign")],
    );
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].names(), ["malloc", "memalign", "valloc"]);
    let bytes = mapped("/libc");
    let file = ElfFile::parse(&bytes).unwrap();
    let search = Search {
        file: &file,
        ability: KernelAbility::BASE,
        branched_to: vec![],
        is_go: false,
    };
    assert!(search.watch(&groups[0]).unwrap_err().contains("memalign"));
}

/// Damaged code and tables of a real file: sites or reasons, never a panic.
#[test]
fn damaged_libraries_never_panic() {
    let bytes = mapped("/libc");
    let free = named(
        &discover(&bytes, KernelAbility::BASE).unwrap().unwrap(),
        "free",
    )
    .clone();
    let mut damaged = bytes;
    let at = free.file_offset as usize;
    for round in 0..24_u8 {
        for place in 0..16 {
            damaged[at + place] = damaged[at + place].wrapping_mul(31).wrapping_add(round);
        }
        if let Ok(Some(watched)) = discover(&damaged, KernelAbility::BASE) {
            assert!(
                watched
                    .functions
                    .iter()
                    .all(|function| !function.sites.is_empty())
            );
        }
    }
}
