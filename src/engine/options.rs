//! What a job is asked to do, and the check that it makes sense (SPEC section 2).

use crate::device::Limits;
use crate::error::{Errno, Error, Result};
use std::fmt::Display;

/// Smallest chunk.
pub const MIN_GRANULARITY: u64 = 512;
/// Largest chunk.
pub const MAX_GRANULARITY: u64 = 64 << 20;
/// Copy buffers where the host names no size.
const DEFAULT_BUF_SIZE: u64 = 16 << 20;
/// Most copy buffers: more would only hide a mistake in units.
const MAX_BUF_SIZE: u64 = 4 << 30;
/// Where the host names no number: zeroes and other operations that are no copies, at a time.
const DEFAULT_IN_FLIGHT: u32 = 16;
/// Where the host names no number: into how many copies the buffers are to go at least.
const BUFFER_SHARES: u64 = 16;
/// Most background operations at a time.
pub const MAX_IN_FLIGHT: u32 = 1024;
/// Longest job id.
const MAX_ID: usize = 127;

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sync {
    /// Everything.
    #[default]
    Full,
    /// What is allocated above the base.
    Top,
    /// What is written from now on.
    None,
}

/// What the job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum JobKind {
    /// The target becomes an equal of the source.
    #[default]
    Mirror,
    /// The target is the base of the source's chain; what lies above is merged down into it. [`Sync::Full`] stands for
    /// [`Sync::Top`] there.
    CommitActive,
}

/// How guest writes reach the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CopyMode {
    /// They are marked dirty and copied later.
    #[default]
    Background,
    /// They are carried to the target before the guest sees them done.
    WriteBlocking,
}

/// What to do about a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ErrorPolicy {
    /// End the job with the error.
    #[default]
    Report,
    /// Try again later.
    Ignore,
    /// Pause the job until somebody resumes it.
    Stop,
    /// Stop if the device is full, else report.
    Enospc,
    /// The same: stop if the device is full, else report.
    Auto,
}

/// Which backing the target is to get at the pivot; handed to the host's prepare hook (SPEC F-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BackingMode {
    /// What follows from `sync`: nothing, the source's backing, or the source itself.
    #[default]
    SourceChain,
    /// What the target's image names.
    Open,
    /// Untouched.
    Leave,
}

/// A job's options. `Default` is SPEC section 2's.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names the job among the live ones: a letter, then letters, digits and `-._`. `None`: one is made up.
    pub id: Option<String>,
    /// What the job is for.
    pub kind: JobKind,
    /// What is copied.
    pub sync: Sync,
    /// How guest writes reach the target.
    pub copy_mode: CopyMode,
    /// Bytes in a chunk, 0 for the default of SPEC O-2.
    pub granularity: u64,
    /// Bytes of copy buffers, 0 for 16 MiB.
    pub buf_size: u64,
    /// Background operations at a time; 0: as many as the link takes (SPEC C-7).
    pub max_in_flight: u32,
    /// Most bytes in one copy, 0 for the default.
    pub max_io: u64,
    /// Bytes per second that the background copy may take, 0 for no limit.
    pub speed: u64,
    /// What to do when the source fails.
    pub on_source_error: ErrorPolicy,
    /// What to do when the target fails.
    pub on_target_error: ErrorPolicy,
    /// Zeroes may deallocate on the target.
    pub unmap: bool,
    /// The caller vouches that the target reads as zero.
    pub target_is_zero: bool,
    /// Buffers that are all zero are sent as zeroes.
    pub detect_zeroes: bool,
    /// Data doesn't come through buffers where the target can take it from the source by itself.
    pub copy_offload: bool,
    /// Go from pending to concluded without `finalize`.
    pub auto_finalize: bool,
    /// Go from concluded to null without `dismiss`.
    pub auto_dismiss: bool,
    /// Complete as soon as the job is ready.
    pub auto_complete: bool,
    /// Which backing the target is to get.
    pub backing_mode: BackingMode,
    /// Nanoseconds between the beginnings of two passes over the dirty set, after the first (SPEC C-12).
    pub pass_interval_ns: u64,
    /// Most bytes in one copy while guest writes are carried; 0: fitted to the link (SPEC C-11).
    pub guest_first_io: u64,
    /// Background operations at a time while guest writes are carried; 0: as many as leave the guest the link (SPEC C-11).
    pub guest_first_in_flight: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            id: None,
            kind: JobKind::Mirror,
            sync: Sync::Full,
            copy_mode: CopyMode::Background,
            granularity: 0,
            buf_size: 0,
            max_in_flight: 0,
            max_io: 0,
            speed: 0,
            on_source_error: ErrorPolicy::Report,
            on_target_error: ErrorPolicy::Report,
            unmap: true,
            target_is_zero: false,
            detect_zeroes: true,
            copy_offload: true,
            auto_finalize: true,
            auto_dismiss: true,
            auto_complete: false,
            backing_mode: BackingMode::SourceChain,
            pass_interval_ns: 50_000_000,
            guest_first_io: 0,
            guest_first_in_flight: 0,
        }
    }
}

/// Options that were checked against the two devices: every 0 is replaced by what it stands for.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) options: Options,
    pub(crate) granularity: u64,
    pub(crate) buf_size: u64,
    /// Bytes in one buffer: a chunk, or more where a device wants its memory better aligned than chunks are.
    pub(crate) buffer_unit: u64,
    /// Background operations at a time.
    pub(crate) max_in_flight: u32,
    /// Those among them that are no copies.
    pub(crate) max_others: u32,
    /// Fewer copies, if more would only wait (SPEC C-7).
    pub(crate) fits_link: bool,
    pub(crate) max_io: u64,
}

impl Options {
    /// Checks each option by itself and against the devices (`length` is the source's); the error names the
    /// option, its value and the rule.
    pub fn check(&self, length: u64, source: &Limits, target: &Limits) -> Result<Settings> {
        if let Some(id) = &self.id {
            check_id(id)?;
        }
        let granularity = self.checked_granularity(length, source, target)?;
        if self.buf_size > MAX_BUF_SIZE {
            return refuse("buf_size", self.buf_size, format_args!("must be at most {MAX_BUF_SIZE} (4 GiB)"));
        }
        let buf_size = if self.buf_size == 0 { DEFAULT_BUF_SIZE } else { self.buf_size };
        // A widened copy needs a cluster at each end of what it is widened for; one cluster is the least.
        let needs =
            if target.unattached_backing { granularity.max(target.cluster_size) } else { granularity };
        let buffer_unit = granularity.max(u64::from(source.memory_alignment.max(target.memory_alignment)));
        let buf_size = buf_size.max(needs).next_multiple_of(buffer_unit);
        if self.max_in_flight > MAX_IN_FLIGHT {
            return refuse(
                "max_in_flight",
                self.max_in_flight,
                format_args!("must be at most {MAX_IN_FLIGHT}"),
            );
        }
        let fits_link = self.max_in_flight == 0;
        let max_in_flight = if fits_link { MAX_IN_FLIGHT } else { self.max_in_flight };
        let max_others = if fits_link { DEFAULT_IN_FLIGHT } else { max_in_flight };
        let max_io = if self.max_io == 0 {
            let shared_by = if fits_link { BUFFER_SHARES } else { u64::from(max_in_flight) };
            (buf_size / shared_by).max(1 << 20)
        } else if self.max_io < MIN_GRANULARITY {
            return refuse("max_io", self.max_io, format_args!("must be 0 or at least {MIN_GRANULARITY}"));
        } else {
            self.max_io
        };
        if self.guest_first_in_flight > MAX_IN_FLIGHT {
            return refuse(
                "guest_first_in_flight",
                self.guest_first_in_flight,
                format_args!("must be at most {MAX_IN_FLIGHT}"),
            );
        }
        if self.guest_first_io != 0 && self.guest_first_io < MIN_GRANULARITY {
            return refuse(
                "guest_first_io",
                self.guest_first_io,
                format_args!("must be 0 or at least {MIN_GRANULARITY}"),
            );
        }
        let options = Self { sync: self.checked_sync()?, ..self.clone() };
        Ok(Settings {
            options,
            granularity,
            buf_size,
            buffer_unit,
            max_in_flight,
            max_others,
            fits_link,
            max_io,
        })
    }

    /// A commit copies what is above the base (SPEC F-7). To make everything equal comes to the same, and must not be
    /// done by zeroing the base first, which the source reads through. To copy less would lose it at the switch.
    fn checked_sync(&self) -> Result<Sync> {
        match (self.kind, self.sync) {
            (JobKind::Mirror, sync) => Ok(sync),
            (JobKind::CommitActive, Sync::Full | Sync::Top) => Ok(Sync::Top),
            (JobKind::CommitActive, Sync::None) => {
                refuse("sync", "NONE", "must be TOP for a commit, or what is above the base would be lost")
            }
        }
    }

    fn checked_granularity(&self, length: u64, source: &Limits, target: &Limits) -> Result<u64> {
        let alignment = u64::from(source.request_alignment.max(target.request_alignment));
        if self.granularity == 0 {
            return Ok(default_granularity(length).max(alignment));
        }
        if !self.granularity.is_power_of_two()
            || !(MIN_GRANULARITY..=MAX_GRANULARITY).contains(&self.granularity)
        {
            return refuse(
                "granularity",
                self.granularity,
                format_args!("must be a power of two from {MIN_GRANULARITY} to {MAX_GRANULARITY}"),
            );
        }
        if self.granularity < alignment {
            return refuse(
                "granularity",
                self.granularity,
                format_args!("must be at least the devices' request alignment, {alignment}"),
            );
        }
        Ok(self.granularity)
    }
}

/// The smallest chunk from 4 KiB to 64 KiB that keeps the dirty bitmap within 32 MiB (SPEC O-2).
fn default_granularity(length: u64) -> u64 {
    const BITS: u64 = 32 << 23;
    (12..16)
        .map(|shift| 1 << shift)
        .find(|granularity| length.div_ceil(*granularity) <= BITS)
        .unwrap_or(1 << 16)
}

/// Checks that `id` is a letter, then letters, digits and `-._`, at most 127 of them.
pub fn check_id(id: &str) -> Result<()> {
    let legal = id.starts_with(|first: char| first.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if !legal {
        return refuse(
            "id",
            format_args!("'{id}'"),
            "must be a letter, then letters, digits, '-', '.' or '_'",
        );
    }
    if id.len() > MAX_ID {
        return Err(Error::new(
            Errno::ENAMETOOLONG,
            format!("id of {} characters: must be at most {MAX_ID}", id.len()),
        ));
    }
    Ok(())
}

fn refuse<T>(option: &str, value: impl Display, rule: impl Display) -> Result<T> {
    Err(Error::invalid(format!("{option} {value}: {rule}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(options: &Options, length: u64) -> Result<Settings> {
        options.check(length, &Limits::default(), &Limits::default())
    }

    #[test]
    fn defaults_are_those_of_the_specification() {
        // SPEC O-2
        for (length, granularity) in [
            (0, 4096),
            (1 << 40, 4096),
            ((1 << 40) + 1, 8192),
            (1 << 42, 16384),
            (1 << 44, 65536),
            (1 << 50, 65536),
        ] {
            let settings = check(&Options::default(), length).expect("valid");
            assert_eq!(settings.granularity, granularity, "{length}");
            assert_eq!(settings.buf_size, 16 << 20);
            assert_eq!((settings.max_in_flight, settings.max_others, settings.fits_link), (1024, 16, true));
            assert_eq!(settings.max_io, 1 << 20);
        }
        let aligned = Limits { request_alignment: 16384, ..Limits::default() };
        let settings = Options::default().check(1 << 30, &aligned, &Limits::default()).expect("valid");
        assert_eq!(settings.granularity, 16384, "never below the request alignment");
    }

    #[test]
    fn each_bad_value_is_refused_with_its_name_its_value_and_the_rule() {
        // SPEC O-2, O-5
        let good = Options::default();
        let long = "a".repeat(128);
        for (options, message) in [
            (
                Options { granularity: 3000, ..good.clone() },
                "granularity 3000: must be a power of two from 512 to 67108864",
            ),
            (
                Options { granularity: 256, ..good.clone() },
                "granularity 256: must be a power of two from 512 to 67108864",
            ),
            (
                Options { granularity: 128 << 20, ..good.clone() },
                "granularity 134217728: must be a power of two from 512 to 67108864",
            ),
            (
                Options { buf_size: u64::MAX, ..good.clone() },
                "buf_size 18446744073709551615: must be at most 4294967296 (4 GiB)",
            ),
            (Options { max_in_flight: 1025, ..good.clone() }, "max_in_flight 1025: must be at most 1024"),
            (Options { max_io: 511, ..good.clone() }, "max_io 511: must be 0 or at least 512"),
            (
                Options { guest_first_in_flight: 1025, ..good.clone() },
                "guest_first_in_flight 1025: must be at most 1024",
            ),
            (Options { guest_first_io: 1, ..good.clone() }, "guest_first_io 1: must be 0 or at least 512"),
            (
                Options { id: Some("1st".into()), ..good.clone() },
                "id '1st': must be a letter, then letters, digits, '-', '.' or '_'",
            ),
            (
                Options { id: Some(String::new()), ..good.clone() },
                "id '': must be a letter, then letters, digits, '-', '.' or '_'",
            ),
            (
                Options { id: Some("a b".into()), ..good.clone() },
                "id 'a b': must be a letter, then letters, digits, '-', '.' or '_'",
            ),
            (Options { id: Some(long), ..good.clone() }, "id of 128 characters: must be at most 127"),
        ] {
            assert_eq!(check(&options, 1 << 30).expect_err(message).message(), message);
        }
        let coarse = Limits { request_alignment: 4096, ..Limits::default() };
        let error = Options { granularity: 512, ..good }.check(1 << 30, &coarse, &Limits::default());
        assert_eq!(
            error.expect_err("misaligned").message(),
            "granularity 512: must be at least the devices' request alignment, 4096"
        );
    }

    #[test]
    fn the_largest_and_the_smallest_legal_values_are_taken() {
        // SPEC O-2, O-5
        let largest = Options {
            id: Some("a".repeat(127)),
            granularity: 64 << 20,
            buf_size: 4 << 30,
            max_in_flight: 1024,
            guest_first_in_flight: 1024,
            ..Options::default()
        };
        let settings = check(&largest, 1 << 40).expect("legal");
        assert_eq!(
            (settings.granularity, settings.buf_size, settings.max_in_flight),
            (64 << 20, 4 << 30, 1024)
        );
        let smallest = Options {
            id: Some("a".into()),
            granularity: 512,
            buf_size: 1,
            max_in_flight: 1,
            max_io: 512,
            guest_first_io: 512,
            guest_first_in_flight: 1,
            ..Options::default()
        };
        let settings = check(&smallest, 1 << 20).expect("legal");
        assert_eq!((settings.granularity, settings.buf_size, settings.max_io), (512, 512, 512));
    }

    #[test]
    fn the_longest_copy_is_an_equal_share_of_large_buffers() {
        // SPEC O-2
        let options = Options { buf_size: 64 << 20, max_in_flight: 8, ..Options::default() };
        assert_eq!(check(&options, 1 << 30).expect("legal").max_io, 8 << 20);
    }

    #[test]
    fn a_commit_copies_what_is_above_the_base() {
        // SPEC F-7
        let commit = |sync| Options { kind: JobKind::CommitActive, sync, ..Options::default() };
        for sync in [Sync::Full, Sync::Top] {
            assert_eq!(check(&commit(sync), 1 << 20).expect("valid").options.sync, Sync::Top);
        }
        assert_eq!(
            check(&commit(Sync::None), 1 << 20).expect_err("would lose data").message(),
            "sync NONE: must be TOP for a commit, or what is above the base would be lost"
        );
    }

    #[test]
    fn the_buffer_holds_whole_chunks_and_at_least_a_cluster() {
        // SPEC O-2, C-5
        let odd = Options { granularity: 65536, buf_size: 100_000, ..Options::default() };
        assert_eq!(check(&odd, 1 << 30).expect("valid").buf_size, 131_072);
        let large = Options { granularity: 64 << 20, buf_size: 1 << 20, ..Options::default() };
        assert_eq!(check(&large, 1 << 20).expect("valid").buf_size, 64 << 20);
        let overlay = Limits { cluster_size: 2 << 20, unattached_backing: true, ..Limits::default() };
        let small = Options { buf_size: 65536, ..Options::default() };
        let settings = small.check(1 << 30, &Limits::default(), &overlay).expect("valid");
        assert_eq!(settings.buf_size, 2 << 20);
    }
}
