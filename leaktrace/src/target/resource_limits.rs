//! `/proc/PID/limits`: the resource limits of a process (getrlimit(2)). Pure.

/// The soft limits of a process that leaktrace knows what to make of; `None` is
/// no limit, or unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    /// `RLIMIT_AS`, bytes.
    pub address_space: Option<u64>,
    /// `RLIMIT_DATA`, bytes.
    pub data: Option<u64>,
    /// `RLIMIT_STACK`, bytes: how large a thread's stack is, too.
    pub stack: Option<u64>,
    /// `RLIMIT_NOFILE`.
    pub descriptors: Option<u64>,
    /// `RLIMIT_NPROC`.
    pub threads: Option<u64>,
}

impl ResourceLimits {
    /// Reads the text of a limits file.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let soft = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse().ok()
        };
        Self {
            address_space: soft("Max address space"),
            data: soft("Max data size"),
            stack: soft("Max stack size"),
            descriptors: soft("Max open files"),
            threads: soft("Max processes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limits_are_read_and_unlimited_is_none() {
        let text = b"\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max processes             62876                62877                processes 
Max open files            1024                 524288               files     
Max address space         1073741824           unlimited            bytes     
";
        assert_eq!(
            ResourceLimits::parse(text),
            ResourceLimits {
                address_space: Some(1 << 30),
                data: None,
                stack: Some(8 << 20),
                descriptors: Some(1024),
                threads: Some(62_876),
            }
        );
        assert_eq!(ResourceLimits::parse(b"\xff"), ResourceLimits::default());
    }

    #[test]
    fn our_own_limit_of_descriptors_is_the_kernel_s() {
        let limits = ResourceLimits::parse(&std::fs::read("/proc/self/limits").unwrap());
        let kernel = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(limits.descriptors, kernel.current);
    }
}
