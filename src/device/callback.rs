//! Telling somebody that a request is done, without ever recursing.
//!
//! A host may send its next request from inside the callback that tells it about the last. With a device that
//! finishes inline, that would be a recursion as deep as the guest is busy; so while one callback runs on a
//! thread, further ones on that thread are queued and run by the outermost (SPEC D-2).

use crate::error::{Errno, Error, IoResult, Result, contain, to_c};
use crate::reserve;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};

/// Who is told that a request is done: a C function and its opaque pointer. Called exactly once.
#[derive(Debug)]
pub struct Callback {
    function: unsafe extern "C" fn(opaque: *mut c_void, result: c_int),
    opaque: *mut c_void,
    when: When,
    _awaited: Awaited,
}

/// When a callback is told that is due while another runs on the same thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// After it.
    InTurn,
    /// At once: it only wakes somebody, who may be further up this thread's stack.
    AtOnce,
}

// SAFETY: `from_raw` demands a function that may be called from any thread with its pointer; closures are `Send`.
unsafe impl Send for Callback {}
// SAFETY: a shared `Callback` offers nothing but `Debug`.
unsafe impl Sync for Callback {}

impl Callback {
    /// A C function to call as `function(opaque, result)`.
    ///
    /// # Safety
    /// The call is sound once, from any thread, with 0 or a negative errno as result.
    #[must_use]
    pub unsafe fn from_raw(
        function: unsafe extern "C" fn(opaque: *mut c_void, result: c_int),
        opaque: *mut c_void,
    ) -> Self {
        Self { function, opaque, when: When::InTurn, _awaited: Awaited::begin() }
    }

    /// Makes room for one more to be queued, besides all that are still to be told: where memory has an end the queue must not
    /// have to grow when a request is done.
    pub(crate) fn provide() -> Result<()> {
        if !cfg!(target_family = "wasm") {
            return Ok(());
        }
        let room = QUEUE.with(|queue| {
            let mut queue = queue.borrow_mut();
            let (wanted, queued) = (AWAITED.get() + 1, queue.len());
            if wanted <= FEW {
                // A few are served by whatever is in reserve.
                queue.reserve(FEW - queued);
            }
            reserve::may_fail(|| queue.try_reserve(wanted - queued))
        });
        room.map_err(|_| {
            Error::new(Errno::ENOMEM, "no memory to be told of another request: wait for others")
        })
    }

    /// A closure. It is boxed: one allocation a request. If it panics, that is logged and ends there.
    #[must_use]
    pub fn from_closure<F: FnOnce(IoResult) + Send + 'static>(closure: F) -> Self {
        unsafe extern "C" fn call<F: FnOnce(IoResult)>(opaque: *mut c_void, result: c_int) {
            // SAFETY: `opaque` is the box made below, and a callback is called once.
            let closure = unsafe { Box::from_raw(opaque.cast::<F>()) };
            // Nothing may unwind through a C function.
            let _ = contain("a closure that was told of a request's end", || closure(Errno::check(result)));
        }
        let opaque = Box::into_raw(Box::new(closure)).cast();
        Self { function: call::<F>, opaque, when: When::InTurn, _awaited: Awaited::begin() }
    }

    /// A closure that wakes whoever waits for the request, and does nothing else.
    pub(crate) fn at_once<F: FnOnce(IoResult) + Send + 'static>(closure: F) -> Self {
        let mut callback = Self::from_closure(closure);
        callback.when = When::AtOnce;
        callback
    }

    /// Tells it, now or, if a callback is already running on this thread, when that has returned.
    pub(crate) fn tell(self, result: IoResult) {
        let result = to_c(result);
        if self.when == When::AtOnce {
            self.call(result);
            return;
        }
        // Without thread-local storage (a thread that is ending) there is nobody to queue behind.
        let queued = TELLING.try_with(std::cell::Cell::get).unwrap_or(false);
        if queued {
            // The queue lives as long as `TELLING` on this thread.
            QUEUE.with(|queue| queue.borrow_mut().push_back((self, result)));
            return;
        }
        let _telling = Telling::begin();
        self.call(result);
        while let Some((next, result)) = QUEUE.try_with(|queue| queue.borrow_mut().pop_front()).ok().flatten()
        {
            next.call(result);
        }
    }

    fn call(self, result: c_int) {
        // SAFETY: `from_raw` vouches for one call from any thread, and `self` is used up here.
        unsafe { (self.function)(self.opaque, result) }
    }
}

/// Counts, for as long as it lives, a callback that is still to be told.
#[derive(Debug)]
struct Awaited;

impl Awaited {
    fn begin() -> Self {
        if cfg!(target_family = "wasm") {
            AWAITED.set(AWAITED.get() + 1);
        }
        Self
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if cfg!(target_family = "wasm") {
            AWAITED.set(AWAITED.get() - 1);
        }
    }
}

/// So many can always be queued.
const FEW: usize = 32;

thread_local! {
    static AWAITED: Cell<usize> = const { Cell::new(0) };
    static TELLING: Cell<bool> = const { Cell::new(false) };
    static QUEUE: RefCell<VecDeque<(Callback, c_int)>> = const { RefCell::new(VecDeque::new()) };
}

/// A callback runs on this thread, until this is dropped.
struct Telling;

impl Telling {
    fn begin() -> Self {
        let _ = TELLING.try_with(|telling| telling.set(true));
        Self
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        let _ = TELLING.try_with(|telling| telling.set(false));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_closure_that_panics_takes_nobody_with_it() {
        // SPEC E-3
        let count = Arc::new(AtomicUsize::new(0));
        for panics in [true, false] {
            let counted = Arc::clone(&count);
            Callback::from_closure(move |_| {
                assert!(!panics, "on purpose");
                counted.fetch_add(1, Ordering::Relaxed);
            })
            .tell(Ok(()));
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_million_callbacks_inside_each_other_use_constant_stack() {
        // SPEC D-2
        fn again(left: usize, count: &Arc<AtomicUsize>) {
            let counted = Arc::clone(count);
            Callback::from_closure(move |_| {
                counted.fetch_add(1, Ordering::Relaxed);
                if left > 1 {
                    again(left - 1, &counted);
                }
            })
            .tell(Ok(()));
        }
        let count = Arc::new(AtomicUsize::new(0));
        again(1_000_000, &count);
        assert_eq!(count.load(Ordering::Relaxed), 1_000_000);
    }
}
