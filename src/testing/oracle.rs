//! What a disk may hold: for each sector the writes that a reader may see (each sector is an atomic register).

use crate::range::ByteRange;

/// The unit in which guests write.
pub const SECTOR: u64 = 512;

/// What a guest wrote to a sector: 0 for zeroes, else a number that no other write has.
pub type Stamp = u64;

/// The name of a change for as long as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    stamp: Stamp,
    /// Any content is possible: a discard on a device that promises nothing.
    wild: bool,
    submitted: u64,
    /// When it was acknowledged; `None` while it is running, and for ever if it failed: it may take effect at any time
    /// until something later replaces it.
    acknowledged: Option<u64>,
}

/// Knows, for each sector, which changes a reader may see.
#[derive(Clone, Debug)]
pub struct Oracle {
    sectors: Vec<Vec<Change>>,
    /// The bits of a stamp that fit in the last sector, which may be shorter than a stamp.
    last: Stamp,
    clock: u64,
}

impl Oracle {
    /// A disk of `length` bytes whose sectors hold these stamps.
    #[must_use]
    pub fn new(initial: &[Stamp], length: u64) -> Self {
        let last = match length % SECTOR {
            bytes @ 1..8 => (1 << (8 * bytes)) - 1,
            _ => Stamp::MAX,
        };
        let sectors = initial
            .iter()
            .map(|stamp| vec![Change { stamp: *stamp, wild: false, submitted: 0, acknowledged: Some(0) }])
            .collect();
        Self { sectors, last, clock: 1 }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn over(&mut self, range: ByteRange) -> &mut [Vec<Change>] {
        let (start, end) = (range.offset() / SECTOR, range.end().div_ceil(SECTOR));
        &mut self.sectors[start as usize..end as usize]
    }

    /// A change is submitted: from now on it may be seen. Its number is for [`Oracle::done`].
    pub fn submit(&mut self, range: ByteRange, stamp: Stamp, wild: bool) -> u64 {
        let submitted = self.tick();
        for sector in self.over(range) {
            sector.push(Change { stamp, wild, submitted, acknowledged: None });
        }
        submitted
    }

    /// A change is done. If it went well, what was acknowledged before it was submitted can't be seen any more.
    pub fn done(&mut self, range: ByteRange, submitted: u64, succeeded: bool) {
        if !succeeded {
            return;
        }
        let now = self.tick();
        for sector in self.over(range) {
            for change in sector.iter_mut().filter(|change| change.submitted == submitted) {
                change.acknowledged = Some(now);
            }
            sector.retain(|change| change.acknowledged.is_none_or(|at| at >= submitted));
        }
    }

    /// What may be seen from now on: to be held against what is read later.
    #[must_use]
    pub fn snapshot(&self, range: ByteRange) -> Vec<Vec<(Stamp, bool)>> {
        let (start, end) = (range.offset() / SECTOR, range.end().div_ceil(SECTOR));
        self.sectors[start as usize..end as usize]
            .iter()
            .map(|sector| sector.iter().map(|change| (change.stamp, change.wild)).collect())
            .collect()
    }

    /// Checks what a read found, given what could be seen when it was submitted; what was submitted since counts too.
    /// The error names the first sector that is wrong.
    pub fn check(
        &self,
        range: ByteRange,
        before: &[Vec<(Stamp, bool)>],
        found: &[Stamp],
    ) -> Result<(), String> {
        let first = range.offset() / SECTOR;
        for (index, stamp) in found.iter().enumerate() {
            let sector = first + index as u64;
            let now = &self.sectors[sector as usize];
            let mask = if sector + 1 == self.sectors.len() as u64 { self.last } else { Stamp::MAX };
            let is = |legal: Stamp| legal & mask == stamp & mask;
            let legal = before[index].iter().any(|(legal, wild)| *wild || is(*legal))
                || now.iter().any(|change| change.wild || is(change.stamp));
            if !legal {
                return Err(format!(
                    "sector {sector} reads as {stamp:#x}; it could be one of {:x?}, and since then {now:x?}",
                    before[index]
                ));
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn sector(at: u64) -> ByteRange {
        ByteRange::between(at * SECTOR, (at + 1) * SECTOR)
    }

    fn reads(oracle: &Oracle, at: u64, stamp: Stamp) -> bool {
        oracle.check(sector(at), &oracle.snapshot(sector(at)), &[stamp]).is_ok()
    }

    #[test]
    fn an_acknowledged_write_hides_what_was_acknowledged_before_it() {
        let mut oracle = Oracle::new(&[7, 8], 2 * SECTOR);
        let write = oracle.submit(sector(0), 9, false);
        assert!(reads(&oracle, 0, 7) && reads(&oracle, 0, 9));
        oracle.done(sector(0), write, true);
        assert!(!reads(&oracle, 0, 7), "a lost write");
        assert!(reads(&oracle, 0, 9) && reads(&oracle, 1, 8));
    }

    #[test]
    fn concurrent_writes_may_land_in_either_order_and_a_failed_one_at_any_time() {
        let mut oracle = Oracle::new(&[0], SECTOR);
        let (a, b) = (oracle.submit(sector(0), 1, false), oracle.submit(sector(0), 2, false));
        oracle.done(sector(0), a, true);
        oracle.done(sector(0), b, true);
        assert!(reads(&oracle, 0, 1) && reads(&oracle, 0, 2) && !reads(&oracle, 0, 0));
        let failed = oracle.submit(sector(0), 3, false);
        oracle.done(sector(0), failed, false);
        let later = oracle.submit(sector(0), 4, false);
        oracle.done(sector(0), later, true);
        assert!(reads(&oracle, 0, 3) && reads(&oracle, 0, 4) && !reads(&oracle, 0, 2));
    }
}
