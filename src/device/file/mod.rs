//! The file device: regular files and block devices of a Unix host.
//!
//! [`open()`] looks at a path and derives the device's limits from what is there (`open`). Requests are
//! carried out by an engine: by a pool of threads (`workers`) that call blocking functions, or on Linux by the kernel,
//! through its ring (`uring`), with the pool for what the ring can't do. What a request means for a file, whether direct
//! or cached and with which fallbacks, is `storage`; the system calls are `io`; which of them is enough for a request is
//! `call`. An engine needs nothing but an `Arc<Storage>` and the device's `Completions`, and offers `submit`.
//!
//! | | regular file | block device |
//! |---|---|---|
//! | zero, may unmap | hole | zeroed by command, if the disk has one |
//! | zero | unwritten extent | zeroed by the kernel |
//! | discard | hole | discard |
//! | extents | data and holes | all data |
//! | truncate | yes | no |
//!
//! Where the system lacks the method, zeroes are written and discards skipped.

mod aligned;
#[cfg(all(feature = "uring", target_os = "linux"))]
mod call;
mod extents;
mod io;
mod open;
mod storage;
#[cfg(all(feature = "uring", target_os = "linux"))]
mod uring;
#[cfg(not(all(feature = "uring", target_os = "linux")))]
#[path = "no_uring.rs"]
mod uring;
mod workers;

use super::{Answer, Backend, Completions, Device, IoVec, Kind, Lane, Request, Token};
use crate::error::{Errno, Result};
use open::Opened;
use std::any::Any;
use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use storage::{FileKind, Storage};
use uring::{Parts, Uring};
use workers::Workers;

/// How to open a file. `Default` opens what exists, for reading and writing, through the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Never changes it; a request to do so fails with `EROFS`.
    pub read_only: bool,
    /// Bypasses the page cache. The device then has the alignment that this takes; an odd end of a file is
    /// still readable and writable.
    pub direct: bool,
    /// Creates the file if it is missing, readable and writable as the umask allows. A regular file that is
    /// empty then gets this length in bytes. One that isn't, or a block device, is left as it is, whatever
    /// its length: compare [`Device::length`].
    pub create: Option<u64>,
    /// Most threads that work for this device, up to 64; 0 is the default, 4. On io_uring they do only what it can't.
    pub workers: usize,
    /// Leaves all work to threads, even where io_uring is to be had.
    pub threads: bool,
}

/// Opens a regular file or a block device.
///
/// The limits say what was found: `reads_zero` if a regular file holds no data, only holes, when it is opened
/// (as one does that was just created); `cheap_zero` and, for a regular file, `discard_zeroes` if a hole can
/// be punched, which is tried beyond the file's end. Two handles to the same file or block device, by
/// whichever paths, are the same storage ([`Device::is_same_storage`]).
///
/// Requests are carried out by the kernel, through io_uring, or by threads of the device's own, which start when there
/// is something to do; [`Device::engine`] says which. A request that is being carried out keeps the device, so that the
/// request's buffers are let go of before it is dropped. Dropping the last handle waits until the threads have ended and
/// the file is closed, except in a completion, where the file is closed soon after.
///
/// Fails with what the system said and a message that names the path: `ENOENT`, `EACCES`, `EROFS` and so on;
/// `EINVAL` for what is neither a regular file nor a block device, for `direct` where there is no direct I/O,
/// and for options that make no sense.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Device> {
    device(open::open(path, options)?, options)
}

fn device(opened: Opened, options: &OpenOptions) -> Result<Device> {
    let Opened { storage, length, limits, identity } = opened;
    Device::new(length, limits, |completions| {
        Ok(FileDevice::new(storage, limits.read_only, identity, completions, options))
    })
}

#[derive(Debug)]
struct FileDevice {
    // In this order they are dropped: the ring uses the threads.
    uring: Option<Uring>,
    workers: Arc<Workers>,
    storage: Arc<Storage>,
    read_only: bool,
    identity: (u64, u64),
}

impl FileDevice {
    fn new(
        storage: Storage,
        read_only: bool,
        identity: (u64, u64),
        completions: Completions,
        options: &OpenOptions,
    ) -> Self {
        let storage = Arc::new(storage);
        let workers = Arc::new(Workers::new(Arc::clone(&storage), completions.clone(), options.workers));
        let uring = if options.threads {
            None
        } else {
            let (storage, workers) = (Arc::clone(&storage), Arc::clone(&workers));
            Uring::new(Parts { storage, workers, completions, read_only })
                .map_err(|error| tell_once(&error))
                .ok()
        };
        Self { uring, workers, storage, read_only, identity }
    }
}

/// Says why files are left to threads, the first time.
fn tell_once(error: &std::io::Error) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        log::info!("blkmirror: files are left to threads, because io_uring is not to be had: {error}");
    }
}

impl FileDevice {
    fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }
}

impl Backend for FileDevice {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        if self.read_only && (request.kind.changes_data() || request.kind == Kind::Truncate) {
            return Answer::Done(Err(Errno::EROFS));
        }
        match &self.uring {
            Some(uring) => uring.submit(token, request),
            None => self.workers.submit(token, request),
        }
    }

    fn lane(&self, memory: IoVec) -> Option<Box<dyn Lane>> {
        // Without a lane, what would have gone there goes with everything else.
        let lane = self.uring.as_ref()?.lane(memory).map_err(|error| tell_once(&error)).ok()?;
        Some(Box::new(lane))
    }

    fn engine(&self) -> Option<&'static CStr> {
        Some(if self.uring.is_some() { c"io_uring" } else { c"threads" })
    }

    fn supports(&self, kind: Kind) -> bool {
        let regular = self.storage.kind() == FileKind::Regular;
        match kind {
            Kind::Extents => regular,
            Kind::Truncate => regular && !self.read_only,
            // Not from everywhere.
            Kind::Copy => false,
            _ => true,
        }
    }

    fn has_poll(&self) -> bool {
        false
    }

    fn identity(&self) -> Option<(u64, u64)> {
        Some(self.identity)
    }

    fn copies_from(&self, from: &Device) -> bool {
        let from = from.backend::<Self>();
        !self.read_only && from.is_some_and(|from| self.storage.copies_from(&from.storage))
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
