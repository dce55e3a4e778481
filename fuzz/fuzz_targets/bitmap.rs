//! The dirty bitmap and the chunk map against a naive set of chunks.
#![no_main]

use arbitrary::Arbitrary;
use blkmirror::bitmap::{ChunkMap, DirtyBitmap};
use blkmirror::range::ChunkRange;
use libfuzzer_sys::fuzz_target;

/// More than the words of two levels, and three pages of a chunk map.
const MOST: u64 = 3 * 4096 + 70;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Set(u16, u16),
    Clear(u16, u16),
    SetAll,
    Look(u16, u16),
}

#[derive(Arbitrary, Debug)]
struct Script {
    chunks: u16,
    steps: Vec<Step>,
}

/// Near the borders of words and pages as often as anywhere. It may lie beyond the end, or be empty.
fn range(from: u16, length: u16) -> ChunkRange {
    let start = match from % 4 {
        0 => u64::from(from),
        1 => u64::from(from) / 64 * 64,
        2 => (u64::from(from) / 4096 * 4096).saturating_sub(1),
        _ => u64::from(from) % 130,
    };
    let length = if length.is_multiple_of(3) { u64::from(length) } else { u64::from(length) % 200 };
    ChunkRange::new(start, start + length)
}

struct Pair {
    oracle: Vec<bool>,
    dirty: DirtyBitmap,
    map: ChunkMap,
}

impl Pair {
    fn new(chunks: u64) -> Self {
        Self {
            oracle: vec![false; chunks as usize],
            dirty: DirtyBitmap::new(chunks).expect("little memory"),
            map: ChunkMap::new(chunks).expect("little memory"),
        }
    }

    /// The part of a range that exists.
    fn within(&self, range: ChunkRange) -> std::ops::Range<usize> {
        let chunks = self.oracle.len() as u64;
        range.start.min(chunks) as usize..range.end.min(chunks) as usize
    }

    fn write(&mut self, range: ChunkRange, value: bool) -> u64 {
        let within = self.within(range);
        let changed = self.oracle[within.clone()].iter().filter(|set| **set != value).count() as u64;
        self.oracle[within].fill(value);
        changed
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Set(from, length) => {
                let range = range(from, length);
                let fresh = self.write(range, true);
                assert_eq!(self.dirty.mark(range), fresh);
                self.map.set(range);
            }
            Step::Clear(from, length) => {
                let range = range(from, length);
                let cleared = self.write(range, false);
                assert_eq!(self.dirty.clear(range), cleared);
                self.map.clear(range);
            }
            Step::SetAll => {
                let all = ChunkRange::new(0, u64::MAX);
                let fresh = self.write(all, true);
                assert_eq!(self.dirty.mark(all), fresh);
                self.map.set_all();
            }
            Step::Look(from, length) => self.look(range(from, length)),
        }
        let count = self.oracle.iter().filter(|set| **set).count() as u64;
        assert_eq!((self.dirty.dirty_chunks(), self.map.count()), (count, count));
    }

    fn look(&self, range: ChunkRange) {
        let within = self.within(range);
        let part = &self.oracle[within.clone()];
        let set = part.iter().filter(|set| **set).count() as u64;
        let first =
            |value: bool| Some(within.start as u64 + part.iter().position(|set| *set == value)? as u64);
        assert_eq!(self.dirty.dirty_in(range), set);
        assert_eq!(self.map.any(range), set > 0);
        assert_eq!(self.map.all(range), set == part.len() as u64);
        assert_eq!(self.map.first_set(range), first(true));
        assert_eq!(self.map.first_clear(range), first(false));
        let chunk = range.start;
        let expected = self.oracle.get(chunk as usize).copied().unwrap_or(false);
        assert_eq!((self.dirty.is_dirty(chunk), self.map.get(chunk)), (expected, expected));
        let next = self.oracle.iter().skip(chunk as usize).position(|set| *set).map(|at| chunk + at as u64);
        assert_eq!(self.dirty.next_dirty(chunk), next);
        let run = next.filter(|_| !range.is_empty()).map(|start| {
            let longest = self.oracle[start as usize..].iter().take_while(|set| **set).count() as u64;
            ChunkRange::new(start, start + longest.min(range.len()))
        });
        assert_eq!(self.dirty.next_run(chunk, range.len()), run);
    }
}

fuzz_target!(|script: Script| {
    let mut pair = Pair::new(u64::from(script.chunks) % MOST);
    for step in script.steps.iter().take(64) {
        pair.step(*step);
    }
    pair.look(ChunkRange::new(0, u64::MAX));
});
