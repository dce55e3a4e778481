//! Who polls a job and who drives it: mostly the same thread, but with [`super::JobOptions::inline`] any thread that has
//! news may drive beside the one that polls.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[derive(Default)]
pub(super) struct Turns {
    /// A poll is running.
    polled: AtomicBool,
    /// The thread that drives, 0 for none.
    driver: AtomicUsize,
}

/// A poll that is running; it is over when this is dropped.
pub(super) struct Polling<'a>(&'a Turns);

/// This thread drives until this is dropped.
pub(super) struct Driving<'a>(&'a Turns);

impl Turns {
    /// `None` if another poll is running, or if this thread drives already: it is in a callback.
    pub(super) fn begin_poll(&self) -> Option<Polling<'_>> {
        let free = !self.is_driven_here() && !self.polled.swap(true, Ordering::SeqCst);
        free.then(|| Polling(self))
    }

    /// By whoever holds the driver's lock.
    pub(super) fn begin_driving(&self) -> Driving<'_> {
        self.driver.store(this_thread(), Ordering::SeqCst);
        Driving(self)
    }

    pub(super) fn is_driven(&self) -> bool {
        self.driver.load(Ordering::SeqCst) != 0
    }

    pub(super) fn is_polled_or_driven_here(&self) -> bool {
        self.polled.load(Ordering::SeqCst) || self.is_driven_here()
    }

    pub(super) fn is_driven_here(&self) -> bool {
        self.driver.load(Ordering::SeqCst) == this_thread()
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.polled.store(false, Ordering::SeqCst);
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.driver.store(0, Ordering::SeqCst);
    }
}

/// A number that no other living thread has, and is not 0.
fn this_thread() -> usize {
    thread_local! {
        static PLACE: u8 = const { 0 };
    }
    // It needs no destructor, so it is there also in a thread that is ending.
    PLACE.with(|place| std::ptr::from_ref(place) as usize)
}
