//! Who has which part of the copy buffers, by number; the memory itself belongs to the job (SPEC C-6).

use crate::error::{Errno, Error, Result};

/// A run of buffer chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first chunk of it.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// A set bit is a free buffer chunk.
#[derive(Debug)]
pub(crate) struct Arena {
    free: Vec<u64>,
    free_count: u32,
    count: u32,
}

impl Arena {
    /// `count` chunks, all free. What it will ever need is allocated here.
    pub(crate) fn new(count: u32) -> Result<Self> {
        let words = (count as usize).div_ceil(64);
        let mut free = Vec::new();
        free.try_reserve_exact(words)
            .map_err(|_| Error::new(Errno::ENOMEM, "no memory for the map of buffers"))?;
        free.resize(words, u64::MAX);
        if !count.is_multiple_of(64)
            && let Some(last) = free.last_mut()
        {
            *last = (1 << (count % 64)) - 1;
        }
        Ok(Self { free, free_count: count, count })
    }

    pub(crate) fn free_chunks(&self) -> u32 {
        self.free_count
    }

    pub(crate) fn chunks(&self) -> u32 {
        self.count
    }

    /// Takes up to `want` chunks: in one run where there is one that long, else in at most `max_segments` runs,
    /// lowest first. Appends the runs to `out` and says how many chunks they hold.
    pub(crate) fn take(&mut self, want: u32, max_segments: usize, out: &mut Vec<Segment>) -> u32 {
        let want = want.min(self.free_count);
        if want == 0 {
            return 0;
        }
        if want == 1
            && let Some(first) = self.next(0, 0)
        {
            // Most take one, and any free one is a run.
            let segment = Segment { first, count: 1 };
            self.flip(segment);
            self.free_count -= 1;
            out.push(segment);
            return 1;
        }
        if let Some(first) = self.find_run(want) {
            let segment = Segment { first, count: want };
            self.flip(segment);
            self.free_count -= want;
            out.push(segment);
            return want;
        }
        let mut taken = 0;
        let mut from = 0;
        for _ in 0..max_segments {
            let Some(segment) = self.next_run(from, want - taken) else {
                break;
            };
            self.flip(segment);
            out.push(segment);
            taken += segment.count;
            from = segment.first + segment.count;
            if taken == want {
                break;
            }
        }
        self.free_count -= taken;
        taken
    }

    pub(crate) fn give_back(&mut self, segments: &mut Vec<Segment>) {
        for segment in segments.drain(..) {
            self.flip(segment);
            self.free_count += segment.count;
        }
        debug_assert!(self.free_count <= self.count, "a buffer is given back once");
    }

    fn find_run(&self, want: u32) -> Option<u32> {
        let mut from = 0;
        while let Some(run) = self.next_run(from, want) {
            if run.count == want {
                return Some(run.first);
            }
            from = run.first + run.count;
        }
        None
    }

    /// The first free run at or after `from`, at most `most` long.
    fn next_run(&self, from: u32, most: u32) -> Option<Segment> {
        let first = self.next(from, 0)?;
        let end = self.next(first, u64::MAX).unwrap_or(self.count);
        Some(Segment { first, count: (end - first).min(most) })
    }

    /// The first chunk at or after `from` whose bit, exclusive-or `invert`, is set.
    fn next(&self, from: u32, invert: u64) -> Option<u32> {
        let mut index = (from / 64) as usize;
        let mut word = (self.free.get(index)? ^ invert) & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = self.free.get(index)? ^ invert;
        }
        let found = index as u32 * 64 + word.trailing_zeros();
        (found < self.count).then_some(found)
    }

    fn flip(&mut self, segment: Segment) {
        let mut at = segment.first;
        let end = segment.first + segment.count;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            self.free[(at / 64) as usize] ^= (u64::MAX >> (64 - bits)) << (at % 64);
            at += bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_chunk_is_ever_lent_twice(count in 1u32..300, steps in prop::collection::vec((any::<bool>(), 1u32..80, 1usize..6), 0..200)) {
            // SPEC C-6, C-7
            let mut arena = Arena::new(count).expect("small");
            let mut owned = vec![false; count as usize];
            let mut held: Vec<Vec<Segment>> = Vec::new();
            for (take, want, max) in steps {
                if take || held.is_empty() {
                    let mut out = Vec::new();
                    let taken = arena.take(want, max, &mut out);
                    prop_assert!(out.len() <= max);
                    prop_assert_eq!(taken, out.iter().map(|s| s.count).sum::<u32>());
                    prop_assert!(taken <= want);
                    for s in &out {
                        for c in s.first..s.first + s.count {
                            prop_assert!(!std::mem::replace(&mut owned[c as usize], true));
                        }
                    }
                    held.push(out);
                } else {
                    let mut back = held.swap_remove(want as usize % held.len());
                    for s in &back {
                        owned[s.first as usize..(s.first + s.count) as usize].fill(false);
                    }
                    arena.give_back(&mut back);
                }
                prop_assert_eq!(arena.free_chunks() as usize, owned.iter().filter(|o| !**o).count());
            }
        }
    }

    #[test]
    fn one_run_is_preferred_and_fragments_are_used_when_there_is_none() {
        // SPEC C-6
        let mut arena = Arena::new(130).expect("small");
        let mut all: Vec<_> = (0..13)
            .map(|_| {
                let mut v = Vec::new();
                arena.take(10, 1, &mut v);
                v
            })
            .collect();
        let mut out = Vec::new();
        assert_eq!(arena.take(1, 9, &mut out), 0);
        for index in [1, 3, 4] {
            arena.give_back(&mut all[index]);
        }
        assert_eq!(arena.take(20, 9, &mut out), 20);
        assert_eq!(out, [Segment { first: 30, count: 20 }]);
        arena.give_back(&mut out);
        assert_eq!(arena.take(25, 9, &mut out), 25);
        assert_eq!(out, [Segment { first: 10, count: 10 }, Segment { first: 30, count: 15 }]);
    }
}
