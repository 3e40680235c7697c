//! `/proc/PID/status` and `/proc/PID/stat`, as far as leaktrace needs them
//! (formats: proc_pid_status(5), proc_pid_stat(5)). Pure: bytes in, values out;
//! whatever is missing or malformed is `None`.

use crate::arch::SHADOW_STACK_STATUS;

/// What `/proc/PID/status` says. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Thread group id: the process that a thread belongs to.
    pub tgid: Option<u32>,
    /// The same in its own PID namespace.
    pub innermost_tgid: Option<u32>,
    /// Parent process.
    pub parent: Option<u32>,
    /// Resident set.
    pub rss: Option<u64>,
    /// Resident anonymous memory.
    pub rss_anon: Option<u64>,
    /// Resident file mappings.
    pub rss_file: Option<u64>,
    /// Resident shared memory.
    pub rss_shmem: Option<u64>,
    /// Swapped out.
    pub swap: Option<u64>,
    /// Address space.
    pub vm_size: Option<u64>,
    /// Private writable memory, which `RLIMIT_DATA` limits.
    pub vm_data: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Real user id.
    pub user: Option<u32>,
    /// Seccomp mode: 0 off, 1 strict, 2 filter.
    pub seccomp: Option<u32>,
    /// The thread has a user shadow stack.
    pub shadow_stack: bool,
}

impl Status {
    /// Reads the text of a status file.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut status = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else {
                continue;
            };
            let (key, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            match key {
                b"Tgid" => status.tgid = number(value),
                b"NStgid" => {
                    let mut ids = value.rsplit(u8::is_ascii_whitespace);
                    status.innermost_tgid = ids.next().and_then(number);
                }
                b"PPid" => status.parent = number(value),
                b"VmRSS" => status.rss = kibibytes(value),
                b"RssAnon" => status.rss_anon = kibibytes(value),
                b"RssFile" => status.rss_file = kibibytes(value),
                b"RssShmem" => status.rss_shmem = kibibytes(value),
                b"VmSwap" => status.swap = kibibytes(value),
                b"VmSize" => status.vm_size = kibibytes(value),
                b"VmData" => status.vm_data = kibibytes(value),
                b"Uid" => {
                    let mut ids = value.split(u8::is_ascii_whitespace);
                    status.user = ids.next().and_then(number);
                }
                b"Threads" => status.threads = number(value),
                b"Seccomp" => status.seccomp = number(value),
                key if key == SHADOW_STACK_STATUS.0 => {
                    status.shadow_stack = value
                        .split(u8::is_ascii_whitespace)
                        .any(|feature| feature == SHADOW_STACK_STATUS.1);
                }
                _ => {}
            }
        }
        status
    }
}

/// What `/proc/PID/stat` says. Times are in clock ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Command name, any bytes replaced that are no UTF-8.
    pub name: String,
    /// State letter: `R`, `S`, `Z`, …
    pub state: u8,
    /// The kernel's `PF_*` flags.
    pub flags: u32,
    /// Time in user mode; of the whole process in `/proc/PID/stat`.
    pub user_ticks: u64,
    /// Time in the kernel.
    pub system_ticks: u64,
    /// Start, since boot.
    pub start_ticks: u64,
}

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

impl Stat {
    /// Reads the text of a stat file; `None` when it is not one.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        // The name may hold anything, parentheses too; no later field does.
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let name = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
        let fields: Vec<&[u8]> = text[close + 1..]
            .split(u8::is_ascii_whitespace)
            .filter(|field| !field.is_empty())
            .collect();
        // proc_pid_stat(5) numbers from 1, and the state is field 3.
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            name,
            state: *field(3)?.first()?,
            flags: number(field(9)?)?,
            user_ticks: number(field(14)?)?,
            system_ticks: number(field(15)?)?,
            start_ticks: number(field(22)?)?,
        })
    }

    /// The thread has ended: a zombie, or gone altogether.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// A thread of the kernel's own, without user memory.
    #[must_use]
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }
}

fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `1234 kB`, where the kernel's kB are KiB.
fn kibibytes(text: &[u8]) -> Option<u64> {
    number::<u64>(text.strip_suffix(b"kB")?.trim_ascii())?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn status_fields_are_read_in_bytes() {
        let text = b"Name:\ta b\nState:\tS (sleeping)\nTgid:\t42\nNStgid:\t42\t7\nPPid:\t1\nUid:\t1000\t0\t0\t0\nVmData:\t  64 kB\nVmSize:\t    3060 kB\n\
            VmRSS:\t    1752 kB\nRssAnon:\t     112 kB\nRssFile:\t    1640 kB\nRssShmem:\t       8 kB\n\
            VmSwap:\t       4 kB\nThreads:\t3\nSeccomp:\t2\nx86_Thread_features:\tshstk wrss \n";
        assert_eq!(
            Status::parse(text),
            Status {
                tgid: Some(42),
                innermost_tgid: Some(7),
                parent: Some(1),
                rss: Some(1752 << 10),
                rss_anon: Some(112 << 10),
                rss_file: Some(1640 << 10),
                rss_shmem: Some(8 << 10),
                swap: Some(4 << 10),
                vm_size: Some(3060 << 10),
                vm_data: Some(64 << 10),
                user: Some(1000),
                threads: Some(3),
                seccomp: Some(2),
                shadow_stack: true,
            }
        );
    }

    #[test]
    fn a_feature_that_only_contains_shstk_is_no_shadow_stack() {
        assert!(!Status::parse(b"x86_Thread_features:\tnoshstk\n").shadow_stack);
        assert!(!Status::parse(b"x86_Thread_features_locked:\tshstk\n").shadow_stack);
    }

    #[test]
    fn sizes_that_overflow_or_lack_their_unit_are_unknown() {
        let status = Status::parse(b"VmRSS:\t18446744073709551615 kB\nVmSize:\t12\n");
        assert_eq!((status.rss, status.vm_size), (None, None));
    }

    const STAT: &[u8] = b"4242 (a) S 1) R 1 4242 4242 0 -1 4194304 100 0 0 0 17 5 0 0 20 0 3 0 8675309 3133440 438 18446744073709551615\n";

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = Stat::parse(STAT).unwrap();
        assert_eq!(
            stat,
            Stat {
                name: "a) S 1".into(),
                state: b'R',
                flags: 4_194_304,
                user_ticks: 17,
                system_ticks: 5,
                start_ticks: 8_675_309,
            }
        );
        assert!(!stat.is_kernel_thread() && !stat.has_ended());
    }

    #[test]
    fn a_stat_file_cut_short_is_refused() {
        for length in 0..STAT.len() - 60 {
            assert_eq!(Stat::parse(&STAT[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn leaktrace_s_own_entries_are_understood() {
        let stat = Stat::parse(&std::fs::read("/proc/self/stat").unwrap()).unwrap();
        assert!(stat.start_ticks > 0 && !stat.is_kernel_thread());
        let status = Status::parse(&std::fs::read("/proc/self/status").unwrap());
        assert_eq!(status.tgid, Some(std::process::id()));
        assert!(status.rss.unwrap() > 100 << 10);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Status::parse(&bytes);
            let _ = Stat::parse(&bytes);
        }
    }
}
