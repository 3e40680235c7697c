//! What the kernel does with single instructions.

use super::*;

fn first(hex: &str, ability: KernelAbility) -> Treatment {
    arch::straight_way(&bytes(hex), 0, ability, 1)[0].treatment
}

/// Each was probed on 6.18, and its cost or refusal seen.
#[test]
fn what_the_kernel_emulates() {
    let emulated = [
        "50",
        "54",
        "55",
        "57",
        "4150",
        "4157", // push of each register
        "7400",
        "7f00",
        "0f8400000000",
        "0f8f00000000",
        "f27400",
        "487400", // jcc
        "eb00",
        "e900000000",
        "f2e900000000",
        "e800000000",
        "f2e800000000", // jmp, call
        "90",
        "f390",
        "4890",
        "6790", // nop, pause
    ];
    for code in emulated {
        assert_eq!(first(code, OLD), Treatment::Emulated, "{code}");
        assert_eq!(first(code, NEW), Treatment::Emulated, "{code}");
    }
    let stepped = [
        "f30f1efa",
        "4885ff",
        "4889c7",
        "488d4708",
        "4883ec18",
        "c3",
        "6a01",
        "ff3424",
        "4050",
        "6655",
        "6750",
        "e300",
        "64488b042500000000",
        "0f31",
        "660f1f840000000000",
        "0f1f4008",
    ];
    for code in stepped {
        assert_eq!(first(code, OLD), Treatment::SingleStepped, "{code}");
        assert_eq!(first(code, NEW), Treatment::SingleStepped, "{code}");
    }
    // lock, cs, ds, notrack jmp, jcc and jmp with 0x66
    let refused = [
        "f048ff4424f0",
        "2e7400",
        "3e488b0424",
        "3effe0",
        "667400",
        "660f8400000000",
        "66eb00",
    ];
    for code in refused {
        assert!(matches!(first(code, NEW), Treatment::Unusable(_)), "{code}");
    }
}

/// The kernel takes these for `nop`, `ja` and `jmp`, and the target goes on
/// without them (seen on 6.18 with `xchg` and with a store by `vmovdqu`).
#[test]
fn what_the_kernel_gets_wrong_is_never_probed() {
    // xchg %r8d,%eax; xchg %r8,%rax; vzeroupper; vmovdqa; vpor; EVEX vxorps
    for code in [
        "4190",
        "4990",
        "c5f877",
        "c5f97f07",
        "c5f1ebc2",
        "62f17c4857c0",
    ] {
        for ability in [OLD, NEW] {
            assert!(
                matches!(first(code, ability), Treatment::Unusable(_)),
                "{code}"
            );
        }
    }
    // pushf, popf, syscall, rep stos
    for code in ["9c", "9d", "0f05", "f348ab"] {
        assert!(matches!(first(code, NEW), Treatment::Unusable(_)), "{code}");
    }
    // vzeroupper; test; je: neither the first nor, since it can't be had, lost.
    assert_eq!(offsets("c5f877 4885ff 7400 c3", FREE), [6, -4]);
}

#[test]
fn nops_depend_on_the_kernel() {
    for code in [
        "0f1f00",
        "0f1f4000",
        "660f1f440000",
        "0f1f8000000000",
        "0f1f840000000000",
    ] {
        assert_eq!(first(code, OLD), Treatment::SingleStepped, "{code}");
        assert_eq!(first(code, NEW), Treatment::Emulated, "{code}");
    }
    assert!(matches!(first("6690", OLD), Treatment::Unusable(_)));
    assert_eq!(first("6690", NEW), Treatment::Emulated);
    assert_eq!(first("0f1f440000", OLD), Treatment::SingleStepped);
    assert_eq!(first("0f1f440000", NEW), Treatment::EmulatedByCall);
}

/// A five-byte nop is replaced by a call, which writes below the stack
/// pointer: fine at the entry, but not where the function keeps data there.
#[test]
fn a_five_byte_nop_is_no_site_behind_a_store() {
    let chosen = |hex: &str| all(hex, FREE, NEW).unwrap()[0].offset;
    // endbr64; nop; push %rbp
    assert_eq!(chosen("f30f1efa 0f1f440000 55 c3"), 4);
    // mov %rdi,-8(%rsp); nop; push %rbp
    assert_eq!(chosen("48897c24f8 0f1f440000 55 c3"), 10);
}

#[test]
fn calls_are_left_alone_on_a_shadow_stack() {
    let ability = KernelAbility {
        shadow_stack: true,
        ..NEW
    };
    assert!(matches!(
        first("e800000000", ability),
        Treatment::Unusable(_)
    ));
    assert_eq!(
        all("4885ff e800000000 c3", FREE, ability).unwrap()[0].offset,
        0
    );
}
