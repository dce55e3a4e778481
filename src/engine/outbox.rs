//! What the engine wants done: requests, answers to guests, orders about the filter.

use super::arena::Segment;
use super::guest::GuestId;
use super::options::MAX_IN_FLIGHT;
use super::{Flags, Kind};
use crate::error::IoResult;
use crate::range::ByteRange;
use std::ops::Range;

/// One of the two devices of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// Copied from.
    Source = 0,
    /// Copied to.
    Target = 1,
}

impl Side {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// Names an operation: one of the background, or a guest's. An operation has at most one request out at each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(u16);

impl OpId {
    /// How many there can be.
    pub const COUNT: usize = MAX_IN_FLIGHT as usize + super::guest::MAX_GUESTS;

    /// One of the job's own, of which there are [`Engine::most_operations`](super::Engine::most_operations).
    #[must_use]
    pub fn background(index: u16) -> Self {
        debug_assert!(u32::from(index) < MAX_IN_FLIGHT);
        Self(index)
    }

    pub(super) fn guest(index: u16) -> Self {
        Self(MAX_IN_FLIGHT as u16 + index)
    }

    pub(super) fn guest_index(self) -> Option<u16> {
        self.0.checked_sub(MAX_IN_FLIGHT as u16)
    }

    pub(super) fn background_index(self) -> usize {
        debug_assert!(self.guest_index().is_none());
        usize::from(self.0)
    }

    /// A number below [`OpId::COUNT`] that is this operation's for as long as it lives.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Whether it is a guest's operation.
    #[must_use]
    pub fn is_guest(self) -> bool {
        self.guest_index().is_some()
    }
}

/// Where the bytes of a request are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// There are none.
    None,
    /// In these entries of [`Outbox::segments`].
    Buffers(Range<u32>),
    /// In the guest's request, from this byte of it on; a zero or discard of a guest's has none there either.
    Guest(GuestId, u64),
}

/// A request for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submit {
    /// Whom its completion is for.
    pub op: OpId,
    /// Which device.
    pub side: Side,
    /// What to do.
    pub kind: Kind,
    /// Where. It may be larger than the device takes at a time.
    pub range: ByteRange,
    /// How.
    pub flags: Flags,
    /// With what.
    pub data: Data,
}

impl Submit {
    /// Bytes of data that a device moves for it.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        if matches!(self.kind, Kind::Read | Kind::Write | Kind::Copy) { self.range.len() } else { 0 }
    }
}

/// Something to be done about the filter or the host, in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Guest writes are submitted to the engine from now on.
    CarryWrites,
    /// Guest writes pass through and are marked from now on.
    MarkWrites,
    /// Let no new guest request begin, and say [`super::Engine::gate_drained`] when the running ones are done.
    CloseGate,
    /// Let guest requests pass again, those that waited first.
    OpenGate,
    /// Hurry what is in flight at the target.
    CancelTarget,
    /// The target was grown to this length.
    TargetGrown(u64),
    /// Call the host's prepare hook, then say [`super::Engine::prepared`].
    Prepare,
    /// Switch the filter to the target, open its gate, then say [`super::Engine::pivoted`].
    Pivot,
    /// The job no longer cares about guest writes: neither carry nor mark them; open the gate.
    Release,
    /// The job is over.
    Conclude,
}

/// Outputs, drained by the driver after each round of inputs.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Requests to submit, in order.
    pub requests: Vec<Submit>,
    /// The buffers that the requests name.
    pub segments: Vec<Segment>,
    /// Guest requests that are done.
    pub guests_done: Vec<(GuestId, IoResult)>,
    /// Orders, to be carried out before the requests.
    pub orders: Vec<Order>,
    /// What went wrong, in words, for the log.
    pub messages: Vec<String>,
    /// The round was cut short: another `advance` will find work.
    pub more: bool,
    /// What the filter was last told: whether writes are carried.
    pub(super) carrying: bool,
}

impl Outbox {
    pub(super) fn order(&mut self, order: Order) {
        self.orders.push(order);
    }

    pub(super) fn submit(&mut self, op: OpId, side: Side, kind: Kind, range: ByteRange, flags: Flags) {
        self.requests.push(Submit { op, side, kind, range, flags, data: Data::None });
    }

    #[inline]
    pub(super) fn transfer(
        &mut self,
        op: OpId,
        side: Side,
        kind: Kind,
        range: ByteRange,
        buffers: &[Segment],
    ) {
        let first = self.segments.len() as u32;
        match buffers {
            // Most have one, for which nothing need be called.
            [one] => self.segments.push(*one),
            several => self.segments.extend_from_slice(several),
        }
        let data = Data::Buffers(first..self.segments.len() as u32);
        self.requests.push(Submit { op, side, kind, range, flags: Flags::default(), data });
    }
}
