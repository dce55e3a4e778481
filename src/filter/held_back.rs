//! Requests that the device had no room for, first come first served (SPEC D-2).
//!
//! Whoever holds a request back counts it before it can be found, and whoever it is taken from counts it out; so the
//! count is never too low, and while it is above zero nobody overtakes the queue. Offering is one thread's affair at a
//! time: whoever comes meanwhile leaves a note and goes, so nothing recurses and no reason to offer is lost.

use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use std::collections::VecDeque;

/// What became of a request that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    /// It is under way or done.
    Taken,
    /// The device has no room.
    Again,
}

/// Where in the queue a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has not begun.
    Last,
    /// It is in the middle of its way and goes before those that have not begun.
    First,
}

/// The queue. `T` stands for the device that knows that requests wait for room, for as long as any do. It may be another
/// than the filter's when the last of them ends, because that may have let the filter be switched; requests that come
/// through the gate then are held back while that one is still counted, and wait for the other device.
#[derive(Debug)]
pub(super) struct HeldBack<T> {
    queue: Mutex<VecDeque<u16>>,
    starving: Mutex<Option<T>>,
    /// Those in the queue, those that are about to be, and the one that is being offered.
    count: AtomicUsize,
    /// Reasons to offer that have not been acted on.
    kicks: AtomicU32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> HeldBack<T> {
    pub(super) fn new() -> Self {
        Self {
            queue: Mutex::new(VecDeque::new()),
            starving: Mutex::new(None),
            count: AtomicUsize::new(0),
            kicks: AtomicU32::new(0),
        }
    }

    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Queues a request. `starve` is told who starves so far, and says who does now if it is another; who does no longer
    /// is returned. The caller offers afterwards, because room may have come before the request was seen to wait.
    #[must_use]
    pub(super) fn hold(
        &self,
        index: u16,
        place: Place,
        starve: impl FnOnce(Option<&T>) -> Option<T>,
    ) -> Option<T> {
        let fed = {
            let mut starving = lock(&self.starving);
            self.count.fetch_add(1, Ordering::SeqCst);
            starve(starving.as_ref()).and_then(|other| starving.replace(other))
        };
        let mut queue = lock(&self.queue);
        match place {
            Place::Last => queue.push_back(index),
            Place::First => queue.push_front(index),
        }
        fed
    }

    /// Offers what was held back, in order, until the device has no room. When the last is taken `fed` is told who
    /// starved.
    pub(super) fn offer_all(&self, offer: impl Fn(u16) -> Offered, fed: impl Fn(T)) {
        if !self.any() || self.kicks.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        let mut seen = 1;
        while seen > 0 {
            self.offer_in_order(&offer, &fed);
            seen = self.kicks.fetch_sub(seen, Ordering::SeqCst) - seen;
        }
    }

    fn offer_in_order(&self, offer: impl Fn(u16) -> Offered, fed: impl Fn(T)) {
        loop {
            let Some(index) = lock(&self.queue).pop_front() else { return };
            match offer(index) {
                Offered::Taken => {
                    // Outside the lock: this may be the last that is left of the device.
                    if let Some(starved) = self.count_out() {
                        fed(starved);
                    }
                }
                Offered::Again => {
                    lock(&self.queue).push_front(index);
                    return;
                }
            }
        }
    }

    fn count_out(&self) -> Option<T> {
        let mut starving = lock(&self.starving);
        let before = self.count.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "a request is counted before it can be taken");
        if before == 1 { starving.take() } else { None }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn requests_are_offered_in_order_until_there_is_no_room() {
        let held = HeldBack::new();
        let (offered, fed) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let offer_all = |room: usize| {
            offered.borrow_mut().clear();
            held.offer_all(
                |index| {
                    offered.borrow_mut().push(index);
                    if offered.borrow().len() <= room { Offered::Taken } else { Offered::Again }
                },
                |starved: &str| fed.borrow_mut().push(starved),
            );
            offered.borrow().clone()
        };
        for index in [1, 2, 3] {
            let first = |starving: Option<&&'static str>| starving.is_none().then_some("the device");
            assert_eq!(held.hold(index, Place::Last, first), None);
        }
        assert_eq!(offer_all(1), [1, 2]);
        assert_eq!(held.hold(9, Place::First, |_| None), None);
        assert_eq!(offer_all(2), [9, 2, 3]);
        assert!(held.any() && fed.borrow().is_empty());
        assert_eq!(offer_all(7), [3]);
        assert!(!held.any());
        assert_eq!(*fed.borrow(), ["the device"]);
        assert!(offer_all(7).is_empty());
    }

    #[test]
    fn who_is_held_back_after_a_switch_waits_for_the_new_device() {
        // The last that the old one had no room for lets the filter be switched while it is being offered.
        let (held, fed) = (HeldBack::new(), RefCell::new(Vec::new()));
        assert_eq!(held.hold(1, Place::Last, |_| Some("old")), None);
        let offer = |index| {
            if index == 1 {
                assert_eq!(held.hold(2, Place::Last, |_| Some("new")), Some("old"));
                return Offered::Taken;
            }
            Offered::Again
        };
        held.offer_all(offer, |device: &str| fed.borrow_mut().push(device));
        assert_eq!(*fed.borrow(), [""; 0]);
        held.offer_all(|_| Offered::Taken, |device: &str| fed.borrow_mut().push(device));
        assert_eq!(*fed.borrow(), ["new"]);
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;

    /// Holds one request back and offers.
    fn one(held: &HeldBack<()>, offers: &AtomicUsize, index: u16) {
        let _ = held.hold(index, Place::Last, |starving| starving.is_none().then_some(()));
        held.offer_all(
            |_| {
                assert!(held.any(), "it is offered and was not counted: the next would wait for ever");
                offers.fetch_add(1, Ordering::SeqCst);
                Offered::Taken
            },
            |()| {},
        );
    }

    #[test]
    fn nobody_is_forgotten_and_the_count_is_never_too_low() {
        loom::model(|| {
            let (held, offers) = (Arc::new(HeldBack::new()), Arc::new(AtomicUsize::new(0)));
            let other = {
                let (held, offers) = (held.clone(), offers.clone());
                loom::thread::spawn(move || one(&held, &offers, 1))
            };
            one(&held, &offers, 2);
            other.join().unwrap();
            assert_eq!(offers.load(Ordering::SeqCst), 2);
            assert!(!held.any() && lock(&held.starving).is_none());
        });
    }
}
