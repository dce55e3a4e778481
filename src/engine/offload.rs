//! Copies that the target makes by itself (SPEC C-13): no byte goes through the process. What it can't copy so is copied
//! through buffers, place by place, and it isn't asked any more when it seems that it never can.

use super::copy::Started;
use super::ops::OpState;
use super::outbox::{OpId, Side};
use super::scan::{Method, Piece};
use super::{Engine, Flags, Kind};
use crate::error::{Errno, IoResult};
use crate::range::ChunkRange;

/// Whether the target is asked to make copies by itself (SPEC C-13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offload {
    Off,
    /// As many were asked for in vain since one worked.
    On {
        in_vain: u32,
    },
}

/// Most errors speak of one place; as many in a row speak of the two sides, and each costs a request.
const MOST_IN_VAIN: u32 = 16;

impl Offload {
    pub(super) fn new(wanted: bool) -> Self {
        if wanted { Self::On { in_vain: 0 } } else { Self::Off }
    }

    pub(super) fn is_on(self) -> bool {
        self != Self::Off
    }

    fn worked(&mut self) {
        if let Self::On { in_vain } = self {
            *in_vain = 0;
        }
    }

    fn failed(&mut self, errno: Errno) {
        if let Self::On { in_vain } = self {
            *in_vain += 1;
            let never = matches!(errno, Errno::EOPNOTSUPP | Errno::EXDEV | Errno::ENOSYS);
            if never || *in_vain >= MOST_IN_VAIN {
                *self = Self::Off;
            }
        }
    }
}

impl Engine {
    /// The target is asked to take the data over by itself: no buffer is needed, and what follows is as for any copy.
    pub(super) fn start_offloaded(&mut self, piece: ChunkRange) -> Started {
        if !self.has_window() {
            return Started::NoRoom;
        }
        let chunks = self.first_part(piece, self.most_chunks_per_copy(piece.start));
        let range = self.geometry.bytes(chunks);
        let Some(id) = self.ops.take(OpState::Copy, chunks, range) else {
            return Started::NoRoom;
        };
        // Before it is sent: one that fails may have copied some of it.
        self.start.known_zero.clear(chunks);
        self.outbox.submit(id, Side::Target, Kind::Copy, range, Flags::default());
        self.copy_begins(id, range.len());
        Started::Yes { rest: ChunkRange::new(chunks.end, piece.end) }
    }

    /// What could not be copied so is copied through buffers: only that shows which side fails, if one does.
    fn offloaded_failed(&mut self, id: OpId, errno: Errno) {
        self.offload.failed(errno);
        self.copy_came_through(id, 0);
        let (chunks, _) = self.end_op(id);
        if self.is_ending() || self.pauses.any() {
            self.give_up_piece(chunks);
        } else {
            self.scan.plan_first(Piece { chunks, method: Method::CopyThrough });
            self.unplan_awaited(chunks);
        }
        self.wake_dependents(id);
    }

    pub(super) fn offloaded_done(&mut self, id: OpId, result: IoResult) {
        match result {
            Ok(()) => {
                self.offload.worked();
                self.write_done(id, Kind::Copy, Ok(()));
            }
            Err(errno) => {
                self.progress.count(Kind::Copy, 0, result);
                self.offloaded_failed(id, errno);
            }
        }
    }
}
