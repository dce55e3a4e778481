//! What the handles to a filter share, and the way of a request through it: checked, let in, sent, finished.

use super::bounce::{self, Pool};
use super::claim::Hooks;
use super::extents::Found;
use super::gate::{Counted, Entry, Gate, Inside, Left};
use super::grace::{Grace, Published};
use super::held_back::HeldBack;
use super::slots::{Guest, Path, Slots};
use super::{GuestFlags, GuestIo, shard, too_many};
use crate::device::{
    Answer, Callback, Client, Device, Extent, Flags, Followup, Kind, Refused, Request, Token, Wake,
    is_aligned, total,
};
use crate::error::{Errno, Error, IoResult, Result, contain};
use crate::range::{ByteRange, check_bounds};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// What the device's client is, in its table, for as long as the filter sits on the device.
struct Seat {
    core: Arc<Core>,
    /// Where this seat's generations begin.
    base: u64,
    /// Tells it from the seats that the filter had before.
    number: u32,
}

/// The device that the filter sits on.
pub(super) struct Attached {
    pub(super) device: Device,
    client: u8,
    base: u64,
    /// The number of the seat.
    pub(super) number: u32,
    /// Whether the device zeroes by itself. Asked once: the answer of foreign code that panics must not cost a request.
    pub(super) zeroes: bool,
    tells_extents: bool,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.device.core().unseat(self.client);
    }
}

/// What requests may still look at though it was replaced.
#[expect(dead_code, reason = "it is there to be dropped")]
enum Replaced {
    Attached(Arc<Attached>),
    Hooks(Arc<Hooks>),
}

pub(crate) struct Core {
    pub(super) me: Weak<Core>,
    pub(super) gate: Gate,
    pub(super) slots: Slots,
    /// `None` once the filter is taken down.
    pub(super) current: Published<Attached>,
    /// Seats that the filter has had.
    seats: AtomicU32,
    pub(super) hooks: Published<Hooks>,
    grace: Grace<Replaced>,
    pub(super) length: AtomicU64,
    pub(super) alignment: u64,
    /// Requests that came while the gate was closed, in order.
    pub(super) waiting: Mutex<VecDeque<u16>>,
    pub(super) held_back: HeldBack<Device>,
    pub(super) bounce: Pool,
    /// A job has claimed it.
    pub(super) has_job: AtomicBool,
    /// The host does requests by itself.
    pub(super) has_host_io: AtomicBool,
    /// A `begin` was turned away and waits for the hook.
    pub(super) begin_waits: AtomicBool,
    pub(super) opened: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    /// No handle is left.
    pub(super) abandoned: AtomicBool,
}

impl Core {
    pub(super) fn new(source: &Device, alignment: u32) -> Result<Arc<Self>> {
        let core = Arc::new_cyclic(|me| Core {
            me: Weak::clone(me),
            gate: Gate::new(),
            slots: Slots::new(),
            current: Published::new(),
            seats: AtomicU32::new(0),
            hooks: Published::new(),
            grace: Grace::new(),
            length: AtomicU64::new(source.length()),
            alignment: u64::from(alignment.max(source.limits().request_alignment)),
            waiting: Mutex::default(),
            held_back: HeldBack::new(),
            bounce: Pool::new(),
            has_job: AtomicBool::new(false),
            has_host_io: AtomicBool::new(false),
            begin_waits: AtomicBool::new(false),
            opened: Mutex::new(None),
            abandoned: AtomicBool::new(false),
        });
        core.slots.prepare(shard())?;
        let attached = core.attach_to(source)?;
        core.switch_to(Some(attached));
        Ok(core)
    }

    pub(super) fn attach_to(self: &Arc<Self>, device: &Device) -> Result<Arc<Attached>> {
        let place = device.core().reserve()?;
        let (client, base) = (place.client(), place.base());
        let number = self.seats.fetch_add(1, Ordering::Relaxed);
        place.take(Arc::new(Seat { core: Arc::clone(self), base, number }));
        let supports = |kind| contain("a device", || device.supports(kind)).unwrap_or(false);
        let (zeroes, tells_extents) = (supports(Kind::Zero), supports(Kind::Extents));
        Ok(Arc::new(Attached { device: device.clone(), client, base, number, zeroes, tells_extents }))
    }

    pub(crate) fn device(&self) -> Option<Device> {
        self.current.keep().map(|attached| attached.device.clone())
    }

    /// Requests go there from now on. The host may be called: this may be the last that kept the old device open.
    pub(super) fn switch_to(&self, attached: Option<Arc<Attached>>) {
        if let Some(replaced) = self.current.replace(attached) {
            drop(self.grace.retire(&self.gate, Replaced::Attached(replaced)));
        }
    }

    /// This job is told of what is written from now on, or none is.
    pub(super) fn hang_with(&self, hooks: Option<Arc<Hooks>>) {
        let hooked = hooks.is_some();
        // A request that sees the flag finds the hooks.
        let replaced = self.hooks.replace(hooks);
        self.gate.set_hooked(hooked);
        if let Some(replaced) = replaced {
            drop(self.grace.retire(&self.gate, Replaced::Hooks(replaced)));
        }
    }

    /// Takes the filter off its device when no handle is left and nothing runs.
    pub(super) fn take_down_if_drained(&self) {
        if self.abandoned.load(Ordering::SeqCst) && self.gate.is_drained() {
            self.switch_to(None);
        }
    }

    fn check(&self, io: &GuestIo<'_>) -> Result<()> {
        let range = io.range;
        let refuse = |message: String| Err(Error::invalid(message));
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

    pub(super) fn submit(&self, io: &GuestIo<'_>, done: Callback) -> Result<()> {
        if matches!(io.kind, Kind::Extents | Kind::Truncate | Kind::Copy) {
            return Err(Error::new(
                Errno::EOPNOTSUPP,
                format!("{}: not a request of a guest", io.kind.name()),
            ));
        }
        self.accept(io, None, done)
    }

    pub(super) fn submit_extents(&self, found: &Arc<Found>, done: Callback) -> Result<()> {
        let (kind, flags) = (Kind::Extents, GuestFlags::default());
        self.accept(&GuestIo { kind, range: found.range(), flags, iov: &[] }, Some(found), done)
    }

    fn accept(&self, io: &GuestIo<'_>, found: Option<&Arc<Found>>, done: Callback) -> Result<()> {
        self.check(io)?;
        if io.range.is_empty() && io.kind != Kind::Flush {
            done.tell(Ok(()));
            return Ok(());
        }
        let shard = shard();
        match self.gate.enter(shard, io.kind.changes_data()) {
            Entry::Pass(counted, inside) => {
                let index = match self.slots.take(shard) {
                    Ok(index) => index,
                    Err(refused) => {
                        self.see(self.gate.exit_and_step_out(inside, counted));
                        return Err(refused);
                    }
                };
                self.fill(index, io, done, Path::Direct(counted), shard);
                if found.is_some() {
                    self.slots.ask(index, found);
                }
                self.send(index, io, counted, inside);
            }
            Entry::Carry(inside) => {
                let index = match self.slots.take(shard) {
                    Ok(index) => index,
                    Err(refused) => {
                        self.see(self.gate.exit_and_step_out(inside, Counted::Other));
                        return Err(refused);
                    }
                };
                let guest = self.fill(index, io, done, Path::Carried, shard);
                guest.iov.extend_from_slice(io.iov);
                self.carry(index, inside);
            }
            Entry::Closed => {
                let index = self.slots.take(shard)?;
                let guest = self.fill(index, io, done, Path::Waiting, shard);
                guest.iov.extend_from_slice(io.iov);
                if found.is_some() {
                    self.slots.ask(index, found);
                }
                self.wait_at_gate(index);
            }
            Entry::Crowded => return Err(too_many()),
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
    fn send(&self, index: u16, io: &GuestIo<'_>, counted: Counted, inside: Inside) {
        let mut no_room = false;
        // Nothing is taken down while a request is counted.
        let Some(attached) = self.current.get(&inside) else {
            self.see(self.gate.step_out(inside));
            return;
        };
        if attached.takes(io) && !self.held_back.any() {
            let request = Request {
                kind: io.kind,
                range: io.range,
                flags: Flags { may_unmap: io.flags.may_unmap, fua: io.flags.fua },
                iov: io.iov,
                from: None,
            };
            let slot = self.slots.get(index).expect("a slot that was taken exists");
            let generation = slot.open_for(attached.number);
            let answer = attached.submit(index, generation, &request);
            let is_ours = answer != Answer::Pending && slot.state.claim(generation);
            match answer {
                Answer::Done(result) if is_ours => {
                    self.finish_inside(index, result, inside).run();
                    return;
                }
                Answer::Again if is_ours => {
                    self.forget_told(index);
                    no_room = true;
                }
                _ => {
                    // It is somebody else's by now.
                    self.see(self.gate.step_out(inside));
                    return;
                }
            }
        }
        self.see(self.gate.step_out(inside));
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

    /// The end of every request but those that the device did at once: marks, counts it out, puts the slot back. Whom to
    /// tell is returned.
    pub(super) fn finish(&self, index: u16, result: IoResult) -> Followup {
        let ended = self.take_out(index, result);
        let Ended { shard, counted, .. } = ended;
        let left = match ended.written {
            None => self.gate.exit(shard, counted),
            Some(range) => self.gate.exit_untold(shard, counted).unwrap_or_else(|_hooked| {
                let inside = self.gate.step_in(shard);
                self.mark_inside(range, &inside);
                self.gate.exit_and_step_out(inside, counted)
            }),
        };
        self.see(left);
        ended.tell
    }

    /// As [`Core::finish`], by the thread that came in with the request.
    fn finish_inside(&self, index: u16, result: IoResult, inside: Inside) -> Followup {
        let ended = self.take_out(index, result);
        let left = match ended.written {
            None => Err(inside),
            Some(range) => self
                .gate
                .exit_untold_and_step_out(inside, ended.counted)
                .inspect_err(|inside| self.mark_inside(range, inside)),
        };
        self.see(left.unwrap_or_else(|inside| self.gate.exit_and_step_out(inside, ended.counted)));
        ended.tell
    }

    /// Takes a request out of its slot, and puts the slot back.
    fn take_out(&self, index: u16, result: IoResult) -> Ended {
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
        if kind.changes_data() {
            self.slots.count_change(index);
        }
        if kind == Kind::Extents {
            self.slots.ask(index, None);
        }
        self.slots.put_back(shard, index);
        let (counted, written) = match path {
            // Good or bad, it may have changed something (SPEC G-2); the job is told before anybody else.
            Path::Direct(counted) | Path::Stepped(counted) | Path::Host(counted) => {
                (counted, kind.changes_data().then_some(range))
            }
            Path::Carried | Path::Waiting => (Counted::Other, None),
        };
        Ended {
            shard,
            counted,
            written,
            tell: Followup { tell: done.map(|done| (done, result)), wake: None },
        }
    }

    /// Tells whoever waits for what a shard that was left has brought about.
    pub(super) fn see(&self, left: Left) {
        if left == Left::AsTheLast {
            self.see_the_last_out();
        }
    }

    #[cold]
    fn see_the_last_out(&self) {
        drop(self.grace.advance(&self.gate));
        if let Some(hooks) = self.hooks.keep() {
            hooks.carrier.news();
        }
        self.take_down_if_drained();
    }

    fn mark_inside(&self, range: ByteRange, inside: &Inside) {
        if let Some(hooks) = self.hooks.get(inside)
            && let Some(tracking) = &hooks.tracking
            && tracking.mark_and_see(range)
        {
            hooks.carrier.news();
        }
    }

    /// Marks what was written by no request of this filter.
    pub(super) fn mark(&self, range: ByteRange) {
        let inside = self.gate.step_in(shard());
        self.mark_inside(range, &inside);
        self.see(self.gate.step_out(inside));
    }
}

/// What is left of a request that was taken out of its slot.
struct Ended {
    shard: usize,
    counted: Counted,
    /// What it may have changed, of which a job has to be told.
    written: Option<ByteRange>,
    tell: Followup,
}

impl Attached {
    /// Offers a request to the device. One that panics has failed it: the request must not stay counted at the gate, nor
    /// its guest wait for ever (SPEC G-9).
    pub(super) fn submit(&self, index: u16, generation: u64, request: &Request<'_>) -> Answer {
        // An answer that tells nothing says that all is data (SPEC D-1).
        if request.kind == Kind::Extents && !self.tells_extents {
            return Answer::Done(Ok(()));
        }
        contain("a device", || self.device.submit(self.token(index, generation), request))
            .unwrap_or(Answer::Done(Err(Errno::EIO)))
    }

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
            Kind::Zero => length <= limits.max_zero && self.zeroes,
            Kind::Discard => length <= limits.max_discard,
            _ => true,
        }
    }
}

impl Seat {
    /// A token's generation as the slots count them.
    fn own(&self, generation: u64) -> u64 {
        generation.wrapping_sub(self.base) & ((1 << 40) - 1)
    }
}

impl Client for Seat {
    fn complete(&self, slot: u16, generation: u64, result: IoResult) -> Result<Followup, Refused> {
        let found = self.core.slots.get(slot).ok_or(Refused)?;
        if !found.state.claim(self.own(generation)) {
            return Err(Refused);
        }
        Ok(self.core.claimed(slot, result))
    }

    fn extent(&self, slot: u16, generation: u64, extent: Extent) -> Result<bool, Refused> {
        let found = self.core.slots.get(slot).ok_or(Refused)?;
        found.tell(self.own(generation), extent)
    }

    fn room(&self) -> Followup {
        Followup { tell: None, wake: Some(Arc::clone(&self.core) as Arc<dyn Wake>) }
    }

    fn abandon(&self) -> Vec<Followup> {
        let core = &self.core;
        let open = core.slots.all().filter(|(_, slot)| slot.claim_sent_to(self.number));
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::ExtentFlags;
    use crate::filter::Filter;

    fn seat(filter: &Filter, base: u64) -> Seat {
        Seat { core: Arc::clone(filter.core()), base, number: 0 }
    }

    #[test]
    fn a_device_that_tells_of_extents_unasked_is_refused() {
        // SPEC D-3, D-6
        let filter = Filter::new(&Device::memory(4096).expect("a device")).expect("a seat");
        let extent = Extent { length: 512, flags: ExtentFlags::DATA };
        assert!(seat(&filter, 0).extent(0, 0, extent).is_err());
    }

    #[test]
    fn the_next_seat_begins_behind_the_requests_of_this_one() {
        // SPEC D-3: so that a completion that comes late is taken for none of its own.
        let filter = Filter::new(&Device::memory(4096).expect("a device")).expect("a seat");
        for _ in 0..3 {
            filter.write_at(0, &[1; 512]).expect("writes");
        }
        let used = filter.core().slots.last_generation();
        assert!(used >= 3, "{used}");
        assert_eq!(seat(&filter, 100).last_generation(), 100 + used);
    }
}
