//! Handles: what a host holds instead of a device, a filter or a job.
//!
//! A handle points to a header of a type tag and a reference to the object. Headers are never given back to the
//! allocator: a freed one loses its tag and is used again only after many others were freed, so that a stale handle
//! is read safely and, as a rule, recognised. A call that races with the free of its handle finds either the object,
//! and keeps it alive until it is done, or nothing.

use crate::error::{Error, Result};
use crate::reserve::{self, Need};
use arc_swap::{ArcSwapOption, Guard};
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many freed headers of a type wait before the oldest is used again: 24 KiB that recognise the last thousand
/// stale handles.
const QUARANTINE: usize = 1024;

/// Headers are made so many at a time. They stay where they are for ever, and one at a time they would lie about between
/// what comes and goes, so that no large block could be had again.
const AT_A_TIME: usize = 64;

/// The tag of a header whose object is gone.
const FREED: u64 = u64::from_le_bytes(*b"mirFREED");

const NAMES: [(u64, &str); 3] = [
    (u64::from_le_bytes(*b"mirDEVIC"), "mirror_device"),
    (u64::from_le_bytes(*b"mirFILTE"), "mirror_filter"),
    (u64::from_le_bytes(*b"mirJOBJO"), "mirror_job"),
];

/// An object that hosts hold by a handle.
pub(super) trait Handled: Send + Sync + Sized + 'static {
    /// The handle's type in C.
    type Handle;
    /// Which row of [`NAMES`].
    const KIND: usize;
    /// Where the headers of this type go when they are freed.
    fn retired() -> &'static Retired<Self>;
}

#[repr(C)]
pub(super) struct Header<T> {
    tag: AtomicU64,
    object: ArcSwapOption<T>,
}

pub(super) struct Retired<T: 'static>(Mutex<Headers<T>>);

/// The headers of a type that have no object.
struct Headers<T: 'static> {
    freed: VecDeque<&'static Header<T>>,
    never_used: &'static [Header<T>],
}

impl<T> Retired<T> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Headers { freed: VecDeque::new(), never_used: &[] }))
    }
}

impl<T> Headers<T> {
    fn take(&mut self) -> &'static Header<T> {
        if self.freed.len() > QUARANTINE
            && let Some(oldest) = self.freed.pop_front()
        {
            return oldest;
        }
        if self.never_used.is_empty() {
            let header = || Header { tag: AtomicU64::new(FREED), object: ArcSwapOption::empty() };
            self.never_used = Box::leak((0..AT_A_TIME).map(|_| header()).collect());
        }
        let (first, rest) = self.never_used.split_first().expect("there are some now");
        self.never_used = rest;
        first
    }
}

/// An object for the duration of a call.
pub(super) struct Borrowed<T> {
    object: Guard<Option<Arc<T>>>,
}

impl<T> Deref for Borrowed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.object.as_ref().expect("a borrowed handle was seen to have its object")
    }
}

/// A handle to a new object. `ENOMEM`, and it is dropped, if it has taken what is kept in reserve for later calls.
pub(super) fn make<T: Handled>(object: T) -> Result<*mut T::Handle> {
    reserve::demand(Need::Make)?;
    let header = T::retired().0.lock().unwrap_or_else(PoisonError::into_inner).take();
    header.object.store(Some(Arc::new(object)));
    header.tag.store(NAMES[T::KIND].0, Ordering::Release);
    Ok(std::ptr::from_ref(header).cast::<T::Handle>().cast_mut())
}

/// The object of a handle; `EINVAL` for NULL, a handle of another type or a freed one.
///
/// # Safety
/// `handle` is NULL or points to at least 8 readable bytes.
pub(super) unsafe fn get<T: Handled>(handle: *const T::Handle) -> Result<Borrowed<T>> {
    // SAFETY: passed on.
    let header = unsafe { header::<T>(handle) }?;
    let object = header.object.load();
    if object.is_none() {
        return Err(refused::<T>("was freed"));
    }
    Ok(Borrowed { object })
}

/// Takes the object out of its handle, which is freed. Its destructor runs when nobody uses it any more.
///
/// # Safety
/// As for [`get`].
pub(super) unsafe fn free<T: Handled>(handle: *mut T::Handle) -> Result<Arc<T>> {
    // SAFETY: passed on.
    let header = unsafe { header::<T>(handle) }?;
    let live = NAMES[T::KIND].0;
    // Of two threads that free the same handle one gets it.
    if header.tag.compare_exchange(live, FREED, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return Err(refused::<T>("was freed"));
    }
    let object = header.object.swap(None);
    T::retired().0.lock().unwrap_or_else(PoisonError::into_inner).freed.push_back(header);
    object.ok_or_else(|| refused::<T>("was freed"))
}

/// # Safety
/// As for [`get`].
unsafe fn header<T: Handled>(handle: *const T::Handle) -> Result<&'static Header<T>> {
    let header = handle.cast::<Header<T>>();
    if header.is_null() {
        return Err(refused::<T>("is NULL"));
    }
    if !header.is_aligned() {
        return Err(refused::<T>("points to no handle"));
    }
    // SAFETY: the caller vouches for 8 bytes, and they are aligned. Whatever they are, they are a number.
    let tag = unsafe { (*header.cast::<AtomicU64>()).load(Ordering::Acquire) };
    if tag == NAMES[T::KIND].0 {
        // SAFETY: only `make` writes this tag, into a header that is never deallocated. That foreign memory holds
        // the same eight bytes is the host's to avoid.
        return Ok(unsafe { &*header });
    }
    Err(match NAMES.iter().find(|(known, _)| *known == tag) {
        Some((_, other)) => Error::invalid(format!("the {} handle is a {other}", NAMES[T::KIND].1)),
        None if tag == FREED => refused::<T>("was freed"),
        None => refused::<T>("points to no handle"),
    })
}

fn refused<T: Handled>(why: &str) -> Error {
    Error::invalid(format!("the {} handle {why}", NAMES[T::KIND].1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Errno;

    #[derive(Debug, PartialEq)]
    struct Probe(u32);

    impl Handled for Probe {
        type Handle = super::super::mirror_job;
        const KIND: usize = 2;
        fn retired() -> &'static Retired<Self> {
            static RETIRED: Retired<Probe> = Retired::new();
            &RETIRED
        }
    }

    fn message(handle: *const super::super::mirror_job) -> String {
        // SAFETY: each handle of these tests is NULL or points to 8 bytes.
        let error = unsafe { get::<Probe>(handle) }.err().expect("refused");
        assert_eq!(error.errno(), Errno::EINVAL);
        error.message().to_owned()
    }

    #[test]
    fn a_stale_handle_is_recognised_while_a_thousand_others_come_and_go() {
        let stale = make(Probe(1)).expect("memory");
        // SAFETY: `make` made it.
        assert_eq!(unsafe { free::<Probe>(stale) }.expect("live").0, 1);
        for number in 0..1000 {
            let other = make(Probe(number)).expect("memory");
            assert_ne!(other, stale);
            // SAFETY: `make` made it.
            assert_eq!(unsafe { get::<Probe>(other) }.expect("live").0, number);
            // SAFETY: `make` made it.
            unsafe { free::<Probe>(other) }.expect("live");
        }
        assert_eq!(message(stale), "the mirror_job handle was freed");
        // SAFETY: headers are never deallocated.
        assert!(unsafe { free::<Probe>(stale) }.is_err(), "a second free");
    }

    #[test]
    fn what_is_no_handle_is_refused() {
        let foreign = [0u64; 4];
        assert_eq!(message(std::ptr::null()), "the mirror_job handle is NULL");
        assert_eq!(message(foreign.as_ptr().cast()), "the mirror_job handle points to no handle");
        let odd = foreign.as_ptr().cast::<u8>().wrapping_add(1);
        assert_eq!(message(odd.cast()), "the mirror_job handle points to no handle");
        let other = [NAMES[0].0; 4];
        assert_eq!(message(other.as_ptr().cast()), "the mirror_job handle is a mirror_device");
    }
}
