//! What is kept of requests until all of each is done, found by the request's slot.
//!
//! The table is made in pages, as many as slots are used: their numbers are far apart, and a table of all of them would be
//! a large block of memory that has to be had in the middle of a poll.

use std::collections::TryReserveError;

const PAGE: usize = 64;

#[derive(Debug)]
pub(super) struct Parts<T> {
    pages: Vec<Option<Box<[Option<T>]>>>,
}

impl<T> Parts<T> {
    pub(super) const fn new() -> Self {
        Self { pages: Vec::new() }
    }

    pub(super) fn put(&mut self, slot: u16, part: T) {
        let (page, place) = place_of(slot);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| (0..PAGE).map(|_| None).collect());
        page[place] = Some(part);
    }

    /// Makes a slot's page beforehand, so that `put` takes no memory.
    pub(super) fn provide(&mut self, slot: u16) -> Result<(), TryReserveError> {
        let (page, _) = place_of(slot);
        if self.pages.len() <= page {
            self.pages.try_reserve(page + 1 - self.pages.len())?;
            self.pages.resize_with(page + 1, || None);
        }
        if self.pages[page].is_none() {
            let mut made = Vec::new();
            made.try_reserve_exact(PAGE)?;
            made.resize_with(PAGE, || None);
            self.pages[page] = Some(made.into_boxed_slice());
        }
        Ok(())
    }

    pub(super) fn get_mut(&mut self, slot: u16) -> Option<&mut T> {
        let (page, place) = place_of(slot);
        self.pages.get_mut(page)?.as_mut()?[place].as_mut()
    }

    pub(super) fn take(&mut self, slot: u16) -> Option<T> {
        let (page, place) = place_of(slot);
        self.pages.get_mut(page)?.as_mut()?[place].take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flatten().flat_map(|page| page.iter()).flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pages.iter_mut().flatten().flat_map(|page| page.iter_mut()).flatten()
    }
}

fn place_of(slot: u16) -> (usize, usize) {
    (usize::from(slot) / PAGE, usize::from(slot) % PAGE)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_a_slot_is_found_there_until_it_is_taken() {
        let mut parts = Parts::new();
        assert_eq!(parts.get_mut(4095), None);
        parts.provide(63).expect("memory");
        assert_eq!(parts.iter().count(), 0);
        for slot in [4095, 0, 63, 64, 2048] {
            parts.put(slot, slot);
        }
        assert_eq!(parts.iter().copied().collect::<Vec<_>>(), [0, 63, 64, 2048, 4095]);
        assert_eq!(parts.pages.iter().flatten().count(), 4);
        *parts.get_mut(64).expect("it is there") = 7;
        assert_eq!((parts.take(64), parts.take(64), parts.take(65)), (Some(7), None, None));
        parts.iter_mut().for_each(|part| *part += 1);
        assert_eq!(parts.iter().copied().collect::<Vec<_>>(), [1, 64, 2049, 4096]);
    }
}
