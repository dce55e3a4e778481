//! Devices: a host's callbacks as a [`Backend`], and the constructors of the built-in ones.

use super::constants::*;
use super::convert::{
    Given, Opaque, Output, Versioned, check_flags, check_pointer, outcome, read_struct, text,
};
use super::handle::{self, Handled, Retired};
use super::{guard, mirror_iovec};
use crate::device::{
    Answer, Backend, Completions, Device, Extent, ExtentFlags, Flags, Kind, Limits, Null, NullOptions,
    Refused, Request, Token,
};
use crate::error::{Errno, Error, Result};
use crate::reserve::{self, Need};
use std::any::Any;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device: what a mirror copies from or to, and what a filter sits on.
///
/// Threads: every function from any thread.
pub struct mirror_device {
    _opaque: (),
}

/// What a host's device can do. Fill it with zeroes, set `struct_size` to `sizeof(mirror_device_ops)` and what there is.
///
/// `read` and `write` are required, the others may be NULL: an absent `zero` is emulated by writing zeroes, an absent
/// `discard` is skipped, an absent `flush` succeeds, an absent `extents` means that all is allocated data.
///
/// A callback that takes a request answers `MIRROR_DONE`; `MIRROR_PENDING`, and the request's `token` goes to
/// `mirror_device_complete` exactly once, later or even before the callback returns, from any thread; `MIRROR_AGAIN` if
/// there is no room, and the request is offered again, in order, once another has completed or `mirror_device_kick` was
/// called; or `-errno`. Anything else is logged and counts as `-EIO`.
///
/// Requests keep to the device's limits and lie within its length. A list of buffers holds exactly `length` bytes; the
/// list is good during the callback, the memory that it names until the request is done.
///
/// Callbacks are called from whichever thread has something to do: from those that call `mirror_filter_*`, from the one
/// that calls `mirror_job_poll`, and from those that call `mirror_device_complete`; several at once. No lock is held, so
/// they may call the library. They must not block for long, throw or `longjmp`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_device_ops {
    /// `sizeof(mirror_device_ops)`.
    pub struct_size: usize,
    /// Fill the buffers from the range. Required.
    pub read: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            token: u64,
            offset: u64,
            length: u64,
            iov: *const mirror_iovec,
            iovcnt: usize,
        ) -> c_int,
    >,
    /// Write the buffers to the range. `flags`: `MIRROR_FUA`. Required. The buffers may be a guest's, who can change them
    /// meanwhile.
    pub write: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            token: u64,
            offset: u64,
            length: u64,
            iov: *const mirror_iovec,
            iovcnt: usize,
            flags: u32,
        ) -> c_int,
    >,
    /// Make the range read as zero. `flags`: `MIRROR_MAY_UNMAP`, `MIRROR_FUA`.
    pub zero: Option<
        unsafe extern "C" fn(opaque: *mut c_void, token: u64, offset: u64, length: u64, flags: u32) -> c_int,
    >,
    /// The range's content is no longer needed.
    pub discard:
        Option<unsafe extern "C" fn(opaque: *mut c_void, token: u64, offset: u64, length: u64) -> c_int>,
    /// Make what is done durable.
    pub flush: Option<unsafe extern "C" fn(opaque: *mut c_void, token: u64) -> c_int>,
    /// Tell what the range holds: call `mirror_device_extent` for each stretch of it, in order, and then finish as any
    /// request. What is not told counts as data.
    pub extents:
        Option<unsafe extern "C" fn(opaque: *mut c_void, token: u64, offset: u64, length: u64) -> c_int>,
    /// Change the device's length.
    pub truncate: Option<unsafe extern "C" fn(opaque: *mut c_void, token: u64, length: u64) -> c_int>,
    /// Hurry what is in flight: a job that uses the device is being cancelled.
    pub cancel: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    /// Reap completions, for a device without a thread of its own: called at the start of each `mirror_job_poll`. A
    /// negative answer is logged.
    pub poll: Option<unsafe extern "C" fn(opaque: *mut c_void) -> c_int>,
    /// The device is not used any more, and `opaque` with it. Called exactly once, from the thread that lets go of it last.
    pub close: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    /// Take the range over from another device, without buffers: a storage server that copies by itself, blocks that both
    /// share. Asked of a job's target if its source was made with the same `copy`; `source` is that one's `opaque`. What
    /// fails is copied through buffers; after `-EOPNOTSUPP`, `-EXDEV` or `-ENOSYS` all the rest of the job is.
    pub copy: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            token: u64,
            source: *mut c_void,
            offset: u64,
            length: u64,
        ) -> c_int,
    >,
}

// SAFETY: repr(C), begins with the size; zero is a value of integers and of nullable functions.
unsafe impl Versioned for mirror_device_ops {
    const NAME: &'static str = "mirror_device_ops";
    const FIRST: usize = 11 * size_of::<usize>();
}

/// What a device is like. 0 is "no limit", "any" or "none". A request never breaks these limits; where two devices take
/// part, the stricter one rules.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_device_limits {
    /// `sizeof(mirror_device_limits)`.
    pub struct_size: usize,
    /// Length in bytes.
    pub length: u64,
    /// Offsets and lengths are multiples of this: a power of two up to 65536. The device's end counts as aligned.
    pub request_alignment: u32,
    /// Buffers begin on multiples of this: a power of two up to 65536.
    pub memory_alignment: u32,
    /// Most buffers in one request; at most `MIRROR_IOV_MAX` are ever sent.
    pub max_iov: u32,
    /// `MIRROR_LIMIT_` flags.
    pub flags: u32,
    /// Most bytes in one read or write, at least 512; at most 64 MiB are ever sent.
    pub max_transfer: u64,
    /// Most bytes in one zero, at least 512; at most 2 GiB are ever sent.
    pub max_zero: u64,
    /// Most bytes in one discard, at least 512; at most 2 GiB are ever sent.
    pub max_discard: u64,
    /// Zeroes are worth sending on multiples of this: a power of two up to 1 GiB.
    pub zero_alignment: u64,
    /// Discards are worth sending on multiples of this: a power of two up to 1 GiB.
    pub discard_alignment: u64,
    /// The device's own allocation unit: a power of two up to 1 GiB.
    pub cluster_size: u64,
}

// SAFETY: repr(C), begins with the size; integers only.
unsafe impl Versioned for mirror_device_limits {
    const NAME: &'static str = "mirror_device_limits";
    const FIRST: usize = size_of::<usize>().next_multiple_of(8) + 72;
}

impl mirror_device_limits {
    fn to_limits(self) -> Result<Limits> {
        let known = MIRROR_LIMIT_READ_ONLY
            | MIRROR_LIMIT_CHEAP_ZERO
            | MIRROR_LIMIT_READS_ZERO
            | MIRROR_LIMIT_DISCARD_ZEROES
            | MIRROR_LIMIT_UNATTACHED_BACKING;
        check_flags("mirror_device_limits.flags", self.flags, known)?;
        let has = |flag| self.flags & flag != 0;
        Ok(Limits {
            request_alignment: self.request_alignment,
            memory_alignment: self.memory_alignment,
            max_iov: self.max_iov,
            max_transfer: self.max_transfer,
            max_zero: self.max_zero,
            max_discard: self.max_discard,
            zero_alignment: self.zero_alignment,
            discard_alignment: self.discard_alignment,
            cluster_size: self.cluster_size,
            read_only: has(MIRROR_LIMIT_READ_ONLY),
            cheap_zero: has(MIRROR_LIMIT_CHEAP_ZERO),
            reads_zero: has(MIRROR_LIMIT_READS_ZERO),
            discard_zeroes: has(MIRROR_LIMIT_DISCARD_ZEROES),
            unattached_backing: has(MIRROR_LIMIT_UNATTACHED_BACKING),
        })
    }

    fn of(device: &Device) -> Self {
        let limits = device.limits();
        let flags = [
            (limits.read_only, MIRROR_LIMIT_READ_ONLY),
            (limits.cheap_zero, MIRROR_LIMIT_CHEAP_ZERO),
            (device.reads_zero(), MIRROR_LIMIT_READS_ZERO),
            (limits.discard_zeroes, MIRROR_LIMIT_DISCARD_ZEROES),
            (limits.unattached_backing, MIRROR_LIMIT_UNATTACHED_BACKING),
        ];
        Self {
            struct_size: size_of::<Self>(),
            length: device.length(),
            request_alignment: limits.request_alignment,
            memory_alignment: limits.memory_alignment,
            max_iov: limits.max_iov,
            flags: flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag),
            max_transfer: limits.max_transfer,
            max_zero: limits.max_zero,
            max_discard: limits.max_discard,
            zero_alignment: limits.zero_alignment,
            discard_alignment: limits.discard_alignment,
            cluster_size: limits.cluster_size,
        }
    }
}

/// Makes a device of a host's callbacks, which get `opaque`. `ops` and `limits` are copied.
///
/// `ops->close` is called exactly once: when neither a handle nor a filter nor a job uses the device any more, or when
/// this call fails. Only if `ops` is NULL or its `struct_size` is refused is nothing taken, because then nothing of it
/// can be read.
///
/// 0, and `*out` is to be freed with `mirror_device_free`; `-EINVAL` for a missing `read` or `write`, a limit that makes
/// no sense, or an unknown flag.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_new(
    ops: *const mirror_device_ops,
    limits: *const mirror_device_limits,
    opaque: *mut c_void,
    out: *mut *mut mirror_device,
) -> c_int {
    guard::unit("mirror_device_new", || {
        // SAFETY: `ops` is NULL or such a structure, which the header's overview demands.
        let Given { value: ops, unknown } = unsafe { read_struct(ops) }?;
        // From here on a failure drops this, which closes it.
        // SAFETY: the host vouches for its hooks.
        let opaque = unsafe { Opaque::new(opaque, ops.close) };
        unknown?;
        reserve::demand(Need::Make)?;
        check_pointer(out, "out")?;
        let (Some(read), Some(write)) = (ops.read, ops.write) else {
            let missing = if ops.read.is_none() { "read" } else { "write" };
            return Err(Error::invalid(format!("mirror_device_ops.{missing} is NULL: it is required")));
        };
        // SAFETY: as for `ops`.
        let Given { value: limits, unknown } = unsafe { read_struct(limits) }?;
        unknown?;
        let orphaned = Arc::new(AtomicBool::new(false));
        let role = Role::Maker(Arc::clone(&orphaned));
        let device = Device::new(limits.length, limits.to_limits()?, |completions| {
            Ok(Host { read, write, ops, opaque, completions, orphaned })
        })?;
        let handle = handle::make(Handle { device, role })?;
        // SAFETY: `out` was checked.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Opens a regular file or a block device. `flags`: `MIRROR_OPEN_`.
///
/// With `MIRROR_OPEN_CREATE` a missing file is created, and an empty one gets `create_length` bytes; a file that has a
/// length keeps it. Without that flag `create_length` must be 0. Two devices that are the same file are known to be.
///
/// Requests are carried out through io_uring where the kernel allows it, else by threads that the device starts when there
/// is something to do; `mirror_device_engine` tells. A completion callback may be called from within the call that
/// submits the request, or from a thread of the device's.
///
/// 0, and `*out` is to be freed with `mirror_device_free`; `-errno` of the operating system; `-EOPNOTSUPP` where the
/// library was built without files.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_open_file(
    path: *const c_char,
    flags: u32,
    create_length: u64,
    out: *mut *mut mirror_device,
) -> c_int {
    guard::unit("mirror_device_open_file", || {
        check_pointer(out, "out")?;
        // SAFETY: the host passes NULL or a string.
        let path = unsafe { text(path, "path") }?.ok_or_else(|| Error::invalid("path is NULL"))?;
        let known = MIRROR_OPEN_READ_ONLY | MIRROR_OPEN_DIRECT | MIRROR_OPEN_CREATE | MIRROR_OPEN_THREADS;
        check_flags("flags", flags, known)?;
        let create = flags & MIRROR_OPEN_CREATE != 0;
        if create_length != 0 && !create {
            return Err(Error::invalid(format!(
                "create_length {create_length}: must be 0 without MIRROR_OPEN_CREATE"
            )));
        }
        let device = open_file(path, flags, create.then_some(create_length))?;
        let handle = built_in(device)?;
        // SAFETY: `out` was checked.
        unsafe { out.write(handle) };
        Ok(())
    })
}

#[cfg(all(feature = "file", unix))]
fn open_file(path: &str, flags: u32, create: Option<u64>) -> Result<Device> {
    let options = crate::device::file::OpenOptions {
        read_only: flags & MIRROR_OPEN_READ_ONLY != 0,
        direct: flags & MIRROR_OPEN_DIRECT != 0,
        threads: flags & MIRROR_OPEN_THREADS != 0,
        create,
        ..Default::default()
    };
    crate::device::file::open(std::path::Path::new(path), &options)
}

#[cfg(not(all(feature = "file", unix)))]
fn open_file(_: &str, _: u32, _: Option<u64>) -> Result<Device> {
    Err(Error::new(Errno::EOPNOTSUPP, "this library was built without file devices"))
}

/// Makes a device of `length` bytes in memory, all zero; pages take room when they are first written.
///
/// 0, and `*out` is to be freed with `mirror_device_free`; `-ENOMEM`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_new_memory(length: u64, out: *mut *mut mirror_device) -> c_int {
    guard::unit("mirror_device_new_memory", || {
        reserve::demand(Need::Make)?;
        check_pointer(out, "out")?;
        let device = Device::memory(length)?;
        let handle = built_in(device)?;
        // SAFETY: `out` was checked.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Makes a device of `length` bytes that succeeds at once at everything and keeps nothing, for measuring the rest.
/// `flags`: `MIRROR_NULL_`.
///
/// 0, and `*out` is to be freed with `mirror_device_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_new_null(
    length: u64,
    flags: u32,
    out: *mut *mut mirror_device,
) -> c_int {
    guard::unit("mirror_device_new_null", || {
        reserve::demand(Need::Make)?;
        check_pointer(out, "out")?;
        check_flags("flags", flags, MIRROR_NULL_READ_ZEROES | MIRROR_NULL_UNALLOCATED)?;
        let options = NullOptions {
            read_zeroes: flags & MIRROR_NULL_READ_ZEROES != 0,
            unallocated: flags & MIRROR_NULL_UNALLOCATED != 0,
        };
        let device = Null::device(length, Limits::default(), options)?;
        let handle = built_in(device)?;
        // SAFETY: `out` was checked.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Reports the outcome of a request that was answered with `MIRROR_PENDING`: 0 or `-errno`; anything else counts as
/// `-EIO`. Any thread, also from inside a callback. What waited for it may go on from inside this call: a guest's `done` may be
/// called, and the `close` of a device that nobody uses any more. A thread that is inside a device's callback holds up the
/// switch of its filter until that returns, so nothing that is called from there may wait for a job to be over.
///
/// 0; `-ENOENT` if no request with this token is out (it was completed before, or the job that sent it is gone), which
/// is counted, logged and otherwise harmless.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_complete(
    device: *mut mirror_device,
    token: u64,
    result: c_int,
) -> c_int {
    guard::unit("mirror_device_complete", || {
        // SAFETY: the host passes NULL or a handle.
        let handle = unsafe { handle::get::<Handle>(device) }?;
        let completed = handle.device.complete(Token::from_raw(token), Errno::check(result));
        completed.map_err(|refused| refused_token(token, refused))
    })
}

/// Tells what the next `length` bytes of an extents request hold, before it is completed. `flags`: `MIRROR_EXTENT_`.
///
/// `MIRROR_EXTENT_DATA` and `MIRROR_EXTENT_ZERO` say what a read of the device finds, whichever layer it comes from;
/// `MIRROR_EXTENT_ALLOCATED` that it comes from this layer, above the base: that is what a job copies with
/// `MIRROR_SYNC_TOP`. So an overlay tells data of its backing as `MIRROR_EXTENT_DATA` alone. Neither data nor zero is what
/// no layer holds, which a copy may discard; if it is allocated it counts as data. Any thread.
///
/// 0, or 1 if that is enough for one answer: what follows will be asked for again, so complete the request. `-ENOENT` if no
/// such request is out; `-EINVAL` for length 0 or an unknown flag.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_extent(
    device: *mut mirror_device,
    token: u64,
    length: u64,
    flags: u32,
) -> c_int {
    guard::call("mirror_device_extent", || {
        // SAFETY: the host passes NULL or a handle.
        let handle = unsafe { handle::get::<Handle>(device) }?;
        check_flags("flags", flags, MIRROR_EXTENT_DATA | MIRROR_EXTENT_ZERO | MIRROR_EXTENT_ALLOCATED)?;
        let flags = ExtentFlags {
            data: flags & MIRROR_EXTENT_DATA != 0,
            zero: flags & MIRROR_EXTENT_ZERO != 0,
            allocated: flags & MIRROR_EXTENT_ALLOCATED != 0,
        };
        let more = handle.device.extent(Token::from_raw(token), Extent { length, flags });
        if length == 0 {
            // Whoever asked has seen it, and passes it over or takes note.
            return Err(Error::invalid("length 0: an extent has at least one byte"));
        }
        Ok(c_int::from(!more.map_err(|refused| refused_token(token, refused))?))
    })
}

/// Says that a device that answered `MIRROR_AGAIN` may have room: what waits is offered again from inside this call. A
/// completion implies it. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_kick(device: *mut mirror_device) -> c_int {
    guard::unit("mirror_device_kick", || {
        // SAFETY: the host passes NULL or a handle.
        unsafe { handle::get::<Handle>(device) }?.device.kick();
        Ok(())
    })
}

/// Fills in the device's length, which changes only when a job grows it, and its limits as they are used: a 0 that meant
/// "no limit" is replaced by the most that is ever sent. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_query(
    device: *const mirror_device,
    limits: *mut mirror_device_limits,
) -> c_int {
    guard::unit("mirror_device_query", || {
        // SAFETY: the host passes NULL or such a structure.
        let output = unsafe { Output::new(limits) }?;
        // SAFETY: the host passes NULL or a handle.
        output.write(&mirror_device_limits::of(&unsafe { handle::get::<Handle>(device) }?.device));
        Ok(())
    })
}

/// Stores a word for what carries out the device's requests: of a file "io_uring" or "threads"; NULL where there is no
/// choice. The word lives as long as the library. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_engine(
    device: *const mirror_device,
    engine: *mut *const c_char,
) -> c_int {
    guard::unit("mirror_device_engine", || {
        check_pointer(engine, "engine")?;
        // SAFETY: the host passes NULL or a handle.
        let word = match unsafe { handle::get::<Handle>(device) }?.device.engine() {
            Some(word) => word.as_ptr(),
            None => ptr::null(),
        };
        // SAFETY: `engine` was checked.
        unsafe { engine.write(word) };
        Ok(())
    })
}

/// Stores how many completions were refused so far: second ones, stale ones, and such of tokens that were never given
/// out. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_refused(device: *const mirror_device, count: *mut u64) -> c_int {
    guard::unit("mirror_device_refused", || {
        check_pointer(count, "count")?;
        // SAFETY: the host passes NULL or a handle.
        let refused = unsafe { handle::get::<Handle>(device) }?.device.refused_completions();
        // SAFETY: `count` was checked.
        unsafe { count.write(refused) };
        Ok(())
    })
}

/// Whether two handles are of the same storage: the same device, or the same file behind two. 1 or 0. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_same(
    device: *const mirror_device,
    other: *const mirror_device,
) -> c_int {
    guard::call("mirror_device_same", || {
        // SAFETY: the host passes NULL or handles.
        let (device, other) = unsafe { (handle::get::<Handle>(device)?, handle::get::<Handle>(other)?) };
        Ok(c_int::from(device.device.is_same_storage(&other.device)))
    })
}

/// Frees a handle. The device lives on while a filter or a job uses it. NULL is allowed.
///
/// The handle that `mirror_device_new` gave is the one that requests are completed with. When it is freed, what is out
/// fails with `-ECANCELED`, and so does what the device answers with `MIRROR_PENDING` or `MIRROR_AGAIN` later; so free it
/// after the filters and jobs, unless all that the device does is finished inline. Its callbacks must have stopped using
/// the memory of requests that are out.
///
/// Any thread. A handle that was freed before is recognised, as a rule, and logged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_free(device: *mut mirror_device) {
    guard::unit("mirror_device_free", || {
        if device.is_null() {
            return Ok(());
        }
        // SAFETY: the host passes NULL or a handle.
        let handle = unsafe { handle::free::<Handle>(device) }
            .inspect_err(|error| log::warn!("blkmirror: mirror_device_free: {error}"))?;
        if let Role::Maker(orphaned) = &handle.role {
            orphaned.store(true, Ordering::SeqCst);
            handle.device.abandon();
        }
        Ok(())
    });
}

/// What a `mirror_device` handle holds.
pub(super) struct Handle {
    pub(super) device: Device,
    role: Role,
}

/// What the free of a handle means.
enum Role {
    /// The host completes its requests with this handle: without it none can be.
    Maker(Arc<AtomicBool>),
    /// One reference among others.
    Reference,
}

impl Handled for Handle {
    type Handle = mirror_device;
    const KIND: usize = 0;

    fn retired() -> &'static Retired<Self> {
        static RETIRED: Retired<Handle> = Retired::new();
        &RETIRED
    }
}

/// A handle to a device that completes its requests by itself, or another to one that has its maker's.
pub(super) fn built_in(device: Device) -> Result<*mut mirror_device> {
    handle::make(Handle { device, role: Role::Reference })
}

type ReadFn = unsafe extern "C" fn(*mut c_void, u64, u64, u64, *const mirror_iovec, usize) -> c_int;
type WriteFn = unsafe extern "C" fn(*mut c_void, u64, u64, u64, *const mirror_iovec, usize, u32) -> c_int;

/// A host's callbacks as a backend.
struct Host {
    read: ReadFn,
    write: WriteFn,
    ops: mirror_device_ops,
    opaque: Opaque,
    completions: Completions,
    /// The host has freed the handle that it could complete requests with.
    orphaned: Arc<AtomicBool>,
}

impl Host {
    /// Calls the callback for this kind of request.
    fn call(&self, token: Token, request: &Request<'_>) -> c_int {
        let (opaque, token) = (self.opaque.pointer(), token.raw());
        let (offset, length) = (request.range.offset(), request.range.len());
        let (iov, iovcnt) = (request.iov.as_ptr().cast::<mirror_iovec>(), request.iov.len());
        let flags = flags_to_c(request.flags);
        let absent = -Errno::EOPNOTSUPP.number();
        // SAFETY: the host vouches for its callbacks when it makes the device: they take these arguments, from any
        // thread. An `IoVec` is laid out as a `mirror_iovec`, and the list lives until the callback returns.
        unsafe {
            match request.kind {
                Kind::Read => (self.read)(opaque, token, offset, length, iov, iovcnt),
                Kind::Write => (self.write)(opaque, token, offset, length, iov, iovcnt, flags & MIRROR_FUA),
                Kind::Zero => self.ops.zero.map_or(absent, |zero| zero(opaque, token, offset, length, flags)),
                Kind::Discard => {
                    self.ops.discard.map_or(absent, |discard| discard(opaque, token, offset, length))
                }
                Kind::Flush => self.ops.flush.map_or(absent, |flush| flush(opaque, token)),
                Kind::Extents => {
                    self.ops.extents.map_or(absent, |extents| extents(opaque, token, offset, length))
                }
                Kind::Truncate => {
                    self.ops.truncate.map_or(absent, |truncate| truncate(opaque, token, request.range.end()))
                }
                Kind::Copy => match (self.ops.copy, self.made_alike(request.from)) {
                    (Some(copy), Some(source)) => {
                        copy(opaque, token, source.opaque.pointer(), offset, length)
                    }
                    _ => absent,
                },
            }
        }
    }

    /// That device, if it was made with the same `copy`, so that the host knows its `opaque`.
    fn made_alike<'a>(&self, device: Option<&'a Device>) -> Option<&'a Self> {
        let other = device?.backend::<Self>()?;
        let (ours, theirs) = (self.ops.copy?, other.ops.copy?);
        ptr::fn_addr_eq(ours, theirs).then_some(other)
    }

    fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::SeqCst)
    }
}

impl Backend for Host {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        match self.call(token, request) {
            MIRROR_PENDING => {
                if self.is_orphaned() {
                    // Refused if the free of the handle has failed it already.
                    let _ = self.completions.complete(token, Err(Errno::ECANCELED));
                }
                Answer::Pending
            }
            MIRROR_AGAIN if self.is_orphaned() => Answer::Done(Err(Errno::ECANCELED)),
            MIRROR_AGAIN => Answer::Again,
            result => Answer::Done(outcome(result, request.kind.name())),
        }
    }

    fn supports(&self, kind: Kind) -> bool {
        match kind {
            Kind::Read | Kind::Write => true,
            Kind::Zero => self.ops.zero.is_some(),
            Kind::Discard => self.ops.discard.is_some(),
            Kind::Flush => self.ops.flush.is_some(),
            Kind::Extents => self.ops.extents.is_some(),
            Kind::Truncate => self.ops.truncate.is_some(),
            // Not from everywhere.
            Kind::Copy => false,
        }
    }

    fn copies_from(&self, from: &Device) -> bool {
        self.made_alike(Some(from)).is_some()
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn has_poll(&self) -> bool {
        self.ops.poll.is_some()
    }

    fn poll(&self) {
        let Some(poll) = self.ops.poll else {
            return;
        };
        // SAFETY: the host vouches for its callbacks.
        let answer = unsafe { poll(self.opaque.pointer()) };
        if answer < 0 {
            log::warn!("blkmirror: a device's poll callback failed with {answer}");
        }
    }

    fn cancel(&self) {
        if let Some(cancel) = self.ops.cancel {
            // SAFETY: the host vouches for its callbacks.
            unsafe { cancel(self.opaque.pointer()) }
        }
    }
}

fn refused_token(token: u64, refused: Refused) -> Error {
    Error::from(refused).context(format_args!("token {token:#x}"))
}

pub(super) fn flags_to_c(flags: Flags) -> u32 {
    let fua = if flags.fua { MIRROR_FUA } else { 0 };
    if flags.may_unmap { fua | MIRROR_MAY_UNMAP } else { fua }
}

pub(super) fn flags_of_extent(flags: ExtentFlags) -> u32 {
    [
        (flags.data, MIRROR_EXTENT_DATA),
        (flags.zero, MIRROR_EXTENT_ZERO),
        (flags.allocated, MIRROR_EXTENT_ALLOCATED),
    ]
    .iter()
    .filter(|(set, _)| *set)
    .fold(0, |all, (_, flag)| all | flag)
}
