//! Filters: the live disk that a guest's I/O goes through.

use super::constants::*;
use super::convert::{Opaque, check_flags, check_pointer, from_c};
use super::device::{self, flags_of_extent, mirror_device};
use super::handle::{self, Handled, Retired};
use super::{guard, mirror_iovec};
use crate::device::{Callback, IoVec, Kind, total};
use crate::error::{Errno, Error, Result};
use crate::filter::{Begin, Filter, Found, GuestFlags, GuestIo};
use crate::range::ByteRange;
use crate::reserve::{self, Need};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// A filter: the live disk. It sits on a device, passes the guest's requests on, and is switched to the mirror's target
/// while the guest runs.
///
/// Threads: every function from any thread, several at once.
///
/// A guest request (`mirror_filter_read` and its like) that answers 0 was accepted, and its outcome comes through `done`
/// exactly once: later, on any thread, or before the call returns. One that answers `-errno` was not, and `done` is not
/// called: `opaque` stays the caller's. A `done` that is due while another runs on the same thread is called after that
/// has returned, so one must not wait for another. The list of buffers is copied or used up during the call; the memory
/// that it names belongs to the request until `done`.
pub struct mirror_filter {
    _opaque: (),
}

/// Makes a filter on `source`, to which it keeps a reference.
///
/// 0, and `*out` is to be freed with `mirror_filter_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_new(
    source: *mut mirror_device,
    out: *mut *mut mirror_filter,
) -> c_int {
    guard::unit("mirror_filter_new", || {
        reserve::demand(Need::Make)?;
        check_pointer(out, "out")?;
        // SAFETY: the host passes NULL or a handle.
        let source = unsafe { handle::get::<device::Handle>(source) }?;
        let filter = Filter::new(&source.device)?;
        let handle = handle::make(filter)?;
        // SAFETY: `out` was checked.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// As `mirror_filter_new`, for a guest whose requests are multiples of `alignment`, a power of two up to 65536, where the
/// source itself asks for less: choose the target's, and a mirror to it needs no smaller chunks than it can write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_new_aligned(
    source: *mut mirror_device,
    alignment: u32,
    out: *mut *mut mirror_filter,
) -> c_int {
    guard::unit("mirror_filter_new_aligned", || {
        reserve::demand(Need::Make)?;
        check_pointer(out, "out")?;
        // SAFETY: the host passes NULL or a handle.
        let source = unsafe { handle::get::<device::Handle>(source) }?;
        let filter = Filter::with_alignment(&source.device, alignment)?;
        let handle = handle::make(filter)?;
        // SAFETY: `out` was checked.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// A guest's read of as many bytes as the buffers hold. `flags`: none yet, 0.
///
/// 0, and `done(opaque, result)` follows; `-EINVAL` for a bad argument, a misaligned range or more than `MIRROR_IOV_MAX`
/// buffers; `-ERANGE` beyond the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_read(
    filter: *mut mirror_filter,
    offset: u64,
    iov: *const mirror_iovec,
    iovcnt: usize,
    flags: u32,
    done: Option<unsafe extern "C" fn(opaque: *mut c_void, result: c_int)>,
    opaque: *mut c_void,
) -> c_int {
    guard::unit("mirror_filter_read", || {
        serve()?;
        check_flags("flags", flags, 0)?;
        // SAFETY: the host passes NULL or a list of this many buffers.
        let iov = unsafe { buffers(iov, iovcnt) }?;
        // SAFETY: the host passes NULL or a handle, and vouches for `done`.
        unsafe { submit(filter, Kind::Read, offset, Payload::Buffers(iov), 0, done, opaque) }
    })
}

/// A guest's write of the buffers. `flags`: `MIRROR_FUA`, `MIRROR_WRITE_STABLE`.
///
/// While a job carries writes, it is done when it is done on both sides; its result is the source's alone. A guest may
/// change the buffers meanwhile, unless `MIRROR_WRITE_STABLE` promises that it won't. Results as of
/// `mirror_filter_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_write(
    filter: *mut mirror_filter,
    offset: u64,
    iov: *const mirror_iovec,
    iovcnt: usize,
    flags: u32,
    done: Option<unsafe extern "C" fn(opaque: *mut c_void, result: c_int)>,
    opaque: *mut c_void,
) -> c_int {
    guard::unit("mirror_filter_write", || {
        serve()?;
        check_flags("flags", flags, MIRROR_FUA | MIRROR_WRITE_STABLE)?;
        // SAFETY: the host passes NULL or a list of this many buffers.
        let iov = unsafe { buffers(iov, iovcnt) }?;
        // SAFETY: the host passes NULL or a handle, and vouches for `done`.
        unsafe { submit(filter, Kind::Write, offset, Payload::Buffers(iov), flags, done, opaque) }
    })
}

/// A guest's wish that `length` bytes read as zero. `flags`: `MIRROR_MAY_UNMAP`, `MIRROR_FUA`. Results as of
/// `mirror_filter_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_zero(
    filter: *mut mirror_filter,
    offset: u64,
    length: u64,
    flags: u32,
    done: Option<unsafe extern "C" fn(opaque: *mut c_void, result: c_int)>,
    opaque: *mut c_void,
) -> c_int {
    guard::unit("mirror_filter_zero", || {
        serve()?;
        check_flags("flags", flags, MIRROR_MAY_UNMAP | MIRROR_FUA)?;
        // SAFETY: the host passes NULL or a handle, and vouches for `done`.
        unsafe { submit(filter, Kind::Zero, offset, Payload::Length(length), flags, done, opaque) }
    })
}

/// A guest's hint that it doesn't need what `length` bytes hold. Results as of `mirror_filter_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_discard(
    filter: *mut mirror_filter,
    offset: u64,
    length: u64,
    done: Option<unsafe extern "C" fn(opaque: *mut c_void, result: c_int)>,
    opaque: *mut c_void,
) -> c_int {
    guard::unit("mirror_filter_discard", || {
        serve()?;
        // SAFETY: the host passes NULL or a handle, and vouches for `done`.
        unsafe { submit(filter, Kind::Discard, offset, Payload::Length(length), 0, done, opaque) }
    })
}

/// A guest's wish that what it was told is done be durable. Results as of `mirror_filter_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_flush(
    filter: *mut mirror_filter,
    done: Option<unsafe extern "C" fn(opaque: *mut c_void, result: c_int)>,
    opaque: *mut c_void,
) -> c_int {
    guard::unit("mirror_filter_flush", || {
        serve()?;
        // SAFETY: the host passes NULL or a handle, and vouches for `done`.
        unsafe { submit(filter, Kind::Flush, 0, Payload::Length(0), 0, done, opaque) }
    })
}

/// A stretch of the disk and what it holds.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_extent {
    /// How many bytes.
    pub length: u64,
    /// `MIRROR_EXTENT_`.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

/// A guest's question what `length` bytes hold, for hosts that pass it on (NBD's block status, SCSI's logical block
/// status). The answer is of the device that the filter is on; a write that runs meanwhile may be in it or not.
///
/// `extents` has room for `capacity` of them, at least one; more than 1024 are never told. When `done` is called with 0,
/// `*count` and as many of `extents` have been filled in: from `offset` on, none empty and no two neighbours alike. They
/// reach the end of the range unless there is no room for more: then ask again from where they end. A device that doesn't
/// tell has one extent of data. Both belong to the request until `done`. Results as of `mirror_filter_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_extents(
    filter: *mut mirror_filter,
    offset: u64,
    length: u64,
    extents: *mut mirror_extent,
    capacity: usize,
    count: *mut usize,
    done: Option<unsafe extern "C" fn(opaque: *mut c_void, result: c_int)>,
    opaque: *mut c_void,
) -> c_int {
    guard::unit("mirror_filter_extents", || {
        serve()?;
        check_pointer(extents, "extents")?;
        check_pointer(count, "count")?;
        if capacity == 0 {
            return Err(Error::invalid("capacity 0: there must be room for one extent at least"));
        }
        // SAFETY: the host passes NULL or a handle.
        let filter = unsafe { handle::get::<Filter>(filter) }?;
        let done = done.ok_or_else(|| Error::invalid("done is NULL: it is required"))?;
        let found = Found::new(ByteRange::new(offset, length)?, capacity);
        let asker = Asker { found: Arc::clone(&found), extents, count, done, opaque };
        let asker = Box::into_raw(Box::new(asker));
        // SAFETY: `answer` is called once, with what it takes apart.
        let accepted = filter.extents(&found, unsafe { Callback::from_raw(answer, asker.cast()) });
        if accepted.is_err() {
            // SAFETY: a request that was refused is never answered, so the box is still ours.
            drop(unsafe { Box::from_raw(asker) });
        }
        accepted
    })
}

/// Announces a request that the host will carry out by itself, on the filter's current device: `kind` is
/// `MIRROR_OP_READ`, `_WRITE`, `_ZERO`, `_DISCARD` or `_FLUSH` (whose range is 0, 0). For hosts that have an I/O path of
/// their own; `mirror_filter_end` with the ticket follows when it is done.
///
/// 0, and `*ticket` is set; `MIRROR_AGAIN` while the gate is closed for the switch: the hook of
/// `mirror_filter_set_opened` says when to try again, on the device that `mirror_filter_device` names then;
/// `-EOPNOTSUPP` while a job carries writes, which needs their data.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_begin(
    filter: *mut mirror_filter,
    kind: u32,
    offset: u64,
    length: u64,
    ticket: *mut u64,
) -> c_int {
    guard::call("mirror_filter_begin", || {
        reserve::demand(Need::Serve)?;
        check_pointer(ticket, "ticket")?;
        // SAFETY: the host passes NULL or a handle.
        let filter = unsafe { handle::get::<Filter>(filter) }?;
        let kind = from_c::<Kind>("kind", kind)?;
        if matches!(kind, Kind::Extents | Kind::Truncate | Kind::Copy) {
            return Err(Error::invalid(format!("kind {}: is no request of a guest", kind.name())));
        }
        match filter.begin(kind, ByteRange::new(offset, length)?)? {
            Begin::Again => Ok(MIRROR_AGAIN),
            Begin::Go(number) => {
                // SAFETY: `ticket` was checked.
                unsafe { ticket.write(number) };
                Ok(0)
            }
        }
    })
}

/// Ends a request that `mirror_filter_begin` announced, with its result, 0 or `-errno`, before the guest is told.
///
/// 0; `-ENOENT` if no request with this ticket is under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_end(filter: *mut mirror_filter, ticket: u64, result: c_int) -> c_int {
    guard::unit("mirror_filter_end", || {
        // SAFETY: the host passes NULL or a handle.
        unsafe { handle::get::<Filter>(filter) }?.end(ticket, Errno::check(result))
    })
}

/// Marks a range as changed behind the filter's back, so that the mirror copies it again. Call it after the change.
///
/// Unlike `mirror_filter_begin` it holds up no switch: what is marked once the job is pending is not copied any more. A
/// host that changes the device while a job may finish announces it with `mirror_filter_begin`.
///
/// 0, also without a job; `-EINVAL` or `-ERANGE` for a range that isn't on the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_mark_dirty(
    filter: *mut mirror_filter,
    offset: u64,
    length: u64,
) -> c_int {
    guard::unit("mirror_filter_mark_dirty", || {
        // SAFETY: the host passes NULL or a handle.
        unsafe { handle::get::<Filter>(filter) }?.mark_dirty(ByteRange::new(offset, length)?)
    })
}

/// Gives a new handle to the device that the filter is on now: the source, and after the switch the target. Compare it
/// with `mirror_device_same`. To be freed with `mirror_device_free`, which cancels nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_device(
    filter: *const mirror_filter,
    out: *mut *mut mirror_device,
) -> c_int {
    guard::unit("mirror_filter_device", || {
        reserve::demand(Need::Make)?;
        check_pointer(out, "out")?;
        // SAFETY: the host passes NULL or a handle.
        let device = unsafe { handle::get::<Filter>(filter) }?.device();
        let handle = device::built_in(device)?;
        // SAFETY: `out` was checked.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Stores the length of the disk in bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_length(filter: *const mirror_filter, length: *mut u64) -> c_int {
    guard::unit("mirror_filter_length", || {
        check_pointer(length, "length")?;
        // SAFETY: the host passes NULL or a handle.
        let bytes = unsafe { handle::get::<Filter>(filter) }?.length();
        // SAFETY: `length` was checked.
        unsafe { length.write(bytes) };
        Ok(())
    })
}

/// Sets what is called, with `opaque`, when the gate opens again after `mirror_filter_begin` answered `MIRROR_AGAIN`. It
/// may be called from any thread and may call the library. NULL takes it away.
///
/// `closed`, if it isn't NULL, is called with `opaque` exactly once: when another hook has taken this one's place or the
/// filter is gone, and it isn't running; or when this call fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_set_opened(
    filter: *mut mirror_filter,
    opened: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    opaque: *mut c_void,
    closed: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
) -> c_int {
    // SAFETY: the caller vouches for `closed`.
    let opaque = unsafe { Opaque::new(opaque, closed) };
    guard::unit("mirror_filter_set_opened", || {
        reserve::demand(Need::Make)?;
        // SAFETY: the host passes NULL or a handle.
        let filter = unsafe { handle::get::<Filter>(filter) }?;
        filter.set_opened_hook(opened.map(|opened| -> Box<dyn Fn() + Send + Sync> {
            // SAFETY: the host vouches for `opened`, from any thread, until `closed`.
            Box::new(move || unsafe { opened(opaque.pointer()) })
        }));
        Ok(())
    })
}

/// Frees a handle. A job keeps its filter, and requests that are under way are finished; those that
/// `mirror_filter_begin` announced can't be ended any more and count as ended once the filter has no job. NULL is
/// allowed; a handle that was freed before is recognised, as a rule, and logged. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_filter_free(filter: *mut mirror_filter) {
    guard::unit("mirror_filter_free", || {
        if filter.is_null() {
            return Ok(());
        }
        // SAFETY: the host passes NULL or a handle.
        unsafe { handle::free::<Filter>(filter) }
            .map(drop)
            .inspect_err(|error| log::warn!("blkmirror: mirror_filter_free: {error}"))
    });
}

impl Handled for Filter {
    type Handle = mirror_filter;
    const KIND: usize = 1;

    fn retired() -> &'static Retired<Self> {
        static RETIRED: Retired<Filter> = Retired::new();
        &RETIRED
    }
}

/// Who asked for extents, and where the answer goes.
struct Asker {
    found: Arc<Found>,
    extents: *mut mirror_extent,
    count: *mut usize,
    done: unsafe extern "C" fn(opaque: *mut c_void, result: c_int),
    opaque: *mut c_void,
}

/// # Safety
/// `asker` is a box of an [`Asker`], which is used up.
unsafe extern "C" fn answer(asker: *mut c_void, result: c_int) {
    // SAFETY: as said above.
    let asker = unsafe { Box::from_raw(asker.cast::<Asker>()) };
    if result == 0 {
        let found = asker.found.take();
        for (index, extent) in found.iter().enumerate() {
            let extent =
                mirror_extent { length: extent.length, flags: flags_of_extent(extent.flags), reserved: 0 };
            // SAFETY: the host vouches for the room until `done`, and no more than it has room for are found.
            unsafe { asker.extents.add(index).write(extent) };
        }
        // SAFETY: as above.
        unsafe { asker.count.write(found.len()) };
    }
    // SAFETY: the host vouches for `done`, once.
    unsafe { (asker.done)(asker.opaque, result) }
}

/// How much a guest's request is about.
#[derive(Clone, Copy)]
enum Payload<'a> {
    /// As much as these hold.
    Buffers(&'a [IoVec]),
    /// So many bytes.
    Length(u64),
}

/// # Safety
/// `filter` is NULL or a handle; `done` may be called with `opaque`, once, from any thread; the buffers are the
/// request's until then.
unsafe fn submit(
    filter: *mut mirror_filter,
    kind: Kind,
    offset: u64,
    payload: Payload<'_>,
    flags: u32,
    done: Option<unsafe extern "C" fn(opaque: *mut c_void, result: c_int)>,
    opaque: *mut c_void,
) -> Result<()> {
    // SAFETY: passed on.
    let filter = unsafe { handle::get::<Filter>(filter) }?;
    let done = done.ok_or_else(|| Error::invalid("done is NULL: it is required"))?;
    let (length, iov) = match payload {
        Payload::Length(length) => (length, &[][..]),
        Payload::Buffers(iov) => {
            (total(iov).ok_or_else(|| Error::invalid("iov: the sum of its lengths overflows"))?, iov)
        }
    };
    let flags = GuestFlags {
        fua: flags & MIRROR_FUA != 0,
        may_unmap: flags & MIRROR_MAY_UNMAP != 0,
        stable: flags & MIRROR_WRITE_STABLE != 0,
    };
    let io = GuestIo { kind, range: ByteRange::new(offset, length)?, flags, iov };
    // SAFETY: passed on.
    filter.submit(&io, unsafe { Callback::from_raw(done, opaque) })
}

/// Whether there is memory to serve a guest, and to tell it.
fn serve() -> Result<()> {
    reserve::demand(Need::Serve)?;
    Callback::provide()
}

/// # Safety
/// `iov` is NULL or points to `iovcnt` buffers, which live as long as the result is used.
unsafe fn buffers<'a>(iov: *const mirror_iovec, iovcnt: usize) -> Result<&'a [IoVec]> {
    if iovcnt == 0 {
        return Ok(&[]);
    }
    if iovcnt > MIRROR_IOV_MAX {
        return Err(Error::invalid(format!("iovcnt {iovcnt}: must be at most {MIRROR_IOV_MAX}")));
    }
    check_pointer(iov, "iov")?;
    // SAFETY: the caller vouches for the list, and a `mirror_iovec` is laid out as an `IoVec`.
    let buffers = unsafe { std::slice::from_raw_parts(iov.cast::<IoVec>(), iovcnt) };
    match buffers.iter().position(|buffer| buffer.base().is_null() && !buffer.is_empty()) {
        None => Ok(buffers),
        Some(index) => Err(Error::invalid(format!(
            "iov[{index}].base is NULL with len {}: only an empty buffer may be NULL",
            buffers[index].len()
        ))),
    }
}
