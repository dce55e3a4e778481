//! The options of `mirror`, and what they mean to the library.

use crate::size::Size;
use blkmirror::engine::{self, MAX_IN_FLIGHT, Options};
use clap::{Args, ValueEnum, value_parser};
use std::path::PathBuf;

/// Copy SRC to DST, which is as long as SRC, and see that it is on the disk
///
/// Nothing else should write to SRC meanwhile. Holes in a file stay holes. Without a terminal there is no progress bar.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The file or block device to copy
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,

    /// The file or block device to copy to
    #[arg(value_name = "DST")]
    pub(crate) target: PathBuf,

    /// Create DST if it is missing; make it as long as SRC if it is empty
    #[arg(long)]
    pub(crate) create: bool,

    /// Bytes in a chunk, a power of two [default: 4K, more for disks beyond 1T]
    #[arg(long, value_name = "SIZE")]
    granularity: Option<Size>,

    /// Memory for what is on its way [default: 16M]
    #[arg(long, value_name = "SIZE")]
    buf_size: Option<Size>,

    /// Most bytes per second [default: no limit]
    #[arg(long, value_name = "SIZE")]
    speed: Option<Size>,

    /// Most copies at a time [default: 16]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=i64::from(MAX_IN_FLIGHT)))]
    pub(crate) in_flight: Option<u32>,

    /// Bypass the page cache
    #[arg(long)]
    pub(crate) direct: bool,

    /// With --direct: leave the work to threads, even where io_uring is to be had
    #[arg(long)]
    pub(crate) threads: bool,

    /// Read both again afterwards and compare
    #[arg(long)]
    verify: bool,

    /// Print a summary as JSON
    #[arg(long)]
    json: bool,

    /// What to copy. If that isn't everything, both are compared afterwards, as with --verify
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Sync::Full)]
    pub(super) sync: Sync,

    /// How writes to SRC would reach DST; without any, both copy the same
    #[arg(long, value_enum, value_name = "MODE", default_value_t = CopyMode::Background)]
    copy_mode: CopyMode,

    /// What to do if SRC can't be read
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = Policy::Report)]
    on_source_error: Policy,

    /// What to do if DST can't be written
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = Policy::Report)]
    on_target_error: Policy,

    /// Leave out what is zero: DST reads as zero now, which is taken on trust (--verify would find out)
    #[arg(long)]
    pub(super) target_is_zero: bool,

    /// Keep DST's blocks where SRC is zero, and write zeroes to them, instead of making holes
    #[arg(long)]
    no_unmap: bool,

    /// Look for zeroes in what is copied, and make holes of them. SRC's own holes are kept in any case
    #[arg(long, value_enum, value_name = "on|off", default_value_t = Switch::On)]
    detect_zeroes: Switch,

    /// Read and write even where the file system could let SRC and DST share blocks until one changes
    #[arg(long)]
    no_copy_offload: bool,
}

/// How the result is reported.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    Line,
    Json,
}

impl Arguments {
    pub(super) fn report(&self) -> Report {
        if self.json { Report::Json } else { Report::Line }
    }

    /// Whether both are read again: where not all is copied, only that tells whether the copy is whole.
    pub(super) fn compares(&self) -> bool {
        self.verify || self.sync != Sync::Full
    }

    /// The job's options.
    pub(super) fn options(&self) -> Options {
        let size = |size: Option<Size>| size.map_or(0, |Size(bytes)| bytes);
        Options {
            id: Some(super::JOB.to_owned()),
            sync: self.sync.into(),
            copy_mode: self.copy_mode.into(),
            granularity: size(self.granularity),
            buf_size: size(self.buf_size),
            max_in_flight: self.in_flight.unwrap_or(0),
            speed: size(self.speed),
            on_source_error: self.on_source_error.into(),
            on_target_error: self.on_target_error.into(),
            unmap: !self.no_unmap,
            target_is_zero: self.target_is_zero,
            detect_zeroes: self.detect_zeroes == Switch::On,
            copy_offload: !self.no_copy_offload,
            auto_complete: true,
            ..Options::default()
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Sync {
    /// Everything
    Full,
    /// What is allocated: where SRC has holes, DST keeps what it has
    Top,
    /// Only what is written to SRC meanwhile, which is nothing: DST keeps what it has, and is compared
    None,
}

impl From<Sync> for engine::Sync {
    fn from(sync: Sync) -> Self {
        match sync {
            Sync::Full => Self::Full,
            Sync::Top => Self::Top,
            Sync::None => Self::None,
        }
    }
}

/// How guest writes reach the target.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CopyMode {
    /// Later: they are only noted when they happen
    Background,
    /// At once: a write is done when both disks have it
    WriteBlocking,
}

impl From<CopyMode> for engine::CopyMode {
    fn from(mode: CopyMode) -> Self {
        match mode {
            CopyMode::Background => Self::Background,
            CopyMode::WriteBlocking => Self::WriteBlocking,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Policy {
    /// Give up
    Report,
    /// Try again, for ever
    Ignore,
    /// Say so, wait, and try again every few seconds
    Stop,
    /// Stop if the disk is full, else report
    Enospc,
    /// The same as enospc
    Auto,
}

impl From<Policy> for engine::ErrorPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Report => Self::Report,
            Policy::Ignore => Self::Ignore,
            Policy::Stop => Self::Stop,
            Policy::Enospc => Self::Enospc,
            Policy::Auto => Self::Auto,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}
