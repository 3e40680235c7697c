//! What holds for any code whatever.

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use proptest::prelude::*;

use super::*;

/// Pieces that real prologues are made of, and some that are dangerous.
const PIECES: [&str; 24] = [
    "f30f1efa",
    "55",
    "53",
    "4154",
    "4889e5",
    "4883ec18",
    "4885ff",
    "7402",
    "0f8405000000",
    "ebf0",
    "75f3",
    "4889fb",
    "31ff",
    "0f1f440000",
    "6690",
    "90",
    "c5f877",
    "4190",
    "c3",
    "e800000000",
    "f048ff4424f0",
    "48897c24f8",
    "4963048b",
    "ffe0",
];

fn any_code() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..30)
            .prop_map(|pieces| bytes(&pieces.concat())),
    ]
}

fn any_signature() -> impl Strategy<Value = Signature> {
    prop::sample::select(vec![
        FREE,
        MALLOC,
        Signature::alloc_array(0, 1),
        Signature::realloc_array(0, 1, 2),
        Signature::alloc_out(0, 2),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the code is: sites are instructions on the straight way from
    /// the entry, never behind one that may branch; emulated ones come first,
    /// the stack pointer is known, and untouched where it is read.
    #[test]
    fn sites_are_reached_straight_from_the_entry(
        code in any_code(),
        signature in any_signature(),
        branched_to in prop::collection::vec(0x0fff_u64..0x1040, 0..3),
        nops in prop::sample::select(vec![NopAbility::OneByte, NopAbility::FastFiveByte]),
    ) {
        let function = FunctionCode { bytes: &code, address: 0x1000, branched_to: &branched_to };
        let ability = KernelAbility { nops, ..OLD };
        let need = Need::of(&signature);
        let Ok(sites) = candidates(&function, need, ability) else { return Ok(()) };
        prop_assert!(!sites.is_empty());
        prop_assert!(sites.is_sorted_by_key(|site| !site.emulated));
        let mut reached = Vec::new();
        let mut decoder = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            reached.push(instruction.ip() as u32);
            if instruction.flow_control() != FlowControl::Next {
                break;
            }
        }
        for site in &sites {
            prop_assert!(reached.contains(&site.offset), "{site:?} of {reached:?}");
            prop_assert!(!need.stack || site.stack_shift == 0, "{site:?}");
            for target in &branched_to {
                let between = *target > 0x1000 && *target <= 0x1000 + u64::from(site.offset);
                prop_assert!(!between, "{site:?} is run again by a jump to {target:#x}");
            }
        }
    }

    #[test]
    fn looking_for_jumps_never_panics(
        code in any_code(),
        address in any::<u64>(),
        entries in prop::collection::vec(any::<u64>(), 0..4),
    ) {
        for target in branches_into(&code, address, &entries) {
            prop_assert!(entries.iter().any(|entry| target > *entry));
        }
    }
}
