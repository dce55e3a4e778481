//! A simulated disk: a [`Layer`] behind a queue that delays, reorders, refuses and fails.

use super::faults::{Fault, FaultCounts, Faults};
use super::layer::{Discard, Layer};
use super::lent::Lent;
use super::random::Random;
use crate::device::{
    Answer, Backend, Completions, Device, Extent, ExtentFlags, Flags, IoVec, Kind, Limits, Request, Token,
    gather, scatter,
};
use crate::error::{Errno, IoResult, Result};
use crate::range::ByteRange;
use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How a disk behaves for as long as it lives.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Bytes.
    pub length: u64,
    /// What it tells, and enforces.
    pub limits: Limits,
    /// Kinds beyond reads and writes.
    pub supports: Vec<Kind>,
    /// One request in so many is finished inline, 0 for none.
    pub inline_one_in: u64,
    /// One request in so many is completed inside the submission, 0 for none.
    pub early_one_in: u64,
    /// Nanoseconds that a request takes, from the first to below the second.
    pub latency_ns: (u64, u64),
    /// Requests that it has room for; 0 for any number.
    pub depth: usize,
}

/// A request as the disk accepted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it asked for.
    pub kind: Kind,
    /// Where.
    pub range: ByteRange,
    /// How.
    pub flags: Flags,
    /// In how many buffers.
    pub buffers: usize,
}

/// A request that was accepted.
#[derive(Debug)]
struct Pending {
    token: Token,
    kind: Kind,
    range: ByteRange,
    may_unmap: bool,
    iov: Vec<IoVec>,
    due: u64,
    result: IoResult,
    /// The number of what it lends.
    loan: u64,
    /// The disk that it copies from.
    from: Option<Arc<Mutex<State>>>,
    /// Changes that were done before it was submitted: what a flush makes safe.
    changes_before: u64,
}

#[derive(Debug)]
struct State {
    options: DiskOptions,
    layer: Layer,
    pending: Vec<Pending>,
    random: Random,
    faults: Faults,
    now: u64,
    violation: Option<String>,
    /// Chunks of this size must not be in two changes at a time, 0 for no such rule.
    exclusive: u64,
    /// Answers to extents requests are what they should be.
    exact_extents: bool,
    submitted: u64,
    failed: u64,
    refused: u64,
    /// Since they were last asked for; `None`: nothing happened.
    counts: Option<FaultCounts>,
    lent: Lent,
    /// What was accepted since it was last asked for; `None`: nobody has asked to see it.
    seen: Option<Vec<Seen>>,
    /// Tells extents instead of what the disk holds.
    extents_told: Option<fn(ByteRange) -> Vec<Extent>>,
    cancels: u64,
    /// Changes that were done, well or not.
    changes: u64,
    /// Those that a flush has made safe.
    flushed: u64,
    /// Tokens that were answered, the last one first.
    answered: [Option<Token>; STALE],
}

/// Tokens that a disk remembers after it has answered them.
const STALE: usize = 4;

/// A handle to a simulated disk. The [`Device`] is the same disk as the library sees it.
#[derive(Clone, Debug)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    device: Device,
}

struct Simulated {
    state: Arc<Mutex<State>>,
    completions: Completions,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// A disk of zeroes, all hole.
    pub fn new(seed: u64, options: DiskOptions) -> Result<Self> {
        let discard = match options.limits {
            Limits { discard_zeroes: true, .. } => Discard::Zeroes,
            Limits { unattached_backing: true, .. } => Discard::Deallocates,
            _ => Discard::Anything,
        };
        let layer = Layer::flat(options.length, discard);
        Self::with_layer(seed, options, &layer)
    }

    /// A disk that holds this layer, which may be below others, or a disk's, as well. It has the layer's length.
    pub fn with_layer(seed: u64, mut options: DiskOptions, layer: &Layer) -> Result<Self> {
        options.length = layer.length();
        let (length, limits) = (options.length, options.limits);
        let state = Arc::new(Mutex::new(State {
            layer: layer.clone(),
            pending: Vec::new(),
            random: Random::new(seed),
            faults: Faults::default(),
            now: 0,
            violation: None,
            exclusive: 0,
            exact_extents: false,
            submitted: 0,
            failed: 0,
            refused: 0,
            counts: None,
            lent: Lent::default(),
            seen: None,
            extents_told: None,
            cancels: 0,
            changes: 0,
            flushed: 0,
            answered: [None; STALE],
            options,
        }));
        let shared = Arc::clone(&state);
        let device = Device::new(length, limits, |completions| Ok(Simulated { state: shared, completions }))?;
        Ok(Self { state, device })
    }

    /// The disk as a device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it holds, to be looked at and changed directly.
    #[must_use]
    pub fn layer(&self) -> Layer {
        lock(&self.state).layer.clone()
    }

    /// Fills a range, as if it had always held that.
    pub fn fill(&self, offset: u64, bytes: &[u8]) {
        self.layer().write(offset, bytes);
    }

    /// What it holds now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.layer().bytes()
    }

    /// Clusters that are its own, not left to a backing; blocks of 512 bytes for a disk without layers.
    #[must_use]
    pub fn allocated_blocks(&self) -> usize {
        self.layer().allocated_clusters()
    }

    /// Changes what goes wrong.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = lock(&self.state);
        if faults.hold && !state.faults.hold {
            state.count(Fault::Hold);
        }
        state.faults = faults;
    }

    /// What goes wrong now.
    #[must_use]
    pub fn faults(&self) -> Faults {
        lock(&self.state).faults
    }

    /// What it draws from now on is of this seed.
    pub(super) fn reseed(&self, seed: u64) {
        lock(&self.state).random = Random::new(seed);
    }

    /// Memory may not be lent to this disk and to others that share the list.
    pub(super) fn share_memory(&self, lent: &Lent) {
        lock(&self.state).lent = lent.clone();
    }

    /// What went wrong since this was last called, if anything did.
    pub(super) fn take_counts(&self) -> Option<FaultCounts> {
        lock(&self.state).counts.take()
    }

    /// From now on no chunk of this size may be in two changes at a time; 0 for no such rule (SPEC X-1).
    pub fn set_exclusive(&self, chunk: u64) {
        lock(&self.state).exclusive = chunk;
    }

    /// From now on answers to extents requests cover what was asked for, and no more: otherwise some don't (SPEC D-6).
    pub fn set_exact_extents(&self) {
        lock(&self.state).exact_extents = true;
    }

    /// When the next request is due, if any is and none is held.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        let state = lock(&self.state);
        if state.faults.hold { None } else { state.pending.iter().map(|pending| pending.due).min() }
    }

    /// Requests that are out.
    #[must_use]
    pub fn pending(&self) -> usize {
        lock(&self.state).pending.len()
    }

    /// Completes one of the requests that are due, drawn at random. Whether there was one.
    pub fn complete_one(&self, now: u64) -> bool {
        let (token, result) = {
            let mut state = lock(&self.state);
            state.now = now;
            let due: Vec<usize> =
                (0..state.pending.len()).filter(|index| state.pending[*index].due <= now).collect();
            if due.is_empty() || state.faults.hold {
                return false;
            }
            let index = state.random.pick(&due);
            let pending = state.pending.swap_remove(index);
            let result = self.carry_out(&mut state, &pending);
            (pending.token, result)
        };
        self.report(token, result);
        true
    }

    /// Completes the oldest request that is wanted, due or not. Whether there was one.
    pub fn complete_where(&self, wanted: impl Fn(Kind, ByteRange) -> bool) -> bool {
        let (token, result) = {
            let mut state = lock(&self.state);
            let Some(index) = state.pending.iter().position(|pending| wanted(pending.kind, pending.range))
            else {
                return false;
            };
            let pending = state.pending.remove(index);
            let result = self.carry_out(&mut state, &pending);
            (pending.token, result)
        };
        self.report(token, result);
        true
    }

    fn report(&self, token: Token, result: IoResult) {
        if self.device.complete(token, result).is_err() {
            lock(&self.state).refused += 1;
        }
        let again = lock(&self.state).token_to_repeat(token);
        if let Some(again) = again
            && self.device.complete(again, Err(Errno::EIO)).is_ok()
        {
            let text = format!("{again:?} was answered before, and is taken for a request's (D-3)");
            lock(&self.state).violation.get_or_insert(text);
        }
    }

    /// Whether a loss of power would lose nothing of what it has said to have done: always, where it takes no flushes.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        let state = lock(&self.state);
        state.flushed == state.changes || !state.options.supports.contains(&Kind::Flush)
    }

    /// The requests that are out, oldest first.
    #[must_use]
    pub fn out(&self) -> Vec<(Kind, ByteRange)> {
        lock(&self.state).pending.iter().map(|pending| (pending.kind, pending.range)).collect()
    }

    /// The requests that were accepted since this was last called; the first call begins the list.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state).seen.replace(Vec::new()).unwrap_or_default()
    }

    /// From now on this answers extents requests, whatever the disk holds.
    pub fn set_extents(&self, told: fn(ByteRange) -> Vec<Extent>) {
        lock(&self.state).extents_told = Some(told);
    }

    /// How often the disk was asked to hurry because its job is being cancelled.
    #[must_use]
    pub fn cancels(&self) -> u64 {
        lock(&self.state).cancels
    }

    fn carry_out(&self, state: &mut State, pending: &Pending) -> IoResult {
        state.lent.give_back(pending.loan);
        if pending.kind == Kind::Extents {
            for extent in state.extents(pending.range) {
                if self.device.extent(pending.token, extent) != Ok(true) {
                    break;
                }
            }
        }
        state.apply(pending)
    }

    /// The first broken rule that this disk has seen.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        lock(&self.state).violation.clone()
    }

    /// Requests submitted, failed on purpose, and completions that the library refused.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let state = lock(&self.state);
        (state.submitted, state.failed, state.refused)
    }
}

impl State {
    fn extents(&mut self, range: ByteRange) -> Vec<Extent> {
        if let Some(told) = self.extents_told {
            return told(range);
        }
        let mut told = self.layer.extents(range);
        // Sometimes not all of it is told, or more than was asked for (SPEC D-6).
        if self.exact_extents {
            return told;
        }
        if self.random.one_in(8) {
            let keep = self.random.within(0, told.len() as u64) as usize;
            told.truncate(keep);
            self.count(Fault::ShortExtents);
        } else if self.random.one_in(12)
            && let Some(last) = told.last_mut()
        {
            match self.random.within(0, 3) {
                0 => last.length = u64::MAX,
                1 => last.length += 1 << 40,
                _ => {
                    let nothing = Extent { length: 0, ..*last };
                    let at = self.random.within(0, told.len() as u64 + 1) as usize;
                    told.insert(at, nothing);
                }
            }
            self.count(Fault::AbsurdExtents);
        }
        told
    }

    /// This token was answered: it, or one that was answered before and whose place another request may have now, is
    /// to be answered once more.
    fn token_to_repeat(&mut self, token: Token) -> Option<Token> {
        self.answered.rotate_right(1);
        self.answered[0] = Some(token);
        let one_in = self.faults.repeat_one_in;
        if one_in == 0 || !self.random.one_in(one_in) {
            return None;
        }
        let again = self.random.pick(&self.answered);
        if again.is_some() {
            self.count(Fault::Repeated);
        }
        again
    }

    fn count(&mut self, fault: Fault) {
        self.counts.get_or_insert_default().count(fault);
    }

    /// Does what a request asks for; a failed change may have done a part of it, from the beginning.
    fn apply(&mut self, pending: &Pending) -> IoResult {
        let mut length = pending.range.len();
        if pending.result.is_err() {
            length = self.random.within(0, length + 1) / SECTOR_TORN * SECTOR_TORN;
            if !pending.kind.changes_data() {
                return pending.result;
            }
            if length > 0 && length < pending.range.len() {
                self.count(Fault::Torn);
            }
        }
        self.changes += u64::from(pending.kind.changes_data());
        let offset = pending.range.offset();
        let range = ByteRange::between(offset, offset + length);
        match pending.kind {
            Kind::Read => scatter(&pending.iov, 0, &self.layer.read(range)),
            Kind::Write => {
                let mut bytes = vec![0; length as usize];
                gather(&pending.iov, 0, &mut bytes);
                self.layer.write(offset, &bytes);
            }
            Kind::Zero => self.layer.zero(range, pending.may_unmap),
            Kind::Discard => {
                let garbage = self.random.one_in(2);
                self.layer.discard(range, garbage);
            }
            Kind::Copy => {
                let from = pending.from.as_ref().map(|from| lock(from).layer.read(range));
                self.layer.write(offset, &from.unwrap_or_default());
            }
            Kind::Truncate if pending.result.is_ok() => self.layer.truncate(range.end()),
            Kind::Flush => self.flushed = self.flushed.max(pending.changes_before),
            Kind::Truncate | Kind::Extents => {}
        }
        pending.result
    }

    /// A request is made to fail.
    fn fail(&mut self, kind: Kind, errno: Errno) {
        self.failed += 1;
        if let Some(left) = &mut self.faults.most {
            *left -= 1;
        }
        self.count(Fault::of(kind));
        if errno == Errno::ENOSPC {
            self.count(Fault::NoSpace);
        }
    }

    /// Checks that a request keeps to what was told (SPEC D-4, X-1).
    fn check(&self, request: &Request<'_>) -> Result<(), String> {
        let limits = &self.options.limits;
        let length = request.range.len();
        let most = match request.kind {
            Kind::Read | Kind::Write | Kind::Copy => limits.max_transfer,
            Kind::Zero => limits.max_zero,
            Kind::Discard => limits.max_discard,
            _ => u64::MAX,
        };
        let what = format!("{} {:?}", request.kind.name(), request.range);
        if length > most {
            return Err(format!("{what}: longer than {most}"));
        }
        if length == 0 && request.kind != Kind::Flush {
            return Err(format!("{what}: is empty"));
        }
        let disk = self.layer.length();
        if request.kind != Kind::Truncate
            && (request.range.end() > disk || !limits.admits(request.range, disk))
        {
            return Err(format!("{what}: beyond the end or misaligned"));
        }
        if request.kind.changes_data() && limits.read_only {
            return Err(format!("{what}: on a read-only disk"));
        }
        if !matches!(request.kind, Kind::Read | Kind::Write) && !self.options.supports.contains(&request.kind)
        {
            return Err(format!("{what}: is not supported"));
        }
        if matches!(request.kind, Kind::Read | Kind::Write) {
            let mask = limits.memory_alignment as usize - 1;
            if request.iov.len() > limits.max_iov as usize {
                return Err(format!("{what}: {} buffers", request.iov.len()));
            }
            if request.iov.iter().any(|buffer| buffer.base() as usize & mask != 0) {
                return Err(format!("{what}: a buffer is misaligned"));
            }
            if crate::device::total(request.iov) != Some(length) {
                return Err(format!("{what}: the buffers hold {:?}", crate::device::total(request.iov)));
            }
        }
        if self.exclusive > 0 && request.kind.changes_data() {
            let chunks =
                |range: ByteRange| (range.offset() / self.exclusive, (range.end() - 1) / self.exclusive);
            let (first, last) = chunks(request.range);
            let other = self.pending.iter().filter(|other| other.kind.changes_data()).find(|other| {
                let (from, to) = chunks(other.range);
                from <= last && first <= to
            });
            if let Some(other) = other {
                return Err(format!(
                    "{what}: while {} {:?} runs on the same chunk",
                    other.kind.name(),
                    other.range
                ));
            }
        }
        Ok(())
    }
}

/// What a disk writes at once even if it fails in the middle.
const SECTOR_TORN: u64 = 512;

impl Backend for Simulated {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        let mut state = lock(&self.state);
        if let Err(violation) = state.check(request) {
            state.violation.get_or_insert(violation);
        }
        let (depth, faults) = (state.options.depth, state.faults);
        let no_room = depth > 0 && state.pending.len() >= depth;
        // Only while others are out: who has no room says so again when there is some (SPEC D-2).
        let others = !state.pending.is_empty();
        if no_room || others && state.random.one_in(faults.again_one_in) {
            state.count(Fault::Again);
            drop(state);
            if request.kind == Kind::Extents {
                // What is told before that is no part of the answer to come (SPEC D-6).
                let nothing = Extent { length: request.range.len(), flags: ExtentFlags::HOLE };
                let _ = self.completions.extent(token, nothing);
            }
            return Answer::Again;
        }
        state.submitted += 1;
        if faults.panics {
            state.faults.panics = false;
            state.count(Fault::Panic);
            drop(state);
            panic!("a defect in a simulated disk");
        }
        let (kind, range, flags) = (request.kind, request.range, request.flags);
        if let Some(seen) = &mut state.seen {
            seen.push(Seen { kind, range, flags, buffers: request.iov.len() });
        }
        let fails = faults.concern(kind, range) && state.random.one_in(faults.error_one_in);
        let full = faults.full && request.kind.changes_data();
        let usual = if kind == Kind::Copy && state.random.one_in(2) { Errno::EOPNOTSUPP } else { Errno::EIO };
        let errno = faults.errno.unwrap_or(if full { Errno::ENOSPC } else { usual });
        if fails {
            state.fail(kind, errno);
        }
        let (loan, lent) = state.lent.lend(kind, request.iov);
        if let Err(clash) = lent {
            state.violation.get_or_insert(format!("{} {range:?}: {clash} (C-8)", kind.name()));
        }
        let (low, high) = state.options.latency_ns;
        let due = state.now + state.random.within(low, high);
        let pending = Pending {
            token,
            kind: request.kind,
            range: request.range,
            may_unmap: request.flags.may_unmap,
            iov: request.iov.to_vec(),
            due,
            result: if fails { Err(errno) } else { Ok(()) },
            loan,
            from: request.from.and_then(|from| from.backend::<Self>()).map(|from| Arc::clone(&from.state)),
            changes_before: state.changes,
        };
        let (inline, early) = (state.options.inline_one_in, state.options.early_one_in);
        let inline = !faults.hold && state.random.one_in(inline);
        let early = !faults.hold && !inline && state.random.one_in(early);
        if !inline && !early {
            state.pending.push(pending);
            return Answer::Pending;
        }
        state.count(if inline { Fault::Inline } else { Fault::Early });
        let told = if pending.kind == Kind::Extents { state.extents(pending.range) } else { Vec::new() };
        let result = state.apply(&pending);
        state.lent.give_back(loan);
        drop(state);
        for extent in told {
            if self.completions.extent(token, extent) != Ok(true) {
                break;
            }
        }
        if inline {
            return Answer::Done(result);
        }
        if self.completions.complete(token, result).is_err() {
            lock(&self.state).refused += 1;
        }
        Answer::Pending
    }

    fn copies_from(&self, from: &Device) -> bool {
        self.supports(Kind::Copy) && from.backend::<Self>().is_some()
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn cancel(&self) {
        lock(&self.state).cancels += 1;
    }

    fn supports(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Read | Kind::Write) || lock(&self.state).options.supports.contains(&kind)
    }
}
