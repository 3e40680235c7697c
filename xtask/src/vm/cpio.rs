//! The archive that a kernel unpacks at boot: cpio's "newc" form, as described in
//! the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

/// File types of `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// An archive in the making.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory. Its parent has to be there before.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file that can be executed.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, FILE | 0o755, contents);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let (owner, group, links, time) = (0, 0, 1, 0);
        let (major, minor, device_major, device_minor, check) = (0, 0, 0, 0, 0);
        let fields = [
            self.entries,
            mode,
            owner,
            group,
            links,
            time,
            contents.len() as u32,
            major,
            minor,
            device_major,
            device_minor,
            path.len() as u32 + 1,
            check,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    /// Names and contents begin at multiples of 4.
    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_contents_each_padded() {
        let mut archive = Archive::default();
        archive.file("init", b"#!x");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let header = "070701000000010000\
                      81ED000000000000000000000001000000000000000300000000";
        assert!(text.starts_with(header), "{text}");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..120], b"#!x\0");
        assert!(text.contains("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
