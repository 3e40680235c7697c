//! Whether return addresses in stacks can be true: a call is in front of those
//! that are. Asks the target's code instead of unwind tables, so it finds out
//! where these, or frame pointers, were wrong.

use std::{
    collections::HashMap,
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
    result: SelfCheck,
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
            result: SelfCheck::default(),
        }
    }

    /// Looks at the return addresses of a stack.
    pub fn look_at(&mut self, stack: &[FrameWord], is_complete: bool) {
        let mut is_doubtful = false;
        let mut was_interrupted = false;
        // The first is the probed instruction.
        for place in stack.iter().skip(1).filter(|place| place.file() != 0) {
            if was_interrupted {
                was_interrupted = false;
                continue;
            }
            let verdict = self.verdict(*place);
            is_doubtful |= verdict == Verdict::Elsewhere;
            was_interrupted = verdict == Verdict::SignalReturn;
        }
        self.result.doubtful_stacks += u64::from(is_doubtful && is_complete);
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
        let is_counted = matches!(verdict, Verdict::AfterCall | Verdict::Elsewhere);
        self.result.return_addresses += u64::from(is_counted);
        self.result.after_call += u64::from(verdict == Verdict::AfterCall);
        verdict
    }

    fn read(&self, place: FrameWord) -> Verdict {
        let number = FileNumber(place.file());
        let file = CodeFiles::lock(&self.code).get(number).cloned();
        let Some(image) = file.and_then(|file| file.image) else {
            return Verdict::Unknown;
        };
        let mut before = [0; LONGEST_CALL];
        let mut after = [0; SIGNAL_RETURN.len()];
        let start = place.offset().checked_sub(before.len() as u64);
        let is_read =
            start.is_some_and(|start| image.file().read_exact_at(&mut before, start).is_ok());
        if !is_read {
            return Verdict::Unknown;
        }
        if ends_with_call(&before) {
            return Verdict::AfterCall;
        }
        match image.file().read_exact_at(&mut after, place.offset()) {
            Ok(()) if after == SIGNAL_RETURN => Verdict::SignalReturn,
            _ => Verdict::Elsewhere,
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
        CallCheck::new(Arc::new(Mutex::new(CodeFiles::of(CodeFile {
            path: "/code".into(),
            image: Some(Image::Own(Arc::new(file))),
        }))))
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
        check.look_at(&[PROBED, CALLED, WRONG, CALLED], false);
        check.look_at(&[PROBED, WRONG], false);
        check.look_at(&[], true);
        let expected = SelfCheck {
            return_addresses: 2,
            after_call: 1,
            doubtful_stacks: 0,
        };
        assert_eq!(check.result(), expected);
        assert_eq!(check.result().share(), Some(0.5));
    }

    #[test]
    fn a_complete_stack_with_a_wrong_one_is_doubtful() {
        let mut check = check();
        check.look_at(&[PROBED, CALLED], true);
        check.look_at(&[PROBED, CALLED, WRONG], false);
        assert_eq!(check.result().doubtful_stacks, 0);
        check.look_at(&[PROBED, CALLED, WRONG], true);
        assert_eq!(check.result().doubtful_stacks, 1);
    }

    #[test]
    fn what_a_signal_interrupted_was_not_called() {
        let mut check = check();
        check.look_at(&[PROBED, SIGNAL, WRONG, CALLED], true);
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
        check.look_at(&[&[PROBED], &UNKNOWN[..]].concat(), true);
        assert_eq!(check.result(), SelfCheck::default());
        assert_eq!(check.result().share(), None);
    }
}
