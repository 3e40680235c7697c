//! Replays a ledger over the times in which leaktrace counted: what each site
//! must show, and by how much calls that straddle an edge may change it.
//!
//! Blocks move as the tracer must see them move: given back when a call begins
//! (another thread may get the address before it ends), handed out when one
//! ends.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    comparison::Sums,
    ledger::{Call, Kind},
    report::Report,
};

/// When leaktrace counted; each edge lies somewhere between two instants of
/// `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Events count from here on: earliest, latest.
    pub on: (u64, u64),
    /// And no longer from here on.
    pub off: (u64, u64),
}

/// An edge of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    /// Events begin to count.
    On,
    /// They cease to.
    Off,
}

/// One of the ways in which a call may have been seen: what it adds to sites.
pub type Outcome = Vec<(u16, Sums)>;

/// What the ledger says.
#[derive(Debug, Default)]
pub struct Truth {
    /// What every site did for certain.
    pub certain: BTreeMap<u16, Sums>,
    /// Calls that straddle an edge, and blocks that come of them: exactly one
    /// outcome of each is true.
    pub open: Vec<Vec<Outcome>>,
    /// How many calls straddle which edge, by thread.
    pub straddlers: BTreeMap<(u32, Edge), u64>,
    /// Frees of blocks from before the window: at least, at most.
    pub unknown_frees: (u64, u64),
    /// Calls that were refused: at least, at most.
    pub failed: (u64, u64),
    /// Calls that were inside the window for certain.
    pub calls: u64,
    /// Most blocks that were live at once.
    pub peak_blocks: u64,
}

impl Truth {
    /// How many calls straddle this edge.
    #[must_use]
    pub fn straddlers_of(&self, edge: Edge) -> u64 {
        let calls = self.straddlers.iter().filter(|((_, of), _)| *of == edge);
        calls.map(|(_, calls)| calls).sum()
    }
}

impl Window {
    /// The window that a report tells.
    ///
    /// # Errors
    /// When the report was made while still counting.
    pub fn of(report: &Report) -> Result<Self> {
        let disabled = report
            .disabled_ns
            .context("the report does not say when it ended")?;
        let uncertainty = report
            .disabled_uncertainty_ns
            .context("no uncertainty of the end")?;
        ensure!(
            report.enabled_ns < disabled,
            "counting ended before it began"
        );
        Ok(Self {
            on: (
                report.enabled_ns - report.enabled_uncertainty_ns,
                report.enabled_ns,
            ),
            off: (disabled - uncertainty, disabled),
        })
    }
}

/// Where a call lies: in which window, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    Straddles(usize, Edge),
    Inside(usize),
}

/// Whether leaktrace knows a block, and since which window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    No,
    Maybe(usize),
    Yes(usize),
}

#[derive(Clone, Copy)]
struct Block {
    site: u16,
    size: u64,
    known: Known,
}

/// One thread while it is replayed.
struct Thread<I> {
    number: u32,
    calls: I,
    /// The call that comes next, or that is in flight.
    call: Call,
    /// The block that it resizes.
    held: Option<Block>,
}

/// Replays `logs`, each a thread's number and its calls in order, and gives the
/// truth for each of `windows`, which follow each other.
///
/// # Errors
/// When a log can't be read, windows overlap, or the ledger contradicts itself:
/// a block given back twice, or handed out while it is live.
pub fn replay<I>(logs: Vec<(u32, I)>, windows: &[Window]) -> Result<Vec<Truth>>
where
    I: Iterator<Item = Result<Call>>,
{
    let mut threads = Vec::new();
    for (number, mut calls) in logs {
        if let Some(call) = calls.next().transpose()? {
            threads.push(Thread {
                number,
                calls,
                call,
                held: None,
            });
        }
    }
    // Of two events at one instant, the one that hands out comes first: another
    // thread may give the block back within the clock's resolution.
    let mut order: BinaryHeap<Reverse<(u64, bool, usize)>> = threads
        .iter()
        .enumerate()
        .map(|(index, thread)| Reverse((thread.call.start_ns, true, index)))
        .collect();
    ensure!(
        windows.windows(2).all(|pair| pair[0].off.1 < pair[1].on.0),
        "windows overlap: {windows:?}"
    );
    let truths = windows.iter().map(|_| Truth::default()).collect();
    let mut replay = Replay {
        windows: windows.to_vec(),
        blocks: HashMap::new(),
        truths,
    };
    while let Some(Reverse((_, is_begin, index))) = order.pop() {
        let thread = &mut threads[index];
        if is_begin {
            thread.held = replay.begin(thread.number, &thread.call)?;
            order.push(Reverse((thread.call.end_ns, false, index)));
            continue;
        }
        replay.end(&thread.call, thread.held.take())?;
        if let Some(call) = thread.calls.next().transpose()? {
            ensure!(
                call.start_ns >= thread.call.end_ns,
                "thread {} goes back in time",
                thread.number
            );
            thread.call = call;
            order.push(Reverse((call.start_ns, true, index)));
        }
    }
    Ok(replay.finish())
}

struct Replay {
    windows: Vec<Window>,
    blocks: HashMap<u64, Block>,
    /// One for each window.
    truths: Vec<Truth>,
}

impl Replay {
    fn place(&self, call: &Call) -> Result<Place> {
        let index = self
            .windows
            .partition_point(|window| window.off.1 < call.start_ns);
        let Some(window) = self.windows.get(index) else {
            return Ok(Place::Outside);
        };
        if let Some(next) = self.windows.get(index + 1) {
            ensure!(
                call.end_ns < next.on.0,
                "a call reaches into two windows: {call:?}"
            );
        }
        Ok(if call.end_ns < window.on.0 {
            Place::Outside
        } else if call.start_ns <= window.on.1 {
            Place::Straddles(index, Edge::On)
        } else if call.end_ns >= window.off.0 {
            Place::Straddles(index, Edge::Off)
        } else {
            Place::Inside(index)
        })
    }

    /// A call begins: takes the block that it gives back. Gives the block that
    /// it may put back.
    fn begin(&mut self, thread: u32, call: &Call) -> Result<Option<Block>> {
        match self.place(call)? {
            Place::Inside(window) => self.truths[window].calls += 1,
            Place::Straddles(window, edge) => {
                *self.truths[window]
                    .straddlers
                    .entry((thread, edge))
                    .or_default() += 1;
            }
            Place::Outside => {}
        }
        if call.old == 0 {
            return Ok(None);
        }
        let Some(block) = self.blocks.remove(&call.old) else {
            bail!("the ledger contradicts itself: unknown block in {call:?}");
        };
        if call.kind == Kind::Free {
            self.give_back(call, block)?;
            return Ok(None);
        }
        Ok(Some(block))
    }

    /// A call ends: hands out its block.
    fn end(&mut self, call: &Call, held: Option<Block>) -> Result<()> {
        if call.kind == Kind::Free {
            return Ok(());
        }
        let place = self.place(call)?;
        let is_refused = call.address == 0 && (call.kind == Kind::Alloc || call.size > 0);
        if is_refused {
            self.count(place, |truth| &mut truth.failed);
        }
        let Some(old) = held else {
            if call.address != 0 {
                self.hand_out(call, place)?;
            }
            return Ok(());
        };
        if let Place::Straddles(window, Edge::Off) = place
            && old.known == Known::Yes(window)
        {
            return self.resize_over_the_end(call, old, window);
        }
        if is_refused {
            return self.insert(call.old, old, call);
        }
        self.give_back(call, old)?;
        if call.address != 0 {
            self.hand_out(call, place)?;
        }
        Ok(())
    }

    /// Seen before the call began, within, or after.
    fn resize_over_the_end(&mut self, call: &Call, old: Block, window: usize) -> Result<()> {
        let freed = (old.site, Sums::freed(old.size));
        let mut outcomes = vec![vec![], vec![freed]];
        if call.address != 0 {
            outcomes.push(vec![freed, (call.site, Sums::allocated(call.size))]);
        }
        self.truths[window].open.push(outcomes);
        let (address, block) = match call.address {
            0 if call.size == 0 => return Ok(()),
            0 => (call.old, old),
            address => (
                address,
                Block {
                    site: call.site,
                    size: call.size,
                    known: Known::No,
                },
            ),
        };
        self.insert(
            address,
            Block {
                known: Known::No,
                ..block
            },
            call,
        )
    }

    fn hand_out(&mut self, call: &Call, place: Place) -> Result<()> {
        let known = match place {
            Place::Inside(window) => {
                let sums = self.truths[window].certain.entry(call.site).or_default();
                *sums += Sums::allocated(call.size);
                Known::Yes(window)
            }
            Place::Straddles(window, _) => Known::Maybe(window),
            Place::Outside => Known::No,
        };
        self.insert(
            call.address,
            Block {
                site: call.site,
                size: call.size,
                known,
            },
            call,
        )
    }

    fn insert(&mut self, address: u64, block: Block, call: &Call) -> Result<()> {
        let previous = self.blocks.insert(address, block);
        ensure!(
            previous.is_none(),
            "the ledger contradicts itself: handed out twice in {call:?}"
        );
        if let Place::Inside(window) = self.place(call)? {
            let peak = &mut self.truths[window].peak_blocks;
            *peak = (*peak).max(self.blocks.len() as u64);
        }
        Ok(())
    }

    fn give_back(&mut self, call: &Call, block: Block) -> Result<()> {
        let freed = (block.site, Sums::freed(block.size));
        let allocated = (block.site, Sums::allocated(block.size));
        let place = self.place(call)?;
        match (block.known, place) {
            (Known::Yes(of), Place::Inside(window)) if of == window => {
                *self.truths[of].certain.entry(block.site).or_default() += freed.1;
            }
            (Known::Yes(of), Place::Straddles(window, _)) if of == window => {
                self.truths[of].open.push(vec![vec![], vec![freed]]);
            }
            (Known::Maybe(of), Place::Inside(window)) if of == window => {
                self.truths[of].unknown_frees.1 += 1;
                self.truths[of]
                    .open
                    .push(vec![vec![], vec![allocated, freed]]);
            }
            (Known::Maybe(of), Place::Straddles(window, _)) if of == window => {
                self.truths[of].unknown_frees.1 += 1;
                let outcomes = vec![vec![], vec![allocated], vec![allocated, freed]];
                self.truths[of].open.push(outcomes);
            }
            // Not known in this window, if it is in any.
            (known, place) => {
                self.stays(block, known);
                self.count(place, |truth| &mut truth.unknown_frees);
            }
        }
        Ok(())
    }

    /// The block was still live when the window ended that knows it.
    fn stays(&mut self, block: Block, known: Known) {
        if let Known::Maybe(window) = known {
            let allocated = (block.site, Sums::allocated(block.size));
            self.truths[window].open.push(vec![vec![], vec![allocated]]);
        }
    }

    fn count(&mut self, place: Place, range: fn(&mut Truth) -> &mut (u64, u64)) {
        match place {
            Place::Inside(window) => {
                let (least, most) = range(&mut self.truths[window]);
                *least += 1;
                *most += 1;
            }
            Place::Straddles(window, _) => range(&mut self.truths[window]).1 += 1,
            Place::Outside => {}
        }
    }

    fn finish(mut self) -> Vec<Truth> {
        for block in std::mem::take(&mut self.blocks).into_values() {
            self.stays(block, block.known);
        }
        self.truths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window {
        on: (100, 110),
        off: (900, 910),
    };

    fn alloc(start_ns: u64, address: u64, size: u64) -> Call {
        Call {
            start_ns,
            end_ns: start_ns + 5,
            address,
            old: 0,
            size,
            site: 1,
            kind: Kind::Alloc,
        }
    }
    fn free(start_ns: u64, old: u64) -> Call {
        Call {
            start_ns,
            end_ns: start_ns + 5,
            address: 0,
            old,
            size: 0,
            site: 2,
            kind: Kind::Free,
        }
    }
    fn realloc(start_ns: u64, old: u64, address: u64, size: u64) -> Call {
        Call {
            start_ns,
            end_ns: start_ns + 5,
            address,
            old,
            size,
            site: 3,
            kind: Kind::Realloc,
        }
    }
    fn truth(threads: &[&[Call]]) -> Result<Truth> {
        let logs = threads.iter().enumerate().map(|(thread, calls)| {
            (
                u32::try_from(thread).unwrap(),
                calls.iter().copied().map(Ok),
            )
        });
        Ok(replay(logs.collect(), &[WINDOW])?.remove(0))
    }
    fn live(truth: &Truth, site: u16) -> (u64, u64) {
        let sums = truth.certain.get(&site).copied().unwrap_or_default();
        (sums.live_bytes(), sums.live_blocks())
    }

    #[test]
    fn only_blocks_from_inside_the_window_count() {
        let truth = truth(&[&[
            alloc(50, 0x10, 7),
            alloc(200, 0x20, 9),
            alloc(950, 0x30, 11),
        ]]);
        let truth = truth.unwrap();
        assert_eq!(live(&truth, 1), (9, 1));
        assert!(truth.open.is_empty());
        assert_eq!(truth.calls, 1);
    }

    #[test]
    fn a_free_of_a_block_from_before_is_unknown() {
        let truth = truth(&[&[alloc(50, 0x10, 7), free(200, 0x10)]]).unwrap();
        assert_eq!(live(&truth, 1), (0, 0));
        assert_eq!(truth.unknown_frees, (1, 1));
    }

    #[test]
    fn a_free_after_the_end_leaves_the_block() {
        let truth = truth(&[&[alloc(200, 0x10, 7), free(950, 0x10)]]).unwrap();
        assert_eq!(live(&truth, 1), (7, 1));
    }

    #[test]
    fn a_call_over_an_edge_may_or_may_not_count() {
        let truth = truth(&[
            &[alloc(98, 0x10, 7)],
            &[alloc(200, 0x20, 9), free(905, 0x20)],
        ]);
        let truth = truth.unwrap();
        assert_eq!(live(&truth, 1), (9, 1));
        assert_eq!(truth.open.len(), 2);
        let one_each = BTreeMap::from([((0, Edge::On), 1), ((1, Edge::Off), 1)]);
        assert_eq!(truth.straddlers, one_each);
    }

    #[test]
    fn an_address_may_be_handed_out_while_its_free_still_runs() {
        let slow_free = Call {
            end_ns: 400,
            ..free(300, 0x10)
        };
        let truth = truth(&[&[alloc(200, 0x10, 7), slow_free], &[alloc(320, 0x10, 9)]]).unwrap();
        assert_eq!(live(&truth, 1), (9, 1));
    }

    #[test]
    fn realloc_moves_keeps_and_gives_back() {
        let moved = truth(&[&[alloc(200, 0x10, 7), realloc(300, 0x10, 0x20, 70)]]).unwrap();
        assert_eq!((live(&moved, 1), live(&moved, 3)), ((0, 0), (70, 1)));
        let refused = truth(&[&[alloc(200, 0x10, 7), realloc(300, 0x10, 0, 1 << 60)]]).unwrap();
        assert_eq!((live(&refused, 1), refused.failed), ((7, 1), (1, 1)));
        let given_back = truth(&[&[alloc(200, 0x10, 7), realloc(300, 0x10, 0, 0)]]).unwrap();
        assert_eq!((live(&given_back, 1), given_back.failed), ((0, 0), (0, 0)));
    }

    #[test]
    fn each_window_knows_its_own_blocks_only() {
        let second = Window {
            on: (2000, 2010),
            off: (2900, 2910),
        };
        let calls = [
            alloc(200, 0x10, 7),
            alloc(908, 0x20, 9),
            alloc(2100, 0x30, 11),
            free(2200, 0x10),
            free(2300, 0x20),
        ];
        let logs = vec![(0, calls.into_iter().map(Ok))];
        let truths = replay(logs, &[WINDOW, second]).unwrap();
        assert_eq!(
            (live(&truths[0], 1), live(&truths[1], 1)),
            ((7, 1), (11, 1))
        );
        assert_eq!((truths[0].open.len(), truths[1].open.len()), (1, 0));
        assert_eq!(
            (truths[0].unknown_frees, truths[1].unknown_frees),
            ((0, 0), (2, 2))
        );
    }

    #[test]
    fn a_ledger_that_contradicts_itself_is_no_truth() {
        assert!(truth(&[&[free(200, 0x10)]]).is_err());
        assert!(truth(&[&[alloc(200, 0x10, 1), alloc(300, 0x10, 1)]]).is_err());
    }

    #[test]
    fn a_call_that_never_returns_hands_out_nothing() {
        let stuck = Call {
            end_ns: u64::MAX,
            address: 0,
            ..alloc(200, 0, 7)
        };
        let truth = truth(&[&[stuck]]).unwrap();
        assert_eq!(live(&truth, 1), (0, 0));
        assert!(truth.open.is_empty());
    }
}
