//! Devices: what a mirror copies from and to, and what a filter sits on.
//!
//! A [`Device`] is a handle to a [`Backend`], which takes one [`Request`] at a time with a [`Token`] and either
//! finishes it at once, or says [`Answer::Pending`] and reports the token later through its [`Completions`], or says
//! [`Answer::Again`]. The library's own users of a device (filters and jobs) are its *clients*: each keeps the
//! requests that it sent in slots of its own, and a token names client, slot and use (`clients`, `token`).

mod buffer;
mod callback;
pub(crate) mod clients;
#[cfg(all(feature = "file", unix))]
pub mod file;
mod iovec;
mod lane;
mod limits;
mod memory;
mod null;
#[cfg(all(test, not(loom)))]
pub(crate) mod testing;
mod token;

pub use buffer::AlignedBuffer;
pub(crate) use buffer::{most_zeroes, zeroes};
pub use callback::Callback;

pub(crate) use clients::{Client, Core as DeviceCore, Followup, Wake};
pub use clients::{Completions, Refused};
pub(crate) use iovec::is_aligned;
pub use iovec::{IoVec, gather, scatter, slice_into, total};
pub use lane::Lane;
pub use limits::{Limits, MAX_IOV, MAX_TRANSFER, MAX_ZERO};
pub use memory::Memory;
pub use null::{Null, NullOptions};
pub(crate) use token::SlotState;
pub use token::Token;

use crate::error::{IoResult, Result};
use crate::range::ByteRange;
use clients::Core;
use std::any::Any;
use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Fill the buffers from the range.
    Read,
    /// Write the buffers to the range.
    Write,
    /// Make the range read as zero.
    Zero,
    /// The range's content is no longer needed.
    Discard,
    /// Make what is done durable.
    Flush,
    /// Tell what the range holds, with [`Completions::extent`], before the request is done.
    Extents,
    /// Change the device's length to the range's end.
    Truncate,
    /// Take the range over from another device, without buffers.
    Copy,
}

impl Kind {
    /// The word for it in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Extents => "extents",
            Self::Truncate => "truncate",
            Self::Copy => "copy",
        }
    }

    /// Whether it changes what the device holds.
    #[must_use]
    pub fn changes_data(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Discard | Self::Copy)
    }
}

/// How a request is to be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// A zero may deallocate.
    pub may_unmap: bool,
    /// Durable before it is done ("forced unit access").
    pub fua: bool,
}

/// One request to a device. The buffers cover exactly the range of a read or write; others have none.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What to do.
    pub kind: Kind,
    /// Where.
    pub range: ByteRange,
    /// How.
    pub flags: Flags,
    /// The data, for a read or a write. The list itself is valid only during `submit`; the memory that it names
    /// until the request is done.
    pub iov: &'a [IoVec],
    /// Where a copy comes from: the same range of a device that [`Backend::copies_from`] has said yes to.
    pub from: Option<&'a Device>,
}

/// What a backend says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Finished, with this outcome. The token is used up.
    Done(IoResult),
    /// Accepted: its token will be completed later, from any thread.
    Pending,
    /// No room: not taken, to be offered again after something has completed.
    Again,
}

/// What a stretch of a device holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtentFlags {
    /// There is data to read.
    pub data: bool,
    /// It reads as zero.
    pub zero: bool,
    /// It is allocated in this layer, above the base.
    pub allocated: bool,
}

impl ExtentFlags {
    /// Allocated data.
    pub const DATA: Self = Self { data: true, zero: false, allocated: true };
    /// Allocated, reads as zero.
    pub const ZERO: Self = Self { data: false, zero: true, allocated: true };
    /// A hole that reads as zero.
    pub const HOLE: Self = Self { data: false, zero: true, allocated: false };
    /// Not in this layer; what it reads as is the backing's affair. Where everything is copied it has to be read.
    pub const UNALLOCATED: Self = Self { data: false, zero: false, allocated: false };

    /// Whether there is something to copy: data, or what is allocated and not said to be zero.
    #[must_use]
    pub fn holds_data(self) -> bool {
        self.data || (self.allocated && !self.zero)
    }
}

/// A run of bytes that hold the same kind of thing; extents of one answer follow each other without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes.
    pub length: u64,
    /// What they hold.
    pub flags: ExtentFlags,
}

/// Carries out requests. Implemented by the built-in devices, by the C API for a host's callbacks, and by
/// anybody's Rust code.
///
/// The library calls it from whichever thread has something to do: several at once.
pub trait Backend: Send + Sync {
    /// Takes one request. It keeps to the limits, is not empty (but for flush) and its kind is supported.
    ///
    /// A backend may complete the token before it answers [`Answer::Pending`]; it must not block for long,
    /// because a filter's caller or the job's poll is waiting.
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer;

    /// Whether this kind of request may be sent. Reads and writes always are (SPEC D-1).
    fn supports(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Read | Kind::Write)
    }

    /// Whether it takes [`Kind::Copy`] from that device: there is a way that is better than through buffers. A request may
    /// still fail; its range is copied through buffers then, and all others too after `EOPNOTSUPP`, `EXDEV` or `ENOSYS`.
    fn copies_from(&self, from: &Device) -> bool {
        let _ = from;
        false
    }

    /// The backend itself, for one of the same kind that is asked whether it copies from this one.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }

    /// Reaps completions, for a backend that has no thread of its own. Called at the start of each poll of a job.
    fn poll(&self) {}

    /// Whether [`Backend::poll`] does anything. Asked once for each job.
    fn has_poll(&self) -> bool {
        true
    }

    /// Hurries what is in flight: the job that it belongs to is being cancelled.
    fn cancel(&self) {}

    /// A lane for a user who sends many requests at a time, most of them with buffers in `memory`, which stays where
    /// it is for as long as the lane is used. `None`, as by default, if it would be no better than [`Backend::submit`].
    fn lane(&self, memory: IoVec) -> Option<Box<dyn Lane>> {
        let _ = memory;
        None
    }

    /// What carries out its requests, in a word, if there is a choice.
    fn engine(&self) -> Option<&'static CStr> {
        None
    }

    /// What names the storage behind this backend, so that two handles to the same file are seen to be the same:
    /// a file's device and inode number.
    fn identity(&self) -> Option<(u64, u64)> {
        None
    }
}

/// A reference-counted handle to a device. Clones are the same device.
///
/// Threads: every method from any thread.
#[derive(Clone)]
pub struct Device {
    /// What is submitted with this handle goes this way. It is dropped before the device.
    lane: Option<Arc<dyn Lane>>,
    core: Arc<Core>,
}

impl Device {
    /// A device of `length` bytes. `make` receives the [`Completions`] through which the backend will report.
    ///
    /// `EINVAL` if a limit makes no sense, or what `make` fails with.
    pub fn new<B: Backend + 'static>(
        length: u64,
        limits: Limits,
        make: impl FnOnce(Completions) -> Result<B>,
    ) -> Result<Self> {
        let limits = limits.checked()?;
        Ok(Self { core: Core::new(length, limits, make)?, lane: None })
    }

    /// A device in memory, all zero.
    pub fn memory(length: u64) -> Result<Self> {
        Memory::device(
            length,
            Limits { reads_zero: true, discard_zeroes: true, cheap_zero: true, ..Limits::default() },
        )
    }

    /// A regular file or a block device: see [`file::open`].
    #[cfg(all(feature = "file", unix))]
    pub fn open_file(path: &std::path::Path, options: &file::OpenOptions) -> Result<Self> {
        file::open(path, options)
    }

    /// The length in bytes. It changes only when a job grows the device.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.core.length()
    }

    /// The device's limits and promises.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        self.core.limits()
    }

    /// Whether every byte reads as zero: what [`Limits::reads_zero`] promised, until something is written.
    #[must_use]
    pub fn reads_zero(&self) -> bool {
        self.core.reads_zero()
    }

    /// Whether the device takes requests of this kind.
    #[must_use]
    pub fn supports(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Read | Kind::Write) || self.core.backend().supports(kind)
    }

    /// Whether the two are the same storage: the same device, or the same file behind two (SPEC O-6).
    #[must_use]
    pub fn is_same_storage(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.core, &other.core)
            || self.core.backend().identity().is_some_and(|id| other.core.backend().identity() == Some(id))
    }

    /// Whether the device takes [`Kind::Copy`] from that one.
    #[must_use]
    pub fn copies_from(&self, from: &Self) -> bool {
        self.core.backend().copies_from(from)
    }

    /// What is behind the device, if it is a `B` that lets itself be seen: see [`Backend::as_any`].
    #[must_use]
    pub fn backend<B: Backend + 'static>(&self) -> Option<&B> {
        self.core.backend().as_any()?.downcast_ref()
    }

    /// Reports the outcome of a request that was answered with [`Answer::Pending`], from any thread.
    ///
    /// Refused, counted and otherwise harmless if no request with this token is out (SPEC D-3).
    pub fn complete(&self, token: Token, result: IoResult) -> Result<(), Refused> {
        self.core.complete(token, result)
    }

    /// Reports what the next `length` bytes of an [`Kind::Extents`] request hold, before it is completed.
    /// `false`: that is enough for one answer, the rest will be asked for again; complete the request.
    pub fn extent(&self, token: Token, extent: Extent) -> Result<bool, Refused> {
        self.core.extent(token, extent)
    }

    /// Says that a device that answered [`Answer::Again`] may have room: what waits is offered again, from
    /// this call. A completion implies it.
    pub fn kick(&self) {
        self.core.kick();
    }

    /// How many completions were refused so far: double, stale, or of nothing that was sent.
    #[must_use]
    pub fn refused_completions(&self) -> u64 {
        self.core.refused()
    }

    /// Says that no completion will come any more: what is out fails with `ECANCELED`. The C API does this
    /// when a host frees its handle, without which nothing can be completed.
    pub fn abandon(&self) {
        self.core.abandon();
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// What carries out the device's requests, in a word, if there is a choice: of a file `"io_uring"` or `"threads"`.
    #[must_use]
    pub fn engine(&self) -> Option<&'static CStr> {
        self.core.backend().engine()
    }

    /// Another handle, which has a lane of its own if the device has lanes; see [`Backend::lane`].
    pub(crate) fn with_lane(&self, memory: IoVec) -> Self {
        Self { core: Arc::clone(&self.core), lane: self.core.backend().lane(memory).map(Arc::from) }
    }

    /// Another handle, which has no lane: for whoever doesn't send and reap.
    pub(crate) fn without_lane(&self) -> Self {
        Self { core: Arc::clone(&self.core), lane: None }
    }

    /// The handle's own lane.
    pub(crate) fn lane(&self) -> Option<&(dyn Lane + 'static)> {
        self.lane.as_deref()
    }

    /// Offers a request to the backend. Hints that the device doesn't know are skipped (SPEC D-1).
    pub(crate) fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        self.core.submit(token, request, self.lane())
    }

    pub(crate) fn poll(&self) {
        self.core.backend().poll();
    }

    pub(crate) fn has_poll(&self) -> bool {
        self.core.backend().has_poll()
    }

    pub(crate) fn cancel(&self) {
        if let Some(lane) = self.lane() {
            lane.cancel();
        }
        self.core.backend().cancel();
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("length", &self.length()).finish_non_exhaustive()
    }
}
