//! From started to copying: lengths, the pre-zero pass and the allocation scan (SPEC section 4).
//!
//! Guest writes of this phase are not carried, whatever the copy mode: they are marked, and the marks are there
//! before the first copy is made.
//!
//! # The worst that can happen
//! - A guest writes to what was surveyed as a hole before the survey is over. It has marked the chunk by itself, because the
//!   filter marks from the moment that the job exists (SPEC I-1); the survey only ever adds marks.
//! - A guest writes to the source while the same place of the target is being zeroed: the same.
//! - A part of the pre-zero pass fails: it is marked, and not known to be zero, so it is copied.
//! - What the source leaves to its backing counts as data where everything is to be copied: nothing says that it reads as
//!   zero.

use super::ops::OpState;
use super::options::{JobKind, Sync};
use super::outbox::{OpId, Order, Side};
use super::{Engine, Extent, ExtentFlags, Flags, Kind};
use crate::bitmap::ChunkMap;
use crate::error::{Errno, IoResult, Result};
use crate::range::{ByteRange, ChunkRange};

/// Bytes whose allocation is asked for at a time.
const SURVEY_STEP: u64 = 64 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    NotBegun,
    /// The target is being grown.
    Truncating,
    /// The target is being zeroed; `next` is the first byte for which no operation was started.
    PreZero {
        next: u64,
    },
    /// The source is being asked what it holds.
    Survey {
        next: u64,
    },
    Done,
}

#[derive(Debug)]
pub(super) struct Start {
    phase: Phase,
    /// Chunks that read as zero on the target (SPEC I-5).
    pub(super) known_zero: ChunkMap,
    /// Bytes that the pre-zero pass has done.
    zeroed: u64,
}

impl Start {
    pub(super) fn new(chunks: u64) -> Result<Self> {
        Ok(Self { phase: Phase::NotBegun, known_zero: ChunkMap::new(chunks)?, zeroed: 0 })
    }

    pub(super) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Bytes that were zeroed, or scanned for data, before the copy began.
    pub(super) fn progress(&self) -> u64 {
        match self.phase {
            Phase::Survey { next } => next,
            _ => self.zeroed,
        }
    }
}

impl Engine {
    /// Checks the lengths and begins (SPEC I-2).
    pub(super) fn begin_start(&mut self) {
        let (source, target) = (self.source.length, self.target.length);
        match self.settings.options.kind {
            JobKind::Mirror if source != target => self.abort(
                Errno::EINVAL,
                format!("Source and target have different sizes: {source} and {target} bytes"),
            ),
            // The last request would end where the base can't end one: what follows it there must be kept.
            JobKind::CommitActive if target > source && !self.ends_requests_at(source) => self.abort(
                Errno::EINVAL,
                format!(
                    "The base takes requests in multiples of {} bytes, and its overlay ends before it, at {source}",
                    self.target.limits.request_alignment
                ),
            ),
            JobKind::CommitActive if target < source && !self.target.truncate => self.abort(
                Errno::EINVAL,
                format!("The base has {target} bytes, its overlay {source}, and the base can't be grown"),
            ),
            JobKind::CommitActive if target < source => self.start.phase = Phase::Truncating,
            _ => self.choose_marks(),
        }
    }

    fn ends_requests_at(&self, byte: u64) -> bool {
        byte.is_multiple_of(u64::from(self.target.limits.request_alignment))
    }

    /// What is dirty at first, and how that is found out (SPEC I-4).
    fn choose_marks(&mut self) {
        let options = &self.settings.options;
        let limits = &self.target.limits;
        let overlay = limits.unattached_backing;
        let zero = (options.target_is_zero || limits.reads_zero) && !overlay;
        match options.sync {
            Sync::None => self.end_start(),
            Sync::Top => self.begin_survey(),
            Sync::Full if zero => {
                self.start.known_zero.set_all();
                self.begin_survey();
            }
            Sync::Full if limits.cheap_zero && options.unmap && self.target.zero && !overlay => {
                self.start.phase = Phase::PreZero { next: 0 };
            }
            Sync::Full => self.mark_everything(),
        }
    }

    fn begin_survey(&mut self) {
        if self.source.extents && self.geometry.length() > 0 {
            self.start.phase = Phase::Survey { next: 0 };
        } else {
            self.mark_everything();
        }
    }

    fn mark_everything(&mut self) {
        self.tracking.dirty.mark(ChunkRange::new(0, self.geometry.chunks()));
        self.end_start();
    }

    fn end_start(&mut self) {
        if let Err(error) = self.scan.settle_clusters(&self.target.limits, self.geometry) {
            self.abort(error.errno(), error.message().to_owned());
            return;
        }
        self.start.phase = Phase::Done;
        self.progress.begin(self.now, self.chunks_dirtied());
        self.update_carrying();
    }

    /// Starts what this phase can start.
    pub(super) fn run_start(&mut self) {
        if self.is_ending() {
            return;
        }
        match self.start.phase {
            Phase::Truncating if self.ops.in_flight() == 0 => {
                if let Some(until) = self.scan.held_until(self.now) {
                    self.scan.deadline = Some(until);
                    return;
                }
                let range = ByteRange::between(0, self.source.length);
                if let Some(id) = self.ops.take(OpState::Truncate, ChunkRange::default(), range) {
                    self.outbox.submit(id, Side::Target, Kind::Truncate, range, Flags::default());
                }
            }
            Phase::PreZero { next } => self.run_pre_zero(next),
            Phase::Survey { next } if self.ops.in_flight() == 0 => self.run_survey(next),
            _ => {}
        }
    }

    pub(super) fn truncate_done(&mut self, id: OpId, result: IoResult) {
        let (_, range) = self.end_op(id);
        self.progress.count(Kind::Truncate, 0, result);
        if self.is_ending() {
            return;
        }
        match result {
            Ok(()) => {
                self.target.length = range.end();
                self.outbox.order(Order::TargetGrown(range.end()));
                self.choose_marks();
            }
            // Without its length the job can't go on; it tries again when it is resumed, or after a slice.
            Err(errno) => self.failed(Kind::Truncate, Side::Target, range, errno),
        }
    }

    fn run_pre_zero(&mut self, mut next: u64) {
        let length = self.geometry.length();
        let step = self.target.limits.max_zero & !(self.geometry.granularity() - 1);
        let step = step.max(self.geometry.granularity());
        while next < length && self.ops.in_flight() < self.settings.max_others {
            let range = ByteRange::between(next, next.saturating_add(step).min(length));
            let Some(id) = self.ops.take(OpState::PreZero, ChunkRange::default(), range) else {
                break;
            };
            self.outbox.submit(id, Side::Target, Kind::Zero, range, Flags { may_unmap: true, fua: false });
            next = range.end();
        }
        self.start.phase = Phase::PreZero { next };
        if next == length && self.ops.in_flight() == 0 {
            self.begin_survey();
            self.run_start();
        }
    }

    pub(super) fn pre_zero_done(&mut self, id: OpId, result: IoResult) {
        let (_, range) = self.end_op(id);
        self.progress.count(Kind::Zero, range.len(), result);
        match result {
            Ok(()) => {
                self.start.known_zero.set(self.geometry.contained(range));
                self.start.zeroed += range.len();
            }
            Err(errno) => {
                // What could not be zeroed is copied.
                self.tracking.mark(range);
                if !self.is_ending() {
                    self.failed(Kind::Zero, Side::Target, range, errno);
                }
            }
        }
    }

    fn run_survey(&mut self, next: u64) {
        let range = ByteRange::between(next, next.saturating_add(SURVEY_STEP).min(self.geometry.length()));
        if let Some(id) = self.ops.take(OpState::Survey, ChunkRange::default(), range) {
            self.outbox.submit(id, Side::Source, Kind::Extents, range, Flags::default());
        }
    }

    /// Marks what a stretch of the source holds. An answer that covers only its beginning is gone on with from
    /// there; one that covers nothing, or failed, counts as data (SPEC C-3, D-6).
    pub(super) fn survey_done(&mut self, id: OpId, result: IoResult, extents: &[Extent]) {
        let (_, range) = self.end_op(id);
        if self.is_ending() {
            return;
        }
        let mut at = range.offset();
        if result.is_ok() {
            for extent in extents {
                let end = at.saturating_add(extent.length).min(range.end());
                if self.is_to_be_copied(extent.flags) {
                    self.tracking.dirty.mark(self.geometry.touched(ByteRange::between(at, end)));
                }
                at = end;
            }
        }
        if at == range.offset() {
            self.note_failed_extents(range, result.err().unwrap_or(Errno::EIO));
            self.tracking.dirty.mark(self.geometry.touched(range));
            at = range.end();
        } else if at < range.end() {
            // The next question begins with a whole chunk, like every request. One of which only a part was told would
            // be asked about again and again: it is copied.
            let known = at - at % self.geometry.granularity();
            at = if known > range.offset() { known } else { self.mark_first_chunk(range) };
        }
        if at < self.geometry.length() {
            self.start.phase = Phase::Survey { next: at };
        } else {
            // Only of a pass that begins now: what is marked later may be anything.
            self.scan.surveyed =
                self.settings.options.sync == Sync::Full && self.tracking.dirty.next_dirty(0).is_some();
            self.end_start();
        }
    }

    /// Where the second begins.
    fn mark_first_chunk(&self, range: ByteRange) -> u64 {
        let chunk = self.geometry.touched(range).start;
        self.tracking.dirty.mark(ChunkRange::new(chunk, chunk + 1));
        self.geometry.byte(chunk + 1)
    }

    fn is_to_be_copied(&self, flags: ExtentFlags) -> bool {
        match self.settings.options.sync {
            Sync::Top => flags.allocated,
            // The target reads zero here: what holds nothing or reads zero needs no copy.
            // The same of what is left to a backing: nothing says that it reads as zero.
            _ => flags.holds_data() || !flags.zero,
        }
    }
}
