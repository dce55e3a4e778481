//! The filter: the live disk that guest I/O goes through (SPEC section 7).
//!
//! A [`Filter`] sits on a device and passes requests on to it. While a job is attached it marks what was written, after
//! it was written, in the job's bitmap; or, while writes are carried, hands them to the job instead. When the job finishes it
//! closes the filter's gate, switches the device, and opens it again.
//!
//! # The fast path
//! A request in background mode: enter the gate (one atomic step), take a slot (one), call the device, and when that
//! is done mark the bitmap (one, or two), leave the gate (one), put the slot back (one). No lock, no allocation, no
//! waiting for whoever polls the job.
//!
//! # Ownership
//! A request is owned by the thread that submits it, then by whoever claims its completion (`slots`). It holds its
//! count at the gate from entering to the end; the device isn't switched, nor the filter taken down, while any is
//! counted.

mod bounce;
mod gate;
mod slots;
mod steps;

use crate::bitmap::Tracking;
use crate::device::{
    AlignedBuffer, Answer, Callback, Client, Device, Extent, Flags, Followup, IoVec, Kind, Refused, Request,
    Token, Wake, is_aligned, slice_into, total,
};
use crate::error::{Errno, Error, IoResult, Result};
use crate::range::{ByteRange, check_bounds};
use arc_swap::ArcSwapOption;
use bounce::Pool;
use gate::{Counted, Entry, Gate};
use slots::{Guest, Path, Slots};
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use steps::HeldBack;

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

/// What a job hangs into a filter.
pub(crate) struct Hooks {
    pub(crate) tracking: Arc<Tracking>,
    pub(crate) carrier: Arc<dyn Carrier>,
}

/// The job, as the filter sees it.
pub(crate) trait Carrier: Send + Sync {
    /// Takes a write over. It comes back through [`Core::finish_carried`] or [`Core::forward_carried`].
    fn carry(&self, slot: u16);

    /// Something that the job may wait for has happened: a mark while it slept, or the last request of a kind is done.
    fn news(&self);
}

/// A carried request, as the job sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CarriedRequest {
    pub(crate) kind: Kind,
    pub(crate) range: ByteRange,
    pub(crate) flags: Flags,
    pub(crate) owns_data: bool,
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

/// What the device's client is, in its table, for as long as the filter sits on the device.
struct Seat {
    core: Arc<Core>,
    /// Where this seat's generations begin.
    base: u64,
}

/// The device that the filter sits on.
struct Attached {
    device: Device,
    client: u8,
    base: u64,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.device.core().unseat(self.client);
    }
}

pub(crate) struct Core {
    me: Weak<Core>,
    gate: Gate,
    slots: Slots,
    /// `None` once the filter is taken down.
    current: ArcSwapOption<Attached>,
    hooks: ArcSwapOption<Hooks>,
    length: AtomicU64,
    alignment: u64,
    /// Requests that came while the gate was closed, in order.
    waiting: Mutex<VecDeque<u16>>,
    held_back: HeldBack,
    bounce: Pool,
    /// Somebody keeps account of a job here.
    has_job: AtomicBool,
    /// The host does requests by itself.
    has_host_io: AtomicBool,
    /// A `begin` was turned away and waits for the hook.
    begin_waits: AtomicBool,
    opened: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    /// No handle is left.
    abandoned: AtomicBool,
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
        let core = Arc::new_cyclic(|me| Core {
            me: Weak::clone(me),
            gate: Gate::new(),
            slots: Slots::new(),
            current: ArcSwapOption::empty(),
            hooks: ArcSwapOption::empty(),
            length: AtomicU64::new(source.length()),
            alignment: u64::from(alignment.max(source.limits().request_alignment)),
            waiting: Mutex::default(),
            held_back: HeldBack::default(),
            bounce: Pool::new(),
            has_job: AtomicBool::new(false),
            has_host_io: AtomicBool::new(false),
            begin_waits: AtomicBool::new(false),
            opened: Mutex::new(None),
            abandoned: AtomicBool::new(false),
        });
        let attached = core.attach_to(source)?;
        core.current.store(Some(attached));
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
    /// `EINVAL` (misaligned, or buffers that don't hold the range), `ERANGE` (beyond the end), `EROFS`, `EBUSY`
    /// (16384 requests are running already), `EOPNOTSUPP` (not a guest's kind of request).
    pub fn submit(&self, io: &GuestIo<'_>, done: Callback) -> Result<()> {
        self.core().submit(io, done)
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
        let done = Callback::from_closure(move |result| {
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

impl Core {
    fn attach_to(self: &Arc<Self>, device: &Device) -> Result<Arc<Attached>> {
        let place = device.core().reserve()?;
        let (client, base) = (place.client(), place.base());
        place.take(Arc::new(Seat { core: Arc::clone(self), base }));
        Ok(Arc::new(Attached { device: device.clone(), client, base }))
    }

    pub(crate) fn device(&self) -> Option<Device> {
        self.current.load().as_ref().map(|attached| attached.device.clone())
    }

    /// Takes the filter off its device when no handle is left and nothing runs.
    fn take_down_if_drained(&self) {
        if self.abandoned.load(Ordering::SeqCst) && self.gate.is_drained() {
            self.current.store(None);
        }
    }

    fn check(&self, io: &GuestIo<'_>) -> Result<()> {
        let range = io.range;
        let refuse = |message: String| Err(Error::invalid(message));
        if matches!(io.kind, Kind::Extents | Kind::Truncate) {
            return Err(Error::new(
                Errno::EOPNOTSUPP,
                format!("{}: not a request of a guest", io.kind.name()),
            ));
        }
        let (offset, length) = (range.offset(), range.len());
        let disk = self.length.load(Ordering::Acquire);
        check_bounds(range, disk)?;
        let mask = self.alignment - 1;
        if offset & mask != 0 || (range.end() & mask != 0 && range.end() != disk) {
            return refuse(format!(
                "{} at offset {offset} length {length}: must be multiples of {}",
                io.kind.name(),
                self.alignment
            ));
        }
        let holds = total(io.iov);
        match io.kind {
            Kind::Read | Kind::Write if holds != Some(length) => {
                refuse(format!("{} of {length} bytes: the buffers hold {holds:?}", io.kind.name()))
            }
            _ => Ok(()),
        }
    }

    fn submit(&self, io: &GuestIo<'_>, done: Callback) -> Result<()> {
        self.check(io)?;
        if io.range.is_empty() && io.kind != Kind::Flush {
            done.tell(Ok(()));
            return Ok(());
        }
        let shard = shard();
        match self.gate.enter(shard, io.kind.changes_data()) {
            Entry::Pass(counted) => {
                let Some(index) = self.slots.take(shard) else {
                    self.leave(shard, counted);
                    return Err(too_many());
                };
                self.fill(index, io, done, Path::Direct(counted), shard);
                self.send(index, io, counted);
            }
            Entry::Carry => {
                let Some(index) = self.slots.take(shard) else {
                    self.leave(shard, Counted::Other);
                    return Err(too_many());
                };
                let guest = self.fill(index, io, done, Path::Carried, shard);
                guest.iov.extend_from_slice(io.iov);
                self.carry(index);
            }
            Entry::Closed => {
                let Some(index) = self.slots.take(shard) else { return Err(too_many()) };
                let guest = self.fill(index, io, done, Path::Waiting, shard);
                guest.iov.extend_from_slice(io.iov);
                self.wait_at_gate(index);
            }
        }
        Ok(())
    }

    #[expect(clippy::mut_from_ref, reason = "the slot is owned; see `slots`")]
    fn fill(&self, index: u16, io: &GuestIo<'_>, done: Callback, path: Path, shard: usize) -> &mut Guest {
        // SAFETY: the caller has just taken the slot.
        let guest = unsafe { self.slots.owned(index) };
        guest.kind = io.kind;
        guest.range = io.range;
        guest.flags = Flags { may_unmap: io.flags.may_unmap, fua: io.flags.fua };
        guest.stable = io.flags.stable;
        guest.done = Some(done);
        guest.path = path;
        guest.shard = shard as u8;
        guest.stepped = 0;
        debug_assert!(guest.iov.is_empty() && guest.bounce.is_none());
        guest
    }

    /// Sends a request that has passed the gate to the current device, in one piece if it takes it so.
    fn send(&self, index: u16, io: &GuestIo<'_>, counted: Counted) {
        let mut no_room = false;
        let current = self.current.load();
        // Nothing is taken down while a request is counted.
        let Some(attached) = current.as_ref() else { return };
        if attached.takes(io) && !self.held_back.any() {
            // SAFETY: the slot was taken by this thread, and filled.
            let request = Request {
                kind: io.kind,
                range: io.range,
                flags: Flags { may_unmap: io.flags.may_unmap, fua: io.flags.fua },
                iov: io.iov,
            };
            let Some(slot) = self.slots.get(index) else { return };
            let generation = slot.state.open();
            match attached.device.submit(attached.token(index, generation), &request) {
                Answer::Done(result) => {
                    if slot.state.claim(generation) {
                        drop(current);
                        self.finish(index, result).run();
                    }
                    return;
                }
                Answer::Pending => return,
                Answer::Again => {
                    if !slot.state.claim(generation) {
                        return;
                    }
                    no_room = true;
                }
            }
        }
        drop(current);
        // SAFETY: this thread took the slot, and has claimed it back if it had opened it.
        let guest = unsafe { self.slots.owned(index) };
        guest.path = Path::Stepped(counted);
        guest.iov.extend_from_slice(io.iov);
        if no_room {
            self.wait_for_room(index);
        } else {
            self.send_stepped(index);
        }
    }

    /// Hands a write that has passed the gate to the job.
    fn carry(&self, index: u16) {
        // SAFETY: the caller owns the slot.
        let guest = unsafe { self.slots.owned(index) };
        let Some(hooks) = self.hooks.load_full() else {
            // The job is gone: as if it had never been.
            self.forward_carried(index);
            return;
        };
        if guest.kind == Kind::Write && !guest.stable {
            match self.bounce.take(guest.range.len()) {
                Ok(buffer) => {
                    bounce::fill(&buffer, &guest.iov);
                    guest.bounce = Some(buffer);
                }
                // Without memory for a copy the write is not carried: it is marked, and copied later.
                Err(_) => {
                    self.forward_carried(index);
                    return;
                }
            }
        }
        hooks.carrier.carry(index);
    }

    /// Takes a carried request back from the job that no longer wants it: to the device, and marked.
    pub(crate) fn forward_carried(&self, index: u16) {
        // SAFETY: the job hands over a slot that was handed to it, or this thread owns it.
        let guest = unsafe { self.slots.owned(index) };
        if guest.path == Path::Carried {
            self.gate.recount_as_marked(usize::from(guest.shard));
        }
        guest.path = Path::Stepped(Counted::Marked);
        self.send_stepped(index);
    }

    /// The job that has a carried request is letting go of the filter: the request ends as one that wasn't carried.
    pub(crate) fn disown_carried(&self, index: u16) {
        // SAFETY: the slot is the job's until it hands it back.
        let guest = unsafe { self.slots.owned(index) };
        if guest.path == Path::Carried {
            self.gate.recount_as_marked(usize::from(guest.shard));
            guest.path = Path::Direct(Counted::Marked);
        }
    }

    /// A carried request, for the job that it was handed to.
    pub(crate) fn carried(&self, index: u16) -> CarriedRequest {
        // SAFETY: the slot is the job's until it hands it back.
        let guest = unsafe { self.slots.owned(index) };
        CarriedRequest {
            kind: guest.kind,
            range: guest.range,
            flags: guest.flags,
            owns_data: guest.bounce.is_some() || guest.kind != Kind::Write,
        }
    }

    /// Appends the buffers of a part of a carried write.
    pub(crate) fn carried_buffers(
        &self,
        index: u16,
        skip: u64,
        length: u64,
        max: usize,
        out: &mut Vec<IoVec>,
    ) -> u64 {
        // SAFETY: the slot is the job's until it hands it back.
        let guest = unsafe { self.slots.owned(index) };
        match &guest.bounce {
            Some(buffer) => slice_into(&[bounce::whole(buffer)], skip, length, max, out),
            None => slice_into(&guest.iov, skip, length, max, out),
        }
    }

    /// A copy of these buffers, aligned for any device.
    pub(crate) fn bounce_copy(&self, iov: &[IoVec]) -> Result<AlignedBuffer> {
        let buffer = self.bounce.take(total(iov).ok_or(Errno::EINVAL)?)?;
        bounce::fill(&buffer, iov);
        Ok(buffer)
    }

    /// A carried request's copy of the data, which the job must keep until the target no longer reads it.
    pub(crate) fn take_bounce(&self, index: u16) -> Option<AlignedBuffer> {
        // SAFETY: the slot is the job's until it hands it back.
        unsafe { self.slots.owned(index) }.bounce.take()
    }

    pub(crate) fn give_back_bounce(&self, buffer: AlignedBuffer) {
        self.bounce.give_back(buffer);
    }

    /// A carried request is done on both sides; marking it was the job's affair.
    pub(crate) fn finish_carried(&self, index: u16, result: IoResult) {
        self.finish(index, result).run();
    }

    /// The end of every request: marks, counts it out, puts the slot back. Whom to tell is returned.
    fn finish(&self, index: u16, result: IoResult) -> Followup {
        // SAFETY: the caller has claimed the completion.
        let guest = unsafe { self.slots.owned(index) };
        let (range, kind, path, shard) = (guest.range, guest.kind, guest.path, usize::from(guest.shard));
        if let Some(buffer) = guest.bounce.take() {
            if kind == Kind::Read && result.is_ok() {
                bounce::spill(&buffer, &guest.iov);
            }
            self.bounce.give_back(buffer);
        }
        guest.iov.clear();
        let done = guest.done.take();
        self.slots.put_back(shard, index);
        let counted = match path {
            Path::Direct(counted) | Path::Stepped(counted) | Path::Host(counted) => {
                // Good or bad, it may have changed something (SPEC G-2); before anybody is told.
                if kind.changes_data() {
                    self.mark(range);
                }
                counted
            }
            Path::Carried | Path::Waiting => Counted::Other,
        };
        self.leave(shard, counted);
        Followup { tell: done.map(|done| (done, result)), wake: None }
    }

    /// Counts a request out.
    fn leave(&self, shard: usize, counted: Counted) {
        if self.gate.exit(shard, counted) {
            if let Some(hooks) = self.hooks.load_full() {
                hooks.carrier.news();
            }
            self.take_down_if_drained();
        }
    }

    fn mark(&self, range: ByteRange) {
        let hooks = self.hooks.load();
        if let Some(hooks) = hooks.as_ref()
            && hooks.tracking.mark_and_see(range)
        {
            hooks.carrier.news();
        }
    }

    fn begin(&self, kind: Kind, range: ByteRange) -> Result<Begin> {
        check_bounds(range, self.length.load(Ordering::Acquire))?;
        self.has_host_io.store(true, Ordering::SeqCst);
        let shard = shard();
        let counted = match self.gate.enter(shard, kind.changes_data()) {
            Entry::Pass(counted) => counted,
            Entry::Closed => {
                self.begin_waits.store(true, Ordering::SeqCst);
                if self.gate.is_closed() {
                    return Ok(Begin::Again);
                }
                return self.begin(kind, range);
            }
            Entry::Carry => {
                self.leave(shard, Counted::Other);
                return Err(host_io_while_carrying());
            }
        };
        let Some(index) = self.slots.take(shard) else {
            self.leave(shard, counted);
            return Err(too_many());
        };
        // SAFETY: just taken.
        let guest = unsafe { self.slots.owned(index) };
        (guest.kind, guest.range, guest.path, guest.shard) = (kind, range, Path::Host(counted), shard as u8);
        let generation = self.slots.get(index).map_or(0, |slot| slot.ticket.open());
        Ok(Begin::Go(Token::new(0, index, generation).raw()))
    }

    fn end(&self, ticket: u64, result: IoResult) -> Result<()> {
        let token = Token::from_raw(ticket);
        let claimed = token.client() == 0
            && self.slots.get(token.slot()).is_some_and(|slot| slot.ticket.claim(token.generation()));
        if !claimed {
            return Err(Error::new(
                Errno::ENOENT,
                format!("ticket {ticket:#x}: no request with this ticket is running"),
            ));
        }
        self.finish(token.slot(), result).run();
        Ok(())
    }

    /// Queues a request that came to a closed gate. If it was opened meanwhile the request tries again like any other:
    /// it must not slip through should the gate be closed, and drained, once more.
    fn wait_at_gate(&self, index: u16) {
        // SAFETY: the caller owns the slot, until it is in the queue.
        let guest = unsafe { self.slots.owned(index) };
        let (shard, changes_data) = (usize::from(guest.shard), guest.kind.changes_data());
        loop {
            {
                let mut waiting = lock(&self.waiting);
                if self.gate.is_closed() {
                    waiting.push_back(index);
                    return;
                }
            }
            let entry = self.gate.enter(shard, changes_data);
            if entry != Entry::Closed {
                self.go_on(index, entry);
                return;
            }
        }
    }

    /// Lets a request in that waited, by whoever is opening the gate and still keeps it closed for others.
    fn let_in(&self, index: u16) {
        // SAFETY: a waiting slot is owned by whoever takes it from the queue.
        let guest = unsafe { self.slots.owned(index) };
        let entry = self.gate.enter_first(usize::from(guest.shard), guest.kind.changes_data());
        self.go_on(index, entry);
    }

    /// A request that had to wait is in.
    fn go_on(&self, index: u16, entry: Entry) {
        // SAFETY: the caller owns the slot.
        let guest = unsafe { self.slots.owned(index) };
        match entry {
            Entry::Pass(counted) => {
                guest.path = Path::Stepped(counted);
                self.send_stepped(index);
            }
            Entry::Carry => {
                guest.path = Path::Carried;
                self.carry(index);
            }
            Entry::Closed => debug_assert!(false, "it is in"),
        }
    }

    // What a job does with the filter. One job at a time, from its driver.

    /// Makes room for a job; `EBUSY` if there is one.
    pub(crate) fn claim_for_job(&self, carries: bool) -> Result<()> {
        if carries && self.has_host_io.load(Ordering::SeqCst) {
            return Err(host_io_while_carrying());
        }
        if self.has_job.swap(true, Ordering::SeqCst) {
            return Err(Error::new(Errno::EBUSY, "the filter has a job already: free it first"));
        }
        Ok(())
    }

    pub(crate) fn has_host_io(&self) -> bool {
        self.has_host_io.load(Ordering::SeqCst)
    }

    /// From now on writes are marked here.
    pub(crate) fn hook(&self, hooks: Hooks) {
        self.hooks.store(Some(Arc::new(hooks)));
    }

    /// Nothing is marked or carried any more; waiting requests go on.
    pub(crate) fn unhook(&self) {
        self.hooks.store(None);
        self.gate.set_carry(false);
        self.open_gate();
    }

    /// Another job may come.
    pub(crate) fn release_from_job(&self) {
        self.has_job.store(false, Ordering::SeqCst);
    }

    pub(crate) fn set_carry(&self, carry: bool) {
        self.gate.set_carry(carry);
    }

    pub(crate) fn close_gate(&self) {
        self.gate.close();
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.gate.is_closed() && self.gate.is_drained()
    }

    pub(crate) fn uncarried_writes_done(&self) -> bool {
        self.gate.uncarried_writes_done()
    }

    /// Opens the gate, after those that wait there have gone through it in order.
    pub(crate) fn open_gate(&self) {
        if !self.gate.is_closed() || self.abandoned.load(Ordering::SeqCst) && lock(&self.waiting).is_empty() {
            return;
        }
        loop {
            let mut waiting = lock(&self.waiting);
            let Some(index) = waiting.pop_front() else {
                if !self.abandoned.load(Ordering::SeqCst) {
                    self.gate.open();
                }
                break;
            };
            drop(waiting);
            self.let_in(index);
        }
        if self.begin_waits.swap(false, Ordering::SeqCst) {
            let hook = lock(&self.opened).clone();
            if let Some(hook) = hook {
                hook();
            }
        }
    }

    /// Switches to another device. The gate is closed and drained. On an error nothing has changed.
    pub(crate) fn pivot(&self, target: &Device) -> Result<()> {
        debug_assert!(self.is_drained(), "a filter is switched while nothing runs");
        let Some(me) = self.me.upgrade() else { return Err(Errno::ENODEV.into()) };
        let attached = me.attach_to(target)?;
        self.current.store(Some(attached));
        Ok(())
    }

    /// Offers again what the device had no room for.
    pub(crate) fn kick(&self) {
        self.retry_held_back();
    }
}

impl Attached {
    fn token(&self, index: u16, generation: u64) -> Token {
        Token::new(self.client, index, self.base.wrapping_add(generation))
    }

    /// Whether the device takes this request as it is.
    fn takes(&self, io: &GuestIo<'_>) -> bool {
        let limits = self.device.limits();
        let length = io.range.len();
        match io.kind {
            Kind::Read | Kind::Write => {
                length <= limits.max_transfer
                    && io.iov.len() <= limits.max_iov as usize
                    && is_aligned(io.iov, limits.memory_alignment)
            }
            Kind::Zero => length <= limits.max_zero && self.device.supports(Kind::Zero),
            Kind::Discard => length <= limits.max_discard,
            _ => true,
        }
    }
}

impl Client for Seat {
    fn complete(&self, slot: u16, generation: u64, result: IoResult) -> Result<Followup, Refused> {
        let generation = generation.wrapping_sub(self.base) & ((1 << 40) - 1);
        let found = self.core.slots.get(slot).ok_or(Refused)?;
        if !found.state.claim(generation) {
            return Err(Refused);
        }
        Ok(self.core.claimed(slot, result))
    }

    fn extent(&self, _: u16, _: u64, _: Extent) -> Result<bool, Refused> {
        // Guests don't ask for extents.
        Err(Refused)
    }

    fn room(&self) -> Followup {
        Followup { tell: None, wake: Some(Arc::clone(&self.core) as Arc<dyn Wake>) }
    }

    fn abandon(&self) -> Vec<Followup> {
        let core = &self.core;
        let open = core.slots.all().filter(|(_, slot)| slot.state.claim_any());
        open.map(|(index, _)| core.claimed(index, Err(Errno::ECANCELED))).collect()
    }

    fn last_generation(&self) -> u64 {
        self.base + self.core.slots.last_generation()
    }
}

impl Wake for Core {
    fn wake(&self) {
        self.kick();
    }
}

impl Core {
    /// A completion was claimed.
    fn claimed(&self, index: u16, result: IoResult) -> Followup {
        match self.step_completed(index, result) {
            Some(result) => self.finish(index, result),
            None => Followup::default(),
        }
    }
}

fn too_many() -> Error {
    Error::new(Errno::EBUSY, "16384 guest requests are running: wait for one to finish")
}

fn host_io_while_carrying() -> Error {
    Error::new(
        Errno::EOPNOTSUPP,
        "write-blocking mode needs the data of each write, which begin/end don't give: use the filter's own read and \
         write, or background mode",
    )
}
