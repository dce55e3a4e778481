//! The oracles, asked after every step: what the job claims is held against what the disks hold.

use super::super::layer::Layer;
use super::super::oracle::{SECTOR, Stamp};
use super::operator::Running;
use super::verdict::{Broken, broken};
use super::{World, stamps};
use crate::engine::{CopyMode, Event, Info, Status};
use crate::range::{ByteRange, Geometry};
use std::sync::PoisonError;

/// Chunks that are looked at in each step, one of them where a guest was; all are when a job says that the sides are
/// equal.
const CHUNKS_PER_STEP: u64 = 3;

impl World {
    pub(super) fn check(&mut self) -> Result<(), Broken> {
        self.take_done()?;
        self.check_disks()?;
        self.count_faults();
        if let Some(running) = &self.running
            && let Some(text) = running.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            return broken("oracle b", text);
        }
        let Some(running) = &mut self.running else { return Ok(()) };
        let info = running.job.query();
        if info.status.is_over() {
            return Ok(());
        }
        self.take_events()?;
        let Some(running) = &mut self.running else { return Ok(()) };
        running.check_info(&info)?;
        let (front, synced) = (running.front, info.actively_synced);
        running.last = Some(info);
        if synced && self.is_being_changed_as_before(front) {
            return broken("F-6", "actively synced, and a change that began before the job is not done");
        }
        if synced {
            self.check_synced()?;
        }
        self.check_some_chunks()
    }

    fn check_disks(&self) -> Result<(), Broken> {
        for (index, disk) in self.disks.iter().enumerate() {
            if let Some(violation) = disk.violation() {
                return broken("device", format!("disk {index}: {violation}"));
            }
            // A job that was given up for a panic of its target's hears nothing any more.
            let (_, _, refused) = disk.counts();
            if refused > 0 && !self.sabotaged {
                return broken("D-3", format!("disk {index}: a completion that was due is refused"));
            }
        }
        Ok(())
    }

    pub(super) fn take_events(&mut self) -> Result<(), Broken> {
        let Some(running) = &mut self.running else { return Ok(()) };
        while let Some(event) = running.job.next_event() {
            match event {
                Event::Status(next) => {
                    // Of a state that was forgotten because nobody read in time nothing is known.
                    let dropped = running.job.query().events_dropped;
                    if next != Status::Created && !running.status.may_become(next) && dropped == 0 {
                        return broken("L-1", format!("{:?} became {next:?}", running.status));
                    }
                    running.status = next;
                }
                Event::Error(_) => {}
                told if running.milestones.contains(&told) => {
                    return broken("L-4", format!("{told:?} is told twice"));
                }
                milestone => running.milestones.push(milestone),
            }
        }
        Ok(())
    }

    /// Source and target are equal wherever no guest is writing (oracle d).
    fn check_synced(&mut self) -> Result<(), Broken> {
        let Some(running) = &self.running else { return Ok(()) };
        let (source, target) = self.sides(running);
        let length = source.length();
        for sector in 0..length.div_ceil(SECTOR) {
            let range = ByteRange::between(sector * SECTOR, ((sector + 1) * SECTOR).min(length));
            if differing(&source, &target, running.attach.as_ref(), range).is_some()
                && !self.is_being_changed(running.front, range)
            {
                return broken("oracle d", format!("actively synced, and sector {sector} differs"));
            }
        }
        self.outcome.synced_checks += 1;
        Ok(())
    }

    /// What the engine believes of some chunks is true.
    fn check_some_chunks(&mut self) -> Result<(), Broken> {
        let Some(running) = &self.running else { return Ok(()) };
        let geometry = Geometry::new(self.length, running.granularity);
        if geometry.chunks() == 0 {
            return Ok(());
        }
        let place = self.random.pick(&self.places);
        self.check_chunk(geometry, place / running.granularity)?;
        for _ in 1..CHUNKS_PER_STEP {
            let chunk = self.random.within(0, geometry.chunks());
            self.check_chunk(geometry, chunk)?;
        }
        Ok(())
    }

    fn check_chunk(&mut self, geometry: Geometry, chunk: u64) -> Result<(), Broken> {
        let Some(running) = &self.running else { return Ok(()) };
        let Some(view) = running.job.chunk_view(chunk) else { return Ok(()) };
        let range = ByteRange::between(geometry.byte(chunk), geometry.byte(chunk + 1));
        let (source, target) = self.sides(running);
        let wrong = |rule, what: &str| {
            broken(rule, format!("chunk {chunk}, {range:?}: {what}; believed is {view:?}"))
        };
        if view.reads_zero {
            self.outcome.zero_chunks += 1;
            if target.read(range).iter().any(|byte| *byte != 0) {
                return wrong("I-5", "the target doesn't read zero");
            }
            if running.attach.is_some() && !target.owns(range) {
                return wrong("I-5", "the target will not read zero");
            }
        }
        if view.complete && !target.owns(range) {
            return wrong("C-5", "the target doesn't own its clusters");
        }
        if !view.dirty && !view.held && !self.is_being_changed(running.front, range) {
            self.outcome.clean_chunks += 1;
            if differing(&source, &target, running.attach.as_ref(), range).is_some() {
                return wrong("I-1", "it differs and nobody will copy it");
            }
        }
        Ok(())
    }

    /// After a soft cancel the target is a copy of an instant after it was asked for (oracle c). With the source as
    /// the backing to come there is no such copy: what the source holds goes on changing.
    pub(super) fn check_copy(&self, running: &Running, before: &[Vec<(Stamp, bool)>]) -> Result<(), Broken> {
        if !self.disks[running.target].is_flushed() {
            return broken("F-5", "the copy is complete, and not flushed");
        }
        let (source, target) = self.sides(running);
        if running.attach.as_ref().is_some_and(|backing| backing.is(&source)) {
            return Ok(());
        }
        let everything = ByteRange::between(0, self.length);
        let found = stamps(&as_attached(&target, running.attach.as_ref(), everything))?;
        self.fronts[running.front]
            .oracle
            .check(everything, before, &found)
            .or_else(|wrong| broken("oracle c", format!("the copy of an instant: {wrong}")))
    }

    /// Source and target of a job.
    pub(super) fn sides(&self, running: &Running) -> (Layer, Layer) {
        let source = self.fronts[running.front].source;
        (self.disks[source].layer(), self.disks[running.target].layer())
    }
}

impl Running {
    /// What a job says of itself keeps to the rules (SPEC C-7, P-1, P-2).
    fn check_info(&self, info: &Info) -> Result<(), Broken> {
        let (done, total) = (info.done, info.total);
        if let Some(last) = self.last.as_ref().filter(|last| done < last.done) {
            return broken("P-2", format!("progress fell from {} to {done}", last.done));
        }
        if total < done.saturating_add(info.dirty).saturating_add(info.in_flight_bytes) {
            return broken("P-2", format!("{total} bytes in all, and more than that are left: {info:?}"));
        }
        if info.actively_synced && info.copy_mode == CopyMode::Background && total > 0 {
            return broken("F-6", "actively synced, and no write is carried");
        }
        if info.in_flight_ops > self.max_in_flight {
            return broken("C-7", format!("{} operations in flight", info.in_flight_ops));
        }
        if matches!(info.status, Status::Paused | Status::Standby) && info.in_flight_ops > 0 {
            return broken("P-1", format!("paused, and {} operations in flight", info.in_flight_ops));
        }
        Ok(())
    }

    /// A job that is over has said so once, last, after all that came before it (SPEC L-4).
    pub(super) fn check_milestones(&self, auto_finalize: bool) -> Result<Event, Broken> {
        let count = |wanted: fn(&Event) -> bool| self.milestones.iter().filter(|event| wanted(event)).count();
        let ends = count(|event| matches!(event, Event::Completed(_) | Event::Cancelled));
        let (ready, pending) =
            (count(|event| *event == Event::Ready), count(|event| *event == Event::Pending));
        let last = self.milestones.last().copied().unwrap_or(Event::Ready);
        let is_end = matches!(last, Event::Completed(_) | Event::Cancelled);
        let good = last == Event::Completed(Ok(()));
        let first_is_ready = self.milestones.first() == Some(&Event::Ready);
        let needs_pending = good && !auto_finalize;
        if ends != 1
            || !is_end
            || ready > 1
            || pending > u64::from(!auto_finalize) as usize
            || (good && !first_is_ready)
            || (needs_pending && pending == 0)
            || !self.status.is_over()
        {
            let text = format!("over in state {:?} after {:?}", self.status, self.milestones);
            return broken("L-4", text);
        }
        Ok(last)
    }
}

/// What a layer reads as once it has its backing.
pub(super) fn as_attached(layer: &Layer, attach: Option<&Layer>, range: ByteRange) -> Vec<u8> {
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
