//! What this kernel can do: found by trying, never by version, each once, when
//! first asked for. This list is the only place that knows of differences
//! between kernels; the versions in it are for people.

mod probe;

use std::{collections::BTreeSet, sync::OnceLock};

use anyhow::{Result, bail};
use leaktrace_common::vma::VmaLayout;

use crate::model::{FeatureInfo, WhyNot, Without};

/// Environment variable that switches features off, for tests: names joined
/// by commas.
const DISABLE: &str = "LEAKTRACE_DISABLE_FEATURES";

/// The oldest kernel that leaktrace is tested on, for people.
pub const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// An ability of the kernel that leaktrace uses when it is there, or can't do
/// without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Probes in programs.
    Uprobes,
    /// Programs may have loops.
    BoundedLoops,
    /// Programs can read the memory of the process that they interrupted.
    ReadUserMemory,
    /// Arrays that userspace maps into its memory.
    MappedArrays,
    /// One link for many uprobes of a file.
    UprobeMulti,
    /// A program is tied to a perf event by a link.
    PerfLink,
    /// Probes tell their program which one they are.
    AttachCookie,
    /// Programs can compare and exchange: the live table is an array without
    /// locks.
    CompareExchange,
    /// The kernel describes its own types.
    Btf,
    /// Maps that take memory as they fill. Where BPF has no allocator of its
    /// own, such maps load all the same, and then warn in the kernel's log.
    MapMemoryOnDemand,
    /// Many map entries with one system call.
    BatchedLookup,
    /// The 5-byte nop is emulated.
    LongNopEmulated,
    /// Return probes keep a user shadow stack right, or there is none.
    ReturnsKeepShadowStack,
    /// A buffer of events that all CPUs share.
    RingBuffer,
    /// Programs can ask which mapping an address is in.
    FindVma,
}

/// What is known of a feature beforehand.
struct Description {
    /// Its name in reports and in the environment variable.
    name: &'static str,
    /// The kernel that brought it.
    since: &'static str,
    /// The option that kernels are to be built with for it, where some are not.
    config: Option<&'static str>,
    without: Without,
    /// It is used only together with these.
    needs: &'static [Feature],
    probe: fn() -> bool,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Self; 15] = [
        Self::Uprobes,
        Self::BoundedLoops,
        Self::ReadUserMemory,
        Self::MappedArrays,
        Self::UprobeMulti,
        Self::PerfLink,
        Self::AttachCookie,
        Self::CompareExchange,
        Self::Btf,
        Self::MapMemoryOnDemand,
        Self::BatchedLookup,
        Self::LongNopEmulated,
        Self::ReturnsKeepShadowStack,
        Self::RingBuffer,
        Self::FindVma,
    ];

    const fn description(self) -> Description {
        use Without::{Impossible, Instead, Unneeded};
        match self {
            Self::Uprobes => Description {
                name: "uprobes",
                since: "4.17",
                config: Some("CONFIG_UPROBE_EVENTS"),
                without: Impossible("it offers no probes in programs"),
                needs: &[],
                probe: probe::uprobes,
            },
            Self::BoundedLoops => Description {
                name: "bounded_loops",
                since: "5.3",
                config: None,
                without: Impossible("its BPF programs may not have loops"),
                needs: &[],
                probe: probe::bounded_loops,
            },
            Self::ReadUserMemory => Description {
                name: "read_user_memory",
                since: "5.5",
                config: None,
                without: Impossible("its BPF programs can't read the memory of a process"),
                needs: &[],
                probe: probe::read_user_memory,
            },
            Self::MappedArrays => Description {
                name: "mapped_arrays",
                since: "5.5",
                config: None,
                without: Impossible("its BPF arrays can't be mapped into memory"),
                needs: &[],
                probe: probe::mapped_arrays,
            },
            Self::UprobeMulti => Description {
                name: "uprobe_multi",
                since: "6.6",
                config: None,
                without: Instead("one perf event a probe, each of which takes 0.1 s to remove"),
                needs: &[Self::AttachCookie],
                probe: probe::uprobe_multi,
            },
            Self::PerfLink => Description {
                name: "perf_link",
                since: "5.15",
                config: None,
                without: Instead("programs are set on perf events by ioctl"),
                needs: &[],
                probe: probe::perf_link,
            },
            Self::AttachCookie => Description {
                name: "attach_cookie",
                since: "5.15",
                config: None,
                without: Instead("one program for each signature of a function"),
                needs: &[Self::PerfLink],
                probe: probe::attach_cookie,
            },
            Self::CompareExchange => Description {
                name: "compare_exchange",
                since: "5.12",
                config: None,
                without: Instead("live blocks are in the kernel's hash map, 0.3 us dearer a block"),
                // The programs that go without cookies have only this form.
                needs: &[Self::AttachCookie],
                probe: probe::compare_exchange,
            },
            Self::Btf => Description {
                name: "btf",
                since: "5.4",
                config: Some("CONFIG_DEBUG_INFO_BTF"),
                without: Instead("what only the kernel's types tell is taken for missing"),
                needs: &[],
                probe: probe::btf,
            },
            Self::MapMemoryOnDemand => Description {
                name: "map_memory_on_demand",
                since: "6.1",
                config: None,
                without: Instead("maps take all their memory at once"),
                needs: &[Self::Btf],
                probe: probe::map_memory_on_demand,
            },
            Self::BatchedLookup => Description {
                name: "batched_lookup",
                since: "5.6",
                config: None,
                without: Instead("maps are read entry by entry"),
                needs: &[],
                probe: probe::batched_lookup,
            },
            Self::LongNopEmulated => Description {
                name: "long_nop_emulated",
                since: "6.18",
                config: None,
                without: Instead("probes go on other instructions"),
                needs: &[],
                probe: probe::long_nop_emulated,
            },
            Self::ReturnsKeepShadowStack => Description {
                name: "returns_keep_shadow_stack",
                since: "6.11",
                config: None,
                without: Instead("processes that have a user shadow stack are not traced"),
                needs: &[Self::Btf],
                probe: probe::returns_keep_shadow_stack,
            },
            Self::RingBuffer => Description {
                name: "ring_buffer",
                since: "5.8",
                config: None,
                without: Unneeded,
                needs: &[],
                probe: probe::ring_buffer,
            },
            Self::FindVma => Description {
                name: "find_vma",
                since: "5.17",
                config: None,
                without: Instead(
                    "stacks through code that was just mapped are incomplete until leaktrace has \
                     heard of it",
                ),
                // The programs that go without compare-and-exchange are for kernels
                // that do not know the callback it takes.
                needs: &[Self::Btf, Self::CompareExchange],
                probe: probe::find_vma,
            },
        }
    }

    /// Its name in reports and in the environment variable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.description().name
    }

    fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|feature| feature.name() == name)
    }
}

/// The kernel's features, probed when first asked for.
#[derive(Debug, Default)]
pub struct Features {
    found: [OnceLock<bool>; Feature::ALL.len()],
    disabled: BTreeSet<Feature>,
    given_up: BTreeSet<Feature>,
}

impl Features {
    /// Takes the switched-off ones from the environment.
    ///
    /// # Errors
    /// When the variable names something else.
    pub fn from_environment() -> Result<Self> {
        Self::without(&std::env::var(DISABLE).unwrap_or_default())
    }

    /// All but these, their names joined by commas.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn without(names: &str) -> Result<Self> {
        let mut features = Self::default();
        for name in names.split(',').map(str::trim) {
            match Feature::by_name(name) {
                Some(feature) => {
                    features.disabled.insert(feature);
                }
                None if name.is_empty() => {}
                None => bail!(
                    "{DISABLE} names `{name}`, which is no feature; there are {}",
                    Feature::ALL.map(Feature::name).join(", ")
                ),
            }
        }
        Ok(features)
    }

    /// Whether the feature is to be used: the kernel has it and whatever it is
    /// used with, and nothing of that is switched off.
    pub fn has(&self, feature: Feature) -> bool {
        self.why_not(feature).is_none()
    }

    /// Does without a feature that is there, but turned out not to work.
    pub fn give_up(&mut self, feature: Feature) {
        self.given_up.insert(feature);
    }

    /// Checks for what there is no way without.
    ///
    /// # Errors
    /// Names the first that is missing.
    pub fn check_essential(&self) -> Result<()> {
        for feature in Feature::ALL {
            let description = feature.description();
            if let Without::Impossible(lack) = description.without
                && !self.has(feature)
            {
                let (major, minor) = OLDEST_KERNEL;
                let built = description
                    .config
                    .map(|option| format!(" with {option}"))
                    .unwrap_or_default();
                bail!(
                    "this kernel can't be used: {lack} (`{}`, which Linux {} brought{built}); \
                     boot Linux {major}.{minor} or a newer one",
                    description.name,
                    description.since
                );
            }
        }
        Ok(())
    }

    /// What programs need for [`Feature::FindVma`]; that nothing may be asked when
    /// it is not to be used.
    pub(super) fn vma_layout(&self) -> VmaLayout {
        let layout = self.has(Feature::FindVma).then(probe::vma_layout);
        layout.flatten().unwrap_or_default()
    }

    /// All features, for reports.
    pub fn list(&self) -> Vec<FeatureInfo> {
        Feature::ALL
            .into_iter()
            .map(|feature| {
                let description = feature.description();
                let why_not = self.why_not(feature);
                FeatureInfo {
                    name: description.name,
                    since: description.since,
                    config: description.config,
                    available: self.is_available(feature),
                    used: why_not.is_none() && description.without != Without::Unneeded,
                    without: description.without,
                    why_not,
                }
            })
            .collect()
    }

    fn why_not(&self, feature: Feature) -> Option<WhyNot> {
        if !self.is_available(feature) {
            return Some(WhyNot::Missing);
        }
        if self.disabled.contains(&feature) {
            return Some(WhyNot::SwitchedOff);
        }
        if self.given_up.contains(&feature) {
            return Some(WhyNot::Broken);
        }
        let mut needed = feature.description().needs.iter();
        let missing = needed.find(|needed| !self.has(**needed))?;
        Some(WhyNot::Without(missing.name()))
    }

    fn is_available(&self, feature: Feature) -> bool {
        *self.found[feature as usize].get_or_init(feature.description().probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order_and_its_names_are_distinct() {
        for (index, feature) in Feature::ALL.into_iter().enumerate() {
            assert_eq!(feature as usize, index);
            assert_eq!(Feature::by_name(feature.name()), Some(feature));
        }
    }

    #[test]
    fn what_is_no_feature_can_not_be_switched_off() {
        assert!(Features::without("").unwrap().disabled.is_empty());
        let features = Features::without(" btf,uprobe_multi").unwrap();
        assert_eq!(features.disabled.len(), 2);
        let error = Features::without("btf,uprobe-multi").unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(
                "LEAKTRACE_DISABLE_FEATURES names `uprobe-multi`, which is no feature; there are \
                 uprobes, "
            ),
            "{text}"
        );
    }

    /// Found without asking a kernel.
    fn all_there(disabled: &str) -> Features {
        let features = Features::without(disabled).unwrap();
        for found in &features.found {
            found.set(true).unwrap();
        }
        features
    }

    #[test]
    fn what_needs_a_missing_one_is_not_used_either() {
        let features = all_there("perf_link");
        for feature in [
            Feature::PerfLink,
            Feature::AttachCookie,
            Feature::UprobeMulti,
            Feature::CompareExchange,
        ] {
            assert!(!features.has(feature), "{feature:?}");
        }
        assert!(features.has(Feature::MapMemoryOnDemand));
        let multi = features.list().remove(Feature::UprobeMulti as usize);
        assert!(multi.available && !multi.used);
        assert_eq!(multi.why_not, Some(WhyNot::Without("attach_cookie")));
    }

    #[test]
    fn without_an_essential_one_a_sentence_names_it() {
        assert!(all_there("uprobe_multi,btf").check_essential().is_ok());
        let error = all_there("read_user_memory").check_essential().unwrap_err();
        assert_eq!(
            error.to_string(),
            "this kernel can't be used: its BPF programs can't read the memory of a process \
             (`read_user_memory`, which Linux 5.5 brought); boot Linux 5.10 or a newer one"
        );
    }

    #[test]
    fn one_that_does_not_work_is_given_up() {
        let mut features = all_there("");
        assert!(features.has(Feature::UprobeMulti));
        features.give_up(Feature::UprobeMulti);
        assert_eq!(features.why_not(Feature::UprobeMulti), Some(WhyNot::Broken));
    }
}
