//! The filter: the live disk that guest I/O goes through (SPEC section 7).
//!
//! A [`Filter`] sits on a device and passes requests on to it. While a job is attached it marks what was written, after
//! it was written, in the job's bitmap; or, while writes are carried, hands them to the job instead. When the job finishes it
//! closes the filter's gate, switches the device, and opens it again.
//!
//! # The fast path
//! A request in background mode: enter the gate (one atomic step), take a slot (one), call the device, and when that
//! is done claim the completion (one), put the slot back (one), mark the bitmap (one, or two) and leave the gate (one).
//! No lock, no allocation, no waiting for whoever polls the job. The pointers to the device and to the job's hooks cost
//! no step: who is inside the gate may read them (`grace`).
//!
//! # Ownership
//! A request is owned by the thread that submits it, then by whoever claims its completion (`slots`). It holds its
//! count at the gate from entering to the end; the device isn't switched, nor the filter taken down, while any is
//! counted.

mod bounce;
mod carried;
mod claim;
mod core;
mod extents;
mod gate;
mod grace;
mod held_back;
mod slots;
mod steps;
mod waiting;

pub(crate) use carried::Carrier;
pub(crate) use claim::{Claim, Hooks, Traffic};
pub(crate) use core::Core;
pub use extents::Found;

use crate::device::{Callback, Device, IoVec, Kind};
use crate::error::{Errno, Error, IoResult, Result};
use crate::range::{ByteRange, check_bounds};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How a guest request is to be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestFlags {
    /// Durable before it is done.
    pub fua: bool,
    /// A zero may deallocate.
    pub may_unmap: bool,
    /// The data doesn't change until the request is done, so that no copy of it need be made.
    pub stable: bool,
}

/// A guest's request.
#[derive(Clone, Copy, Debug)]
pub struct GuestIo<'a> {
    /// Read, write, zero, discard or flush.
    pub kind: Kind,
    /// Where. A flush has none.
    pub range: ByteRange,
    /// How.
    pub flags: GuestFlags,
    /// The buffers of a read or write, which hold exactly the range.
    pub iov: &'a [IoVec],
}

/// The answer to [`Filter::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Do the request, on [`Filter::device`], and hand this ticket to [`Filter::end`].
    Go(u64),
    /// The filter is being switched: try again when the opened hook says so.
    Again,
}

/// A live disk. Clones are the same filter; it is taken down when the last is dropped, no job uses it and no
/// request is running.
///
/// Threads: every method from any thread.
#[derive(Clone)]
pub struct Filter {
    handle: Arc<Handle>,
}

struct Handle {
    core: Arc<Core>,
}

impl Filter {
    /// A filter on this device. `EBUSY` if the device has too many users.
    pub fn new(source: &Device) -> Result<Self> {
        Self::with_alignment(source, 1)
    }

    /// A filter whose guests keep to `alignment` (a power of two up to 64 KiB) as well as to the source's own, so
    /// that it can be switched to a target that is stricter than the source.
    pub fn with_alignment(source: &Device, alignment: u32) -> Result<Self> {
        if !alignment.is_power_of_two() || alignment > 1 << 16 {
            return Err(Error::invalid(format!(
                "alignment {alignment}: must be a power of two from 1 to 65536"
            )));
        }
        let core = Core::new(source, alignment)?;
        Ok(Self { handle: Arc::new(Handle { core }) })
    }

    /// The device that guest requests go to now.
    #[must_use]
    pub fn device(&self) -> Device {
        self.core().device().expect("a filter with a handle has a device")
    }

    /// The length of the disk in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.core().length.load(Ordering::Acquire)
    }

    /// What offsets and lengths of guest requests must be multiples of.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.core().alignment
    }

    /// Takes a guest request. `Ok`: accepted, and `done` is told the outcome exactly once, possibly before this
    /// returns and from whichever thread finishes it. An error: refused, and `done` is never called.
    ///
    /// The list in `io.iov` is needed only during the call, the memory that it names until the request is done.
    ///
    /// `EINVAL` (misaligned, or buffers that don't hold the range), `ERANGE` (beyond the end), `EBUSY`
    /// (16384 requests are running already), `EOPNOTSUPP` (not a guest's kind of request).
    pub fn submit(&self, io: &GuestIo<'_>, done: Callback) -> Result<()> {
        self.core().submit(io, done)
    }

    /// Asks what the disk holds. As [`Filter::submit`]; when `done` is told that it went well, [`Found::take`] has the
    /// answer. A write that runs meanwhile may be in it or not.
    pub fn extents(&self, found: &Arc<Found>, done: Callback) -> Result<()> {
        self.core().submit_extents(found, done)
    }

    /// Announces a request that the host does by itself, on [`Filter::device`]: it is marked and drained like any
    /// other. `EOPNOTSUPP` while a job carries writes, because it needs the data.
    pub fn begin(&self, kind: Kind, range: ByteRange) -> Result<Begin> {
        self.core().begin(kind, range)
    }

    /// The request of this ticket is done; a write is marked, whatever the result. `ENOENT` if there is no such ticket.
    pub fn end(&self, ticket: u64, result: IoResult) -> Result<()> {
        self.core().end(ticket, result)
    }

    /// Marks a range that was written behind the filter's back. Without a job it does nothing.
    pub fn mark_dirty(&self, range: ByteRange) -> Result<()> {
        check_bounds(range, self.length())?;
        self.core().mark(range);
        Ok(())
    }

    /// Whom to tell that [`Filter::begin`] is worth trying again, after it answered [`Begin::Again`]. Called from
    /// whichever thread opens the gate; at most once for each time that it was closed.
    pub fn set_opened_hook(&self, hook: Option<Box<dyn Fn() + Send + Sync>>) {
        let replaced = std::mem::replace(&mut *lock(&self.core().opened), hook.map(Arc::from));
        // After the lock: its destructor may call the host, and the host this.
        drop(replaced);
    }

    /// Reads and waits for it. Whoever calls it must not be the one who polls the job.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the buffer is borrowed until the request is done.
        let iov = [unsafe { IoVec::new(bytes.as_mut_ptr().cast(), bytes.len()) }];
        self.wait_for(Kind::Read, ByteRange::new(offset, bytes.len() as u64)?, GuestFlags::default(), &iov)
    }

    /// Writes and waits for it. Whoever calls it must not be the one who polls the job.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the buffer is borrowed until the request is done, and a write only reads it.
        let iov = [unsafe { IoVec::new(bytes.as_ptr().cast_mut().cast(), bytes.len()) }];
        let flags = GuestFlags { stable: true, ..GuestFlags::default() };
        self.wait_for(Kind::Write, ByteRange::new(offset, bytes.len() as u64)?, flags, &iov)
    }

    /// Zeroes and waits for it.
    pub fn zero_at(&self, offset: u64, length: u64, flags: GuestFlags) -> Result<()> {
        self.wait_for(Kind::Zero, ByteRange::new(offset, length)?, flags, &[])
    }

    /// Discards and waits for it.
    pub fn discard_at(&self, offset: u64, length: u64) -> Result<()> {
        self.wait_for(Kind::Discard, ByteRange::new(offset, length)?, GuestFlags::default(), &[])
    }

    /// Flushes and waits for it.
    pub fn flush(&self) -> Result<()> {
        self.wait_for(Kind::Flush, ByteRange::default(), GuestFlags::default(), &[])
    }

    fn wait_for(&self, kind: Kind, range: ByteRange, flags: GuestFlags, iov: &[IoVec]) -> Result<()> {
        let outcome = Arc::new((Mutex::new(None), Condvar::new()));
        let told = Arc::clone(&outcome);
        let done = Callback::at_once(move |result| {
            *lock(&told.0) = Some(result);
            told.1.notify_one();
        });
        self.submit(&GuestIo { kind, range, flags, iov }, done)?;
        let mut result = lock(&outcome.0);
        loop {
            if let Some(result) = *result {
                return result.map_err(|errno| {
                    let (offset, length) = (range.offset(), range.len());
                    Error::new(errno, format!("{} at offset {offset} length {length}: {errno}", kind.name()))
                });
            }
            result = outcome.1.wait(result).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.abandoned.store(true, Ordering::SeqCst);
        self.core.gate.close();
        self.core.end_tickets();
        self.core.take_down_if_drained();
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").field("length", &self.length()).finish_non_exhaustive()
    }
}

/// Which shard of the gate this thread uses.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % gate::SHARDS;
    }
    SHARD.try_with(|shard| *shard).unwrap_or(0)
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn too_many() -> Error {
    Error::new(
        Errno::EBUSY,
        "too many guest requests are running (16384), or too many threads are inside a device: wait for one to finish",
    )
}
