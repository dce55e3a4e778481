//! The dirty bitmap: many threads mark, one scanner searches and clears, nobody waits.
//!
//! # Shape
//!
//! Level 0 has a bit per chunk, and each level above has a bit per word of the level below, up to a level of one
//! word. A set summary bit says "look below"; a search skips what no summary bit covers, so finding one dirty chunk
//! among 2^34 takes a dozen loads, and seeing that there is none takes one per level. This is the hierarchical bitmap
//! that disk emulators and entity systems (`hibitset`) use, made concurrent.
//!
//! # What must never happen
//!
//! A mark must not be lost: once [`DirtyBitmap::mark`] has returned, either the scanner's last `clear` of the
//! chunk took that mark, and then what it reads from the source afterwards includes the write that was marked;
//! or the chunk is dirty *and the scanner's search finds it*. Each half has its own argument.
//!
//! **The write is seen.** On level 0 a marker always does a read-modify-write, even if the bit seems to be set.
//! Read-modify-writes of a word have one order. If the marker's comes before the scanner's `fetch_and`, the
//! latter acquires what the former released: the scanner sees the write. If it comes after, the bit is set.
//! A marker that only loaded the bit and left when it was set would break this: its load may be served before
//! its own write of the data is visible, while the scanner clears the bit and reads the old data.
//!
//! **The search finds the bit.** A marker goes up from level 0 to the top. On each level it loads the summary
//! word and sets the bits that are missing. The scanner, when its clearing leaves a word `W` zero, clears `W`'s
//! bit in the parent, then checks `W` again and, if something came back, sets the bit again, up to the top.
//!
//! - The check is a `compare_exchange(0, 0)`, not a load. If it succeeds, any later mark in `W` is after it in
//!   the word's order and acquires it; so that marker's look at the parent can't find the old, set bit: it finds
//!   it cleared, and sets it. If it fails, the scanner sets the bit itself. With a load instead, the marker could
//!   see the old parent while the scanner sees the old `W`, and the mark would be hidden for good.
//! - The same holds one level up, with "found the bit set" in the place of "set the bit": who sees a summary bit
//!   that was set after the scanner's check has acquired that check, and sees the next level as it was left or
//!   later.
//! - A marker goes on to the top even if it finds a bit set or a word nonzero. Stopping there would trust that
//!   whoever set it has finished; but that thread may have been suspended half-way, and the mark of the second
//!   thread, which has returned, would be hidden until the first one runs again. (The problem is the one that
//!   "SNZI: Scalable NonZero Indicators", Ellen, Lev, Luchangco and Moir, PODC 2007, solves for a tree of
//!   counters.) Going on costs loads of lines that hardly ever change, so markers don't disturb each other.
//!
//! A summary bit can outlive its word: the scanner clears a word between a marker's steps, and the marker then
//! sets the parent's bit. That costs a search one more load, until the next clear in that word.

use super::{clip, zeroed};
use crate::error::{Errno, Error, Result};
use crate::range::ChunkRange;
use crate::sync::atomic::{AtomicU64, Ordering};
use crossbeam::utils::CachePadded;
use std::fmt;

/// How many bits of a word are used, as a power of two: all 64. The model checker gets a tree of two-bit words,
/// which has three levels with eight chunks.
const WORD_SHIFT: u32 = if cfg!(loom) { 1 } else { 6 };
const WORD_BITS: u64 = 1 << WORD_SHIFT;

/// Marking threads spread their counts over this many cache lines.
const SHARDS: usize = if cfg!(loom) { 1 } else { 16 };

/// A concurrent set of dirty chunks.
///
/// Any thread may mark and ask; one thread at a time, the scanner, may clear. `next_dirty`, `next_run` and
/// `dirty_in` are reliable for the scanner: they find every chunk whose mark has returned. Called by another thread
/// while the scanner clears, they may miss a chunk that the scanner is just about to put back.
pub struct DirtyBitmap {
    chunks: u64,
    /// Level 0 first.
    levels: Vec<Box<[AtomicU64]>>,
    /// How many chunks became dirty since the beginning, by shard.
    marked: [CachePadded<AtomicU64>; SHARDS],
    /// How many became clean; only the scanner writes it.
    cleared: CachePadded<AtomicU64>,
}

impl DirtyBitmap {
    /// A bitmap of `chunks` chunks, all clean. Memory is taken as chunks are marked: a huge, almost clean bitmap
    /// occupies only the pages that were touched.
    ///
    /// `ENOMEM` if the address space for one bit per chunk and the summary (1.6 % more) can't be had.
    pub fn new(chunks: u64) -> Result<Self> {
        let lengths = level_lengths(chunks);
        let bytes = lengths.iter().sum::<u64>() * 8;
        let levels: Option<Vec<_>> = lengths.iter().map(|&words| zeroed(words)).collect();
        let levels = levels.ok_or_else(|| {
            Error::new(
                Errno::ENOMEM,
                format!("no memory for a dirty bitmap of {bytes} bytes ({chunks} chunks): use a larger granularity"),
            )
        })?;
        Ok(Self {
            chunks,
            levels,
            marked: std::array::from_fn(|_| CachePadded::default()),
            cleared: CachePadded::default(),
        })
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// How many bytes are allocated, touched or not.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let words: usize = self.levels.iter().map(|level| level.len()).sum();
        (words * size_of::<AtomicU64>() + size_of::<Self>()) as u64
    }

    /// Marks the chunks of the range that exist and returns how many of them were clean.
    ///
    /// Any thread; takes no lock, allocates nothing and never retries. The work is one atomic operation per 64
    /// chunks, and for a single chunk a load per level besides. What the thread wrote before the call is visible
    /// to the scanner after the `clear` that takes this mark.
    pub fn mark(&self, range: ChunkRange) -> u64 {
        let range = clip(range, self.chunks);
        if range.is_empty() {
            return 0;
        }
        let mut fresh = 0;
        for (index, mask) in words(range.start, range.end) {
            let old = self.levels[0][index].fetch_or(mask, Ordering::AcqRel);
            fresh += ones(mask & !old);
        }
        let (first, last) = (range.start >> WORD_SHIFT, (range.end - 1) >> WORD_SHIFT);
        if first == last {
            self.raise(1, first);
        } else {
            self.raise_all(first, last);
        }
        if fresh != 0 {
            self.marked[shard(range.start)].fetch_add(fresh, Ordering::Relaxed);
        }
        fresh
    }

    /// Clears the chunks of the range and returns how many of them were dirty.
    ///
    /// Only the scanner, one thread at a time. What was written before a mark that this call takes is visible
    /// afterwards; a chunk marked while the call runs may stay dirty. Clean stretches are skipped, so the work
    /// goes with the dirty words in the range, whatever its length.
    pub fn clear(&self, range: ChunkRange) -> u64 {
        let range = clip(range, self.chunks);
        let mut cleared = 0;
        let mut from = range.start;
        while let Some((index, mask)) = self.next_dirty_word(from, range.end) {
            let old = self.word(0, index).fetch_and(!mask, Ordering::AcqRel);
            cleared += ones(old & mask);
            if old & !mask == 0 {
                self.lower(index);
            }
            from = (index + 1) << WORD_SHIFT;
        }
        if cleared != 0 {
            self.cleared.fetch_add(cleared, Ordering::Relaxed);
        }
        cleared
    }

    /// Whether the chunk is dirty; one that doesn't exist is clean.
    #[must_use]
    pub fn is_dirty(&self, chunk: u64) -> bool {
        chunk < self.chunks && self.word(0, chunk >> WORD_SHIFT).load(Ordering::Acquire) & bit(chunk) != 0
    }

    /// How many chunks of the range are dirty. Clean stretches are skipped.
    #[must_use]
    pub fn dirty_in(&self, range: ChunkRange) -> u64 {
        let range = clip(range, self.chunks);
        let mut dirty = 0;
        let mut from = range.start;
        while let Some((index, mask)) = self.next_dirty_word(from, range.end) {
            dirty += ones(self.word(0, index).load(Ordering::Acquire) & mask);
            from = (index + 1) << WORD_SHIFT;
        }
        dirty
    }

    /// How many chunks are dirty, in constant time: exact when no mark or clear is running, near otherwise.
    ///
    /// It is for progress, not for decisions: a mark that is under way may be missing from it, so that 0 doesn't
    /// prove that nothing is dirty. `next_dirty` does.
    #[must_use]
    pub fn dirty_chunks(&self) -> u64 {
        // Clears are read first, so that those which come between the reads don't make the sum too small.
        let cleared = self.cleared.load(Ordering::Acquire);
        let marked =
            self.marked.iter().fold(0_u64, |sum, shard| sum.wrapping_add(shard.load(Ordering::Acquire)));
        let dirty = marked.wrapping_sub(cleared) as i64;
        dirty.clamp(0, i64::try_from(self.chunks).unwrap_or(i64::MAX)) as u64
    }

    /// The first dirty chunk at or after `from`; there is no wrapping around.
    ///
    /// It takes a load or two per level, and one more for each summary bit that has outlived its word.
    #[must_use]
    pub fn next_dirty(&self, from: u64) -> Option<u64> {
        if from >= self.chunks {
            return None;
        }
        let top = self.levels.len() - 1;
        let mut level = 0;
        let mut position = from;
        // The position is a bit of the level. A word without a set bit from there on sends the search up, to the
        // bit after the word's own; a set bit sends it down, to the first bit of the word that it stands for.
        loop {
            let found = if level == top {
                self.next_in_word(top, position)?
            } else {
                match self.next_in_word(level, position) {
                    Some(found) => found,
                    None => {
                        level += 1;
                        position = (position >> WORD_SHIFT) + 1;
                        continue;
                    }
                }
            };
            if level == 0 {
                return Some(found);
            }
            level -= 1;
            position = found << WORD_SHIFT;
        }
    }

    /// The first run of dirty chunks at or after `from`: as long as it goes, but at most `max` chunks.
    /// `None` if there is no dirty chunk, or `max` is 0.
    #[must_use]
    pub fn next_run(&self, from: u64, max: u64) -> Option<ChunkRange> {
        if max == 0 {
            return None;
        }
        let start = self.next_dirty(from)?;
        let limit = start.saturating_add(max).min(self.chunks);
        let mut end = start + 1;
        while end < limit {
            let word = self.word(0, end >> WORD_SHIFT).load(Ordering::Acquire);
            let offset = end & (WORD_BITS - 1);
            let run = u64::from((word >> offset).trailing_ones()).min(WORD_BITS - offset);
            end += run;
            if run < WORD_BITS - offset {
                break;
            }
        }
        Some(ChunkRange::new(start, end.min(limit)))
    }

    /// Sets the bit of a level, and those above it, where they are missing. `position` counts the level's bits.
    fn raise(&self, level: usize, mut position: u64) {
        for level in &self.levels[level..] {
            let word = &level[(position >> WORD_SHIFT) as usize];
            if word.load(Ordering::Acquire) & bit(position) == 0 {
                word.fetch_or(bit(position), Ordering::AcqRel);
            }
            position >>= WORD_SHIFT;
        }
    }

    /// The same for the level-0 words `first..=last`, word by word on each level.
    fn raise_all(&self, mut first: u64, mut last: u64) {
        for level in &self.levels[1..] {
            for (index, mask) in words(first, last + 1) {
                if level[index].load(Ordering::Acquire) & mask != mask {
                    level[index].fetch_or(mask, Ordering::AcqRel);
                }
            }
            first >>= WORD_SHIFT;
            last >>= WORD_SHIFT;
        }
    }

    /// Clears the summary bit of a level-0 word that became zero, and of those above that become zero by it.
    fn lower(&self, index: u64) {
        let mut child = index;
        for level in 1..self.levels.len() {
            let parent = child >> WORD_SHIFT;
            let left = self.word(level, parent).fetch_and(!bit(child), Ordering::AcqRel) & !bit(child);
            let word = self.word(level - 1, child);
            // This has to be a read-modify-write: see "The search finds the bit" above.
            if word.compare_exchange(0, 0, Ordering::AcqRel, Ordering::Acquire).is_err() {
                return self.raise(level, child);
            }
            if left != 0 {
                return;
            }
            child = parent;
        }
    }

    /// The first level-0 word with a dirty chunk in `from..end`, and the mask of its bits from that chunk to `end`.
    fn next_dirty_word(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        if from >= end {
            return None;
        }
        let chunk = self.next_dirty(from).filter(|&chunk| chunk < end)?;
        let index = chunk >> WORD_SHIFT;
        let end = end.min((index + 1) << WORD_SHIFT);
        Some((index, mask(chunk, end)))
    }

    /// The first set bit of a level at or after `position`, within its word. There may be no such word: that is
    /// how a search goes beyond the end.
    fn next_in_word(&self, level: usize, position: u64) -> Option<u64> {
        let word = self.levels[level].get((position >> WORD_SHIFT) as usize)?;
        let rest = word.load(Ordering::Acquire) & (u64::MAX << (position & (WORD_BITS - 1)));
        (rest != 0).then(|| (position & !(WORD_BITS - 1)) + u64::from(rest.trailing_zeros()))
    }

    fn word(&self, level: usize, index: u64) -> &AtomicU64 {
        &self.levels[level][index as usize]
    }
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyBitmap")
            .field("chunks", &self.chunks)
            .field("dirty", &self.dirty_chunks())
            .finish_non_exhaustive()
    }
}

/// How many words each level has, level 0 first.
fn level_lengths(chunks: u64) -> Vec<u64> {
    let mut lengths = vec![chunks.div_ceil(WORD_BITS)];
    while let Some(&words) = lengths.last()
        && words > 1
    {
        lengths.push(words.div_ceil(WORD_BITS));
    }
    lengths
}

/// The words in which the bits `first..end` lie, each with the mask of those bits. There must be at least one bit.
fn words(first: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    debug_assert!(first < end);
    let indexes = (first >> WORD_SHIFT)..((end - 1) >> WORD_SHIFT) + 1;
    indexes.map(move |index| {
        let start = index << WORD_SHIFT;
        (index as usize, mask(first.max(start), end.min(start + WORD_BITS)))
    })
}

/// The mask of the bits `first..end`, which lie in one word. There must be at least one bit.
fn mask(first: u64, end: u64) -> u64 {
    let low = first & (WORD_BITS - 1);
    let length = end - first;
    (u64::MAX >> (u64::from(u64::BITS) - length)) << low
}

/// The bit's mask in its word.
fn bit(position: u64) -> u64 {
    1 << (position & (WORD_BITS - 1))
}

fn ones(word: u64) -> u64 {
    u64::from(word.count_ones())
}

/// The shard that counts the marks that begin at this chunk: the same one for a cache line of level 0, whose
/// markers meet in any case, and scattered beyond that, so that writers at round offsets don't meet.
fn shard(chunk: u64) -> usize {
    const CHUNKS_PER_LINE: u64 = 512;
    let scattered = (chunk / CHUNKS_PER_LINE).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (scattered >> 32) as usize % SHARDS
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Barrier;

    fn bitmap(chunks: u64) -> DirtyBitmap {
        DirtyBitmap::new(chunks).expect("memory")
    }

    fn range(start: u64, end: u64) -> ChunkRange {
        ChunkRange::new(start, end)
    }

    /// Every dirty chunk, as the scanner finds them.
    fn found(bitmap: &DirtyBitmap) -> Vec<u64> {
        let next = |from| bitmap.next_dirty(from);
        std::iter::successors(next(0), |&chunk| next(chunk + 1)).collect()
    }

    /// The bitmap as anybody would write it.
    struct Oracle(Vec<bool>);

    impl Oracle {
        fn write(&mut self, range: ChunkRange, dirty: bool) -> u64 {
            let mut changed = 0;
            for chunk in range.start..range.end.min(self.0.len() as u64) {
                changed += u64::from(self.0[chunk as usize] != dirty);
                self.0[chunk as usize] = dirty;
            }
            changed
        }

        fn count(&self, range: ChunkRange) -> u64 {
            (range.start..range.end).filter(|&chunk| self.is_dirty(chunk)).count() as u64
        }

        fn is_dirty(&self, chunk: u64) -> bool {
            self.0.get(chunk as usize).is_some_and(|&dirty| dirty)
        }

        fn next_run(&self, from: u64, max: u64) -> Option<ChunkRange> {
            let start = (from..self.0.len() as u64).find(|&chunk| self.is_dirty(chunk))?;
            let length = (0..max).take_while(|&nth| self.is_dirty(start + nth)).count() as u64;
            (max > 0).then(|| range(start, start + length))
        }
    }

    const SIZES: [u64; 12] =
        [0, 1, 63, 64, 65, 128, 4095, 4096, 4097, (1 << 18) - 1, (1 << 18) + 77, (1 << 19) + 1];

    #[derive(Clone, Debug)]
    enum Op {
        Mark(ChunkRange),
        Clear(ChunkRange),
        Count(ChunkRange),
        Run(u64, u64),
    }

    /// Ranges that start near borders of words, of their parents and of the bitmap, and may go beyond the end.
    fn near_borders(chunks: u64) -> impl Strategy<Value = ChunkRange> {
        let border = prop_oneof![
            0..=chunks,
            (0..=chunks / 64).prop_map(|word| word * 64),
            (0..=chunks / 4096).prop_map(|word| word * 4096),
            Just(chunks),
        ];
        let length = prop_oneof![4 => 0..3_u64, 3 => 60..70_u64, 2 => 4090..4100_u64, 1 => 0..=chunks];
        (border, 0..3_u64, length).prop_map(|(border, back, length)| {
            let start = border.saturating_sub(back);
            range(start, start + length)
        })
    }

    fn op(chunks: u64) -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => near_borders(chunks).prop_map(Op::Mark),
            3 => near_borders(chunks).prop_map(Op::Clear),
            1 => near_borders(chunks).prop_map(Op::Count),
            2 => near_borders(chunks).prop_map(|range| Op::Run(range.start, range.len())),
        ]
    }

    fn script() -> impl Strategy<Value = (u64, Vec<Op>)> {
        proptest::sample::select(&SIZES[..])
            .prop_flat_map(|chunks| (Just(chunks), proptest::collection::vec(op(chunks), 1..40)))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_agrees_with_the_oracle((chunks, ops) in script()) {
            let bitmap = bitmap(chunks);
            let mut oracle = Oracle(vec![false; chunks as usize]);
            for op in ops {
                match op {
                    Op::Mark(range) => prop_assert_eq!(bitmap.mark(range), oracle.write(range, true)),
                    Op::Clear(range) => prop_assert_eq!(bitmap.clear(range), oracle.write(range, false)),
                    Op::Count(range) => prop_assert_eq!(bitmap.dirty_in(range), oracle.count(range)),
                    Op::Run(from, max) => {
                        prop_assert_eq!(bitmap.next_run(from, max), oracle.next_run(from, max));
                        prop_assert_eq!(bitmap.next_dirty(from), oracle.next_run(from, 1).map(|run| run.start));
                        prop_assert_eq!(bitmap.is_dirty(from), oracle.is_dirty(from));
                    }
                }
            }
            let all = range(0, chunks);
            prop_assert_eq!(bitmap.dirty_chunks(), oracle.count(all));
            let expected: Vec<_> = (0..chunks).filter(|&chunk| oracle.is_dirty(chunk)).collect();
            prop_assert_eq!(found(&bitmap), expected);
            bitmap.clear(all);
            prop_assert_eq!((bitmap.next_dirty(0), bitmap.dirty_chunks()), (None, 0));
        }
    }

    #[test]
    fn a_bitmap_without_chunks_has_nothing() {
        let bitmap = bitmap(0);
        assert_eq!(bitmap.mark(range(0, 10)), 0);
        assert_eq!(bitmap.clear(range(0, 10)), 0);
        assert_eq!(bitmap.next_dirty(0), None);
        assert!(!bitmap.is_dirty(0));
    }

    #[test]
    fn a_few_dirty_chunks_of_a_petabyte_are_found() {
        let chunks = 1 << 34;
        let bitmap = bitmap(chunks);
        let dirty = [0, 63, 64, 4096, (1 << 30) - 1, 1 << 33, chunks - 1];
        for chunk in dirty {
            assert_eq!(bitmap.mark(range(chunk, chunk + 1)), 1);
        }
        assert_eq!(found(&bitmap), dirty);
        assert_eq!(bitmap.dirty_in(range(1, chunks - 1)), 5);
        assert_eq!(bitmap.next_run(1, u64::MAX), Some(range(63, 65)));
        assert_eq!(bitmap.clear(range(0, u64::MAX)), 7);
        assert_eq!((bitmap.next_dirty(0), bitmap.dirty_chunks()), (None, 0));
    }

    #[test]
    fn the_summary_costs_less_than_two_percent() {
        for chunks in [1 << 24, 1 << 34, (1 << 30) + 1] {
            let bits = chunks / 8;
            let memory = bitmap(chunks).memory();
            assert!((bits..bits + bits / 50).contains(&memory), "{chunks}: {memory}");
        }
    }

    #[test]
    fn the_memory_is_that_of_all_levels() {
        let bitmap = bitmap(4096);
        assert_eq!(bitmap.chunks(), 4096);
        assert_eq!(bitmap.memory(), (64 + 1) * 8 + size_of::<DirtyBitmap>() as u64);
    }

    /// A summary bit that stays would send every search into words that hold nothing.
    #[test]
    fn what_is_clean_again_leaves_no_summary_bit_behind() {
        let bitmap = bitmap(1 << 19);
        let summaries = || -> Vec<u32> {
            let ones = |level: &[AtomicU64]| {
                level.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
            };
            bitmap.levels[1..].iter().map(|level| ones(level)).collect()
        };
        for marked in [range(5, 6), range(60, 70), range(1 << 18, (1 << 18) + 1)] {
            bitmap.mark(marked);
        }
        assert_eq!(summaries(), [3, 2, 2]);
        bitmap.clear(range(0, 65));
        assert_eq!(summaries(), [2, 2, 2], "the second word still holds something");
        bitmap.clear(range(65, 70));
        assert_eq!(summaries(), [1, 1, 1]);
        bitmap.clear(range(1 << 18, u64::MAX));
        assert_eq!(summaries(), [0, 0, 0]);
    }

    #[test]
    fn too_many_chunks_are_refused_with_advice() {
        for chunks in [1 << 58, u64::MAX] {
            let error = DirtyBitmap::new(chunks).expect_err("no such memory");
            assert_eq!(error.errno(), Errno::ENOMEM);
            assert!(
                error.message().contains("bytes") && error.message().contains("use a larger granularity")
            );
        }
    }

    /// Guest threads write and mark while a scanner clears and copies, in many short rounds, because a later mark
    /// would uncover a hidden one. After each round both disks must be equal.
    #[test]
    fn no_mark_is_lost_between_threads() {
        const CHUNKS: u64 = 64 * 64 * 64 * 2;
        const ROUNDS: u64 = 4000;
        // In two words of one parent and in one far away, so that words become zero and nonzero all the time.
        const HOT: [u64; 4] = [CHUNKS - 1, CHUNKS - 2, CHUNKS - 65, 64 * 64];
        let bitmap = bitmap(CHUNKS);
        let source = HOT.map(|_| AtomicU64::new(0));
        let guests_writing = AtomicU64::new(0);
        let barrier = Barrier::new(3);
        let guest = |id: u64| {
            for round in 0..ROUNDS {
                barrier.wait();
                for nth in 0..20 {
                    let hot = (round * 7 + nth * id) as usize % HOT.len();
                    source[hot].store(id << 32 | round << 8 | nth, Ordering::Relaxed);
                    bitmap.mark(range(HOT[hot], HOT[hot] + 1));
                }
                guests_writing.fetch_sub(1, Ordering::Release);
            }
        };
        let mut copy = [0; HOT.len()];
        let mut scan = || {
            let mut from = 0;
            while let Some(run) = bitmap.next_run(from, 2) {
                assert!(bitmap.clear(run) >= 1);
                for hot in (0..HOT.len()).filter(|&hot| run.contains(HOT[hot])) {
                    copy[hot] = source[hot].load(Ordering::Relaxed);
                }
                from = run.end;
            }
            copy
        };
        // A panic amid the rounds would leave the guests at the barrier.
        let mut lost = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| guest(1));
            scope.spawn(|| guest(3));
            for round in 0..ROUNDS {
                guests_writing.store(2, Ordering::Relaxed);
                barrier.wait();
                while guests_writing.load(Ordering::Acquire) != 0 {
                    scan();
                }
                let copy = scan();
                let written = source.each_ref().map(|data| data.load(Ordering::Relaxed));
                if copy != written || bitmap.dirty_chunks() != 0 {
                    lost.push((round, copy, written, bitmap.dirty_chunks()));
                }
            }
        });
        assert_eq!(lost.len(), 0, "round, copy, source and count: {:?}", lost.first());
    }
}

/// With `RUSTFLAGS="--cfg loom" cargo test --lib --release bitmap`: eight chunks in three levels of two-bit words.
#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::thread::{self, JoinHandle};

    /// The chunk under test. A search from 0 comes to it only through both summary levels.
    const LAST: u64 = 7;

    /// Chunks in the same word as `LAST`, under the same parent, and elsewhere.
    const NEIGHBOURS: [u64; 3] = [6, 4, 2];

    fn one(chunk: u64) -> ChunkRange {
        ChunkRange::new(chunk, chunk + 1)
    }

    /// Runs the script in all orders with at most three preemptions.
    fn check(script: impl Fn() + Send + Sync + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(script);
    }

    fn bitmap() -> Arc<DirtyBitmap> {
        let bitmap = DirtyBitmap::new(8).expect("memory");
        assert_eq!(bitmap.levels.len(), 3);
        Arc::new(bitmap)
    }

    fn marker(bitmap: &Arc<DirtyBitmap>, chunk: u64) -> JoinHandle<u64> {
        let bitmap = bitmap.clone();
        thread::spawn(move || bitmap.mark(one(chunk)))
    }

    fn found(bitmap: &DirtyBitmap) -> Vec<u64> {
        std::iter::successors(bitmap.next_dirty(0), |&chunk| bitmap.next_dirty(chunk + 1)).collect()
    }

    /// Checks, with no marker left, that all that is dirty is found and counted, and returns it.
    fn settled(bitmap: &DirtyBitmap) -> Vec<u64> {
        let dirty: Vec<_> = (0..8).filter(|&chunk| bitmap.is_dirty(chunk)).collect();
        assert_eq!(found(bitmap), dirty, "a dirty chunk is hidden");
        assert_eq!(bitmap.dirty_chunks(), dirty.len() as u64);
        dirty
    }

    /// A guest writes and marks while the scanner clears and copies: the copy is new, or the chunk is dirty.
    fn written_is_copied_or_dirty(dirty_before: Option<u64>, cleared: ChunkRange) {
        check(move || {
            let bitmap = bitmap();
            if let Some(chunk) = dirty_before {
                bitmap.mark(one(chunk));
            }
            let source = Arc::new(AtomicU64::new(0));
            let guest = {
                let (bitmap, source) = (bitmap.clone(), source.clone());
                thread::spawn(move || {
                    source.store(1, Ordering::Relaxed);
                    bitmap.mark(one(LAST));
                })
            };
            bitmap.clear(cleared);
            let copy = source.load(Ordering::Relaxed);
            guest.join().expect("guest");
            let dirty = settled(&bitmap);
            assert!(copy == 1 || dirty.contains(&LAST), "the write is lost");
        });
    }

    #[test]
    fn a_write_to_a_clean_chunk_is_copied_or_dirty() {
        written_is_copied_or_dirty(None, ChunkRange::new(0, 8));
    }

    #[test]
    fn a_write_to_a_dirty_chunk_is_copied_or_dirty() {
        written_is_copied_or_dirty(Some(LAST), ChunkRange::new(0, 8));
    }

    #[test]
    fn clearing_the_neighbours_hides_nothing() {
        for neighbour in NEIGHBOURS {
            written_is_copied_or_dirty(Some(neighbour), one(neighbour));
        }
    }

    #[test]
    fn two_clears_hide_nothing() {
        check(|| {
            let bitmap = bitmap();
            bitmap.mark(one(LAST));
            let marker = marker(&bitmap, LAST);
            let cleared = bitmap.clear(one(LAST)) + bitmap.clear(one(LAST));
            let fresh = marker.join().expect("marker");
            assert_eq!(settled(&bitmap).len() as u64, 1 + fresh - cleared);
        });
    }

    #[test]
    fn marks_of_two_threads_are_found_and_counted() {
        for other in NEIGHBOURS {
            check(move || {
                let bitmap = bitmap();
                let markers = [marker(&bitmap, LAST), marker(&bitmap, other)];
                let cleared = bitmap.clear(ChunkRange::new(0, 8));
                let fresh: u64 = markers.map(|marker| marker.join().expect("marker")).iter().sum();
                assert_eq!(settled(&bitmap).len() as u64, fresh - cleared);
            });
        }
    }

    /// One thread marks `other`, one marks the last chunk and says that it has returned. If the scanner hears that
    /// after its clear, and the chunk is dirty, then it finds it, however far the first thread has come.
    fn returned_is_found(dirty_before: Option<u64>, other: u64) {
        check(move || {
            let bitmap = bitmap();
            if let Some(chunk) = dirty_before {
                bitmap.mark(one(chunk));
            }
            let half_way = marker(&bitmap, other);
            let returned = Arc::new(AtomicU64::new(0));
            let second = {
                let (bitmap, returned) = (bitmap.clone(), returned.clone());
                thread::spawn(move || {
                    bitmap.mark(one(LAST));
                    returned.store(1, Ordering::Release);
                })
            };
            if let Some(chunk) = dirty_before {
                bitmap.clear(one(chunk));
            }
            if returned.load(Ordering::Acquire) == 1 && bitmap.is_dirty(LAST) {
                assert!(found(&bitmap).contains(&LAST), "a returned mark is hidden");
            }
            half_way.join().expect("half-way");
            second.join().expect("second");
        });
    }

    #[test]
    fn a_returned_mark_is_found_while_another_is_half_way() {
        for other in [6, 4] {
            returned_is_found(None, other);
        }
    }

    #[test]
    fn a_returned_mark_is_found_after_a_clear_while_another_is_half_way() {
        for dirty_before in NEIGHBOURS {
            returned_is_found(Some(dirty_before), 6);
        }
    }
}
