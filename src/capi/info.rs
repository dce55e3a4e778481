//! A snapshot of a job.

use super::constants::MIRROR_NEVER;
use super::convert::{Versioned, fill_text, to_c};
use crate::engine::{Counter, Info};
use std::ffi::{c_char, c_int};
use std::mem::offset_of;

/// Operations of one kind.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_counter {
    /// How many were done, well or not.
    pub ops: u64,
    /// Bytes of those that were done well.
    pub bytes: u64,
    /// How many failed.
    pub errors: u64,
}

/// A snapshot of a job. Set `struct_size` before `mirror_job_query` fills in the rest.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_job_info {
    /// `sizeof(mirror_job_info)`.
    pub struct_size: usize,
    /// The job's name.
    pub id: [c_char; 128],
    /// What the result says, for people: empty while the job runs and after success.
    pub message: [c_char; 256],
    /// `MIRROR_KIND_`.
    pub kind: u32,
    /// Where the job is in its life: `MIRROR_STATUS_`.
    pub status: u32,
    /// How guest writes reach the target: `MIRROR_COPY_`.
    pub copy_mode: u32,
    /// Whether an error has stopped it: `MIRROR_IO_`.
    pub io_status: u32,
    /// Something is in flight, or could be started.
    pub busy: bool,
    /// A pause is asked for; `status` says when it has taken hold.
    pub paused: bool,
    /// It has been ready.
    pub ready: bool,
    /// Every guest write is carried, and source and target are equal but for those under way.
    pub actively_synced: bool,
    /// How the job ended, or will: 0, or `-errno`.
    pub result: c_int,
    /// The rate limit in bytes per second, 0 for none.
    pub speed: u64,
    /// Bytes copied. Never falls.
    pub done: u64,
    /// `done` plus what is dirty or in flight.
    pub total: u64,
    /// Bytes that differ or may differ.
    pub dirty: u64,
    /// Bytes that were zeroed or looked at before the copy began.
    pub prepared: u64,
    /// Bytes in flight: of background operations and of carried guest writes.
    pub in_flight_bytes: u64,
    /// Background operations in flight.
    pub in_flight_ops: u32,
    /// Carried guest requests in flight or waiting.
    pub guests: u32,
    /// Passes over the dirty chunks that have begun.
    pub passes: u64,
    /// Background reads of the source.
    pub reads: mirror_counter,
    /// Background writes to the target.
    pub writes: mirror_counter,
    /// Background zeroes.
    pub zeroes: mirror_counter,
    /// Background discards.
    pub discards: mirror_counter,
    /// Flushes of the target.
    pub flushes: mirror_counter,
    /// Guest writes, zeroes and discards that were carried to the target.
    pub active: mirror_counter,
    /// Bytes of zeroes that were not sent because the target reads zero there.
    pub skipped_zeroes: u64,
    /// Guest writes, zeroes and discards that ended, well or not, while the job had its filter. `active.ops` are those that
    /// were carried.
    pub guest_writes: u64,
    /// Failures that were told.
    pub errors: u64,
    /// Events that nobody read in time.
    pub events_dropped: u64,
    /// Bytes per second that guests make dirty, over the last seconds.
    pub dirty_rate: u64,
    /// Bytes per second that are copied, over the last seconds.
    pub copy_rate: u64,
    /// Nanoseconds until nothing is dirty, at these rates; `MIRROR_NEVER` if the guest is faster.
    pub eta_ns: u64,
    /// Bytes in a chunk.
    pub granularity: u64,
    /// Copies of guest data that were made meanwhile: of carried writes without `MIRROR_WRITE_STABLE`, and where a device
    /// wants its memory better aligned than the guest's.
    pub bounce_copies: u64,
    /// Copies that the target made by itself.
    pub copies: mirror_counter,
}

// SAFETY: repr(C), begins with the size; zero is a value of integers and of bool.
unsafe impl Versioned for mirror_job_info {
    const NAME: &'static str = "mirror_job_info";
    const FIRST: usize = offset_of!(Self, bounce_copies);
}

impl mirror_job_info {
    pub(super) fn of(info: &Info) -> Self {
        let (result, message) = match &info.error {
            None => (0, ""),
            Some((errno, message)) => (-errno.number(), message.as_ref()),
        };
        Self {
            struct_size: size_of::<Self>(),
            id: fill_text(&info.id),
            message: fill_text(message),
            kind: to_c(info.kind),
            status: to_c(info.status),
            copy_mode: to_c(info.copy_mode),
            io_status: to_c(info.io_status),
            busy: info.busy,
            paused: info.paused,
            ready: info.ready,
            actively_synced: info.actively_synced,
            result,
            speed: info.speed,
            done: info.done,
            total: info.total,
            dirty: info.dirty,
            prepared: info.prepared,
            in_flight_bytes: info.in_flight_bytes,
            in_flight_ops: info.in_flight_ops,
            guests: info.guests,
            passes: info.passes,
            reads: counter(info.reads),
            writes: counter(info.writes),
            zeroes: counter(info.zeroes),
            discards: counter(info.discards),
            copies: counter(info.copies),
            flushes: counter(info.flushes),
            active: counter(info.active),
            skipped_zeroes: info.skipped_zeroes,
            guest_writes: info.guest_writes,
            errors: info.errors,
            events_dropped: info.events_dropped,
            dirty_rate: info.dirty_rate,
            copy_rate: info.copy_rate,
            eta_ns: info.eta_ns.unwrap_or(MIRROR_NEVER),
            granularity: info.granularity,
            bounce_copies: info.bounce_copies,
        }
    }
}

fn counter(counter: Counter) -> mirror_counter {
    mirror_counter { ops: counter.ops, bytes: counter.bytes, errors: counter.errors }
}
