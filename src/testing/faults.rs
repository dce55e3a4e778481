//! What can go wrong around a job, and the count of what did.

use crate::device::Kind;
use crate::error::Errno;
use crate::range::ByteRange;

/// What goes wrong at a disk, to be changed while it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// One request in so many fails, 0 for none.
    pub error_one_in: u64,
    /// With `ENOSPC` instead of `EIO`.
    pub full: bool,
    /// Nothing is completed.
    pub hold: bool,
    /// The next request panics, as a defect in a device would.
    pub panics: bool,
    /// Only requests of this kind fail; `None`: those of every kind.
    pub only: Option<Kind>,
    /// They fail with this errno; `None`: with what `full` says.
    pub errno: Option<Errno>,
    /// Only requests that touch this range fail; `None`: wherever they are.
    pub within: Option<ByteRange>,
    /// So many fail, and no more; `None`: any number.
    pub most: Option<u64>,
    /// One request in so many is refused for want of room while others are out, 0 for none.
    pub again_one_in: u64,
    /// After one completion in so many one of the last is reported again, 0 for none. It must be refused (SPEC D-3).
    pub repeat_one_in: u64,
}

impl Faults {
    /// Whether a request is one of those that may fail.
    pub(super) fn concern(&self, kind: Kind, range: ByteRange) -> bool {
        self.only.is_none_or(|only| only == kind)
            && self.within.is_none_or(|within| within.overlaps(range))
            && self.most != Some(0)
    }
}

/// Something that happened to a disk's user and that not every disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A read failed.
    Read,
    /// A write failed.
    Write,
    /// A zero failed.
    Zero,
    /// A discard failed.
    Discard,
    /// A flush failed.
    Flush,
    /// A question about extents failed.
    Extents,
    /// A disk could not be grown.
    Truncate,
    /// A copy by the target itself failed.
    Copy,
    /// One of these failed because the disk is full.
    NoSpace,
    /// There was no room for a request.
    Again,
    /// A disk went silent.
    Hold,
    /// A change failed after a part of it was done.
    Torn,
    /// A request was finished inline.
    Inline,
    /// A request was completed inside its submission.
    Early,
    /// A request was completed twice.
    Repeated,
    /// A disk panicked.
    Panic,
    /// Not all extents were told.
    ShortExtents,
    /// Extents were told that make no sense.
    AbsurdExtents,
    /// A request of the host's own failed.
    Host,
    /// The prepare hook refused.
    Prepare,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 20] = [
        Self::Read,
        Self::Write,
        Self::Zero,
        Self::Discard,
        Self::Flush,
        Self::Extents,
        Self::Truncate,
        Self::Copy,
        Self::NoSpace,
        Self::Again,
        Self::Hold,
        Self::Torn,
        Self::Inline,
        Self::Early,
        Self::Repeated,
        Self::Panic,
        Self::ShortExtents,
        Self::AbsurdExtents,
        Self::Host,
        Self::Prepare,
    ];

    /// The words for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read-error",
            Self::Write => "write-error",
            Self::Zero => "zero-error",
            Self::Discard => "discard-error",
            Self::Flush => "flush-error",
            Self::Extents => "extents-error",
            Self::Truncate => "truncate-error",
            Self::Copy => "copy-error",
            Self::NoSpace => "no-space",
            Self::Again => "again",
            Self::Hold => "hold",
            Self::Torn => "torn",
            Self::Inline => "inline",
            Self::Early => "early",
            Self::Repeated => "repeated",
            Self::Panic => "panic",
            Self::ShortExtents => "short-extents",
            Self::AbsurdExtents => "absurd-extents",
            Self::Host => "host-error",
            Self::Prepare => "prepare-refused",
        }
    }

    /// That a request of this kind failed.
    pub(super) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Read => Self::Read,
            Kind::Write => Self::Write,
            Kind::Zero => Self::Zero,
            Kind::Discard => Self::Discard,
            Kind::Flush => Self::Flush,
            Kind::Extents => Self::Extents,
            Kind::Truncate => Self::Truncate,
            Kind::Copy => Self::Copy,
        }
    }
}

/// How often each kind of fault happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts([u64; Fault::ALL.len()]);

impl FaultCounts {
    /// One more.
    pub fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// How often this one happened.
    #[must_use]
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Those that happened, with how often.
    pub fn iter(&self) -> impl Iterator<Item = (Fault, u64)> + '_ {
        Fault::ALL.into_iter().map(|fault| (fault, self.of(fault))).filter(|(_, count)| *count > 0)
    }

    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}
