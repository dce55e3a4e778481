//! Who uses a device: the table through which a token finds the filter or job that it belongs to.
//!
//! Completions come from any thread, so a look-up takes no lock, and an entry that is taken out lives for as long as
//! somebody is still looking at it (`arc_swap`).

use super::callback::Callback;
use super::{Answer, Backend, Extent, Kind, Lane, Limits, Request, Token};
use crate::error::{Errno, Error, IoResult, Result};
use arc_swap::{ArcSwapOption, Guard};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Most clients of one device at a time: its filters, and the jobs that read or write it.
const MAX_CLIENTS: usize = 64;

/// Somebody who sends requests to a device.
pub(crate) trait Client: Send + Sync {
    /// Takes the completion of the request in this slot, if that use of it is open. What may reach the host
    /// is returned, not done: the caller holds a protection.
    fn complete(&self, slot: u16, generation: u64, result: IoResult) -> Result<Followup, Refused>;

    /// Takes a part of the answer to an extents request; whether it wants more.
    fn extent(&self, slot: u16, generation: u64, extent: Extent) -> Result<bool, Refused>;

    /// The device may have room for what it had refused.
    fn room(&self) -> Followup;

    /// No completion will come any more: everything open fails with `ECANCELED`.
    fn abandon(&self) -> Vec<Followup>;

    /// Not smaller than any generation that it used.
    fn last_generation(&self) -> u64;
}

/// What is left to do once no protection is held, because it may call the host.
#[derive(Default)]
pub(crate) struct Followup {
    /// Somebody to tell that a request is done.
    pub(crate) tell: Option<(Callback, IoResult)>,
    /// Somebody who has work to go on with.
    pub(crate) wake: Option<Arc<dyn Wake>>,
}

impl Followup {
    pub(crate) fn run(self) {
        if let Some(wake) = self.wake {
            wake.wake();
        }
        if let Some((callback, result)) = self.tell {
            callback.tell(result);
        }
    }
}

/// Has work to go on with, when told that there is news.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

/// A completion that names no open request: a second one, a stale one, or a token that was never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl From<Refused> for Error {
    fn from(_: Refused) -> Self {
        Self::new(
            Errno::ENOENT,
            "no request with this token is out: it was completed before, was answered inline, or never existed",
        )
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no request with this token is out")
    }
}

impl std::error::Error for Refused {}

/// A client in its place in the table.
struct Seated(Arc<dyn Client>);

/// What the handles to a device share.
pub(crate) struct Core {
    backend: Box<dyn Backend>,
    limits: Limits,
    length: AtomicU64,
    /// Every byte still reads as zero, as the limits promised at first.
    reads_zero: AtomicBool,
    clients: [ArcSwapOption<Seated>; MAX_CLIENTS],
    registry: Mutex<[Seat; MAX_CLIENTS]>,
    /// How many clients hold back requests that the backend had no room for.
    starved: AtomicUsize,
    refused: AtomicU64,
    /// A job writes to it, or one that is over has requests there that may still be carried out.
    is_target: AtomicBool,
}

/// What outlives a client in its place in the table: where its successor's generations begin, so that a token
/// of the one never names a request of the other.
#[derive(Clone, Copy, Default)]
struct Seat {
    taken: bool,
    next_generation: u64,
}

impl Core {
    pub(super) fn new<B: Backend + 'static>(
        length: u64,
        limits: Limits,
        make: impl FnOnce(Completions) -> Result<B>,
    ) -> Result<Arc<Self>> {
        let mut failure = None;
        let core = Arc::new_cyclic(|core| {
            let backend: Box<dyn Backend> = match make(Completions(Weak::clone(core))) {
                Ok(backend) => Box::new(backend),
                Err(error) => {
                    failure = Some(error);
                    Box::new(Nothing)
                }
            };
            Self {
                backend,
                limits,
                length: AtomicU64::new(length),
                reads_zero: AtomicBool::new(limits.reads_zero),
                clients: [const { ArcSwapOption::const_empty() }; MAX_CLIENTS],
                registry: Mutex::new([Seat::default(); MAX_CLIENTS]),
                starved: AtomicUsize::new(0),
                refused: AtomicU64::new(0),
                is_target: AtomicBool::new(false),
            }
        });
        failure.map_or(Ok(core), Err)
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Takes note that a truncate has succeeded.
    pub(crate) fn set_length(&self, length: u64) {
        self.length.store(length, Ordering::Release);
    }

    pub(super) fn reads_zero(&self) -> bool {
        self.reads_zero.load(Ordering::Acquire)
    }

    pub(super) fn submit(&self, token: Token, request: &Request<'_>, lane: Option<&dyn Lane>) -> Answer {
        debug_assert!(request.range.end() <= self.length() || request.kind == Kind::Truncate);
        self.note_change(request.kind);
        match request.kind {
            Kind::Discard | Kind::Flush if !self.backend.supports(request.kind) => Answer::Done(Ok(())),
            _ => match lane {
                Some(lane) => lane.submit(token, request),
                None => self.backend.submit(token, request),
            },
        }
    }

    /// What is written for the first time ends the promise that all is zero. Only the first store is made: many threads
    /// write.
    fn note_change(&self, kind: Kind) {
        let keeps_zero = match kind {
            Kind::Write | Kind::Copy => false,
            Kind::Discard => self.limits.discard_zeroes,
            _ => true,
        };
        if !keeps_zero && self.reads_zero.load(Ordering::Relaxed) {
            self.reads_zero.store(false, Ordering::Release);
        }
    }

    /// Reserves a place in the table. `EBUSY` if there is none.
    pub(crate) fn reserve(self: &Arc<Self>) -> Result<Place> {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = registry.iter().position(|seat| !seat.taken) else {
            return Err(Error::new(
                Errno::EBUSY,
                format!("the device is used by {MAX_CLIENTS} filters and jobs already: free one first"),
            ));
        };
        Ok(self.take_place(&mut registry[..], index))
    }

    /// Reserves a place if nobody else has one; `None` if somebody has.
    pub(crate) fn reserve_alone(self: &Arc<Self>) -> Option<Place> {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let free = registry.iter().all(|seat| !seat.taken);
        free.then(|| self.take_place(&mut registry[..], 0))
    }

    fn take_place(self: &Arc<Self>, registry: &mut [Seat], index: usize) -> Place {
        registry[index].taken = true;
        Place {
            core: Arc::clone(self),
            index: index as u8,
            base: registry[index].next_generation,
            used: false,
        }
    }

    /// Makes this the target of one job, until the claim is dropped. What an earlier job sent could land over what the
    /// next one writes. `EBUSY` if it is some job's.
    pub(crate) fn claim_as_target(self: &Arc<Self>) -> Result<TargetClaim> {
        if self.is_target.swap(true, Ordering::SeqCst) {
            return Err(Error::new(
                Errno::EBUSY,
                "target: a job writes to it already, or one that is over still has requests there: complete them first",
            ));
        }
        Ok(TargetClaim(Arc::clone(self)))
    }

    /// Takes a client out of the table; its tokens are refused from now on.
    pub(crate) fn unseat(&self, index: u8) {
        let Some(seated) = self.clients[usize::from(index)].swap(None) else {
            return;
        };
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry[usize::from(index)] = Seat { taken: false, next_generation: seated.0.last_generation() + 1 };
    }

    fn client(&self, index: u8) -> Option<Guard<Option<Arc<Seated>>>> {
        Some(self.clients.get(usize::from(index))?.load())
    }

    pub(super) fn complete(&self, token: Token, result: IoResult) -> Result<(), Refused> {
        let followup = match self.client(token.client()).as_deref() {
            Some(Some(seated)) => seated.0.complete(token.slot(), token.generation(), result),
            _ => Err(Refused),
        };
        followup.inspect_err(|_| self.note_refused(token))?.run();
        if self.starved.load(Ordering::SeqCst) > 0 {
            self.kick();
        }
        Ok(())
    }

    pub(super) fn extent(&self, token: Token, extent: Extent) -> Result<bool, Refused> {
        match self.client(token.client()).as_deref() {
            Some(Some(seated)) => seated.0.extent(token.slot(), token.generation(), extent),
            _ => Err(Refused),
        }
        .inspect_err(|_| self.note_refused(token))
    }

    fn note_refused(&self, token: Token) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        log::warn!("blkmirror: completion of {token:?} refused: no such request is out");
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A client began (or ceased) to hold back requests for want of room.
    pub(crate) fn set_starved(&self, starved: bool) {
        if starved {
            self.starved.fetch_add(1, Ordering::SeqCst);
        } else {
            self.starved.fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub(super) fn kick(&self) {
        for client in self.each_client() {
            client.room().run();
        }
    }

    pub(super) fn abandon(&self) {
        for client in self.each_client() {
            client.abandon().into_iter().for_each(Followup::run);
        }
        // Nor will a completion say that there is room: what is held back is offered now, and fails.
        self.kick();
    }

    fn each_client(&self) -> Vec<Arc<dyn Client>> {
        self.clients
            .iter()
            .filter_map(|entry| entry.load().as_ref().map(|seated| Arc::clone(&seated.0)))
            .collect()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.abandon();
        for index in 0..MAX_CLIENTS as u8 {
            self.unseat(index);
        }
    }
}

/// A reserved place in a device's table of clients; given up if it is not taken.
pub(crate) struct Place {
    core: Arc<Core>,
    index: u8,
    base: u64,
    used: bool,
}

impl Place {
    /// The client's number, for its tokens.
    pub(crate) fn client(&self) -> u8 {
        self.index
    }

    /// What the client adds to the generations of its slots, so that its tokens are not those of its predecessor.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Seats the client.
    pub(crate) fn take(mut self, client: Arc<dyn Client>) {
        self.used = true;
        self.core.clients[usize::from(self.index)].store(Some(Arc::new(Seated(client))));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.used {
            let mut registry = self.core.registry.lock().unwrap_or_else(PoisonError::into_inner);
            registry[usize::from(self.index)].taken = false;
        }
    }
}

/// The only job that may write to a device has this.
pub(crate) struct TargetClaim(Arc<Core>);

impl Drop for TargetClaim {
    fn drop(&mut self) {
        self.0.is_target.store(false, Ordering::SeqCst);
    }
}

/// Stands in for a backend that could not be made, until the half-made device is dropped.
struct Nothing;

impl Backend for Nothing {
    fn submit(&self, _: Token, _: &Request<'_>) -> Answer {
        Answer::Done(Err(Errno::ENXIO))
    }
}

/// A backend's way of reporting: works from any thread, and after the device is gone it reports to nobody.
#[derive(Clone)]
pub struct Completions(Weak<Core>);

impl Completions {
    /// As [`Device::complete`](super::Device::complete).
    pub fn complete(&self, token: Token, result: IoResult) -> Result<(), Refused> {
        self.0.upgrade().ok_or(Refused)?.complete(token, result)
    }

    /// As [`Device::extent`](super::Device::extent).
    pub fn extent(&self, token: Token, extent: Extent) -> Result<bool, Refused> {
        self.0.upgrade().ok_or(Refused)?.extent(token, extent)
    }

    /// A handle to the device, `None` once it is being dropped.
    ///
    /// A backend with threads of its own holds one while it touches the buffers of a request: meanwhile the device
    /// isn't dropped, which would cancel the request and give its buffers back.
    #[must_use]
    pub fn device(&self) -> Option<super::Device> {
        self.0.upgrade().map(|core| super::Device { core, lane: None })
    }

    /// As [`Device::kick`](super::Device::kick).
    pub fn kick(&self) {
        if let Some(core) = self.0.upgrade() {
            core.kick();
        }
    }
}

impl fmt::Debug for Completions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completions")
    }
}
