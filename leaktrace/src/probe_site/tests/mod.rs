//! The choice on code that compilers really made. Each function is given by
//! its bytes as `objdump` shows them; comments name what decides.

use leaktrace_common::function::Signature;

use super::*;

mod any_code;
mod instructions;

const OLD: KernelAbility = KernelAbility::BASE;
const NEW: KernelAbility = KernelAbility {
    nops: NopAbility::FastFiveByte,
    shadow_stack: false,
};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn all(hex: &str, signature: Signature, ability: KernelAbility) -> Result<Vec<ProbeSite>, String> {
    let bytes = bytes(hex);
    let code = FunctionCode {
        bytes: &bytes,
        address: 0x1000,
        branched_to: &[],
    };
    candidates(&code, Need::of(&signature), ability)
}

/// Offsets of the candidates, best first; single-stepped ones negative - 1.
fn offsets(hex: &str, signature: Signature) -> Vec<i64> {
    let sites = all(hex, signature, OLD).unwrap();
    let mark = |site: &ProbeSite| {
        let offset = i64::from(site.offset);
        if site.emulated { offset } else { -offset - 1 }
    };
    sites.iter().map(mark).collect()
}

const ENTRY_STEPPED: i64 = -1;
const FREE: Signature = Signature::free(0);
const MALLOC: Signature = Signature::alloc(0);

/// glibc 2.36 of Debian 12, first 64 bytes of each.
mod glibc {
    /// `push %r12; push %rbp; push %rbx; mov %rdi,%rbx; sub $16,%rsp; …`
    pub const MALLOC: &str = "4154555348 89fb4883ec10803d461b1400 000f84f80100004885db0f88fd010000
        488d431731ed4883f81f760c4883e0";
    /// `test %rdi,%rdi; je; push %rbp; lea -16(%rdi),%rsi; …`
    pub const FREE: &str = "4885ff0f84bf00000055488d77f0534883ec18488b1dd69e1300488b47f8648b
        2ba802755b488b155c9e130064 48833a";
    /// `push %r13; mov %rdi,%rax; push %r12; …; mul %rsi`
    pub const CALLOC: &str = "41554889f8415455534883ec1848f7e64889c30f90c04885db0f88d9020000
        0fb6c04885c00f85cd020000803d760d14";
    /// `mov %rsi,%rax; mul %rdx; mov %rax,%rsi; jo; jmp realloc`
    pub const REALLOCARRAY: &str =
        "4889f048f7e24889c67005e940b8f8ff488b05e985130064c7000c00000031c0c3";
    /// `cmpb $0,initialized; je; jmp _mid_memalign; …` with a second half that
    /// initializes.
    pub const MEMALIGN: &str = "803d710e140000 7407 e932f6ffff 6690 4883ec18 4889742408 48893c24
        e8bebcffff 488b742408 488b3c24 4883c418 e90cf6ffff";
    /// `cmpb $0,initialized; push %r12; mov %rdx,%r12; push %rbp; …`
    pub const POSIX_MEMALIGN: &str = "803d010214000041544989d4554889fd534889f3745a4889da48c1ea03
        488d42ff4821d04889da83e24809d07531";
    /// `cmpb $0,initialized; push %rbx; mov %rdi,%rbx; je; …; jmp back`
    pub const VALLOC: &str = "803d310e140000534889fb741b488b05349813004889de5b488b7818e9dff5ffff
        0f1f8000000000e873bcffffebde";
}

#[test]
fn sites_of_glibc() {
    assert_eq!(offsets(glibc::MALLOC, MALLOC), [0]);
    // `je` at +3; behind it lies only one of two ways.
    assert_eq!(offsets(glibc::FREE, FREE), [3, ENTRY_STEPPED]);
    // `push %r12` at +5 would do for the arguments, but the stack has moved.
    assert_eq!(offsets(glibc::CALLOC, Signature::alloc_array(0, 1)), [0]);
    // `mul` at +3 writes %rdx, the size of an element.
    assert_eq!(
        offsets(glibc::REALLOCARRAY, Signature::realloc_array(0, 1, 2)),
        [ENTRY_STEPPED]
    );
    assert_eq!(
        offsets(glibc::MEMALIGN, Signature::alloc(1)),
        [7, ENTRY_STEPPED]
    );
    assert_eq!(
        offsets(glibc::POSIX_MEMALIGN, Signature::alloc_out(0, 2)),
        [7, ENTRY_STEPPED]
    );
    assert_eq!(offsets(glibc::VALLOC, MALLOC), [7, ENTRY_STEPPED]);
}

#[test]
fn reasons_name_what_stood_in_the_way() {
    let array = all(glibc::REALLOCARRAY, Signature::realloc_array(0, 1, 2), OLD).unwrap();
    assert_eq!(array[0].instruction, "mov %rsi,%rax");
    assert_eq!(
        array[0].reason,
        "nothing is emulated before mul %rdx at +3, which writes an argument"
    );
    let free = all(glibc::FREE, FREE, OLD).unwrap();
    assert_eq!(free[0].instruction, "je 0x10c8");
    assert_eq!(free[0].reason, "first instruction that the kernel emulates");
    assert_eq!(
        free[1].reason,
        "the entry, should the kernel refuse the others"
    );
}

/// A `free` with errno kept, as in glibc 2.33 and later, by other compilers
/// and options: the early `je` wherever there is one.
#[test]
fn free_by_compilers_and_levels() {
    // gcc 12 -O2: test; je; push %rbp; …
    let o2 = "4885ff747b55534889fb4883ec0866488d3d1a2e0000666648e8d2feffff8b28f643f802";
    assert_eq!(offsets(o2, FREE), [3, ENTRY_STEPPED]);
    // gcc 12 -O2 -fcf-protection=full: endbr64; test; je
    let cet = "f30f1efa4885ff747755534889fb4883ec0866488d3d162e0000666648e8cefeffff8b28";
    assert_eq!(offsets(cet, FREE), [7, ENTRY_STEPPED]);
    // clang 14 -O2 -fcf-protection=full: the same way
    let clang = "f30f1efa4885ff746a5553504889fb66488d3d392e0000666648e8b1feffff8b28";
    assert_eq!(offsets(clang, FREE), [7, ENTRY_STEPPED]);
    // gcc 12 -O0: push %rbp; mov %rsp,%rbp; sub; mov %rdi,-24(%rbp); cmp; je
    let o0 = "554889e54883ec2048897de848837de8000f848800000066488d3d382e0000666648e8";
    assert_eq!(offsets(o0, FREE), [0, 17]);
    // gcc 12 -O2 -fpatchable-function-entry=5: five one-byte nops first
    let patchable = "90909090904885ff0f848200000055534889fb4883ec0866488d3d112e0000";
    assert_eq!(offsets(patchable, FREE), [0, 1, 2, 3, 4, 8]);
}

/// With a hook, as in glibc before 2.34; gcc 12 -Os -fcf-protection=full:
/// endbr64; mov hook,%rax; mov (%rax),%rax; test; je; mov; `jmp *%rax`, a tail
/// call and no jump table.
#[test]
fn free_with_a_hook() {
    let hook = "f30f1efa488b05bd2d0000488b004885c07406488b3424ffe04885ff7420f647f802
        7405e96ffeffff488b05882d0000488d77f031d2488b38e91afeffffc3";
    assert_eq!(offsets(hook, FREE), [17, ENTRY_STEPPED]);
}

/// gcc 12 -O2: `sub $24,%rsp` comes first. The `je` at +15 is good enough for
/// a function that only gives back, but where the return address is needed
/// nothing behind the `sub` will do.
#[test]
fn a_moved_stack_pointer_matters_where_the_stack_is_read() {
    let code = "4883ec18488b05552d00008b0085c0741f488b05082d0000488d7708488b104883c418
        e9f8fdffff0f1f84000000000048897c2408e8b6fdffff488b7c2408ebd0";
    assert_eq!(offsets(code, MALLOC), [ENTRY_STEPPED]);
    let sites = all(code, FREE, OLD).unwrap();
    assert_eq!((sites[0].offset, sites[0].stack_shift), (15, 24));
    assert_eq!((sites[1].offset, sites[1].stack_shift), (0, 0));
}

/// clang 14 -O0 -fcf-protection=full: endbr64; push %rbp; mov %rsp,%rbp; …
#[test]
fn the_frame_pointer_must_be_the_callers_where_the_stack_is_read() {
    let code = "f30f1efa554889e54883ec3048897df0488975e8488955e0488b05c1290000833800
        0f8505000000e883faffff";
    assert_eq!(
        offsets(code, Signature::alloc_out(0, 2)),
        [4, ENTRY_STEPPED]
    );
    // endbr64; mov %rsp,%rbp; push %rbx: the only emulated one is too late.
    let written = "f30f1efa 4889e5 53 c3";
    assert_eq!(offsets(written, MALLOC), [ENTRY_STEPPED]);
    assert_eq!(offsets(written, FREE), [7, ENTRY_STEPPED]);
}

#[test]
fn short_functions() {
    // ret; endbr64 and ret: nothing is emulated.
    assert_eq!(offsets("c3", FREE), [ENTRY_STEPPED]);
    assert_eq!(offsets("f30f1efac3", FREE), [ENTRY_STEPPED]);
    // jmp elsewhere: a tail call, `bnd jmp` as -fcf-protection's PLT has it.
    assert_eq!(offsets("e9fbffff7f", MALLOC), [0]);
    assert_eq!(offsets("f2e9fbffff7f", MALLOC), [0]);
    // gcc 12 -O2, a bump allocator: lea; mov; and; `lock xadd`, which the
    // kernel refuses; xor; add %rax,%rdi, which writes the argument.
    let bump = "488d470f488b15cd2c00004883e0f0f0480fc10231d24801c74881ff00000100770a
        480305872c00004889c24889d0c3";
    assert_eq!(offsets(bump, MALLOC), [ENTRY_STEPPED]);
    // The same without a plain instruction first: single-step another one.
    let locked = "f0480fc102 31d2 4801c7 c3";
    assert_eq!(offsets(locked, MALLOC), [-6, -8]);
    // Nothing at all may be probed.
    assert!(
        all("f0480fc102", MALLOC, OLD)
            .unwrap_err()
            .contains("lock xadd")
    );
    assert!(all("", MALLOC, OLD).unwrap_err().contains("decoded"));
    assert!(all("06", MALLOC, OLD).unwrap_err().contains("decoded"));
}

/// Loops that come back into the first instructions would hit a probe there
/// again and again within one call.
#[test]
fn jumps_back_rule_out_what_they_repeat() {
    // gcc 12 -O2, frees a list: `jmp` over the loop is run once only.
    let list = "eb0c660f1f4400004889f8488b3f4885ff75f5c3";
    assert_eq!(offsets(list, FREE), [0]);
    // clang 14 -Os: test; je; then the loop: the `je` is before it.
    let tested = "4885ff740b488b074889c74885c075f5c3";
    assert_eq!(offsets(tested, FREE), [3, ENTRY_STEPPED]);
    // mov (%rdi),%rax; L: dec %rax; jne L; ret: the `jne` runs many times.
    let round = "488b07 48ffc8 75fb c3";
    assert_eq!(offsets(round, FREE), [ENTRY_STEPPED]);
    // To between the entry and the `je`: L: test; je; …; jmp L.
    let before = "4889f8 4885ff 7402 ebf9 c3";
    assert_eq!(offsets(before, FREE), [ENTRY_STEPPED]);
    // gcc 12 -Os comes back to the entry itself: no site is any better, and
    // the reason says so.
    let entry = all("4885ff7408488b074889c7ebf3c3", FREE, OLD).unwrap();
    assert_eq!(entry[0].offset, 3);
    assert!(
        entry[0].reason.contains("jumps back to its entry"),
        "{}",
        entry[0].reason
    );
}

/// gcc 12 -O2 -fcf-protection=full, a loop around a switch: endbr64;
/// push %rbp; lea table,%rbp; push %rbx; mov; sub; nop; L: cmpl; ja; mov;
/// movslq (%rbp,%rax,4); add; notrack jmp *%rax; …; jmp L.
#[test]
fn behind_a_jump_table_only_saved_registers_are_trusted() {
    let switch = "f30f1efa55488d2d940c0000534889fb4883ec080f1f4000833b060f87a80000008b03
        48634485004801e83effe066904883c4085b5dc3";
    assert_eq!(offsets(switch, FREE), [4, 12, ENTRY_STEPPED]);
    // The table could lead to between entry and `jne`: test; jne; movslq; jmp *
    let bare = "4885ff 7508 4963048b 4801d8 ffe0 c3";
    assert_eq!(offsets(bare, FREE), [ENTRY_STEPPED]);
}

/// gcc 12 -O2 splits unlikely code off: sub; mov; cmp; `je cfree2.cold`. If
/// that part came back to before the `je`, the site would be wrong.
#[test]
fn jumps_from_split_parts_count() {
    let hot = bytes("4883ec08488b05752b00004839380f848cfcffff31d231f6e803fcffff4883c408e92afcffff");
    let hot_address = 0x1410;
    let site = |branched_to: &[u64]| {
        let code = FunctionCode {
            bytes: &hot,
            address: hot_address,
            branched_to,
        };
        candidates(&code, Need::of(&FREE), OLD).unwrap()[0].offset
    };
    // As it is: call; mov; mov; call; pop; jmp to another function.
    let cold = bytes("e88bffffff488b05fc2e0000488b38e87cffffff58e996ffffff");
    assert_eq!(branches_into(&cold, 0x10b0, &[hot_address]), [0_u64; 0]);
    assert_eq!(site(&[]), 14);
    // Changed to come back to `cmp` at +11, by jmp and by jcc.
    let back = |from: u64, length: u64| {
        let displacement = i32::try_from(0x141b - (from + length) as i64).unwrap();
        displacement.to_le_bytes()
    };
    let mut jump = bytes("9090e9");
    jump.extend(back(0x10b2, 5));
    assert_eq!(
        branches_into(&jump, 0x10b0, &[0x9999, hot_address]),
        [0x141b]
    );
    let mut conditional = bytes("90900f85");
    conditional.extend(back(0x10b2, 6));
    assert_eq!(
        branches_into(&conditional, 0x10b0, &[hot_address, 0x4000]),
        [0x141b]
    );
    assert_eq!(site(&[0x141b]), 0);
    // A jump to the entry is a tail call from somewhere.
    assert_eq!(branches_into(&conditional, 0x10b0, &[0x141b]), [0_u64; 0]);
}

#[test]
fn needs_follow_from_signatures() {
    let need = Need::of(&Signature::realloc_array(0, 1, 2));
    assert_eq!(
        need,
        Need {
            arguments: 0b111,
            stack: true
        }
    );
    assert_eq!(
        Need::of(&FREE),
        Need {
            arguments: 0b1,
            stack: false
        }
    );
    assert_eq!(
        Need::of(&Signature::alloc_out(0, 2)),
        Need {
            arguments: 0b101,
            stack: true
        }
    );
}

#[test]
fn writes_to_parts_of_an_argument_count() {
    // xor %edi,%edi; mov $1,%dil; sete %dil (under some conditions only); all
    // before a push.
    for code in [
        "31ff 55 c3",
        "40b701 55 c3",
        "400f94c7 55 c3",
        "480f44f8 55 c3",
    ] {
        assert_eq!(offsets(code, FREE), [ENTRY_STEPPED], "{code}");
    }
}
