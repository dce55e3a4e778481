//! How far the job is, how fast, and what it has done (SPEC P-2, P-3).

use super::options::{CopyMode, JobKind};
use super::{Engine, Kind, Status};
use crate::clock::Nanos;
use crate::error::{Errno, IoResult};
use std::borrow::Cow;

/// Rates are taken over this many samples, a second apart.
const SAMPLES: usize = 5;
const SAMPLE_NS: u64 = 1_000_000_000;

/// Whether an error has stopped the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IoStatus {
    /// None has.
    #[default]
    Ok,
    /// A device failed.
    Failed,
    /// The target is full.
    NoSpace,
}

/// Operations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// How many were done, well or not.
    pub ops: u64,
    /// Bytes of those that were done well.
    pub bytes: u64,
    /// How many failed.
    pub errors: u64,
}

impl Counter {
    fn count(&mut self, bytes: u64, result: IoResult) {
        self.ops += 1;
        match result {
            Ok(()) => self.bytes += bytes,
            Err(_) => self.errors += 1,
        }
    }
}

/// A snapshot of a job.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its name.
    pub id: String,
    /// What it is for.
    pub kind: JobKind,
    /// Where it is in its life.
    pub status: Status,
    /// Something is in flight, or could be started.
    pub busy: bool,
    /// A pause is asked for; the status says when it has taken hold.
    pub paused: bool,
    /// It has been ready.
    pub ready: bool,
    /// Chunks that are not dirty are equal on both sides, and every guest write is carried.
    pub actively_synced: bool,
    /// How guest writes reach the target.
    pub copy_mode: CopyMode,
    /// The rate limit, bytes per second, 0 for none.
    pub speed: u64,
    /// Whether an error has stopped it.
    pub io_status: IoStatus,
    /// Bytes copied. Never falls.
    pub done: u64,
    /// `done` plus what is dirty or in flight.
    pub total: u64,
    /// Bytes that differ or may differ.
    pub dirty: u64,
    /// Bytes that were zeroed or looked at before the copy began.
    pub prepared: u64,
    /// Background operations in flight.
    pub in_flight_ops: u32,
    /// Their bytes, and those of carried guest writes.
    pub in_flight_bytes: u64,
    /// Carried guest requests in flight or waiting.
    pub guests: u32,
    /// Passes over the dirty set that have begun.
    pub passes: u64,
    /// Background reads of the source.
    pub reads: Counter,
    /// Background writes to the target.
    pub writes: Counter,
    /// Background zeroes.
    pub zeroes: Counter,
    /// Background discards.
    pub discards: Counter,
    /// Copies that the target made by itself.
    pub copies: Counter,
    /// Flushes of the target.
    pub flushes: Counter,
    /// Guest writes, zeroes and discards that were carried to the target.
    pub active: Counter,
    /// Bytes of zeroes that were not sent because the target reads zero there.
    pub skipped_zeroes: u64,
    /// Guest writes, zeroes and discards that ended while the job had its filter. The filter counts them, and its job
    /// fills it in.
    pub guest_writes: u64,
    /// Copies of guest data that were made for them: because the guest may change it meanwhile, or because of where it
    /// lies in memory. Filled in as `guest_writes`.
    pub bounce_copies: u64,
    /// Failures that were told.
    pub errors: u64,
    /// Events that nobody read in time.
    pub events_dropped: u64,
    /// Bytes that guests make dirty, per second, over the last seconds.
    pub dirty_rate: u64,
    /// Bytes that are copied, per second, over the last seconds.
    pub copy_rate: u64,
    /// Nanoseconds until nothing is dirty at these rates; `None` if that would be never.
    pub eta_ns: Option<u64>,
    /// The size of a chunk.
    pub granularity: u64,
    /// The result, once the job is ending: `None` while it runs or after success.
    pub error: Option<(Errno, Cow<'static, str>)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    at: Nanos,
    done: u64,
    needless: u64,
    dirtied: u64,
}

/// Per second, over the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rates {
    /// Bytes that were copied.
    copied: u64,
    /// Those among them that took nothing from the dirty set.
    needless: u64,
    /// Chunks that became dirty.
    dirtied: u64,
}

#[derive(Debug, Default)]
pub(super) struct Progress {
    done: u64,
    /// Bytes among `done` that guests wrote where nothing was dirty: that brings the end no nearer.
    needless: u64,
    skipped: u64,
    reads: Counter,
    writes: Counter,
    zeroes: Counter,
    discards: Counter,
    copies: Counter,
    flushes: Counter,
    active: Counter,
    samples: [Sample; SAMPLES],
    newest: usize,
}

impl Progress {
    pub(super) fn add_done(&mut self, bytes: u64) {
        self.done += bytes;
    }

    /// A guest's write was carried, and took this much from the dirty set.
    pub(super) fn add_carried(&mut self, bytes: u64, dirty: u64) {
        self.done += bytes;
        self.needless += bytes.saturating_sub(dirty);
    }

    pub(super) fn skipped_zeroes(&mut self, bytes: u64) {
        self.done += bytes;
        self.skipped += bytes;
    }

    pub(super) fn count(&mut self, kind: Kind, bytes: u64, result: IoResult) {
        match kind {
            Kind::Read => self.reads.count(bytes, result),
            Kind::Write => self.writes.count(bytes, result),
            Kind::Zero => self.zeroes.count(bytes, result),
            Kind::Discard => self.discards.count(bytes, result),
            Kind::Flush => self.flushes.count(bytes, result),
            Kind::Copy => self.copies.count(bytes, result),
            Kind::Extents | Kind::Truncate => {}
        }
    }

    pub(super) fn count_active(&mut self, bytes: u64, result: IoResult) {
        self.active.count(bytes, result);
    }

    /// The copy begins: what was marked before is not the guests' doing.
    pub(super) fn begin(&mut self, now: Nanos, dirtied: u64) {
        self.samples = [self.sample_of(now, dirtied); SAMPLES];
    }

    /// Takes a sample once a second. `dirtied` is the chunks that ever became dirty.
    pub(super) fn sample(&mut self, now: Nanos, dirtied: u64) {
        if now >= self.next_sample() {
            self.newest = (self.newest + 1) % SAMPLES;
            self.samples[self.newest] = self.sample_of(now, dirtied);
        }
    }

    /// When there is something to sample.
    pub(super) fn next_sample(&self) -> Nanos {
        self.samples[self.newest].at + SAMPLE_NS
    }

    fn sample_of(&self, now: Nanos, dirtied: u64) -> Sample {
        Sample { at: now, done: self.done, needless: self.needless, dirtied }
    }

    /// Since the oldest sample.
    fn rates(&self, now: Nanos, dirtied: u64) -> Rates {
        let oldest = self.samples[(self.newest + 1) % SAMPLES];
        let elapsed = now.since(oldest.at);
        if elapsed == 0 {
            return Rates::default();
        }
        let per_second = |count: u64| (u128::from(count) * 1_000_000_000 / u128::from(elapsed)) as u64;
        Rates {
            copied: per_second(self.done - oldest.done),
            needless: per_second(self.needless - oldest.needless),
            dirtied: per_second(dirtied.saturating_sub(oldest.dirtied)),
        }
    }
}

impl Engine {
    /// Chunks that ever became dirty: those that are, and those that were taken from the bitmap and not put back.
    pub(super) fn chunks_dirtied(&self) -> u64 {
        (self.tracking.dirty.dirty_chunks() + self.scan.taken).saturating_sub(self.scan.put_back)
    }

    fn dirty_bytes(&self) -> u64 {
        let dirty = &self.tracking.dirty;
        let bytes = dirty.dirty_chunks().saturating_mul(self.granularity());
        let chunks = self.geometry.chunks();
        let short = chunks.saturating_mul(self.granularity()) - self.geometry.length();
        if short > 0 && dirty.is_dirty(chunks - 1) { bytes.saturating_sub(short) } else { bytes }
    }

    /// Bytes that were taken from the dirty set and are not under way: planned, or waiting for a buffer.
    fn planned_bytes(&self) -> u64 {
        let waiting = self.ops.reserved_chunks().filter(|_| self.ops.reservation_is_held());
        self.scan.planned().chain(waiting).map(|chunks| self.geometry.bytes(chunks).len()).sum()
    }

    pub(super) fn make_info(&self) -> Info {
        let progress = &self.progress;
        let dirty = self.dirty_bytes();
        // An engine that was given up still has in its tables what nobody tells it of any more.
        let over = self.status.is_over();
        let unless_over = |count: u32| if over { 0 } else { count };
        let in_flight_bytes = if over { 0 } else { self.ops.in_flight_bytes() + self.guests.carried_bytes() };
        let rates = progress.rates(self.now, self.chunks_dirtied());
        let dirty_rate = rates.dirtied.saturating_mul(self.granularity());
        let left = dirty + self.planned_bytes() + in_flight_bytes;
        Info {
            id: self.id.clone(),
            kind: self.settings.options.kind,
            status: self.status,
            busy: !over && (self.ops.in_flight() > 0 || self.guests.any() || !self.scan.plan_is_empty()),
            paused: self.pauses.any(),
            ready: self.ready,
            actively_synced: self.tracking.is_synced(),
            copy_mode: self.copy_mode,
            speed: self.settings.options.speed,
            io_status: self.errors.io_status,
            done: progress.done,
            total: progress.done.saturating_add(left),
            dirty,
            prepared: self.start.progress(),
            in_flight_ops: unless_over(self.ops.in_flight()),
            in_flight_bytes,
            guests: unless_over(self.guests.count()),
            passes: self.scan.passes(),
            reads: progress.reads,
            writes: progress.writes,
            zeroes: progress.zeroes,
            discards: progress.discards,
            copies: progress.copies,
            flushes: progress.flushes,
            active: progress.active,
            skipped_zeroes: progress.skipped,
            guest_writes: 0,
            bounce_copies: 0,
            errors: self.errors.count,
            events_dropped: self.events.dropped(),
            dirty_rate,
            copy_rate: rates.copied,
            eta_ns: eta(left, rates.copied.saturating_sub(rates.needless), dirty_rate),
            granularity: self.granularity(),
            error: self.errors.result.clone(),
        }
    }
}

/// Nanoseconds until `left` bytes are copied while others become dirty.
fn eta(left: u64, copy_rate: u64, dirty_rate: u64) -> Option<u64> {
    if left == 0 {
        return Some(0);
    }
    let net = copy_rate.checked_sub(dirty_rate).filter(|net| *net > 0)?;
    u64::try_from(u128::from(left) * 1_000_000_000 / u128::from(net)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_ready_is_never_if_the_guest_is_faster() {
        // SPEC P-3
        assert_eq!(eta(100, 10, 10), None);
        assert_eq!(eta(100, 5, 10), None);
        assert_eq!(eta(100, 20, 10), Some(10_000_000_000));
        assert_eq!(eta(0, 0, 0), Some(0));
    }

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        // SPEC P-3
        let mut progress = Progress::default();
        progress.begin(Nanos(0), 7);
        for second in 1..=100 {
            progress.add_done(if second <= 50 { 1000 } else { 10 });
            progress.sample(Nanos(second * SAMPLE_NS), 7 + second * 3);
        }
        let rates = Rates { copied: 10, needless: 0, dirtied: 3 };
        assert_eq!(progress.rates(Nanos(100 * SAMPLE_NS), 7 + 300), rates);
    }
}
