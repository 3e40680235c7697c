//! What this kernel can do: found by trying, never by version, each once.

use std::sync::OnceLock;

use crate::model::FeatureInfo;

use super::uprobe_multi;

/// Environment variable that switches features off, for tests: names joined
/// by commas.
const DISABLE: &str = "LEAKTRACE_DISABLE_FEATURES";

/// An ability of the kernel that leaktrace uses when it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// One link for many uprobes of a file (6.6).
    UprobeMulti,
    /// Probes tell their program which one they are (5.15).
    AttachCookie,
    /// Programs can compare and exchange (5.12): the live table is an array
    /// without locks; before, it is the kernel's hash map.
    CompareExchange,
    /// Maps that take memory as they fill (6.1). Before, such maps load and
    /// then warn in the kernel's log.
    MapMemoryOnDemand,
    /// Many map entries with one system call (5.6).
    BatchedLookup,
    /// The 5-byte nop is emulated (6.18); before, it is single-stepped.
    LongNopEmulated,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Self; 6] = [
        Self::UprobeMulti,
        Self::AttachCookie,
        Self::CompareExchange,
        Self::MapMemoryOnDemand,
        Self::BatchedLookup,
        Self::LongNopEmulated,
    ];

    /// Its name in reports and in the environment variable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UprobeMulti => "uprobe_multi",
            Self::AttachCookie => "attach_cookie",
            Self::CompareExchange => "compare_exchange",
            Self::MapMemoryOnDemand => "map_memory_on_demand",
            Self::BatchedLookup => "batched_lookup",
            Self::LongNopEmulated => "long_nop_emulated",
        }
    }

    fn probe(self) -> bool {
        match self {
            Self::UprobeMulti => uprobe_multi::is_supported(),
            Self::AttachCookie => aya::features().bpf_cookie(),
            Self::CompareExchange => can_compare_exchange(),
            Self::MapMemoryOnDemand => kernel_btf_names(b"\0bpf_mem_alloc\0"),
            // The kernel's own name for the system call behind it.
            Self::BatchedLookup => kernel_btf_names(b"\0generic_map_lookup_batch\0"),
            Self::LongNopEmulated => has_uprobe_call(),
        }
    }
}

/// Whether return probes keep a user shadow stack right (6.11, by this function);
/// where they don't, a process that has one dies at its first return.
#[must_use]
pub fn return_probes_keep_shadow_stack() -> bool {
    kernel_btf_names(b"\0shstk_update_last_frame\0")
}

/// Whether the system call through which replaced no-operations enter the
/// kernel exists. It came with (or after) the emulation of the other ones.
fn has_uprobe_call() -> bool {
    /// `uprobe` in `arch/x86/entry/syscalls/syscall_64.tbl`.
    const UPROBE: libc::c_long = 336;
    if cfg!(not(target_arch = "x86_64")) {
        return false;
    }
    // SAFETY: takes no arguments, and does nothing but fail when it isn't
    // called from the kernel's own trampoline.
    let result = unsafe { libc::syscall(UPROBE) };
    result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO)
}

/// Tries a program that compares and exchanges a word of its own stack.
fn can_compare_exchange() -> bool {
    // r0 = 0; *(u64 *)(r10 - 8) = r0; r1 = 1;
    // r0 = cmpxchg_64(r10 - 8, r0, r1); r0 = 0; exit
    let instructions = [
        0x0000_0000_0000_00b7,
        0x0000_0000_fff8_0a7b_u64,
        0x0000_0001_0000_01b7,
        0x0000_00f1_fff8_1adb,
        0x0000_0000_0000_00b7,
        0x0000_0000_0000_0095,
    ];
    uprobe_multi::load_trial(&instructions, 0).is_ok()
}

/// Whether the kernel's BTF has this name among its strings. A search of the
/// raw bytes: parsing 5 MB of types would take longer than all the rest of the
/// start.
fn kernel_btf_names(name: &[u8]) -> bool {
    static BTF: OnceLock<Vec<u8>> = OnceLock::new();
    let btf = BTF.get_or_init(|| std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default());
    memchr::memmem::find(btf, name).is_some()
}

/// The kernel's features, probed when first asked for.
#[derive(Debug, Default)]
pub struct Features {
    found: [OnceLock<bool>; Feature::ALL.len()],
    disabled: Vec<String>,
}

impl Features {
    /// Takes the switched-off ones from the environment.
    #[must_use]
    pub fn from_environment() -> Self {
        let disabled = std::env::var(DISABLE)
            .unwrap_or_default()
            .split(',')
            .map(|name| name.trim().to_owned())
            .collect();
        Self {
            found: Default::default(),
            disabled,
        }
    }

    /// Whether the feature is there and not switched off.
    pub fn has(&self, feature: Feature) -> bool {
        !self.is_disabled(feature) && self.is_available(feature)
    }

    /// All features, for reports.
    pub fn list(&self) -> Vec<FeatureInfo> {
        Feature::ALL
            .into_iter()
            .map(|feature| FeatureInfo {
                name: feature.name(),
                available: self.is_available(feature),
                used: self.has(feature),
            })
            .collect()
    }

    fn is_available(&self, feature: Feature) -> bool {
        *self.found[feature as usize].get_or_init(|| feature.probe())
    }

    fn is_disabled(&self, feature: Feature) -> bool {
        self.disabled.iter().any(|name| name == feature.name())
    }
}
