//! The check's seat at the device: its requests by slot, what became of each, and completions that should not have come.
//!
//! A slot keeps the memory of its request until that is completed. When the check is over and requests are still out, the
//! seat stays at the device with their memory, and leaves with the last completion or with the device.

use super::Asked;
use super::memory::Lent;
use super::room;
use crate::device::{Client, DeviceCore, Extent, Followup, Refused, SlotState, Wake};
use crate::error::{self, Errno, IoResult};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Requests of the check that can be out, those that are never answered included.
pub(super) const SLOTS: usize = 512;
/// Most extents that one answer may have.
pub(super) const MOST_EXTENTS: usize = 4096;
/// Most wrong completions that are kept until somebody looks.
const MOST_ODD: usize = 64;

/// How a request was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// By the answer to its submission.
    Inline,
    /// By a completion.
    Completed,
    /// It was not taken.
    Again,
}

/// A completion that should not have come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Odd {
    /// A second completion of a request that was completed.
    Twice(Asked),
    /// A completion of a request that was answered inline, or the other way round.
    InlineToo(Asked),
    /// A completion of a request that was not taken, or the other way round.
    AgainToo(Asked),
    /// Of a token that is not out.
    Unknown,
    /// Extents of a token that is not out.
    UnknownExtent,
}

struct Slot {
    state: SlotState,
    work: Mutex<Work>,
}

#[derive(Default)]
struct Work {
    taken: bool,
    /// What the current use asked for, or the last.
    asked: Option<Asked>,
    generation: u64,
    ended: Option<How>,
    lent: Option<Lent>,
    reply: Reply,
    result: Option<IoResult>,
}

/// What was told for an extents request.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) extents: Vec<Extent>,
    /// Told with no length; they count for nothing else.
    pub(super) empty: usize,
    /// Answered with "enough" from this many on.
    pub(super) enough: usize,
    /// Told after that.
    pub(super) too_many: usize,
    /// There was no memory for all of them.
    pub(super) is_cut: bool,
}

/// What became of a request that was completed.
pub(super) struct Ended {
    pub(super) result: IoResult,
    pub(super) lent: Option<Lent>,
    pub(super) reply: Reply,
}

#[derive(Default)]
struct News {
    /// Completions, and times that the device said that there may be room.
    count: u64,
    open: usize,
    odd: Vec<Odd>,
    /// How many were noted, all of them.
    refused: u64,
    /// The check is over: the last completion unseats.
    over: bool,
}

pub(super) struct Seat {
    slots: Box<[Slot]>,
    /// Where to look for a free slot: each is used again as late as may be, so that a late completion still finds what it
    /// was for.
    next: AtomicUsize,
    news: Mutex<News>,
    changed: Condvar,
    exit: Arc<Exit>,
}

/// How the seat is given up, which no completion may do while it holds a protection.
struct Exit {
    core: Weak<DeviceCore>,
    index: u8,
    /// The place may be somebody else's by the time that a second one comes here.
    left: AtomicBool,
}

impl Wake for Exit {
    fn wake(&self) {
        if !self.left.swap(true, Ordering::AcqRel)
            && let Some(core) = self.core.upgrade()
        {
            core.unseat(self.index);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seat {
    pub(super) fn new(core: &Arc<DeviceCore>, index: u8, base: u64) -> error::Result<Self> {
        let mut slots = room::with_capacity(SLOTS)?;
        slots.resize_with(SLOTS, || Slot { state: SlotState::new(base), work: Mutex::default() });
        Ok(Self {
            slots: slots.into_boxed_slice(),
            next: AtomicUsize::new(0),
            news: Mutex::default(),
            changed: Condvar::new(),
            exit: Arc::new(Exit { core: Arc::downgrade(core), index, left: AtomicBool::new(false) }),
        })
    }

    /// Takes a slot for a request; `None` if all are taken.
    pub(super) fn take(&self, asked: Asked, lent: Option<Lent>, enough: usize) -> Option<u16> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        for index in (first..first + SLOTS).map(|index| index % SLOTS) {
            let mut work = lock(&self.slots[index].work);
            if !work.taken {
                work.taken = true;
                work.asked = Some(asked);
                work.lent = lent;
                work.reply = Reply { enough, ..Reply::default() };
                return Some(index as u16);
            }
        }
        None
    }

    /// Opens the slot for its request; the generation is for the token.
    pub(super) fn open(&self, slot: u16) -> u64 {
        let slot = &self.slots[usize::from(slot)];
        let mut work = lock(&slot.work);
        work.ended = None;
        work.result = None;
        // What was told before an AGAIN is told again.
        work.reply = Reply { enough: work.reply.enough, ..Reply::default() };
        work.generation = slot.state.open();
        lock(&self.news).open += 1;
        work.generation
    }

    /// The submission was answered with an outcome. A completion that came before counts, and is odd.
    pub(super) fn answered(&self, slot: u16, generation: u64, result: IoResult) {
        let slot = &self.slots[usize::from(slot)];
        let mut work = lock(&slot.work);
        if slot.state.claim(generation) {
            self.close(&mut work, How::Inline, Some(result));
            self.announce();
        } else if let Some(asked) = work.asked {
            self.note(Odd::InlineToo(asked), false);
        }
    }

    /// The submission was answered with AGAIN: whether the request is still to be sent. A completion that came before
    /// counts, and is odd.
    pub(super) fn not_taken(&self, slot: u16, generation: u64) -> bool {
        let slot = &self.slots[usize::from(slot)];
        let mut work = lock(&slot.work);
        if slot.state.claim(generation) {
            self.close(&mut work, How::Again, None);
            return true;
        }
        if let Some(asked) = work.asked {
            self.note(Odd::AgainToo(asked), false);
        }
        false
    }

    /// What became of the request, if it is done; the slot is free then.
    pub(super) fn take_ended(&self, slot: u16) -> Option<Ended> {
        let mut work = lock(&self.slots[usize::from(slot)].work);
        let result = work.result.take()?;
        work.taken = false;
        Some(Ended { result, lent: work.lent.take(), reply: std::mem::take(&mut work.reply) })
    }

    /// Frees the slot of a request that was not taken.
    pub(super) fn give_back(&self, slot: u16) {
        let mut work = lock(&self.slots[usize::from(slot)].work);
        work.taken = false;
        work.lent = None;
    }

    /// How much news there was so far.
    pub(super) fn news(&self) -> u64 {
        lock(&self.news).count
    }

    /// Waits for a moment, or until there is more news than `seen`. How much there is.
    pub(super) fn wait(&self, seen: u64, moment: Duration) -> u64 {
        let news = lock(&self.news);
        if cfg!(target_family = "wasm") {
            return news.count;
        }
        let waited = self.changed.wait_timeout_while(news, moment, |news| news.count == seen);
        waited.map_or_else(|poisoned| poisoned.into_inner().0.count, |(news, _)| news.count)
    }

    /// Takes the completions that should not have come, and how many were refused so far for being that.
    pub(super) fn take_odd(&self) -> (Vec<Odd>, u64) {
        let mut news = lock(&self.news);
        (std::mem::take(&mut news.odd), news.refused)
    }

    /// The check is over. Whatever is still out keeps the seat, and its memory, at the device.
    pub(super) fn leave(&self) {
        let open = {
            let mut news = lock(&self.news);
            news.over = true;
            news.open
        };
        if open == 0 {
            self.exit.wake();
        }
    }

    fn close(&self, work: &mut Work, how: How, result: Option<IoResult>) {
        work.ended = Some(how);
        work.result = result;
        lock(&self.news).open -= 1;
    }

    fn announce(&self) {
        lock(&self.news).count += 1;
        self.changed.notify_all();
    }

    fn note(&self, odd: Odd, refused: bool) {
        let mut news = lock(&self.news);
        news.refused += u64::from(refused);
        if news.odd.len() < MOST_ODD {
            news.odd.push(odd);
        }
    }

    /// What is left to do after a completion.
    fn followup(&self) -> Followup {
        let news = lock(&self.news);
        let last = news.over && news.open == 0;
        Followup { tell: None, wake: last.then(|| Arc::clone(&self.exit) as Arc<dyn Wake>) }
    }
}

impl Work {
    /// What a completion is that finds its slot closed, or used again.
    fn odd(&self, generation: u64) -> Odd {
        match (self.asked, self.ended) {
            (Some(asked), Some(how)) if self.generation == generation => match how {
                How::Inline => Odd::InlineToo(asked),
                How::Completed => Odd::Twice(asked),
                How::Again => Odd::AgainToo(asked),
            },
            _ => Odd::Unknown,
        }
    }
}

impl Client for Seat {
    fn complete(&self, slot: u16, generation: u64, result: IoResult) -> Result<Followup, Refused> {
        let Some(slot) = self.slots.get(usize::from(slot)) else {
            self.note(Odd::Unknown, true);
            return Err(Refused);
        };
        let mut work = lock(&slot.work);
        if !slot.state.claim(generation) {
            self.note(work.odd(generation), true);
            return Err(Refused);
        }
        self.close(&mut work, How::Completed, Some(result));
        drop(work);
        self.announce();
        Ok(self.followup())
    }

    fn extent(&self, slot: u16, generation: u64, extent: Extent) -> Result<bool, Refused> {
        let slot = self.slots.get(usize::from(slot));
        let Some((slot, mut work)) = slot.map(|slot| (slot, lock(&slot.work))) else {
            self.note(Odd::UnknownExtent, true);
            return Err(Refused);
        };
        if !slot.state.is_open(generation) {
            self.note(Odd::UnknownExtent, true);
            return Err(Refused);
        }
        let reply = &mut work.reply;
        let most = reply.enough.min(MOST_EXTENTS);
        if extent.length == 0 {
            reply.empty += 1;
        } else if reply.extents.len() < most && !reply.is_cut {
            reply.is_cut = room::push(&mut reply.extents, extent).is_err();
        } else {
            reply.too_many += 1;
        }
        Ok(reply.extents.len() < most && !reply.is_cut)
    }

    fn room(&self) -> Followup {
        self.announce();
        Followup::default()
    }

    fn abandon(&self) -> Vec<Followup> {
        let open = self.slots.iter().filter(|slot| {
            let mut work = lock(&slot.work);
            let claimed = slot.state.claim_any();
            if claimed {
                self.close(&mut work, How::Completed, Some(Err(Errno::ECANCELED)));
                self.announce();
            }
            claimed
        });
        open.map(|_| self.followup()).collect()
    }

    fn last_generation(&self) -> u64 {
        self.slots.iter().map(|slot| slot.state.generation()).max().unwrap_or(0)
    }
}
