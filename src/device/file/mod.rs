//! The file device: regular files and block devices of a Unix host.
//!
//! [`open()`] looks at a path and derives the device's limits from what is there (`open`). Requests are
//! carried out by an engine, of which there is one: a pool of threads (`workers`) that call blocking
//! functions. What a request means for a file, whether direct or cached and with which fallbacks, is
//! `storage`; the system calls are `io`. An engine needs nothing but an `Arc<Storage>` and the device's
//! `Completions`, and offers `submit`.
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
mod extents;
mod io;
mod open;
mod storage;
mod workers;

use super::{Answer, Backend, Completions, Device, Kind, Request, Token};
use crate::error::{Errno, Result};
use open::Opened;
use std::path::Path;
use std::sync::Arc;
use storage::{FileKind, Storage};
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
    /// Most threads that work for this device, up to 64; 0 is the default, 4.
    pub workers: usize,
}

/// Opens a regular file or a block device.
///
/// The limits say what was found: `reads_zero` if a regular file holds no data, only holes, when it is opened
/// (as one does that was just created); `cheap_zero` and, for a regular file, `discard_zeroes` if a hole can
/// be punched, which is tried beyond the file's end. Two handles to the same file or block device, by
/// whichever paths, are the same storage ([`Device::is_same_storage`]).
///
/// Requests are carried out by threads of the device's own, which start when there is something to do. A
/// thread that is busy with a request keeps the device, so that the request's buffers are let go of before it
/// is dropped. Dropping the last handle waits until the threads have ended and the file is closed, except in
/// a completion, where the file is closed soon after.
///
/// Fails with what the system said and a message that names the path: `ENOENT`, `EACCES`, `EROFS` and so on;
/// `EINVAL` for what is neither a regular file nor a block device, for `direct` where there is no direct I/O,
/// and for options that make no sense.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Device> {
    device(open::open(path, options)?, options.workers)
}

fn device(opened: Opened, workers: usize) -> Result<Device> {
    let Opened { storage, length, limits, identity } = opened;
    Device::new(length, limits, |completions| {
        Ok(FileDevice::new(storage, limits.read_only, identity, completions, workers))
    })
}

#[derive(Debug)]
struct FileDevice {
    storage: Arc<Storage>,
    workers: Workers,
    read_only: bool,
    identity: (u64, u64),
}

impl FileDevice {
    fn new(
        storage: Storage,
        read_only: bool,
        identity: (u64, u64),
        completions: Completions,
        workers: usize,
    ) -> Self {
        let storage = Arc::new(storage);
        Self {
            workers: Workers::new(Arc::clone(&storage), completions, workers),
            storage,
            read_only,
            identity,
        }
    }
}

impl Backend for FileDevice {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        if self.read_only && (request.kind.changes_data() || request.kind == Kind::Truncate) {
            return Answer::Done(Err(Errno::EROFS));
        }
        self.workers.submit(token, request)
    }

    fn supports(&self, kind: Kind) -> bool {
        let regular = self.storage.kind() == FileKind::Regular;
        match kind {
            Kind::Extents => regular,
            Kind::Truncate => regular && !self.read_only,
            _ => true,
        }
    }

    fn identity(&self) -> Option<(u64, u64)> {
        Some(self.identity)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
