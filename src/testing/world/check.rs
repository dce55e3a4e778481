//! The oracles, asked after every step: what the job claims is held against what the disks hold.

use super::super::layer::Layer;
use super::super::oracle::{SECTOR, Stamp};
use super::operator::Running;
use super::{World, stamps};
use crate::engine::{Event, Status};
use crate::range::{ByteRange, Geometry};
use std::sync::PoisonError;

/// Chunks that are looked at in each step; all are when a job says that the sides are equal.
const CHUNKS_PER_STEP: u64 = 3;

impl World {
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.take_done()?;
        for (index, disk) in self.disks.iter().enumerate() {
            if let Some(violation) = disk.violation() {
                return Err(format!("disk {index}: {violation}"));
            }
        }
        if let Some(running) = &self.running
            && let Some(broken) = running.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            return Err(broken);
        }
        if self.running.as_ref().is_some_and(|running| running.job.query().status.is_over()) {
            return Ok(());
        }
        self.take_events()?;
        let Some(running) = &mut self.running else { return Ok(()) };
        let info = running.job.query();
        if let Some(last) = &running.last
            && info.done < last.done
        {
            return Err(format!("progress fell from {} to {} (P-2)", last.done, info.done));
        }
        if info.in_flight_ops > running.max_in_flight {
            return Err(format!("{} operations in flight (C-7)", info.in_flight_ops));
        }
        let synced = info.actively_synced;
        running.last = Some(info);
        if synced {
            self.check_synced()?;
        }
        self.check_some_chunks()
    }

    pub(super) fn take_events(&mut self) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        while let Some(event) = running.job.next_event() {
            match event {
                Event::Status(next) => {
                    if next != Status::Created && !running.status.may_become(next) {
                        return Err(format!("{:?} became {next:?} (L-1)", running.status));
                    }
                    running.status = next;
                }
                Event::Error(_) => {}
                milestone => running.milestones.push(milestone),
            }
        }
        Ok(())
    }

    /// Source and target are equal wherever no guest is writing (oracle d).
    fn check_synced(&mut self) -> Result<(), String> {
        let Some(running) = &self.running else { return Ok(()) };
        let (source, target) = (self.disks[self.source].layer(), self.disks[running.target].layer());
        let length = source.length();
        for sector in 0..length.div_ceil(SECTOR) {
            let range = ByteRange::between(sector * SECTOR, ((sector + 1) * SECTOR).min(length));
            if differing(&source, &target, running.attach.as_ref(), range).is_some()
                && !self.is_being_changed(range)
            {
                return Err(format!("actively synced, and sector {sector} differs (oracle d)"));
            }
        }
        self.outcome.synced_checks += 1;
        Ok(())
    }

    /// What the engine believes of some chunks is true.
    fn check_some_chunks(&mut self) -> Result<(), String> {
        let Some(running) = &self.running else { return Ok(()) };
        let geometry = Geometry::new(self.disks[self.source].layer().length(), running.granularity);
        for _ in 0..CHUNKS_PER_STEP.min(geometry.chunks()) {
            let chunk = self.random.within(0, geometry.chunks());
            self.check_chunk(geometry, chunk)?;
        }
        Ok(())
    }

    fn check_chunk(&mut self, geometry: Geometry, chunk: u64) -> Result<(), String> {
        let Some(running) = &self.running else { return Ok(()) };
        let Some(view) = running.job.chunk_view(chunk) else { return Ok(()) };
        let range = ByteRange::between(geometry.byte(chunk), geometry.byte(chunk + 1));
        let (source, target) = (self.disks[self.source].layer(), self.disks[running.target].layer());
        let wrong = |what: &str| Err(format!("chunk {chunk}, {range:?}: {what}; believed is {view:?}"));
        if view.reads_zero {
            self.outcome.zero_chunks += 1;
            if target.read(range).iter().any(|byte| *byte != 0) {
                return wrong("the target doesn't read zero (I-5)");
            }
            if running.attach.is_some() && !target.owns(range) {
                return wrong("the target will not read zero (I-5)");
            }
        }
        if view.complete && !target.owns(range) {
            return wrong("the target doesn't own its clusters (C-5)");
        }
        if !view.dirty && !view.held && !self.is_being_changed(range) {
            self.outcome.clean_chunks += 1;
            if differing(&source, &target, running.attach.as_ref(), range).is_some() {
                return wrong("it differs and nobody will copy it (I-1)");
            }
        }
        Ok(())
    }

    /// After a soft cancel the target is a copy of an instant after it was asked for (oracle c). With the source as
    /// the backing to come there is no such copy: what the source holds goes on changing.
    pub(super) fn check_copy(&self, running: &Running, before: &[Vec<(Stamp, bool)>]) -> Result<(), String> {
        let source = self.disks[self.source].layer();
        if running.attach.as_ref().is_some_and(|backing| backing.is(&source)) {
            return Ok(());
        }
        let everything = ByteRange::between(0, self.length);
        let found =
            stamps(&as_attached(&self.disks[running.target].layer(), running.attach.as_ref(), everything))?;
        self.oracle
            .check(everything, before, &found)
            .map_err(|error| format!("the copy of an instant (oracle c): {error}"))
    }
}

/// What a layer reads as once it has its backing.
fn as_attached(layer: &Layer, attach: Option<&Layer>, range: ByteRange) -> Vec<u8> {
    match attach {
        Some(backing) => layer.read_over(backing, range),
        None => layer.read(range),
    }
}

/// The first sector in which the two sides differ.
pub(super) fn differing(
    source: &Layer,
    target: &Layer,
    attach: Option<&Layer>,
    range: ByteRange,
) -> Option<u64> {
    if target.length() < range.end() {
        return Some(target.length() / SECTOR);
    }
    let (ours, theirs) = (source.read(range), as_attached(target, attach, range));
    let differs = ours.iter().zip(&theirs).position(|(our, their)| our != their)?;
    Some((range.offset() + differs as u64) / SECTOR)
}
