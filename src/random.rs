//! Numbers from a seed.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): small, fast, and the
/// same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high - 1`; `low` if there is none.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        if high <= low { low } else { low + self.draw() % (high - low) }
    }

    /// True once in `n` times; never for 0.
    #[cfg(feature = "testing")]
    pub fn one_in(&mut self, n: u64) -> bool {
        n != 0 && self.draw().is_multiple_of(n)
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.within(0, of.len() as u64) as usize]
    }
}
