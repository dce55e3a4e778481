//! Something that happens once, and that a thread may wait for a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

#[derive(Default)]
pub(super) struct Latch {
    happened: AtomicBool,
    waiting: Mutex<()>,
    tell: Condvar,
}

impl Latch {
    pub(super) fn set(&self) {
        self.happened.store(true, Ordering::SeqCst);
        // Whoever has looked and does not wait yet holds this: it must not miss what comes now.
        drop(self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.tell.notify_all();
    }

    pub(super) fn is_set(&self) -> bool {
        self.happened.load(Ordering::SeqCst)
    }

    /// Whether it has happened, or does before the patience is over.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        if !self.is_set() && !patience.is_zero() {
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            // What it answers is asked for below.
            let _ = self.tell.wait_timeout_while(waiting, patience, |()| !self.is_set());
        }
        self.is_set()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told_and_no_one_waits_for_ever() {
        let latch = Latch::default();
        assert!(!latch.wait(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| latch.wait(Duration::from_secs(60)));
            latch.set();
            assert!(waits.join().expect("no panic"));
        });
        assert!(latch.is_set() && latch.wait(Duration::ZERO));
    }
}
