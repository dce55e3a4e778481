//! What a simulation may see of a running engine, so that it can hold the engine's invariants against the disks
//! (feature `testing`).

use super::Engine;
use crate::range::ChunkRange;

/// What the engine believes of a chunk.
#[derive(Clone, Copy, Debug)]
pub struct ChunkView {
    /// It may differ, and will be copied.
    pub dirty: bool,
    /// An operation, a planned piece or a carried guest request has it.
    pub held: bool,
    /// The target reads zero there (SPEC I-5).
    pub reads_zero: bool,
    /// The target owns the clusters that it lies in (SPEC C-5).
    pub complete: bool,
}

impl Engine {
    /// What is believed of a chunk. `None` while nothing is claimed: before the copy begins, and once the job ends.
    #[must_use]
    pub fn chunk_view(&self, chunk: u64) -> Option<ChunkView> {
        let claims = self.start.is_done() && !self.is_ending() && chunk < self.geometry.chunks();
        claims.then(|| ChunkView {
            dirty: self.tracking.dirty.is_dirty(chunk),
            held: self.conflicts.any(ChunkRange::new(chunk, chunk + 1)),
            reads_zero: self.start.known_zero.get(chunk),
            complete: self.scan.written.as_ref().is_some_and(|written| written.get(chunk)),
        })
    }
}
