//! What a block holds: a stamp that says who wrote it, in which of its writes and where, and then bytes that follow
//! from the stamp. So a block that is old, misplaced, torn or made up can be told from the one that was written.

/// The unit in which the guest writes.
pub(super) const BLOCK: usize = 4096;
/// Who wrote the image that the guest began with.
pub(super) const ORIGINAL: u32 = 0;

const MAGIC: u64 = u64::from_le_bytes(*b"blkdemo1");

/// Who wrote a block, when and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// [`ORIGINAL`], or a guest's thread, from 1.
    pub(super) writer: u32,
    /// Counts the writes of one writer, from 1.
    pub(super) sequence: u64,
    pub(super) block: u64,
}

impl Stamp {
    /// Fills a block with this stamp and what follows from it.
    pub(super) fn fill(self, seed: u64, block: &mut [u8; BLOCK]) {
        let head = [MAGIC, seed, u64::from(self.writer), self.sequence, self.block];
        let mut state = head.iter().fold(0, |state, word| mix(state ^ word));
        let (words, _) = block.as_chunks_mut::<8>();
        for (index, word) in words.iter_mut().enumerate() {
            *word = match head.get(index) {
                Some(known) => known.to_le_bytes(),
                None => next(&mut state).to_le_bytes(),
            };
        }
    }

    /// The stamp at the head of a block; `None` if there is none of this seed. What follows it is not looked at.
    pub(super) fn read(seed: u64, block: &[u8; BLOCK]) -> Option<Self> {
        let (words, _) = block.as_chunks::<8>();
        let word = |index: usize| u64::from_le_bytes(words[index]);
        (word(0) == MAGIC && word(1) == seed)
            .then(|| Some(Self { writer: word(2).try_into().ok()?, sequence: word(3), block: word(4) }))
            .flatten()
    }
}

/// The next number of a sequence that looks random: Vigna's SplitMix64.
pub(super) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mix(*state)
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_says_who_wrote_it() {
        let stamp = Stamp { writer: 3, sequence: 77, block: 1 << 40 };
        let mut block = [0; BLOCK];
        stamp.fill(5, &mut block);
        assert_eq!(Stamp::read(5, &block), Some(stamp));
        assert_eq!(Stamp::read(6, &block), None);
        assert_eq!(Stamp::read(5, &[0; BLOCK]), None);
    }

    #[test]
    fn blocks_of_different_stamps_differ_all_over() {
        let (mut one, mut other) = ([0; BLOCK], [0; BLOCK]);
        let stamp = Stamp { writer: 1, sequence: 1, block: 1 };
        stamp.fill(5, &mut one);
        for (seed, stamp) in [
            (6, stamp),
            (5, Stamp { writer: 2, ..stamp }),
            (5, Stamp { sequence: 2, ..stamp }),
            (5, Stamp { block: 2, ..stamp }),
        ] {
            stamp.fill(seed, &mut other);
            let equal = one[40..].iter().zip(&other[40..]).filter(|(one, other)| one == other).count();
            assert!(equal < 100, "{equal} bytes are equal by chance");
        }
    }
}
