//! Whether return addresses in stacks can be true: a call is in front of those
//! that are. Asks the target's code instead of unwind tables, so it finds out
//! where these, or frame pointers, were wrong.

use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex},
};

use leaktrace_common::stack::FrameWord;

use crate::{
    arch::{LONGEST_CALL, SIGNAL_RETURN, ends_with_call},
    model::SelfCheck,
    target::code_files::{CodeFiles, FileNumber},
};

/// Looks at every return address once.
pub struct CallCheck {
    code: Arc<Mutex<CodeFiles>>,
    verdicts: HashMap<FrameWord, Verdict>,
    counted: HashSet<FrameWord>,
    result: SelfCheck,
}

/// A stack whose return addresses were looked at.
pub struct Looked {
    /// Where its code was: of callers a byte of the call, which may be the last
    /// instruction of its function or line.
    pub places: Box<[FrameWord]>,
    /// A return address follows no call.
    pub is_doubtful: bool,
}

/// What is at a return address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Code after a call.
    AfterCall,
    /// Other code.
    Elsewhere,
    /// Where a signal handler returns to: nothing called it, and the frame
    /// above was interrupted anywhere.
    SignalReturn,
    /// The code can't be read.
    Unknown,
}

impl CallCheck {
    /// Nothing looked at yet.
    pub fn new(code: Arc<Mutex<CodeFiles>>) -> Self {
        Self {
            code,
            verdicts: HashMap::new(),
            counted: HashSet::new(),
            result: SelfCheck::default(),
        }
    }

    /// Looks at the return addresses of a stack, whose first frame is the probed
    /// instruction.
    pub fn look_at(&mut self, stack: &[FrameWord]) -> Looked {
        let mut looked = Looked {
            places: stack.into(),
            is_doubtful: false,
        };
        let mut was_interrupted = false;
        for place in looked.places.iter_mut().skip(1) {
            let verdict = self.verdict(*place);
            // A handler's frame is followed by what it interrupted, unless frame
            // pointers led past that.
            let is_call = verdict != Verdict::SignalReturn
                && (!was_interrupted || verdict == Verdict::AfterCall);
            was_interrupted = verdict == Verdict::SignalReturn;
            if is_call {
                looked.is_doubtful |= verdict == Verdict::Elsewhere;
                self.count(*place, verdict);
                *place = place.before();
            }
        }
        looked
    }

    /// Counts a stack that is complete all the same.
    pub fn doubt(&mut self) {
        self.result.doubtful_stacks += 1;
    }

    /// What was found so far.
    pub fn result(&self) -> SelfCheck {
        self.result
    }

    fn verdict(&mut self, place: FrameWord) -> Verdict {
        if let Some(verdict) = self.verdicts.get(&place) {
            return *verdict;
        }
        let verdict = self.read(place);
        self.verdicts.insert(place, verdict);
        verdict
    }

    /// Each return address once.
    fn count(&mut self, place: FrameWord, verdict: Verdict) {
        if verdict != Verdict::Unknown && self.counted.insert(place) {
            self.result.return_addresses += 1;
            self.result.after_call += u64::from(verdict == Verdict::AfterCall);
        }
    }

    fn read(&self, place: FrameWord) -> Verdict {
        let number = FileNumber(place.file());
        let file = CodeFiles::lock(&self.code).get(number).cloned();
        let Some(image) = file.and_then(|file| file.image) else {
            return Verdict::Unknown;
        };
        let is_read = |code: &mut [u8], offset| image.file().read_exact_at(code, offset).is_ok();
        let mut after = [0; SIGNAL_RETURN.len()];
        if is_read(&mut after, place.offset()) && after == SIGNAL_RETURN {
            return Verdict::SignalReturn;
        }
        let mut before = [0; LONGEST_CALL];
        match place.offset().checked_sub(before.len() as u64) {
            Some(start) if is_read(&mut before, start) => match ends_with_call(&before) {
                true => Verdict::AfterCall,
                false => Verdict::Elsewhere,
            },
            _ => Verdict::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use super::*;
    use crate::target::code_files::{CodeFile, Image};

    /// A file, number 1, with a call before 0x20, none before 0x30, and a signal
    /// return at 0x40.
    fn check() -> CallCheck {
        let mut bytes = [0x90_u8; 0x60];
        bytes[0x1b] = 0xe8;
        bytes[0x40..0x49].copy_from_slice(&SIGNAL_RETURN);
        let mut file: File = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        CallCheck::new(Arc::new(Mutex::new(CodeFiles::of(CodeFile::new(
            "/code".into(),
            Some(Image::Own(Arc::new(file))),
        )))))
    }

    const PROBED: FrameWord = FrameWord::in_file(1, 0x33);
    const CALLED: FrameWord = FrameWord::in_file(1, 0x20);
    const WRONG: FrameWord = FrameWord::in_file(1, 0x30);
    const SIGNAL: FrameWord = FrameWord::in_file(1, 0x40);
    const UNKNOWN: [FrameWord; 4] = [
        FrameWord::at_address(0x30),
        FrameWord::in_file(1, 3),
        FrameWord::in_file(1, 0x1000),
        FrameWord::in_file(2, 0x30),
    ];

    #[test]
    fn each_return_address_counts_once() {
        let mut check = check();
        assert!(check.look_at(&[PROBED, CALLED, WRONG, CALLED]).is_doubtful);
        assert!(check.look_at(&[PROBED, WRONG]).is_doubtful);
        assert!(!check.look_at(&[PROBED, CALLED]).is_doubtful);
        assert!(!check.look_at(&[]).is_doubtful);
        let expected = SelfCheck {
            return_addresses: 2,
            after_call: 1,
            doubtful_stacks: 0,
        };
        assert_eq!(check.result(), expected);
        assert_eq!(check.result().share(), Some(0.5));
    }

    #[test]
    fn what_a_signal_interrupted_was_not_called() {
        let mut check = check();
        let looked = check.look_at(&[PROBED, SIGNAL, WRONG, CALLED]);
        assert!(!looked.is_doubtful);
        assert_eq!(*looked.places, [PROBED, SIGNAL, WRONG, CALLED.before()]);
        let code = FrameWord::at_address(0x7000);
        let looked = check.look_at(&[PROBED, SIGNAL, code, code]);
        assert_eq!(*looked.places, [PROBED, SIGNAL, code, code.before()]);
        // Frame pointers know nothing of what was interrupted.
        let looked = check.look_at(&[PROBED, SIGNAL, CALLED]);
        assert_eq!(*looked.places, [PROBED, SIGNAL, CALLED.before()]);
        let expected = SelfCheck {
            return_addresses: 1,
            after_call: 1,
            doubtful_stacks: 0,
        };
        assert_eq!(check.result(), expected);
    }

    #[test]
    fn code_that_cannot_be_read_says_nothing() {
        let mut check = check();
        let looked = check.look_at(&[&[PROBED], &UNKNOWN[..]].concat());
        assert!(!looked.is_doubtful);
        assert_eq!(looked.places[1..], UNKNOWN.map(FrameWord::before));
        assert_eq!(check.result(), SelfCheck::default());
        assert_eq!(check.result().share(), None);
    }
}
