//! The engine of a file device on Linux: a ring, through which the kernel carries out requests by itself.
//!
//! **Who sends.** A request of a guest is sent from the call that brings it, at once. Several threads may be in that call:
//! what one has queued, the next sends along. A job has a ring of its own, its *lane*, and sends all that a round of its
//! driver has queued in one call.
//!
//! **Who reaps.** Whoever has sent takes what was finished meanwhile, as is what the page cache holds. For what is left a
//! thread, the *reaper*, sleeps in the kernel; one for each ring, started when there is something to wait for. A lane that
//! is attended needs none: its user watches the ring's descriptor.
//!
//! **Whose the memory is.** An operation stays in its slot, and its list of buffers with it, until the kernel has
//! answered. As long as anything is in flight the ring keeps the device, so that nobody fails the requests and gives
//! their buffers back.
//!
//! **What a ring can't do** (what is more than one system call, what has none that the kernel does for others, what it
//! refuses) is handed to the device's threads. So is what the kernel gives up because the thread that had sent it has
//! ended.

mod ring;

use super::call::Next;
use super::storage::{Operation, Storage};
use super::workers::{Workers, is_worker, start_thread};
use crate::device::{Answer, Completions, Device, IoVec, Kind, Lane, Request, Token};
use crate::error::{Errno, IoResult};
use ring::{MOST_IN_FLIGHT, Queues, Registered, Ring};
use std::cell::Cell;
use std::fmt;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Lists of buffers that are kept for reuse.
const MAX_SPARE_LISTS: usize = 64;

thread_local! {
    static COMPLETING: Cell<bool> = const { Cell::new(false) };
}

/// A ring and what is in flight in it.
pub(super) struct Uring {
    shared: Arc<Shared>,
}

struct Shared {
    ring: Ring,
    parts: Parts,
    state: Mutex<State>,
    /// There is something for the reaper.
    bell: Condvar,
    role: Role,
    leavers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// Whose ring it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Everybody's. It is dropped with the device, and waits for all reapers.
    Common,
    /// One user's, who may be about to go on with work that a reaper waits for. It leaves its reaper to the common one.
    Lane,
}

/// What the rings of a device share.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) storage: Arc<Storage>,
    pub(super) workers: Arc<Workers>,
    pub(super) completions: Completions,
    pub(super) read_only: bool,
}

struct State {
    queues: Queues,
    /// By the name that the kernel knows them by.
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    /// While anything is in flight.
    keeper: Option<Device>,
    attended: bool,
    reaper: Option<JoinHandle<()>>,
    /// The reaper waits for the bell, not for the kernel.
    reaper_idles: bool,
    closed: bool,
    memory: Memory,
    // Kept so that nothing is allocated in the steady state.
    finished: Vec<(Token, IoResult)>,
    spare_lists: Vec<Vec<IoVec>>,
}

struct InFlight {
    token: Token,
    operation: Operation,
    /// It may be given up.
    cancelled: bool,
}

/// The memory that the ring's user copies through.
#[derive(Clone, Copy, Debug)]
enum Memory {
    /// None, or none that is worth telling the kernel of.
    Any,
    /// It is registered once all of it has been used, not before: a job that has nothing to do shouldn't make the kernel
    /// provide its buffers.
    Fresh {
        memory: IoVec,
        unused: u64,
    },
    Registered(Registered),
}

impl Uring {
    /// A ring for what everybody submits; where there is none, the reason.
    pub(super) fn new(parts: Parts) -> std::io::Result<Self> {
        Self::make(parts, Memory::Any, Role::Common, Arc::default())
    }

    /// A ring for one user, most of whose buffers are in `memory`.
    pub(super) fn lane(&self, memory: IoVec) -> std::io::Result<Self> {
        let storage = &self.shared.parts.storage;
        // What is copied by the processor gains nothing.
        let worth_it = storage.direct.is_some() && !storage.in_memory && !memory.is_empty();
        let memory =
            if worth_it { Memory::Fresh { memory, unused: memory.len() as u64 } } else { Memory::Any };
        Self::make(self.shared.parts.clone(), memory, Role::Lane, Arc::clone(&self.shared.leavers))
    }

    fn make(
        parts: Parts,
        memory: Memory,
        role: Role,
        leavers: Arc<Mutex<Vec<JoinHandle<()>>>>,
    ) -> std::io::Result<Self> {
        let (ring, queues) = Ring::new(&parts.storage)?;
        let state = State {
            queues,
            slots: Vec::new(),
            free: Vec::new(),
            keeper: None,
            attended: false,
            reaper: None,
            reaper_idles: false,
            closed: false,
            memory,
            finished: Vec::new(),
            spare_lists: Vec::new(),
        };
        let (state, bell) = (Mutex::new(state), Condvar::new());
        Ok(Self { shared: Arc::new(Shared { ring, parts, state, bell, role, leavers }) })
    }

    /// Takes a request and begins with it.
    pub(super) fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        let answer = self.shared.queue(token, request);
        if answer == Answer::Pending {
            self.shared.send();
            // In a completion's callback the next completion waits for the end of this one, or callbacks would pile up.
            if !COMPLETING.try_with(Cell::get).unwrap_or(true) {
                self.shared.reap(Who::User);
            }
            self.shared.call_reaper();
        }
        answer
    }
}

impl Lane for Uring {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        self.shared.queue(token, request)
    }

    fn send(&self) {
        self.shared.send();
        self.shared.call_reaper();
    }

    fn reap(&self) {
        self.shared.reap(Who::User);
    }

    fn cancel(&self) {
        let mut state = self.shared.lock();
        state.slots.iter_mut().flatten().for_each(|in_flight| in_flight.cancelled = true);
        self.shared.ring.queue_cancel(&mut state.queues);
        drop(state);
        self.shared.send();
    }

    fn descriptor(&self) -> Option<i32> {
        Some(self.shared.ring.descriptor())
    }

    fn set_attended(&self, attended: bool) {
        self.shared.lock().attended = attended;
        self.shared.call_reaper();
    }
}

impl Drop for Uring {
    /// The reaper ends when nothing is in flight, and then the kernel lets go of the file. That is waited for when the
    /// device is dropped; but a thread of a file device doesn't wait for others, since they may be waiting for it.
    fn drop(&mut self) {
        let shared = &self.shared;
        let mut state = shared.lock();
        state.closed = true;
        state.attended = false;
        let is_idle = state.is_idle();
        let waits_in_kernel = state.reaper.is_some() && !state.reaper_idles;
        if waits_in_kernel {
            shared.ring.queue_wakeup(&mut state.queues);
        }
        drop(state);
        if waits_in_kernel {
            shared.send();
        }
        shared.bell.notify_all();
        if !is_idle {
            shared.call_reaper();
        }
        let reaper = shared.lock().reaper.take();
        if reaper.is_none() {
            shared.ring.let_go();
        }
        let leavers = {
            let mut leavers = shared.leavers.lock().unwrap_or_else(PoisonError::into_inner);
            leavers.retain(|leaver| !leaver.is_finished());
            leavers.extend(reaper);
            if shared.role == Role::Lane || is_worker() {
                return;
            }
            mem::take(&mut *leavers)
        };
        for leaver in leavers {
            // If it panicked, the panic has been told, and there is nothing to add.
            let _ = leaver.join();
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").finish_non_exhaustive()
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts it into a slot, and says which.
    fn keep(&mut self, in_flight: InFlight) -> u32 {
        let name = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[name as usize] = Some(in_flight);
        name
    }
}

/// Who looks for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Whoever has sent something.
    User,
    Reaper,
}

/// What was found in the queue of completions.
#[derive(Default)]
struct Found {
    finished: Vec<(Token, IoResult)>,
    to_carry_out: Vec<(Token, Operation)>,
    to_send: bool,
    keeper: Option<Device>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request for the kernel, or for a thread.
    fn queue(&self, token: Token, request: &Request<'_>) -> Answer {
        if self.parts.read_only && (request.kind.changes_data() || request.kind == Kind::Truncate) {
            return Answer::Done(Err(Errno::EROFS));
        }
        let mut state = self.lock();
        if state.in_flight() >= MOST_IN_FLIGHT as usize {
            return Answer::Again;
        }
        let list = state.spare_lists.pop().unwrap_or_default();
        let operation = Operation::new(request, list);
        if self.parts.storage.next_call(&operation).is_none() {
            drop(state);
            return match self.parts.workers.take(token, operation) {
                Ok(()) => Answer::Pending,
                Err(errno) => Answer::Done(Err(errno)),
            };
        }
        if state.keeper.is_none() {
            let Some(device) = self.parts.completions.device() else {
                return Answer::Done(Err(Errno::ECANCELED));
            };
            state.keeper = Some(device);
        }
        let name = state.keep(InFlight { token, operation, cancelled: false });
        self.queue_call(&mut state, name);
        Answer::Pending
    }

    /// Queues the next call of the operation in this slot. Whether there is one.
    fn queue_call(&self, state: &mut State, name: u32) -> bool {
        let State { queues, slots, memory, .. } = state;
        let Some(in_flight) = &slots[name as usize] else { return false };
        let Some(call) = self.parts.storage.next_call(&in_flight.operation) else { return false };
        let registered = memory.use_for(&in_flight.operation, &self.ring);
        // SAFETY: the operation stays in its slot, and the list on the heap, until the kernel has answered; the memory
        // that it names is lent by the request until it is completed, which isn't before.
        unsafe { self.ring.queue(queues, name, call, &in_flight.operation, registered) };
        true
    }

    /// Has the kernel begin with all that is queued.
    fn send(&self) {
        loop {
            self.ring.send();
            if !self.ring.has_unsent(&mut self.lock().queues) {
                return;
            }
        }
    }

    /// Takes what is finished and tells whoever has asked for it, until there is no more.
    fn reap(&self, who: Who) {
        loop {
            let mut state = self.lock();
            // What the reaper has waited for may have become the user's affair meanwhile.
            if who == Who::Reaper && state.attended {
                return;
            }
            let mut found = Found { finished: mem::take(&mut state.finished), ..Found::default() };
            if !self.take_completions(&mut state, &mut found) {
                state.finished = found.finished;
                return;
            }
            drop(state);
            if found.to_send {
                self.send();
            }
            self.tell(found);
        }
    }

    fn take_completions(&self, state: &mut State, found: &mut Found) -> bool {
        // The queue of completions first, as a whole: what follows from one may need the other queue.
        let State { queues, slots, free, .. } = state;
        let storage = &self.parts.storage;
        let mut again = Vec::new();
        let any = self.ring.take(queues, |name, answer| {
            let Some(in_flight) = &mut slots[name as usize] else {
                debug_assert!(false, "an answer to what is not in flight");
                return;
            };
            let next = match storage.settle(&mut in_flight.operation, answer) {
                Next::CarryOut if in_flight.cancelled && answer == -libc::ECANCELED => {
                    Next::Done(Err(Errno::ECANCELED))
                }
                next => next,
            };
            if next == Next::Call {
                again.push(name);
                return;
            }
            let Some(InFlight { token, operation, .. }) = slots[name as usize].take() else { return };
            free.push(name);
            match next {
                Next::Done(result) => {
                    found.finished.push((token, result));
                    if state.spare_lists.len() < MAX_SPARE_LISTS {
                        state.spare_lists.push(operation.into_list());
                    }
                }
                Next::Call | Next::CarryOut => found.to_carry_out.push((token, operation)),
            }
        });
        for name in again {
            if self.queue_call(state, name) {
                found.to_send = true;
            } else if let Some(InFlight { token, operation, .. }) = state.slots[name as usize].take() {
                state.free.push(name);
                found.to_carry_out.push((token, operation));
            }
        }
        if state.is_idle() {
            found.keeper = state.keeper.take();
        }
        any
    }

    /// Completes requests. No lock is held, since this calls the host.
    fn tell(&self, found: Found) {
        let Found { mut finished, to_carry_out, keeper, .. } = found;
        let _completing = Completing::begin();
        for (token, operation) in to_carry_out {
            if let Err(errno) = self.parts.workers.take(token, operation) {
                finished.push((token, Err(errno)));
            }
        }
        if let Some(device) = self.parts.completions.device() {
            for (token, result) in finished.drain(..) {
                // A request that was given up meanwhile needs no answer.
                let _ = device.complete(token, result);
            }
        }
        finished.clear();
        self.lock().finished = finished;
        // Perhaps the last handle of the device.
        drop(keeper);
    }

    /// Sees to it that somebody waits for what is in flight.
    fn call_reaper(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.is_idle() || state.attended {
            return;
        }
        if state.reaper.is_some() {
            if state.reaper_idles {
                self.bell.notify_one();
            }
            return;
        }
        let shared = Arc::clone(self);
        match start_thread(move || shared.reap_for_ever()) {
            Ok(thread) => state.reaper = Some(thread),
            Err(error) => {
                log::error!("blkmirror: no thread for a file device can be started: {error}");
                drop(state);
                // Then it is this one that waits.
                while !self.lock().is_idle() {
                    self.ring.wait();
                    self.reap(Who::User);
                }
            }
        }
    }

    /// What the reaper does.
    fn reap_for_ever(&self) {
        loop {
            let mut state = self.lock();
            while state.is_idle() || state.attended {
                if state.closed {
                    drop(state);
                    self.ring.let_go();
                    return;
                }
                state.reaper_idles = true;
                state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.reaper_idles = false;
            }
            drop(state);
            self.ring.wait();
            self.reap(Who::Reaper);
        }
    }
}

impl Memory {
    /// What is known of the buffers of this operation.
    fn use_for(&mut self, operation: &Operation, ring: &Ring) -> Option<&Registered> {
        if let Self::Fresh { memory, unused } = self {
            if matches!(operation.kind, Kind::Read | Kind::Write) {
                *unused = unused.saturating_sub(operation.range.len());
            }
            if *unused == 0 {
                // SAFETY: the lane's user keeps the memory for as long as it uses the lane.
                *self = unsafe { ring.register(*memory) }.map_or(Self::Any, Self::Registered);
            }
        }
        match self {
            Self::Registered(registered) => Some(registered),
            Self::Any | Self::Fresh { .. } => None,
        }
    }
}

/// This thread is completing requests, until dropped.
struct Completing {
    before: bool,
}

impl Completing {
    fn begin() -> Self {
        Self { before: COMPLETING.try_with(|completing| completing.replace(true)).unwrap_or(true) }
    }
}

impl Drop for Completing {
    fn drop(&mut self) {
        let _ = COMPLETING.try_with(|completing| completing.set(self.before));
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
