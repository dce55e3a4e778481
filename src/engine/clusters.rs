//! Copies to a target whose backing is attached later keep to whole clusters (SPEC C-5).
//!
//! Such a target takes the rest of a cluster that it doesn't own from the backing when a part of it is written, and the
//! backing isn't there yet: what it fills in is wrong, and stays. So whatever is sent to it begins and ends between
//! clusters, or in one that it owns. [`super::scan::Scan::written`] knows which those are.
//!
//! A run is widened when it is *taken*, before its extents are asked for: so the chunks that were added are held,
//! un-dirtied, planned, read and written like the others, and nothing can come in between. What is cut off a piece later,
//! for want of room or because it is long, is cut between clusters too.
//!
//! # The worst that can happen
//! - A guest's carried write holds a neighbour in the cluster when the run is to be taken. That cluster is stepped over, as
//!   if its own chunk were held; otherwise the widened copy and the write would be at the target together, and the older
//!   data could land last.
//! - A guest keeps a neighbour busy all the time. The cluster is reserved as a whole (`conflict`).
//! - A discard fails half-way: some of its clusters are gone. They are forgotten before it is sent.
//! - A zero that may deallocate: it reads as zero now, and as the backing once that is attached. It is never sent
//!   with that permission, nor is a discard taken for a zero (`SideInfo::zeroes_discards`).
//! - A carried write that is smaller than a cluster, where chunks are larger than clusters: its edges are not carried
//!   (`guest`), although no copy would have to be widened.

use super::Engine;
use crate::range::ChunkRange;

impl Engine {
    /// Widens a run to whole clusters at an end that lies in a cluster that the target doesn't own. Where somebody holds
    /// or awaits what would be added, that cluster is left out. `None` if nothing is left.
    pub(super) fn widen(&self, run: ChunkRange) -> Option<ChunkRange> {
        let mut wide = self.rounded_to_clusters(run);
        let startable =
            |chunks: ChunkRange| chunks.is_empty() || self.first_startable_part(chunks) == Some(chunks);
        if !startable(ChunkRange::new(wide.start, run.start)) {
            wide.start = self.end_of_cluster(run.start);
        }
        if wide.start < wide.end && !startable(ChunkRange::new(run.end, wide.end)) {
            wide.end = self.start_of_cluster(run.end - 1);
        }
        (wide.start < wide.end).then_some(wide)
    }

    /// The same, whoever holds what.
    pub(super) fn rounded_to_clusters(&self, chunks: ChunkRange) -> ChunkRange {
        let Some(written) = &self.scan.written else {
            return chunks;
        };
        let (mut start, mut end) = (chunks.start, chunks.end);
        if !written.get(start) {
            start = self.start_of_cluster(start);
        }
        if !written.get(end - 1) {
            end = self.end_of_cluster(end - 1);
        }
        ChunkRange::new(start, end)
    }

    /// The first part of a piece, `most` chunks long or a little less, that is not cut off within a cluster that the
    /// target doesn't own. It is longer if such a cluster is.
    pub(super) fn first_part(&self, piece: ChunkRange, most: u64) -> ChunkRange {
        let mut end = piece.end.min(piece.start + most);
        let splits = end < piece.end && self.scan.written.as_ref().is_some_and(|written| !written.get(end));
        if splits {
            let down = self.start_of_cluster(end);
            end = if down > piece.start { down } else { self.end_of_cluster(end).min(piece.end) };
        }
        ChunkRange::new(piece.start, end)
    }

    fn start_of_cluster(&self, chunk: u64) -> u64 {
        chunk - chunk % self.cluster_chunks()
    }

    /// One past the last chunk of this one's cluster.
    pub(super) fn end_of_cluster(&self, chunk: u64) -> u64 {
        (self.start_of_cluster(chunk) + self.cluster_chunks()).min(self.geometry.chunks())
    }

    fn cluster_chunks(&self) -> u64 {
        (self.target.limits.cluster_size / self.geometry.granularity()).max(1)
    }
}
