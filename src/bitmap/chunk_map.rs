//! A sparse set of chunks with one owner.
//!
//! The chunks are split into pages of 4096. A table says of each page that it is all clear, all set, or which
//! block of bits it has; only mixed pages have bits. So a map of a few chunks in flight stays small on the largest
//! disk, and so does the map of what has been written once nearly everything has. (Roaring bitmaps compress with
//! the same three kinds of page.) Blocks that become uniform go to a small pool, so that chunks coming and going
//! don't allocate.

use super::{clip, zeroed};
use crate::error::{Errno, Error, Result};
use crate::range::ChunkRange;
use bitvec::array::BitArray;
use bitvec::order::Lsb0;
use bitvec::slice::BitSlice;
use std::fmt;
use std::ops::Range;

/// Large enough that the table is 1/128 of a plain bitmap, small enough that a lone chunk costs 512 bytes.
const PAGE_CHUNKS: u64 = 4096;

/// How many unused blocks are kept, 8 KiB in all.
const POOL: usize = 16;

/// `usize`, because `bitvec` has no 64-bit words on 32-bit targets.
type Bits = BitArray<[usize; PAGE_CHUNKS as usize / usize::BITS as usize], Lsb0>;

/// A sparse set of chunk indexes.
///
/// All ranges are clipped to the chunks that exist. The work of each method is one table look-up per 4096 chunks,
/// plus the bits themselves where a page has both set and clear chunks.
pub struct ChunkMap {
    chunks: u64,
    /// How many chunks are set.
    count: u64,
    /// One [`PageState`] per page, encoded.
    table: Box<[u32]>,
    /// The blocks in use, without gaps.
    #[expect(clippy::vec_box, reason = "blocks move between the two lists")]
    blocks: Vec<Box<Block>>,
    #[expect(clippy::vec_box, reason = "blocks move between the two lists")]
    pool: Vec<Box<Block>>,
}

/// The bits of a mixed page.
struct Block {
    bits: Bits,
    /// How many bits are set.
    count: u64,
    /// The page that they belong to.
    page: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PageState {
    Clear,
    Full,
    /// Neither; the index of its block.
    Mixed(usize),
}

/// The part of a range that lies in one page, in bits of that page.
struct Piece {
    page: usize,
    bits: Range<usize>,
}

impl ChunkMap {
    /// A map of `chunks` chunks, all clear. The table takes 4 bytes of address space per 4096 chunks.
    ///
    /// `ENOMEM` if that can't be had.
    pub fn new(chunks: u64) -> Result<Self> {
        let pages = chunks.div_ceil(PAGE_CHUNKS);
        let no_memory = |each: u64| {
            let bytes = pages.saturating_mul(each);
            let advice = "use a larger granularity";
            Error::new(
                Errno::ENOMEM,
                format!("no memory for a chunk map's table of {bytes} bytes ({chunks} chunks): {advice}"),
            )
        };
        let table = zeroed(pages).ok_or_else(|| no_memory(4))?;
        let mut blocks = Vec::new();
        if cfg!(target_family = "wasm") {
            // For all that there can be: where memory has an end the list must not move in the middle of a copy.
            blocks.try_reserve_exact(table.len()).map_err(|_| no_memory(8))?;
        }
        Ok(Self { chunks, count: 0, table, blocks, pool: Vec::with_capacity(POOL) })
    }

    /// Adds the chunks of the range.
    pub fn set(&mut self, range: ChunkRange) {
        for piece in pieces(clip(range, self.chunks)) {
            self.write(&piece, true);
        }
    }

    /// Removes the chunks of the range.
    pub fn clear(&mut self, range: ChunkRange) {
        if self.count == 0 {
            return;
        }
        for piece in pieces(clip(range, self.chunks)) {
            self.write(&piece, false);
        }
    }

    /// Adds all chunks and gives back all blocks but the pool's.
    pub fn set_all(&mut self) {
        self.table.fill(PageState::Full.encode());
        while let Some(block) = self.blocks.pop() {
            self.pool_or_free(block);
        }
        self.count = self.chunks;
    }

    /// Whether the chunk is set; one that doesn't exist is not.
    #[must_use]
    pub fn get(&self, chunk: u64) -> bool {
        if chunk >= self.chunks {
            return false;
        }
        match self.state((chunk / PAGE_CHUNKS) as usize) {
            PageState::Clear => false,
            PageState::Full => true,
            PageState::Mixed(index) => self.blocks[index].bits[(chunk % PAGE_CHUNKS) as usize],
        }
    }

    /// Whether at least one chunk of the range is set.
    #[must_use]
    pub fn any(&self, range: ChunkRange) -> bool {
        let range = clip(range, self.chunks);
        if range.len() == 1 {
            return self.get(range.start);
        }
        self.count != 0 && self.first_set(range).is_some()
    }

    /// Whether all chunks of the range that exist are set; so too if there are none.
    #[must_use]
    pub fn all(&self, range: ChunkRange) -> bool {
        self.count == self.chunks || self.first_clear(range).is_none()
    }

    /// How many chunks are set, in constant time.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The first set chunk of the range.
    #[must_use]
    pub fn first_set(&self, range: ChunkRange) -> Option<u64> {
        self.find(range, PageState::Full, BitSlice::first_one)
    }

    /// The first clear chunk of the range.
    #[must_use]
    pub fn first_clear(&self, range: ChunkRange) -> Option<u64> {
        self.find(range, PageState::Clear, BitSlice::first_zero)
    }

    /// How many bytes are allocated, touched or not.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let blocks = self.blocks.len() + self.pool.len();
        let pointers = self.blocks.capacity() + self.pool.capacity();
        let heap =
            size_of_val(&*self.table) + blocks * size_of::<Block>() + pointers * size_of::<Box<Block>>();
        (heap + size_of::<Self>()) as u64
    }

    /// The first chunk of the range that `wanted` pages consist of and `first` finds in mixed ones.
    fn find(
        &self,
        range: ChunkRange,
        wanted: PageState,
        first: impl Fn(&BitSlice<usize, Lsb0>) -> Option<usize>,
    ) -> Option<u64> {
        pieces(clip(range, self.chunks)).find_map(|piece| {
            let nth = match self.state(piece.page) {
                PageState::Mixed(index) => first(&self.blocks[index].bits[piece.bits.clone()])?,
                state if state == wanted => 0,
                _ => return None,
            };
            Some(piece.page as u64 * PAGE_CHUNKS + (piece.bits.start + nth) as u64)
        })
    }

    fn write(&mut self, piece: &Piece, value: bool) {
        let length = self.page_length(piece.page);
        let uniform = if value { PageState::Full } else { PageState::Clear };
        let index = match self.state(piece.page) {
            PageState::Mixed(index) => index,
            state if state == uniform => return,
            _ if piece.bits.len() as u64 == length => {
                self.table[piece.page] = uniform.encode();
                self.add_to_count(length, value);
                return;
            }
            _ => self.make_mixed(piece.page, !value),
        };
        let changed = self.blocks[index].write(piece.bits.clone(), value);
        self.add_to_count(changed, value);
        let uniform_count = if value { length } else { 0 };
        if self.blocks[index].count == uniform_count {
            self.make_uniform(index, uniform);
        }
    }

    fn add_to_count(&mut self, changed: u64, value: bool) {
        if value {
            self.count += changed;
        } else {
            self.count -= changed;
        }
    }

    /// Gives a uniform page, all of whose chunks are `value`, a block, and returns that block's index.
    fn make_mixed(&mut self, page: usize, value: bool) -> usize {
        let length = self.page_length(page);
        let mut block = self.pool.pop().unwrap_or_default();
        // Most come and go clear, and are not written to twice.
        if block.count != 0 {
            block.bits.fill(false);
            block.count = 0;
        }
        if value {
            block.write(0..length as usize, true);
        }
        block.page = page;
        let index = self.blocks.len();
        self.blocks.push(block);
        self.table[page] = PageState::Mixed(index).encode();
        index
    }

    /// Takes the block from its page, which is uniform now. The last block moves into the gap.
    fn make_uniform(&mut self, index: usize, uniform: PageState) {
        let block = self.blocks.swap_remove(index);
        self.table[block.page] = uniform.encode();
        if let Some(moved) = self.blocks.get(index) {
            self.table[moved.page] = PageState::Mixed(index).encode();
        }
        self.pool_or_free(block);
    }

    fn pool_or_free(&mut self, block: Box<Block>) {
        if self.pool.len() < POOL {
            self.pool.push(block);
        }
    }

    fn state(&self, page: usize) -> PageState {
        PageState::decode(self.table[page])
    }

    /// How many chunks the page has: the last one may be short.
    fn page_length(&self, page: usize) -> u64 {
        (self.chunks - page as u64 * PAGE_CHUNKS).min(PAGE_CHUNKS)
    }
}

impl fmt::Debug for ChunkMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkMap")
            .field("chunks", &self.chunks)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Block {
    /// Sets the bits to `value` and returns how many weren't.
    fn write(&mut self, range: Range<usize>, value: bool) -> u64 {
        const WORD: usize = usize::BITS as usize;
        // Word by word: a copy sets and clears a few bits of one.
        let words = self.bits.as_raw_mut_slice();
        let (mut at, mut changed) = (range.start, 0);
        while at < range.end {
            let bits = (WORD - at % WORD).min(range.end - at);
            let mask = (usize::MAX >> (WORD - bits)) << (at % WORD);
            let word = &mut words[at / WORD];
            let written = if value { *word | mask } else { *word & !mask };
            changed += u64::from((*word ^ written).count_ones());
            *word = written;
            at += bits;
        }
        if value {
            self.count += changed;
        } else {
            self.count -= changed;
        }
        changed
    }
}

impl Default for Block {
    fn default() -> Self {
        Self { bits: Bits::ZERO, count: 0, page: 0 }
    }
}

impl PageState {
    /// A zeroed table is one of clear pages.
    const CLEAR: u32 = 0;
    const FULL: u32 = 1;
    const FIRST_MIXED: u32 = 2;

    fn encode(self) -> u32 {
        match self {
            Self::Clear => Self::CLEAR,
            Self::Full => Self::FULL,
            Self::Mixed(index) => {
                Self::FIRST_MIXED + u32::try_from(index).expect("2^32 blocks would be two terabytes")
            }
        }
    }

    fn decode(entry: u32) -> Self {
        match entry {
            Self::CLEAR => Self::Clear,
            Self::FULL => Self::Full,
            mixed => Self::Mixed((mixed - Self::FIRST_MIXED) as usize),
        }
    }
}

/// Splits a range at the borders of pages.
fn pieces(range: ChunkRange) -> impl Iterator<Item = Piece> {
    let end = if range.is_empty() { 0 } else { (range.end - 1) / PAGE_CHUNKS + 1 };
    (range.start / PAGE_CHUNKS..end).map(move |page| {
        let start = page * PAGE_CHUNKS;
        let end = range.end.min(start + PAGE_CHUNKS);
        Piece { page: page as usize, bits: (range.start.max(start) - start) as usize..(end - start) as usize }
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(chunks: u64) -> ChunkMap {
        ChunkMap::new(chunks).expect("memory")
    }

    fn range(start: u64, end: u64) -> ChunkRange {
        ChunkRange::new(start, end)
    }

    const SIZES: [u64; 10] = [0, 1, 63, 64, 65, 4095, 4096, 4097, 3 * 4096, (1 << 18) + 77];

    #[derive(Clone, Debug)]
    enum Op {
        Set(ChunkRange),
        Clear(ChunkRange),
        SetAll,
        Ask(ChunkRange),
    }

    /// Ranges near borders of words, of pages and of the map, which may go beyond the end.
    fn near_borders(chunks: u64) -> impl Strategy<Value = ChunkRange> {
        let border = prop_oneof![
            0..=chunks,
            (0..=chunks / 64).prop_map(|word| word * 64),
            (0..=chunks / 4096).prop_map(|page| page * 4096),
            Just(chunks),
        ];
        let length = prop_oneof![4 => 0..3_u64, 3 => 60..70_u64, 3 => 4090..4100_u64, 1 => 0..=chunks];
        (border, 0..3_u64, length).prop_map(|(border, back, length)| {
            let start = border.saturating_sub(back);
            range(start, start + length)
        })
    }

    fn op(chunks: u64) -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => near_borders(chunks).prop_map(Op::Set),
            8 => near_borders(chunks).prop_map(Op::Clear),
            1 => Just(Op::SetAll),
            8 => near_borders(chunks).prop_map(Op::Ask),
        ]
    }

    fn script() -> impl Strategy<Value = (u64, Vec<Op>)> {
        proptest::sample::select(&SIZES[..])
            .prop_flat_map(|chunks| (Just(chunks), proptest::collection::vec(op(chunks), 1..60)))
    }

    /// The chunks of the range that the oracle has.
    fn within(oracle: &[bool], range: ChunkRange) -> impl Iterator<Item = (u64, bool)> {
        let end = range.end.min(oracle.len() as u64);
        (range.start..end).map(|chunk| (chunk, oracle[chunk as usize]))
    }

    fn write(oracle: &mut [bool], range: ChunkRange, value: bool) {
        let end = oracle.len().min(range.end as usize);
        oracle[(range.start as usize).min(end)..end].fill(value);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_agrees_with_the_oracle((chunks, ops) in script()) {
            let mut map = map(chunks);
            let mut oracle = vec![false; chunks as usize];
            for op in ops {
                match op {
                    Op::Set(range) => {
                        map.set(range);
                        write(&mut oracle, range, true);
                    }
                    Op::Clear(range) => {
                        map.clear(range);
                        write(&mut oracle, range, false);
                    }
                    Op::SetAll => {
                        map.set_all();
                        oracle.fill(true);
                    }
                    Op::Ask(range) => {
                        let first = |wanted| within(&oracle, range).find(|&(_, value)| value == wanted);
                        prop_assert_eq!(map.any(range), first(true).is_some());
                        prop_assert_eq!(map.all(range), first(false).is_none());
                        prop_assert_eq!(map.first_set(range), first(true).map(|(chunk, _)| chunk));
                        prop_assert_eq!(map.first_clear(range), first(false).map(|(chunk, _)| chunk));
                    }
                }
                prop_assert_eq!(map.count(), oracle.iter().filter(|&&value| value).count() as u64);
            }
            for chunk in 0..chunks {
                prop_assert_eq!(map.get(chunk), oracle[chunk as usize]);
            }
            prop_assert!(!map.get(chunks));
            // Blocks are for mixed pages only.
            let mixed = oracle.chunks(4096).filter(|page| page.contains(&true) && page.contains(&false));
            prop_assert_eq!(map.blocks.len(), mixed.count());
        }
    }

    #[test]
    fn a_map_of_few_chunks_in_flight_is_small_and_does_not_grow() {
        let chunks = 1 << 24;
        let mut map = map(chunks);
        let mut peaks = [0; 3];
        for peak in &mut peaks {
            for start in (0..chunks).step_by(1 << 20) {
                map.set(range(start + 100, start + 101));
            }
            assert_eq!(map.count(), 16);
            *peak = map.memory();
            map.clear(range(0, chunks));
            assert_eq!(map.memory(), *peak, "the pool keeps the blocks");
        }
        assert!(peaks[0] < 32 << 10, "{}", peaks[0]);
        assert_eq!(peaks, [peaks[0]; 3]);
    }

    #[test]
    fn a_full_map_has_no_blocks() {
        let chunks = 1 << 24;
        let mut map = map(chunks);
        for start in (0..chunks).step_by(2048) {
            map.set(range(start, start + 1024));
        }
        assert_eq!(map.blocks.len(), 4096);
        map.set_all();
        assert_eq!((map.count(), map.blocks.len()), (chunks, 0));
        assert!(map.all(range(0, chunks)));
        map.clear(range(77, 78));
        assert_eq!(map.first_clear(range(0, chunks)), Some(77));
        map.set(range(77, 78));
        assert_eq!((map.count(), map.blocks.len()), (chunks, 0));
    }

    #[test]
    fn a_petabyte_takes_a_table_and_no_more() {
        let chunks = 1 << 34;
        let mut map = map(chunks);
        assert!(map.memory() < (16 << 20) + 1024);
        map.set(range(chunks - 2, u64::MAX));
        assert_eq!(map.first_set(range(0, chunks)), Some(chunks - 2));
        assert_eq!(map.count(), 2);
        map.set_all();
        assert_eq!(map.first_clear(range(0, chunks)), None);
    }

    #[test]
    fn the_memory_is_that_of_the_table_the_blocks_and_the_lists_of_blocks() {
        let mut map = map(3 * 4096);
        let memory = |map: &ChunkMap, blocks: usize| {
            let lists = (map.blocks.capacity() + map.pool.capacity()) * size_of::<usize>();
            (size_of::<ChunkMap>() + 3 * 4 + lists + blocks * size_of::<Block>()) as u64
        };
        assert_eq!(map.memory(), memory(&map, 0));
        map.set(range(1, 2));
        map.set(range(4097, 4098));
        assert_eq!(map.memory(), memory(&map, 2));
        map.clear(range(1, 2));
        assert_eq!((map.blocks.len(), map.pool.len()), (1, 1));
        assert_eq!(map.memory(), memory(&map, 2), "one is in use and one in the pool");
    }

    #[test]
    fn whole_pages_take_no_block_and_the_pool_keeps_only_some() {
        let pages = POOL as u64 + 4;
        let mut map = map(pages * 4096);
        map.set(range(0, pages * 4096));
        assert_eq!(map.blocks.len() + map.pool.len(), 0);
        for page in 0..pages {
            map.clear(range(page * 4096, page * 4096 + 1));
        }
        assert_eq!((map.blocks.len() as u64, map.count()), (pages, pages * 4095));
        map.clear(range(0, pages * 4096));
        assert_eq!((map.blocks.len(), map.pool.len(), map.count()), (0, POOL, 0));
    }

    #[test]
    fn too_many_chunks_are_refused_with_advice() {
        let error = ChunkMap::new(u64::MAX).expect_err("no such memory");
        assert_eq!(error.errno(), Errno::ENOMEM);
        assert!(error.message().contains("use a larger granularity"));
    }
}
