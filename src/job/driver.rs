//! The driver: the only place that carries out what the engine decides.
//!
//! A round feeds the engine with what has happened (completions, guest requests, a drained gate), lets it go on, and
//! takes its outputs, all under one short lock; then, without the lock, it carries out orders, tells guests, and
//! submits requests. What a device finishes inline is the input of the next round. Rounds end when there is nothing
//! to do, or after [`MAX_ROUNDS`] of them, [`MAX_REQUESTS`] or [`MAX_BYTES`].
//!
//! A request that a device doesn't take in one piece is sent in steps; one that it has no room for waits in line for
//! its side and is offered again when something has completed, or after [`RETRY_NS`].

mod given_up;
mod provisions;

use super::buffers::Buffers;
use super::parts::Parts;
use super::requests::slot_of;
use super::shared::{Link, Shared};
use crate::clock::Nanos;
use crate::device::{
    AlignedBuffer, Answer, Device, Extent, IoVec, Kind, Lane, Limits, Request, Token, is_aligned,
    most_zeroes, slice_into, zeroes,
};
use crate::engine::{
    Data, Engine, GuestId, GuestKind, GuestRequest, OpId, Order, Segment, Side, Status, Submit,
};
use crate::error::{Errno, IoResult, Result};
use crate::range::ByteRange;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// Rounds in one poll: enough to keep devices busy that finish inline, few enough for a host's other work.
const MAX_ROUNDS: u32 = 64;
/// Requests in one poll after which no other round begins; some hundred microseconds' worth where devices finish inline.
const MAX_REQUESTS: usize = 2048;
/// Bytes in one poll after which no other round begins: a few milliseconds' worth where devices copy inline.
const MAX_BYTES: u64 = 32 << 20;
/// When a device that had no room is asked again without any sign from it.
pub(super) const RETRY_NS: u64 = 1_000_000;

/// A request as it was wanted, until all of it is done.
#[derive(Debug)]
struct Part {
    submit: Submit,
    segments: Vec<Segment>,
    done: u64,
    /// A copy of a guest's data, and where in it this request's begins: because the guest was told already, or
    /// because the device can't take its buffers as they are.
    copy: Option<(AlignedBuffer, u64)>,
}

/// What a completed request tells the engine.
#[derive(Clone, Copy, Debug)]
struct Finished {
    op: OpId,
    side: Side,
    result: IoResult,
    zeroes: bool,
}

impl Finished {
    fn of(submit: &Submit, result: IoResult) -> Self {
        Self { op: submit.op, side: submit.side, result, zeroes: false }
    }
}

/// What the driver found out in a round, and the engine said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    pub(super) deadline: Nanos,
    /// Only news gives it anything to do before this; 0 where that isn't so.
    pub(super) rests_until: Nanos,
    /// There is more to do at once.
    pub(super) busy: bool,
    pub(super) over: bool,
}

/// The driver's own state: whoever drives owns it.
#[derive(Debug)]
pub(super) struct Driver {
    /// Source and target, until the job has let go of them.
    devices: [Option<Device>; 2],
    buffers: Option<Buffers>,
    now: Nanos,
    parts: Parts<Part>,
    /// The request that a device is just being offered: if it panics, nobody will complete that.
    offering: Option<u16>,
    /// Something was submitted since lanes were last told to send.
    submitted: bool,
    /// Requests that wait for room, by side.
    again: [VecDeque<u16>; 2],
    /// Which guest request is in which state, by its number; for giving them all back if the engine fails.
    guests: Vec<GuestState>,
    detect_zeroes: bool,
    /// The status that was last logged.
    logged: Status,
    closing: bool,
    /// The filter was told to carry writes.
    carrying: bool,
    /// The filter is no longer this job's.
    ending: bool,
    // Kept from round to round so that nothing is allocated in the steady state.
    completed: Vec<(u16, IoResult)>,
    finished: Vec<Finished>,
    extents: Vec<Extent>,
    requests: Vec<Submit>,
    segments: Vec<Segment>,
    guests_done: Vec<(GuestId, IoResult)>,
    orders: Vec<Order>,
    iov: Vec<IoVec>,
    spare: Vec<Vec<Segment>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GuestState {
    NotHere,
    /// The engine has it, and the source has not.
    Submitted,
    /// The source has it, or will get it when it has room.
    AtSource,
    /// The source is done with it.
    Done(IoResult),
}

impl Driver {
    pub(super) fn new(engine: &Engine, source: &Device, target: &Device) -> Result<Self> {
        let alignment = source.limits().memory_alignment.max(target.limits().memory_alignment);
        let buffers = Buffers::new(engine.buffer_bytes(), engine.buffer_unit(), alignment)?;
        Ok(Self {
            devices: [None, None],
            buffers: Some(buffers),
            now: Nanos(0),
            parts: Parts::new(),
            offering: None,
            submitted: false,
            again: [VecDeque::new(), VecDeque::new()],
            guests: Vec::new(),
            detect_zeroes: engine.settings().options.detect_zeroes && target.supports(Kind::Zero),
            logged: Status::Created,
            closing: false,
            carrying: false,
            ending: false,
            completed: Vec::new(),
            finished: Vec::new(),
            extents: Vec::new(),
            requests: Vec::new(),
            segments: Vec::new(),
            guests_done: Vec::new(),
            orders: Vec::new(),
            iov: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// The handles through which it submits, which may have lanes for the copy buffers.
    pub(super) fn set_devices(&mut self, source: &Device, target: &Device) {
        self.devices = [Some(source.clone()), Some(target.clone())];
    }

    /// The copy buffers as a whole.
    pub(super) fn memory(&self) -> IoVec {
        self.buffers.as_ref().map_or(IoVec::none(), Buffers::whole)
    }

    /// Drives until there is nothing to do or the budget is used up. `exact`: the time was told just now.
    pub(super) fn drive(&mut self, shared: &Shared, exact: bool) -> Outlook {
        self.offer_again(shared);
        let mut outlook = Outlook { deadline: Nanos::NEVER, rests_until: Nanos(0), busy: false, over: false };
        let (mut requests, mut bytes) = (0, 0u64);
        for _ in 0..MAX_ROUNDS {
            // What comes from here on is seen in another round, or by whoever looks when this is over.
            shared.turns.begin_round();
            self.now = Nanos(shared.now.load(Ordering::SeqCst));
            self.collect(shared);
            outlook = self.think(shared, exact);
            requests += self.requests.len();
            bytes += self.requests.iter().map(Submit::data_bytes).sum::<u64>();
            let acted = self.act(shared);
            if std::mem::take(&mut self.submitted) {
                shared.each_lane(Lane::send);
                // Some of it may be finished already.
                shared.each_lane(Lane::reap);
            }
            let more = outlook.busy || acted || !self.finished.is_empty() || shared.requests.any_completed();
            outlook.busy = more;
            if !more || requests >= MAX_REQUESTS || bytes >= MAX_BYTES {
                break;
            }
        }
        if self.again.iter().any(|waiting| !waiting.is_empty()) {
            outlook.deadline = outlook.deadline.min(self.now + RETRY_NS);
        }
        if outlook.busy || self.closing || outlook.deadline != Nanos::NEVER {
            outlook.rests_until = Nanos(0);
        }
        outlook
    }

    /// Takes completions from the list; a request with steps left goes on.
    fn collect(&mut self, shared: &Shared) {
        shared.each_lane(Lane::reap);
        shared.requests.take_completed(&mut self.completed);
        let any = !self.completed.is_empty();
        self.completed.reverse();
        // Each is taken out before it is looked at, the oldest first: if a device panics the others are still there.
        while let Some((index, result)) = self.completed.pop() {
            self.step_done(shared, index, result);
        }
        if any {
            self.offer_again(shared);
        }
    }

    /// Feeds the engine and takes its outputs.
    fn think(&mut self, shared: &Shared, exact: bool) -> Outlook {
        let drained = self.closing && shared.is_drained();
        let mut engine = shared.engine();
        engine.set_time(self.now, exact);
        for Finished { op, side, result, zeroes } in self.finished.drain(..) {
            self.extents.clear();
            if !op.is_guest() && side == Side::Source {
                shared.requests.take_extents(slot_of(op, side), &mut self.extents);
            }
            engine.complete(op, side, result, zeroes, &self.extents);
        }
        while self.has_guest_room(shared, &mut engine) {
            let Some(index) = shared.inbox.pop() else { break };
            if self.ending {
                // It was on its way when the job let go of the filter: another job may be there, and must hear of it.
                shared.filter.disown_carried(index);
            }
            let guest = shared.filter.carried(index);
            let kind = match guest.kind {
                Kind::Zero => GuestKind::Zero,
                Kind::Discard => GuestKind::Discard,
                _ => GuestKind::Write,
            };
            *self.guest_state(index) = GuestState::Submitted;
            engine.submit_guest(GuestRequest {
                guest: GuestId(u32::from(index)),
                kind,
                range: guest.range,
                flags: guest.flags,
                owns_data: guest.owns_data,
            });
        }
        // What the filter says of its writes counts only while it does what the engine last ordered.
        let in_step = self.carrying && engine.outbox().orders.is_empty();
        if engine.wants_uncarried_writes_done() && in_step {
            engine.set_uncarried_writes_done(shared.filter.uncarried_writes_done());
        }
        if drained {
            self.closing = false;
            engine.gate_drained();
        }
        engine.advance(self.now);
        let sleeps = engine.waits_for_marks();
        let outlook = Outlook {
            deadline: engine.next_deadline(),
            rests_until: engine.rests_until(),
            busy: engine.outbox().more,
            over: engine.status().is_over(),
        };
        let outbox = engine.outbox();
        std::mem::swap(&mut self.requests, &mut outbox.requests);
        std::mem::swap(&mut self.segments, &mut outbox.segments);
        std::mem::swap(&mut self.guests_done, &mut outbox.guests_done);
        std::mem::swap(&mut self.orders, &mut outbox.orders);
        let messages = std::mem::take(&mut outbox.messages);
        let status = engine.status();
        let changed = (status != self.logged).then(|| engine.id().to_owned());
        drop(engine);
        if let Some(id) = changed {
            log::info!("blkmirror: job '{id}' is {}", status.name());
            self.logged = status;
        }
        for message in messages {
            log::warn!("blkmirror: {message}");
        }
        let asleep = sleeps && shared.tracking.fall_asleep();
        let rests_until = if asleep { outlook.rests_until } else { Nanos(0) };
        Outlook { busy: outlook.busy || (sleeps && !asleep), rests_until, ..outlook }
    }

    /// Carries out the engine's outputs. Whether there were any.
    fn act(&mut self, shared: &Shared) -> bool {
        let any = !(self.requests.is_empty() && self.guests_done.is_empty() && self.orders.is_empty());
        let mut orders = std::mem::take(&mut self.orders);
        for order in orders.drain(..) {
            self.carry_out(shared, order);
        }
        self.orders = orders;
        let mut done = std::mem::take(&mut self.guests_done);
        for (guest, result) in done.drain(..) {
            self.finish_guest(shared, guest, result);
        }
        self.guests_done = done;
        let mut requests = std::mem::take(&mut self.requests);
        for submit in &requests {
            self.begin(shared, submit);
        }
        requests.clear();
        self.requests = requests;
        self.segments.clear();
        any
    }

    fn carry_out(&mut self, shared: &Shared, order: Order) {
        match order {
            Order::CarryWrites => {
                shared.filter.set_carry(true);
                self.carrying = true;
            }
            Order::MarkWrites => {
                self.carrying = false;
                shared.filter.set_carry(false);
            }
            Order::CloseGate => {
                self.closing = true;
                shared.close_gates();
            }
            Order::OpenGate => {
                self.closing = false;
                shared.open_gates();
            }
            Order::CancelTarget => {
                if let Some(target) = &self.devices[Side::Target as usize] {
                    target.cancel();
                }
            }
            Order::TargetGrown(length) => {
                if let Some(target) = &self.devices[Side::Target as usize] {
                    target.core().set_length(length);
                }
            }
            Order::Prepare => {
                let result = shared.prepare();
                shared.engine().prepared(result);
            }
            Order::Pivot => {
                let result = shared.pivot();
                shared.engine().pivoted(result);
            }
            Order::Release => {
                self.closing = false;
                self.carrying = false;
                self.ending = true;
                self.disown_guests(shared);
                shared.release_filter();
            }
            Order::Conclude => {
                self.buffers = None;
                self.leave_devices();
                shared.conclude();
            }
        }
    }

    /// A guest's request is done as far as the guest is concerned. Its copy of the data stays with the target's
    /// request if that still reads it.
    fn finish_guest(&mut self, shared: &Shared, guest: GuestId, result: IoResult) {
        let index = guest.0 as u16;
        // Only a job that ends tells guests before their target is done.
        if self.ending
            && let Some(part) = self.parts.iter_mut().find(|part| part.submit.data.is_of(guest))
            && part.copy.is_none()
            && let Data::Guest(_, skip) = part.submit.data
        {
            part.copy = shared.filter.take_bounce(index).map(|buffer| (buffer, skip));
        }
        *self.guest_state(index) = GuestState::NotHere;
        shared.filter.finish_carried(index, result);
    }

    /// From now on the guests' writes that are here count as any other of the filter's: another job may come and must
    /// know of them.
    pub(super) fn disown_guests(&self, shared: &Shared) {
        for (index, state) in self.guests.iter().enumerate() {
            if *state != GuestState::NotHere {
                shared.filter.disown_carried(index as u16);
            }
        }
    }

    fn guest_state(&mut self, index: u16) -> &mut GuestState {
        let index = usize::from(index);
        if self.guests.len() <= index {
            self.guests.resize(index + 1, GuestState::NotHere);
        }
        &mut self.guests[index]
    }

    /// Takes a request on and offers it to its device.
    fn begin(&mut self, shared: &Shared, submit: &Submit) {
        let slot = slot_of(submit.op, submit.side);
        let side = submit.side;
        let has_room = self.again[side as usize].is_empty();
        let taken = match submit.data {
            Data::Guest(guest, _) => {
                if side == Side::Source {
                    *self.guest_state(guest.0 as u16) = GuestState::AtSource;
                }
                self.keep(slot, submit);
                has_room && self.offer(shared, slot)
            }
            _ if has_room && self.is_one_step(shared, submit) => self.offer_whole(shared, slot, submit),
            _ => {
                self.keep(slot, submit);
                has_room && self.offer(shared, slot)
            }
        };
        if !taken {
            self.wait_for_room(side, slot);
        }
    }

    /// Keeps a request until all of it is done.
    fn keep(&mut self, slot: u16, submit: &Submit) {
        let mut segments = self.spare.pop().unwrap_or_default();
        if let Data::Buffers(range) = &submit.data {
            segments.extend_from_slice(&self.segments[range.start as usize..range.end as usize]);
        }
        self.parts.put(slot, Part { submit: submit.clone(), segments, done: 0, copy: None });
    }

    /// Whether the device takes all of a request at once, as it is.
    fn is_one_step(&self, shared: &Shared, submit: &Submit) -> bool {
        let Link { limits, zero, .. } = &shared.links[submit.side as usize];
        let most = match submit.kind {
            Kind::Read | Kind::Write | Kind::Copy => limits.max_transfer,
            Kind::Zero if *zero => limits.max_zero,
            Kind::Zero => 0,
            Kind::Discard => limits.max_discard,
            Kind::Flush | Kind::Extents | Kind::Truncate => u64::MAX,
        };
        submit.range.len() <= most
    }

    /// Offers a background request that goes in one step. What the device finishes at once need not be kept. `false`: it
    /// has no room.
    fn offer_whole(&mut self, shared: &Shared, slot: u16, submit: &Submit) -> bool {
        let side = submit.side as usize;
        let (Some(device), link) = (&self.devices[side], &shared.links[side]) else {
            self.finished.push(Finished::of(submit, Err(Errno::ECANCELED)));
            return true;
        };
        self.iov.clear();
        let segments = match &submit.data {
            Data::Buffers(range) => &self.segments[range.start as usize..range.end as usize],
            _ => &[],
        };
        if let (Some(buffers), false) = (&self.buffers, segments.is_empty()) {
            let most = link.limits.max_iov as usize;
            let held = buffers.lend(segments, 0, submit.range.len(), most, &mut self.iov);
            debug_assert_eq!(held, submit.range.len(), "the buffers hold what is asked for");
        }
        let &Submit { kind, range, flags, .. } = submit;
        let from = copied_from(&self.devices, kind);
        let request = Request { kind, range, flags, iov: &self.iov, from };
        self.offering = Some(slot);
        self.submitted = true;
        let answer = submit_to(device, shared, link, slot, &request);
        self.offering = None;
        match answer {
            Answer::Done(result) => {
                let zeroes = result.is_ok()
                    && submit.kind == Kind::Read
                    && self.detect_zeroes
                    && self.buffers.as_ref().is_some_and(|b| b.is_zero(segments, submit.range.len()));
                self.finished.push(Finished { zeroes, ..Finished::of(submit, result) });
                true
            }
            Answer::Again => {
                self.keep(slot, submit);
                false
            }
            Answer::Pending => {
                self.keep(slot, submit);
                true
            }
        }
    }

    fn wait_for_room(&mut self, side: Side, slot: u16) {
        if self.again[side as usize].is_empty() {
            self.set_starved(side, true);
        }
        self.again[side as usize].push_back(slot);
    }

    fn set_starved(&self, side: Side, starved: bool) {
        if let Some(device) = &self.devices[side as usize] {
            device.core().set_starved(starved);
        }
    }

    /// Offers again, in order, what waits for room.
    fn offer_again(&mut self, shared: &Shared) {
        for side in [Side::Source, Side::Target] {
            let before = self.again[side as usize].len();
            while let Some(slot) = self.again[side as usize].front().copied() {
                if !self.offer(shared, slot) {
                    break;
                }
                self.again[side as usize].pop_front();
            }
            if before > 0 && self.again[side as usize].is_empty() {
                self.set_starved(side, false);
            }
        }
    }

    /// Submits the next steps of a request until one is pending or all are done. `false`: the device has no room.
    fn offer(&mut self, shared: &Shared, slot: u16) -> bool {
        loop {
            let Some(part) = self.parts.get_mut(slot) else {
                return true;
            };
            let link = &shared.links[part.submit.side as usize];
            let Some(device) = &self.devices[part.submit.side as usize] else {
                // The job has let go of its devices; nothing of it is left to be done.
                self.finish_part(shared, slot, Err(Errno::ECANCELED));
                return true;
            };
            self.iov.clear();
            if part.needs_copy(device, shared, &mut self.iov) {
                match part.copied(shared, device.limits().memory_alignment) {
                    Ok(copy) => part.copy = Some((copy, 0)),
                    Err(error) => {
                        self.finish_part(shared, slot, Err(error.errno()));
                        return true;
                    }
                }
            }
            let step = match part.next_step(device, shared, self.buffers.as_ref(), &mut self.iov) {
                Ok(step) => step,
                Err(errno) => {
                    self.finish_part(shared, slot, Err(errno));
                    return true;
                }
            };
            let Step { kind, range } = step;
            let from = copied_from(&self.devices, kind);
            let request = Request { kind, range, flags: part.submit.flags, iov: &self.iov, from };
            self.offering = Some(slot);
            self.submitted = true;
            let answer = submit_to(device, shared, link, slot, &request);
            self.offering = None;
            let result = match answer {
                Answer::Pending => return true,
                Answer::Again => return false,
                Answer::Done(result) => result,
            };
            if !self.after_step(shared, slot, result) {
                return true;
            }
        }
    }

    /// A step was completed through the list.
    fn step_done(&mut self, shared: &Shared, slot: u16, result: IoResult) {
        if self.after_step(shared, slot, result) && !self.offer(shared, slot) {
            let side = if slot.is_multiple_of(2) { Side::Source } else { Side::Target };
            // It is in the middle of its way and goes before those that have not begun.
            if self.again[side as usize].is_empty() {
                self.set_starved(side, true);
            }
            self.again[side as usize].push_front(slot);
        }
    }

    /// Takes account of a step. Whether there is another.
    fn after_step(&mut self, shared: &Shared, slot: u16, result: IoResult) -> bool {
        let Some(part) = self.parts.get_mut(slot) else {
            debug_assert!(false, "a completion for a request that is not out");
            return false;
        };
        if result.is_ok() && part.submit.kind != Kind::Extents {
            part.done += part.step_length(&shared.links[part.submit.side as usize]);
            if part.done < part.submit.range.len() {
                return true;
            }
        }
        self.finish_part(shared, slot, result);
        false
    }

    fn finish_part(&mut self, shared: &Shared, slot: u16, result: IoResult) {
        let Some(Part { submit, mut segments, copy, .. }) = self.parts.take(slot) else { return };
        let Submit { op, side, kind, range, ref data, .. } = submit;
        if let (Data::Guest(guest, _), Side::Source) = (data, side) {
            let guest = guest.0 as u16;
            *self.guest_state(guest) = GuestState::Done(result);
        }
        let copied = kind == Kind::Read && result.is_ok() && self.detect_zeroes;
        let zeroes =
            copied && self.buffers.as_ref().is_some_and(|buffers| buffers.is_zero(&segments, range.len()));
        segments.clear();
        self.spare.push(segments);
        if let Some((copy, _)) = copy {
            shared.filter.give_back_bounce(copy);
        }
        self.finished.push(Finished { op, side, result, zeroes });
    }

    /// Lets go of the devices, whose last user the job may be.
    pub(super) fn leave_devices(&mut self) {
        self.devices = [None, None];
    }

    /// The filter is not this job's any more; nothing more is sent to the target.
    pub(super) fn is_ending(&self) -> bool {
        self.ending
    }

    pub(super) fn has_target_requests_out(&self) -> bool {
        self.parts.iter().any(|part| part.submit.side == Side::Target)
    }

    /// Whether a device may still be using memory of the job.
    pub(super) fn has_requests_out(&self) -> bool {
        self.parts.iter().next().is_some()
    }
}

/// Where the target takes the data of such a request from.
fn copied_from(devices: &[Option<Device>; 2], kind: Kind) -> Option<&Device> {
    if kind == Kind::Copy { devices[Side::Source as usize].as_ref() } else { None }
}

/// Submits a request in this slot. Whatever the device answers: if somebody has completed it meanwhile, that counts, and
/// it is pending until the driver comes to the list of completions.
fn submit_to(device: &Device, shared: &Shared, link: &Link, slot: u16, request: &Request<'_>) -> Answer {
    let state = &shared.requests.make(slot).state;
    let generation = state.open();
    let token = Token::new(link.client, slot, link.base.wrapping_add(generation));
    match device.submit(token, request) {
        Answer::Done(_) | Answer::Again if !state.claim(generation) => Answer::Pending,
        Answer::Again => {
            shared.requests.forget_extents(slot);
            Answer::Again
        }
        answer => answer,
    }
}

/// One request to a device.
struct Step {
    kind: Kind,
    range: ByteRange,
}

impl Part {
    fn next_step(
        &self,
        device: &Device,
        shared: &Shared,
        buffers: Option<&Buffers>,
        iov: &mut Vec<IoVec>,
    ) -> Result<Step, Errno> {
        let Submit { kind, range, .. } = self.submit;
        let length = self.length_within(device.limits(), device.supports(Kind::Zero));
        let step = ByteRange::between(range.offset() + self.done, range.offset() + self.done + length);
        if kind == Kind::Zero && !device.supports(Kind::Zero) {
            zeroes(length, iov)?;
            return Ok(Step { kind: Kind::Write, range: step });
        }
        if matches!(kind, Kind::Zero | Kind::Discard) {
            return Ok(Step { kind, range: step });
        }
        let max = device.limits().max_iov as usize;
        let held = match &self.submit.data {
            Data::None => return Ok(Step { kind, range: if length == 0 { range } else { step } }),
            Data::Buffers(_) => {
                buffers.map_or(0, |buffers| buffers.lend(&self.segments, self.done, length, max, iov))
            }
            Data::Guest(..) => self.guest_buffers(shared, self.done, length, max, iov),
        };
        debug_assert_eq!(held, length, "the buffers hold what is asked for");
        Ok(Step { kind, range: step })
    }

    /// Whether a guest's buffers can't be sent to this device as they are. Uses `iov` and leaves it empty.
    fn needs_copy(&self, device: &Device, shared: &Shared, iov: &mut Vec<IoVec>) -> bool {
        if !matches!(self.submit.data, Data::Guest(..)) || self.submit.kind != Kind::Write {
            return false;
        }
        self.guest_buffers(shared, 0, self.submit.range.len(), usize::MAX, iov);
        let limits = device.limits();
        let takes = iov.len() <= limits.max_iov as usize && is_aligned(iov, limits.memory_alignment);
        iov.clear();
        !takes
    }

    /// A copy of a guest's data, aligned so.
    fn copied(&self, shared: &Shared, alignment: u32) -> Result<AlignedBuffer> {
        let mut iov = Vec::new();
        self.guest_buffers(shared, 0, self.submit.range.len(), usize::MAX, &mut iov);
        shared.filter.bounce_copy(&iov, alignment)
    }

    /// Appends the guest's buffers for a part of this request, or those of the copy that stands in for them.
    fn guest_buffers(&self, shared: &Shared, at: u64, length: u64, max: usize, iov: &mut Vec<IoVec>) -> u64 {
        match (&self.copy, &self.submit.data) {
            (Some((copy, skip)), _) => {
                // SAFETY: the copy is kept until the request is done.
                let whole = unsafe { copy.lend(0, copy.len()) };
                slice_into(&[whole], skip + at, length, max, iov)
            }
            (None, Data::Guest(guest, skip)) => {
                shared.filter.carried_buffers(guest.0 as u16, skip + at, length, max, iov)
            }
            (None, _) => 0,
        }
    }

    /// How many bytes the next step takes.
    fn step_length(&self, link: &Link) -> u64 {
        self.length_within(&link.limits, link.zero)
    }

    fn length_within(&self, limits: &Limits, zero: bool) -> u64 {
        let left = self.submit.range.len() - self.done;
        left.min(match self.submit.kind {
            Kind::Read | Kind::Write | Kind::Copy => limits.max_transfer,
            Kind::Zero if zero => limits.max_zero,
            Kind::Zero => most_zeroes(limits.max_transfer, limits.max_iov),
            Kind::Discard => limits.max_discard,
            Kind::Flush | Kind::Extents | Kind::Truncate => u64::MAX,
        })
    }
}

impl Data {
    fn is_of(&self, guest: GuestId) -> bool {
        matches!(self, Self::Guest(of, _) if *of == guest)
    }
}
