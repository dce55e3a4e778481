//! The list of requests that are done: many put them there, the driver takes all at once.
//!
//! It is a stack whose links lie in the requests' own slots. Nobody takes a single entry out of the middle, so there is no
//! ABA problem, and a slot is never in it twice because its completion was claimed (`SlotState`).

use crate::error::{Errno, IoResult, to_c};
use crate::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// A slot's place in the list.
#[derive(Debug)]
pub(super) struct Link {
    result: AtomicI32,
    /// The next in the list: a slot's number plus one, 0 for none.
    next: AtomicU32,
}

impl Link {
    pub(super) fn new() -> Self {
        Self { result: AtomicI32::new(0), next: AtomicU32::new(0) }
    }
}

#[derive(Debug)]
pub(super) struct Completed {
    /// The youngest, as in [`Link::next`].
    head: AtomicU32,
}

impl Completed {
    pub(super) fn new() -> Self {
        Self { head: AtomicU32::new(0) }
    }

    /// Puts a slot there whose completion the caller has claimed. Whether the list was empty: then there is somebody to
    /// tell, else whoever put the first one there does.
    pub(super) fn push(&self, slot: u16, link: &Link, result: IoResult) -> bool {
        link.result.store(to_c(result), Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            link.next.store(head, Ordering::Relaxed);
            let pushed = u32::from(slot) + 1;
            match self.head.compare_exchange_weak(head, pushed, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return head == 0,
                Err(now) => head = now,
            }
        }
    }

    pub(super) fn any(&self) -> bool {
        self.head.load(Ordering::Acquire) != 0
    }

    /// Takes all, oldest first.
    pub(super) fn take<'a>(&self, link: impl Fn(u16) -> &'a Link, out: &mut Vec<(u16, IoResult)>) {
        if !self.any() {
            return;
        }
        let first = out.len();
        let mut head = self.head.swap(0, Ordering::AcqRel);
        while let Some(slot) = head.checked_sub(1) {
            let slot = slot as u16;
            let link = link(slot);
            out.push((slot, Errno::check(link.result.load(Ordering::Relaxed))));
            head = link.next.load(Ordering::Relaxed);
        }
        out[first..].reverse();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn all_are_taken_oldest_first() {
        let (completed, links) = (Completed::new(), [(); 3].map(|()| Link::new()));
        assert!(completed.push(2, &links[2], Ok(())), "somebody must be told");
        assert!(!completed.push(0, &links[0], Err(Errno::EIO)), "somebody was");
        assert!(completed.any());
        let mut out = vec![(9, Ok(()))];
        completed.take(|slot| &links[usize::from(slot)], &mut out);
        assert_eq!(out, [(9, Ok(())), (2, Ok(())), (0, Err(Errno::EIO))]);
        completed.take(|_| unreachable!("there is none"), &mut out);
        assert!(completed.push(1, &links[1], Ok(())), "it is empty again");
    }
}
