//! A client of a device for unit tests: sends one request and waits for it, or several and then waits for
//! each.

use super::clients::{Client, Followup};
use super::{Answer, Callback, Device, Extent, Flags, IoVec, Kind, Refused, Request, SlotState, Token};
use crate::error::{Errno, IoResult};
use crate::range::ByteRange;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How many requests a client can have out.
const SLOTS: usize = 64;
/// Where buffers begin: suits any device.
const ALIGNMENT: usize = 4096;

/// A seat at a device. Panics where a test has gone wrong.
pub(crate) struct TestClient {
    device: Mutex<Option<Device>>,
    seat: Arc<Seat>,
    segment: usize,
}

/// A request that was sent, for [`TestClient::wait`].
pub(crate) struct Sent {
    slot: usize,
}

/// What became of a request.
pub(crate) struct Outcome {
    pub(crate) result: IoResult,
    /// What was read (or written).
    pub(crate) bytes: Vec<u8>,
    pub(crate) extents: Vec<Extent>,
}

struct Seat {
    index: u8,
    slots: Vec<Slot>,
    /// So many extents are enough for one answer.
    enough: AtomicUsize,
}

struct Slot {
    state: SlotState,
    work: Mutex<Work>,
    done: Condvar,
}

/// The slot owns the buffer, so that it outlives the request whatever the test does.
#[derive(Default)]
struct Work {
    taken: bool,
    buffer: Vec<u8>,
    start: usize,
    length: usize,
    extents: Vec<Extent>,
    result: Option<IoResult>,
    then: Option<Box<dyn FnOnce() + Send>>,
}

impl TestClient {
    pub(crate) fn new(device: &Device) -> Self {
        let place = device.core().reserve().expect("a free seat");
        let (index, generation) = (place.client(), place.base());
        let slots = (0..SLOTS)
            .map(|_| Slot { state: SlotState::new(generation), work: Mutex::default(), done: Condvar::new() })
            .collect();
        let seat = Arc::new(Seat { index, slots, enough: AtomicUsize::new(usize::MAX) });
        place.take(Arc::clone(&seat) as Arc<dyn Client>);
        Self { device: Mutex::new(Some(device.clone())), seat, segment: usize::MAX }
    }

    /// The same client, whose buffers are cut into pieces of this many bytes.
    pub(crate) fn with_segments(mut self, bytes: usize) -> Self {
        self.segment = bytes;
        self
    }

    /// The same client, to whom so many extents are enough.
    pub(crate) fn with_enough(self, extents: usize) -> Self {
        self.seat.enough.store(extents, Ordering::Relaxed);
        self
    }

    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> IoResult {
        let range = ByteRange::between(offset, offset + bytes.len() as u64);
        let outcome = self.wait(&self.send(Kind::Read, range, Flags::default(), &[]));
        bytes.copy_from_slice(&outcome.bytes);
        outcome.result
    }

    /// What a read that must succeed fills its buffer with.
    pub(crate) fn read_vec(&self, offset: u64, length: usize) -> Vec<u8> {
        // Neither zero nor what tests write, so that a read that does nothing is seen.
        let mut bytes = vec![0xee; length];
        assert_eq!(self.read(offset, &mut bytes), Ok(()), "read at {offset}");
        bytes
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> IoResult {
        self.write_with(offset, bytes, Flags::default())
    }

    pub(crate) fn write_with(&self, offset: u64, bytes: &[u8], flags: Flags) -> IoResult {
        let range = ByteRange::between(offset, offset + bytes.len() as u64);
        self.wait(&self.send(Kind::Write, range, flags, bytes)).result
    }

    pub(crate) fn zero(&self, range: ByteRange, flags: Flags) -> IoResult {
        self.wait(&self.send(Kind::Zero, range, flags, &[])).result
    }

    pub(crate) fn discard(&self, range: ByteRange) -> IoResult {
        self.wait(&self.send(Kind::Discard, range, Flags::default(), &[])).result
    }

    pub(crate) fn flush(&self) -> IoResult {
        let sent = self.send(Kind::Flush, ByteRange::default(), Flags::default(), &[]);
        self.wait(&sent).result
    }

    pub(crate) fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Errno> {
        let outcome = self.wait(&self.send(Kind::Extents, range, Flags::default(), &[]));
        outcome.result.map(|()| outcome.extents)
    }

    /// Changes the length, also that which the device knows of.
    pub(crate) fn truncate(&self, length: u64) -> IoResult {
        let range = ByteRange::between(0, length);
        let outcome = self.wait(&self.send(Kind::Truncate, range, Flags::default(), &[]));
        outcome.result.inspect(|()| self.device().core().set_length(length))
    }

    /// Sends a request; `bytes` are those of a write.
    pub(crate) fn send(&self, kind: Kind, range: ByteRange, flags: Flags, bytes: &[u8]) -> Sent {
        self.send_then(kind, range, flags, bytes, None)
    }

    /// Sends a request after whose completion `then` is called, as a host is.
    pub(crate) fn send_then(
        &self,
        kind: Kind,
        range: ByteRange,
        flags: Flags,
        bytes: &[u8],
        then: Option<Box<dyn FnOnce() + Send>>,
    ) -> Sent {
        let device = self.device();
        let (slot, iov) = self.prepare(kind, range, bytes, then);
        let state = &self.seat.slots[slot].state;
        let token = Token::new(self.seat.index, slot as u16, state.open());
        let request = Request { kind, range, flags, iov: &iov, from: None };
        match device.submit(token, &request) {
            Answer::Done(result) => {
                assert!(state.claim(token.generation()), "an inline answer is the only one");
                self.seat.slots[slot].finish(result).run();
            }
            Answer::Pending => {}
            Answer::Again => panic!("no room for {request:?}"),
        }
        Sent { slot }
    }

    fn prepare(
        &self,
        kind: Kind,
        range: ByteRange,
        bytes: &[u8],
        then: Option<Box<dyn FnOnce() + Send>>,
    ) -> (usize, Vec<IoVec>) {
        let (slot, mut work) = self
            .seat
            .slots
            .iter()
            .map(Slot::lock)
            .enumerate()
            .find(|(_, work)| !work.taken)
            .expect("a free slot");
        let length = match kind {
            Kind::Read | Kind::Write => range.len() as usize,
            _ => 0,
        };
        *work = Work { taken: true, buffer: vec![0xee; length + ALIGNMENT], length, then, ..Work::default() };
        work.start = work.buffer.as_ptr().align_offset(ALIGNMENT);
        let start = work.start;
        work.buffer[start..start + bytes.len()].copy_from_slice(bytes);
        // SAFETY: the slot keeps the buffer as it is until the request is done, see `wait` and `drop`.
        let whole = unsafe { IoVec::new(work.buffer.as_mut_ptr().add(start).cast(), length) };
        let iov = (0..length)
            .step_by(self.segment.min(length.max(1)))
            .map(|at| whole.slice(at, self.segment))
            .collect();
        (slot, iov)
    }

    /// Waits for a request.
    pub(crate) fn wait(&self, sent: &Sent) -> Outcome {
        let slot = &self.seat.slots[sent.slot];
        let mut work = slot.wait();
        let work = std::mem::take(&mut *work);
        Outcome {
            result: work.result.expect("waited for"),
            bytes: work.buffer[work.start..work.start + work.length].to_vec(),
            extents: work.extents,
        }
    }

    /// Whether it was completed.
    pub(crate) fn is_done(&self, sent: &Sent) -> bool {
        self.seat.slots[sent.slot].lock().result.is_some()
    }

    /// Lets go of the device; only [`TestClient::wait`] makes sense from now on.
    pub(crate) fn release(&self) {
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(device);
    }

    /// Lets go of the device as soon as a request was sent to it.
    pub(crate) fn release_when_used(&self) {
        while !self.seat.slots.iter().any(|slot| slot.lock().taken) {
            std::thread::yield_now();
        }
        self.release();
    }

    fn device(&self) -> Device {
        self.device.lock().unwrap_or_else(PoisonError::into_inner).clone().expect("not released")
    }
}

impl Drop for TestClient {
    fn drop(&mut self) {
        for slot in &self.seat.slots {
            if slot.lock().taken {
                drop(slot.wait());
            }
        }
        if let Some(device) = &*self.device.lock().unwrap_or_else(PoisonError::into_inner) {
            device.core().unseat(self.seat.index);
        }
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) -> MutexGuard<'_, Work> {
        self.done
            .wait_while(self.lock(), |work| work.result.is_none())
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, result: IoResult) -> Followup {
        let mut work = self.lock();
        work.result = Some(result);
        let then = work.then.take();
        drop(work);
        self.done.notify_all();
        Followup { tell: then.map(|then| (Callback::from_closure(move |_| then()), result)), wake: None }
    }
}

impl Client for Seat {
    fn complete(&self, slot: u16, generation: u64, result: IoResult) -> Result<Followup, Refused> {
        let slot = self.slots.get(usize::from(slot)).ok_or(Refused)?;
        if !slot.state.claim(generation) {
            return Err(Refused);
        }
        Ok(slot.finish(result))
    }

    fn extent(&self, slot: u16, generation: u64, extent: Extent) -> Result<bool, Refused> {
        let slot = self.slots.get(usize::from(slot)).ok_or(Refused)?;
        if !slot.state.is_open(generation) {
            return Err(Refused);
        }
        let mut work = slot.lock();
        work.extents.push(extent);
        Ok(work.extents.len() < self.enough.load(Ordering::Relaxed))
    }

    fn room(&self) -> Followup {
        Followup::default()
    }

    fn abandon(&self) -> Vec<Followup> {
        self.slots
            .iter()
            .filter(|slot| slot.state.claim_any())
            .map(|slot| slot.finish(Err(Errno::ECANCELED)))
            .collect()
    }

    fn last_generation(&self) -> u64 {
        let generations = self.slots.iter().map(|slot| slot.state.generation());
        generations.max().unwrap_or(0)
    }
}
