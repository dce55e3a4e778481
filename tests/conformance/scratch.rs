//! A device to check: honest, in every manner of answering, or with one defect.

use blkmirror::device::{
    Answer, Backend, Completions, Device, Extent, ExtentFlags, IoVec, Kind, Limits, Request, Token, gather,
    scatter,
};
use blkmirror::error::{Errno, IoResult};
use blkmirror::range::ByteRange;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

/// How requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// In the submission.
    Inline,
    /// Completed inside the submission, which answers that it is pending.
    Early,
    /// Completed by another thread.
    Later,
    /// Completed by the poll hook.
    Polled,
    /// Completed by another thread, with room for two; AGAIN beyond.
    Shallow,
    /// AGAIN each other time, and another thread says that there is room.
    Kicked,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    Nothing,
    WriteMissesItsLastByte,
    WriteIsOneByteTooLong,
    DevicesLastByteIsLost,
    OffsetsAreCutTo32Bits,
    ReadsChangeByThemselves,
    ShortReadSucceeds,
    ReadOverrunsItsBuffer,
    WriteChangesItsBuffer,
    PiecesAreReversed,
    AnEmptyPieceEndsTheList,
    LongestWriteIsTorn,
    LongestZeroIsTorn,
    LongestDiscardFails,
    BuffersMustBePages,
    OddLengthsFail,
    ZeroMissesItsTail,
    ZeroIsRoundedOut,
    UnmapDoesNothing,
    DiscardZeroesNeighbours,
    DiscardedIsNotZero,
    IsNotZeroAtFirst,
    ExtentsCallDataAHole,
    ExtentsCallDataUnallocated,
    ExtentsHaveNoLength,
    ExtentsDoNotCover,
    ExtentsReachBeyond,
    ExtentsGoOn,
    ExtentsAfterCompletion,
    CompletesTwice,
    CompletesAndAnswersInline,
    CompletesAndAnswersAgain,
    AnswersInlineAndCompletes,
    LosesACompletion,
    CompletesAnotherToken,
    AgainForEver,
    FlushNeverCompletes,
    FlushFails,
    FlushDropsTheLastWrite,
    FuaWriteIsDropped,
    ReadOnlyIsWritten,
    OverlappingWritesMix,
    SecondThreadIsLost,
    CompanyIsMixedUp,
    CancelDropsTheQueue,
    TruncateLosesTheTail,
}

struct Pending {
    token: Token,
    kind: Kind,
    range: ByteRange,
    may_unmap: bool,
    fua: bool,
    iov: Vec<IoVec>,
}

#[derive(Default)]
struct State {
    pages: HashMap<u64, Vec<u8>>,
    queue: VecDeque<Pending>,
    last: Option<ByteRange>,
    thread: Option<ThreadId>,
    /// What the next write spoils.
    mixed: Option<ByteRange>,
    /// The last submission was refused.
    refuses: bool,
    /// To be completed too late.
    late: Option<Token>,
}

impl State {
    /// Whether this thread is the first that came.
    fn is_of_this_thread(&mut self) -> bool {
        let this = thread::current().id();
        *self.thread.get_or_insert(this) == this
    }
}

struct Scratch {
    state: Mutex<State>,
    completions: Completions,
    length: AtomicU64,
    limits: Limits,
    manner: Manner,
    defect: Defect,
    count: AtomicU64,
}

const PAGE: u64 = 4096;

/// Limits that differ from none in this.
pub(crate) fn limits(set: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    set(&mut limits);
    limits
}

/// Every promise that there is.
pub(crate) fn promises() -> Limits {
    limits(|limits| (limits.reads_zero, limits.discard_zeroes, limits.cheap_zero) = (true, true, true))
}

pub(crate) fn device(length: u64, limits: Limits, manner: Manner, defect: Defect) -> Device {
    let limits = limits.checked().expect("valid limits");
    Device::new(length, limits, |completions| {
        let mut state = State::default();
        if defect == Defect::IsNotZeroAtFirst {
            state.pages.insert(length / PAGE / 2, vec![7; PAGE as usize]);
        }
        let (state, length, count) = (Mutex::new(state), AtomicU64::new(length), AtomicU64::new(0));
        Ok(Host(Arc::new(Scratch { state, completions, length, limits, manner, defect, count })))
    })
    .expect("a device")
}

impl Scratch {
    fn is(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    fn place(&self, offset: u64) -> u64 {
        if self.is(Defect::OffsetsAreCutTo32Bits) { u64::from(offset as u32) } else { offset }
    }

    fn load(&self, state: &State, range: ByteRange) -> Vec<u8> {
        let mut bytes = vec![0; range.len() as usize];
        self.each_page(range, |page, within, at| {
            if let Some(page) = state.pages.get(&page) {
                bytes[at..at + within.len()].copy_from_slice(&page[within]);
            }
        });
        bytes
    }

    fn store(&self, state: &mut State, range: ByteRange, bytes: &[u8]) {
        self.each_page(range, |page, within, at| {
            let page = state.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize]);
            page[within.clone()].copy_from_slice(&bytes[at..at + within.len()]);
        });
    }

    fn clear(&self, state: &mut State, range: ByteRange, unmap: bool) {
        self.each_page(range, |page, within, _| {
            if unmap && within.len() as u64 == PAGE {
                state.pages.remove(&page);
            } else if let Some(page) = state.pages.get_mut(&page) {
                page[within].fill(0);
            }
        });
    }

    fn each_page(&self, range: ByteRange, mut visit: impl FnMut(u64, std::ops::Range<usize>, usize)) {
        let mut at = range.offset();
        while at < range.end() {
            let end = range.end().min((at / PAGE + 1) * PAGE);
            let place = self.place(at);
            let start = (place % PAGE) as usize;
            visit(place / PAGE, start..start + (end - at) as usize, (at - range.offset()) as usize);
            at = end;
        }
    }

    fn carry_out(&self, pending: &Pending) -> IoResult {
        if self.is(Defect::OddLengthsFail) && !pending.range.len().is_multiple_of(512) {
            return Err(Errno::EINVAL);
        }
        match pending.kind {
            Kind::Read => self.read(pending),
            Kind::Write => return self.write(pending),
            Kind::Zero => self.zero(pending),
            Kind::Discard => return self.discard(pending),
            Kind::Flush if self.is(Defect::FlushFails) => return Err(Errno::EIO),
            Kind::Flush if self.is(Defect::FlushDropsTheLastWrite) => {
                let mut state = self.lock();
                if let Some(last) = state.last {
                    self.clear(&mut state, last, false);
                }
            }
            Kind::Flush => {}
            Kind::Extents => self.extents(pending),
            Kind::Truncate => self.truncate(pending.range.end()),
            Kind::Copy => return Err(Errno::EOPNOTSUPP),
        }
        Ok(())
    }

    fn read(&self, pending: &Pending) {
        let state = self.lock();
        let mut range = pending.range;
        // The offset of another request that is out.
        if self.is(Defect::CompanyIsMixedUp)
            && state.queue.len() > 4
            && let Some(other) =
                state.queue.iter().find(|other| other.kind == Kind::Read && other.range.len() == range.len())
        {
            range = other.range;
        }
        let mut bytes = self.load(&state, range);
        if self.is(Defect::ReadsChangeByThemselves) {
            bytes[0] ^= self.count.load(Ordering::Relaxed) as u8;
        }
        if self.is(Defect::ShortReadSucceeds) && bytes.len() > 512 {
            bytes.truncate(bytes.len() / 2);
        }
        scatter(&self.list(pending), 0, &bytes);
        if self.is(Defect::ReadOverrunsItsBuffer)
            && let Some(last) = pending.iov.last()
        {
            // SAFETY: the check keeps guards around its buffers, so this lies in its memory.
            let beyond = unsafe { IoVec::new(last.base().cast::<u8>().add(last.len()).cast(), 1) };
            scatter(&[beyond], 0, &[0]);
        }
    }

    fn write(&self, pending: &Pending) -> IoResult {
        let range = pending.range;
        let mut bytes = vec![0; range.len() as usize];
        gather(&self.list(pending), 0, &mut bytes);
        if self.is(Defect::WriteChangesItsBuffer) {
            scatter(&pending.iov, 0, &[0]);
        }
        if self.is(Defect::FuaWriteIsDropped) && pending.fua {
            return Ok(());
        }
        let mut state = self.lock();
        let mut end = range.end();
        match self.defect {
            Defect::WriteMissesItsLastByte => end -= 1,
            Defect::DevicesLastByteIsLost => end = end.min(self.length.load(Ordering::Relaxed) - 1),
            Defect::LongestWriteIsTorn if range.len() == self.limits.max_transfer => end -= range.len() / 2,
            Defect::WriteIsOneByteTooLong if end < self.length.load(Ordering::Relaxed) => {
                end += 1;
                bytes.push(0);
            }
            Defect::OverlappingWritesMix => {
                if let Some(both) = state.mixed.take().map(|both: ByteRange| both.intersection(range)) {
                    let start = (both.offset().max(range.offset()) - range.offset()) as usize;
                    bytes[start..start + both.len() as usize].fill(0);
                }
                let other =
                    state.queue.iter().find(|other| other.kind == Kind::Write && other.range.overlaps(range));
                state.mixed = other.map(|other| other.range.intersection(range));
            }
            Defect::SecondThreadIsLost if !state.is_of_this_thread() => return Ok(()),
            _ => {}
        }
        let stored = ByteRange::between(range.offset(), end);
        self.store(&mut state, stored, &bytes[..stored.len() as usize]);
        state.last = Some(range);
        Ok(())
    }

    fn zero(&self, pending: &Pending) {
        let Pending { range, may_unmap, .. } = *pending;
        let length = self.length.load(Ordering::Relaxed);
        let range = match self.defect {
            Defect::UnmapDoesNothing if may_unmap => return,
            Defect::ZeroMissesItsTail => {
                ByteRange::between(range.offset(), range.end() - range.len().min(512) / 2 - 1)
            }
            Defect::LongestZeroIsTorn if range.len() == self.limits.max_zero => {
                ByteRange::between(range.offset(), range.end() - 1)
            }
            Defect::ZeroIsRoundedOut => rounded_out(range, length),
            _ => range,
        };
        self.clear(&mut self.lock(), range, may_unmap);
    }

    fn discard(&self, pending: &Pending) -> IoResult {
        let range = pending.range;
        let length = self.length.load(Ordering::Relaxed);
        match self.defect {
            Defect::LongestDiscardFails if range.len() == self.limits.max_discard => {
                return Err(Errno::EINVAL);
            }
            Defect::DiscardedIsNotZero => {}
            Defect::DiscardZeroesNeighbours => self.clear(&mut self.lock(), rounded_out(range, length), true),
            _ if self.limits.discard_zeroes => self.clear(&mut self.lock(), range, true),
            // Promised to nobody.
            _ => self.store(&mut self.lock(), range, &vec![0xdd; range.len() as usize]),
        }
        Ok(())
    }

    fn extents(&self, pending: &Pending) {
        let range = pending.range;
        let mut told = Vec::new();
        {
            let state = self.lock();
            self.each_page(range, |page, within, _| {
                let mut flags =
                    if state.pages.contains_key(&page) { ExtentFlags::DATA } else { ExtentFlags::HOLE };
                match self.defect {
                    Defect::ExtentsCallDataAHole if page % 8 == 3 => flags = ExtentFlags::HOLE,
                    Defect::ExtentsCallDataUnallocated if page % 8 == 3 => flags = ExtentFlags::UNALLOCATED,
                    _ => {}
                }
                told.push(Extent { length: within.len() as u64, flags });
            });
        }
        match self.defect {
            Defect::ExtentsHaveNoLength => told.insert(0, Extent { length: 0, flags: ExtentFlags::DATA }),
            Defect::ExtentsDoNotCover => drop(told.pop()),
            Defect::ExtentsReachBeyond => told.push(Extent { length: 1 << 40, flags: ExtentFlags::DATA }),
            _ => {}
        }
        for extent in told {
            let more = self.completions.extent(pending.token, extent);
            if more != Ok(true) && !self.is(Defect::ExtentsGoOn) {
                break;
            }
        }
    }

    fn truncate(&self, length: u64) {
        let before = self.length.swap(length, Ordering::Relaxed);
        if self.is(Defect::TruncateLosesTheTail) {
            let tail = ByteRange::between(before.min(length).saturating_sub(100), before.min(length));
            self.clear(&mut self.lock(), tail, false);
        }
    }

    /// The buffers, as this device understands them.
    fn list(&self, pending: &Pending) -> Vec<IoVec> {
        let mut list = pending.iov.clone();
        match self.defect {
            Defect::PiecesAreReversed => list.reverse(),
            Defect::AnEmptyPieceEndsTheList => {
                list.truncate(list.iter().position(IoVec::is_empty).unwrap_or(list.len()));
            }
            _ => {}
        }
        list
    }

    /// Carries out and completes, with what goes wrong there.
    fn finish(&self, pending: &Pending) {
        let result = self.carry_out(pending);
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        match self.defect {
            Defect::LosesACompletion if count == 100 => return,
            Defect::FlushNeverCompletes if pending.kind == Kind::Flush => return,
            Defect::CompletesAnotherToken if count % 64 == 50 => {
                let other = Token::from_raw(pending.token.raw() ^ 0xff);
                let _ = self.completions.complete(other, result);
                return;
            }
            _ => {}
        }
        let _ = self.completions.complete(pending.token, result);
        match self.defect {
            Defect::CompletesTwice if count % 64 == 50 => {
                let _ = self.completions.complete(pending.token, result);
            }
            Defect::ExtentsAfterCompletion if pending.kind == Kind::Extents => {
                let extent = Extent { length: 512, flags: ExtentFlags::DATA };
                let _ = self.completions.extent(pending.token, extent);
            }
            _ => {}
        }
    }

    fn finish_all(&self) {
        loop {
            let Some(next) = self.lock().queue.pop_front() else { return };
            self.finish(&next);
        }
    }
}

/// The device's hold on its scratch space, which threads of its own share.
struct Host(Arc<Scratch>);

impl Host {
    /// Does something in another thread, which keeps the device meanwhile, and with it the buffers of requests.
    fn elsewhere(&self, work: impl FnOnce(&Scratch) + Send + 'static) {
        let (scratch, device) = (Arc::clone(&self.0), self.0.completions.device());
        thread::spawn(move || {
            work(&scratch);
            drop(device);
        });
    }

    fn has_room(&self) -> bool {
        let mut state = self.0.lock();
        match self.0.manner {
            Manner::Shallow => state.queue.len() < 2,
            Manner::Kicked => {
                state.refuses = !state.refuses;
                !state.refuses
            }
            _ => true,
        }
    }

    fn answer_oddly(&self, pending: &Pending) -> Option<Answer> {
        let scratch = &*self.0;
        let count = scratch.count.load(Ordering::Relaxed);
        let late = scratch.lock().late.take();
        if let Some(late) = late {
            let _ = scratch.completions.complete(late, Ok(()));
        }
        match scratch.defect {
            Defect::AgainForEver if count > 60 => return Some(Answer::Again),
            Defect::BuffersMustBePages
                if pending.iov.iter().any(|piece| !piece.base().addr().is_multiple_of(4096)) =>
            {
                return Some(Answer::Done(Err(Errno::EINVAL)));
            }
            _ => {}
        }
        if count % 64 != 50 {
            return None;
        }
        let both = |answer| {
            let result = scratch.carry_out(pending);
            scratch.count.fetch_add(1, Ordering::Relaxed);
            let _ = scratch.completions.complete(pending.token, result);
            Some(answer)
        };
        match scratch.defect {
            Defect::CompletesAndAnswersInline => both(Answer::Done(Ok(()))),
            Defect::CompletesAndAnswersAgain => both(Answer::Again),
            Defect::AnswersInlineAndCompletes => {
                scratch.count.fetch_add(1, Ordering::Relaxed);
                scratch.lock().late = Some(pending.token);
                Some(Answer::Done(scratch.carry_out(pending)))
            }
            _ => None,
        }
    }
}

impl Backend for Host {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        let scratch = &*self.0;
        let changes = request.kind.changes_data() || request.kind == Kind::Truncate;
        if scratch.limits.read_only && changes && !scratch.is(Defect::ReadOnlyIsWritten) {
            return Answer::Done(Err(Errno::EROFS));
        }
        if !self.has_room() {
            if request.kind == Kind::Extents {
                // Told, and then told again once there is room.
                let extent = Extent { length: request.range.len(), flags: ExtentFlags::DATA };
                let _ = scratch.completions.extent(token, extent);
            }
            if scratch.manner == Manner::Kicked {
                self.elsewhere(|scratch| scratch.completions.kick());
            }
            return Answer::Again;
        }
        let pending = Pending {
            token,
            kind: request.kind,
            range: request.range,
            may_unmap: request.flags.may_unmap,
            fua: request.flags.fua,
            iov: request.iov.to_vec(),
        };
        if let Some(answer) = self.answer_oddly(&pending) {
            return answer;
        }
        match scratch.manner {
            Manner::Inline => {
                scratch.count.fetch_add(1, Ordering::Relaxed);
                return Answer::Done(scratch.carry_out(&pending));
            }
            Manner::Early => scratch.finish(&pending),
            _ => scratch.lock().queue.push_back(pending),
        }
        if matches!(scratch.manner, Manner::Later | Manner::Shallow | Manner::Kicked) {
            self.elsewhere(Scratch::finish_all);
        }
        Answer::Pending
    }

    fn supports(&self, _: Kind) -> bool {
        true
    }

    fn poll(&self) {
        if self.0.manner == Manner::Polled {
            self.0.finish_all();
        }
    }

    fn cancel(&self) {
        if self.0.is(Defect::CancelDropsTheQueue) {
            self.0.lock().queue.clear();
        }
    }
}

fn rounded_out(range: ByteRange, length: u64) -> ByteRange {
    ByteRange::between(range.offset() / 512 * 512, range.end().next_multiple_of(512).min(length))
}
