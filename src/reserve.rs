//! Memory that is kept back, so that running out of it is an answer and not the end (SPEC E-3).
//!
//! Elsewhere memory that was promised is there. In a WebAssembly module it ends at a limit that the host sets, and Rust
//! answers a small allocation that fails with a trap. So the module keeps a reserve. What is large or may fail is asked for
//! beside it, within [`may_fail`], and reported. Everything else, of which one call needs little, is taken from the reserve
//! when there is nothing else; and each entry point that may need some [`demand`]s first that enough is there, so that it
//! is refused with `ENOMEM` before it has done anything. The more a host depends on a call the less that call demands:
//! what makes objects is refused first, then what drives jobs, then guests; what frees never is.
//!
//! # What a demand promises
//! Memory that was used comes back in pieces, so the reserve is up to four blocks, and its sum says nothing of what can be
//! had in one piece. So half of what is demanded must be in one block. Then one allocation of that half succeeds, but for
//! the allocator's own few bytes, and so does any number of small ones that come to half of what was demanded: at the worst
//! four blocks lose less than one of them each, at their ends. So nothing that must not fail may be larger than 32 KiB, half
//! of what a guest's request demands, and no call may take more than that in all. Whatever grows with the number of
//! operations, guests or extents is not like that: it is asked for within [`may_fail`], before it is needed.

use crate::error::Result;

/// What an entry point does, and so how much of the reserve it wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Makes something that stays: all of it, also when it is made.
    Make,
    /// Drives a job: half of it.
    Drive,
    /// Takes a guest's request: a quarter.
    Serve,
}

/// Refuses with `ENOMEM` what there is too little in reserve for, after trying to fill it up.
#[cfg(not(target_family = "wasm"))]
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "it can fail in WebAssembly")]
pub(crate) fn demand(_need: Need) -> Result<()> {
    Ok(())
}

/// Runs an allocation that may fail: it takes nothing from the reserve.
#[cfg(not(target_family = "wasm"))]
#[inline]
pub(crate) fn may_fail<T>(allocate: impl FnOnce() -> T) -> T {
    allocate()
}

/// How often memory was refused so far. A device that fails with `ENOMEM` while this grows is not to blame: its memory, or
/// its host's, is what was refused.
#[cfg(not(target_family = "wasm"))]
#[inline]
pub(crate) fn refusals() -> u64 {
    0
}

#[cfg(target_family = "wasm")]
pub(crate) use module::{demand, may_fail, refusals};

#[cfg(target_family = "wasm")]
mod module {
    use super::{Need, Reserving, Result};
    use crate::error::{Errno, Error};
    use std::alloc::System;

    #[cfg(target_feature = "atomics")]
    compile_error!("the reserve is for a module without threads");

    #[global_allocator]
    static ALLOCATOR: Reserving<System> = Reserving::new(System);

    // SAFETY: the module has no threads.
    unsafe impl Sync for Reserving<System> {}

    pub(crate) fn demand(need: Need) -> Result<()> {
        let there = ALLOCATOR.is_enough(need);
        if there {
            Ok(())
        } else {
            Err(Error::new(Errno::ENOMEM, "the memory is used up: free something first"))
        }
    }

    pub(crate) fn may_fail<T>(allocate: impl FnOnce() -> T) -> T {
        ALLOCATOR.may_fail(allocate)
    }

    pub(crate) fn refusals() -> u64 {
        ALLOCATOR.refusals()
    }
}

#[cfg(any(target_family = "wasm", test))]
pub(crate) use allocator::Reserving;

#[cfg(any(target_family = "wasm", test))]
mod allocator {
    use super::Need;
    use std::alloc::{GlobalAlloc, Layout};
    use std::cell::Cell;
    use std::ptr;

    /// How much is kept back: several times what was seen to be taken in one call, with a thousand requests done at once.
    pub(super) const RESERVE: usize = 256 << 10;
    /// In one block where there is room for one, in so many at most where memory is in pieces.
    const BLOCKS: usize = 4;
    /// Less than this is not worth keeping.
    const LEAST: usize = 8 << 10;
    /// What goes with a block: the allocator's own, and a few small ones.
    pub(super) const SLACK: usize = 4 << 10;

    /// A block of the reserve; nothing of length 0.
    #[derive(Clone, Copy)]
    struct Block {
        base: *mut u8,
        length: usize,
    }

    const NONE: Block = Block { base: ptr::null_mut(), length: 0 };

    /// An allocator that keeps blocks back for when another has nothing left.
    pub(crate) struct Reserving<A> {
        inner: A,
        blocks: [Cell<Block>; BLOCKS],
        may_fail: Cell<bool>,
        refusals: Cell<u64>,
    }

    fn layout(length: usize) -> Layout {
        Layout::from_size_align(length, 8).expect("a reserve is small")
    }

    impl<A: GlobalAlloc> Reserving<A> {
        pub(crate) const fn new(inner: A) -> Self {
            Self {
                inner,
                blocks: [const { Cell::new(NONE) }; BLOCKS],
                may_fail: Cell::new(false),
                refusals: Cell::new(0),
            }
        }

        /// Fills the reserve up if that can be. Whether there is enough for this.
        pub(crate) fn is_enough(&self, need: Need) -> bool {
            if self.length() < RESERVE || self.longest() < RESERVE / 2 {
                self.fill();
            }
            let wanted = match need {
                Need::Make => RESERVE,
                Need::Drive => RESERVE / 2,
                Need::Serve => RESERVE / 4,
            };
            let enough = self.length() >= wanted && self.longest() >= wanted / 2;
            if !enough {
                self.refuse();
            }
            enough
        }

        pub(crate) fn refusals(&self) -> u64 {
            self.refusals.get()
        }

        fn refuse(&self) {
            self.refusals.set(self.refusals.get() + 1);
        }

        pub(crate) fn may_fail<T>(&self, allocate: impl FnOnce() -> T) -> T {
            let before = self.may_fail.replace(true);
            let result = allocate();
            self.may_fail.set(before);
            result
        }

        fn length(&self) -> usize {
            self.blocks.iter().map(|block| block.get().length).sum()
        }

        fn longest(&self) -> usize {
            self.blocks.iter().map(|block| block.get().length).max().unwrap_or(0)
        }

        /// Gives the blocks back, so that they grow together with what is free beside them, and takes as few as will do.
        fn fill(&self) {
            self.blocks.iter().for_each(|block| self.shrink(block, 0));
            let (mut wanted, mut length) = (RESERVE, RESERVE);
            for block in &self.blocks {
                while block.get().length == 0 && wanted > 0 && length >= LEAST {
                    length = length.min(wanted);
                    // SAFETY: the layout has a size.
                    let base = unsafe { self.inner.alloc(layout(length)) };
                    if base.is_null() {
                        length /= 2;
                    } else {
                        block.set(Block { base, length });
                        wanted -= length;
                    }
                }
            }
        }

        /// Gives back all but so much of a block.
        fn shrink(&self, block: &Cell<Block>, left: usize) {
            let Block { base, length } = block.get();
            if length == 0 {
                return;
            }
            // SAFETY: `base` was allocated by `inner` with this length, and is used by nobody.
            let base = unsafe {
                if left < LEAST {
                    self.inner.dealloc(base, layout(length));
                    ptr::null_mut()
                } else {
                    self.inner.realloc(base, layout(length), left)
                }
            };
            block.set(if base.is_null() { NONE } else { Block { base, length: left } });
        }

        /// What `allocate` gets, with the help of the reserve if that is needed and allowed.
        fn help(&self, size: usize, allocate: impl Fn() -> *mut u8) -> *mut u8 {
            let taken = allocate();
            if !taken.is_null() {
                return taken;
            }
            if self.may_fail.get() {
                self.refuse();
                return taken;
            }
            // The smallest that is large enough gives what is needed; if none is, all together may be.
            let with_slack = size.saturating_add(SLACK);
            let enough = self.blocks.iter().filter(|block| block.get().length >= with_slack);
            if let Some(block) = enough.min_by_key(|block| block.get().length) {
                self.shrink(block, block.get().length - with_slack);
                let taken = allocate();
                if !taken.is_null() {
                    return taken;
                }
            }
            self.blocks.iter().for_each(|block| self.shrink(block, 0));
            allocate()
        }
    }

    // Never inlined: the compiler takes what lies before a block for nobody's, and the module's allocator keeps the block's
    // length there. Where both ends of a block's life were seen at once that length came out as anything, and a sound heap
    // was taken for a broken one (hosts/wasm/tests/check.rs).
    // SAFETY: what is given out is what `inner` gave; the reserve is a block of it like any other, and of no one else's.
    unsafe impl<A: GlobalAlloc> GlobalAlloc for Reserving<A> {
        #[inline(never)]
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: passed on.
            self.help(layout.size(), || unsafe { self.inner.alloc(layout) })
        }

        #[inline(never)]
        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: passed on.
            self.help(layout.size(), || unsafe { self.inner.alloc_zeroed(layout) })
        }

        #[inline(never)]
        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: passed on; a block that could not be changed is what it was.
            self.help(size, || unsafe { self.inner.realloc(block, layout, size) })
        }

        #[inline(never)]
        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: passed on.
            unsafe { self.inner.dealloc(block, layout) }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::allocator::{RESERVE, SLACK};
    use super::*;
    use crate::random::Random;
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    /// Memory with an end, in regions that lie apart: no block is in two of them.
    struct Regions {
        left: Vec<Cell<usize>>,
    }

    /// Before each block: which region it is of, and what `System` gave it.
    const HEAD: usize = 16;

    fn head(block: *mut u8) -> *mut [usize; 2] {
        block.wrapping_sub(HEAD).cast()
    }

    // SAFETY: the blocks are `System`'s, but for their heads.
    unsafe impl GlobalAlloc for Regions {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let Some(region) = self.left.iter().position(|left| left.get() >= layout.size()) else {
                return std::ptr::null_mut();
            };
            self.left[region].set(self.left[region].get() - layout.size());
            let whole = block(layout.size() + HEAD);
            // SAFETY: the layout has a size, and the head has room in it.
            unsafe {
                let base = System.alloc(whole);
                base.cast::<[usize; 2]>().write([region, whole.size()]);
                base.add(HEAD)
            }
        }

        unsafe fn dealloc(&self, block_of_ours: *mut u8, layout: Layout) {
            // SAFETY: written when it was allocated.
            let [region, whole] = unsafe { head(block_of_ours).read() };
            self.left[region].set(self.left[region].get() + layout.size());
            // SAFETY: allocated so.
            unsafe { System.dealloc(head(block_of_ours).cast(), block(whole)) }
        }

        unsafe fn realloc(&self, before: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: written when it was allocated.
            let [region, _] = unsafe { head(before).read() };
            let left = &self.left[region];
            if size <= layout.size() {
                left.set(left.get() + layout.size() - size);
                return before;
            }
            // SAFETY: a block that is as large, and of which the first bytes are copied.
            unsafe {
                let after = self.alloc(block(size));
                if !after.is_null() {
                    before.copy_to_nonoverlapping(after, layout.size());
                    self.dealloc(before, layout);
                }
                after
            }
        }
    }

    fn world(bytes: usize) -> Reserving<Regions> {
        pieces(&[bytes])
    }

    fn pieces(bytes: &[usize]) -> Reserving<Regions> {
        Reserving::new(Regions { left: bytes.iter().copied().map(Cell::new).collect() })
    }

    fn block(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 8).expect("a layout")
    }

    fn take(world: &Reserving<Regions>, bytes: usize) -> Option<*mut u8> {
        // SAFETY: the layout has a size.
        let taken = unsafe { world.alloc(block(bytes)) };
        (!taken.is_null()).then_some(taken)
    }

    fn give(world: &Reserving<Regions>, taken: *mut u8, bytes: usize) {
        // SAFETY: taken with this layout, and given back once.
        unsafe { world.dealloc(taken, block(bytes)) }
    }

    #[test]
    fn what_must_not_fail_takes_from_the_reserve_what_it_needs() {
        let world = world(RESERVE + 1000);
        assert!(world.is_enough(Need::Make));
        let small = take(&world, 1000).expect("there is as much beside it");
        let more = take(&world, 100_000).expect("it is in reserve");
        assert!(!world.is_enough(Need::Make));
        assert!(world.is_enough(Need::Drive), "no more was taken than was needed");
        let rest = take(&world, 100_000).expect("it is in reserve");
        assert!(!world.is_enough(Need::Drive));
        assert!(!world.is_enough(Need::Serve));
        assert_eq!(take(&world, 100_000), None);
        give(&world, rest, 100_000);
        assert!(world.is_enough(Need::Drive), "half of it can be had again");
        assert!(!world.is_enough(Need::Make));
        give(&world, more, 100_000);
        assert!(world.is_enough(Need::Make));
        give(&world, small, 1000);
    }

    #[test]
    fn what_may_fail_takes_nothing_from_the_reserve() {
        let world = world(RESERVE + 1000);
        assert!(world.is_enough(Need::Make));
        assert_eq!(world.refusals(), 0);
        assert_eq!(world.may_fail(|| take(&world, 2000)), None);
        assert_eq!(world.refusals(), 1);
        assert!(world.is_enough(Need::Make));
        let block = take(&world, 2000).expect("it is in reserve again");
        assert!(!world.is_enough(Need::Make));
        assert_eq!(world.refusals(), 2);
        give(&world, block, 2000);
    }

    #[test]
    fn a_block_grows_with_the_help_of_the_reserve() {
        let world = world(RESERVE + 1000);
        assert!(world.is_enough(Need::Make));
        let small = take(&world, 1000).expect("there is as much beside it");
        // SAFETY: taken with this layout.
        let grown = unsafe { world.realloc(small, block(1000), 50_000) };
        assert!(!grown.is_null());
        assert!(!world.is_enough(Need::Make) && world.is_enough(Need::Drive));
        give(&world, grown, 50_000);
    }

    #[test]
    fn a_reserve_in_small_pieces_is_less_than_its_sum() {
        let kib = |sizes: &[usize]| pieces(&sizes.iter().map(|size| size << 10).collect::<Vec<_>>());
        for (sizes, make, drive, serve) in [
            (&[128, 64, 64][..], true, true, true),
            (&[64, 64, 64, 64], false, true, true),
            (&[32, 32, 32, 32, 32, 32, 32, 32], false, false, true),
            (&[16; 40], false, false, false),
        ] {
            let world = kib(sizes);
            let enough = [Need::Make, Need::Drive, Need::Serve].map(|need| world.is_enough(need));
            assert_eq!(enough, [make, drive, serve], "{sizes:?}");
        }
    }

    #[test]
    fn what_was_demanded_is_had_at_once_or_bit_by_bit() {
        let mut random = Random::new(1);
        let mut served = [0; 3];
        for _ in 0..2000 {
            let count = random.within(1, 12) as usize;
            let sizes: Vec<_> = (0..count).map(|_| random.within(1 << 10, 300 << 10) as usize).collect();
            for (index, (need, wanted)) in
                [(Need::Make, RESERVE), (Need::Drive, RESERVE / 2), (Need::Serve, RESERVE / 4)]
                    .into_iter()
                    .enumerate()
            {
                let world = pieces(&sizes);
                if !world.is_enough(need) {
                    continue;
                }
                // What is beside the reserve is taken first.
                while world.may_fail(|| take(&world, 512)).is_some() {}
                served[index] += 1;
                let mut taken = Vec::new();
                if random.within(0, 2) == 0 {
                    taken.push((wanted / 2 - SLACK, take(&world, wanted / 2 - SLACK)));
                } else {
                    let largest = random.within(16, wanted as u64 / 16);
                    let mut left = wanted / 2;
                    while left > 0 {
                        let size = left.min(random.within(1, largest + 1) as usize);
                        taken.push((size, take(&world, size)));
                        left -= size;
                    }
                }
                assert!(taken.iter().all(|(_, block)| block.is_some()), "{need:?} of {sizes:?}: {taken:?}");
            }
        }
        assert!(served.iter().all(|count| *count > 100), "{served:?}");
    }

    #[test]
    fn without_memory_for_a_reserve_nothing_is_made() {
        let world = world(RESERVE - 1);
        assert!(!world.is_enough(Need::Make));
        assert!(world.is_enough(Need::Drive), "half of it can be had");
    }
}
