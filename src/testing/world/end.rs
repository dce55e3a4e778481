//! Winding down: without faults and new guests everything comes to its end (oracle i).

use super::super::disk::Disk;
use super::super::faults::Faults;
use super::World;
use super::operator::Running;
use super::verbs::said;
use super::verdict::{Broken, broken};
use crate::device::Kind;
use crate::engine::Status;
use crate::filter::GuestFlags;
use crate::job::PollState;
use crate::range::ByteRange;
use std::sync::atomic::Ordering;

/// Steps that winding down may take; a job with nothing in its way needs far fewer.
const PATIENCE: u32 = 200_000;

impl World {
    pub(super) fn wind_down(&mut self) -> Result<(), Broken> {
        self.note(|| "wind down".to_owned());
        for disk in &self.disks {
            disk.set_faults(Faults::default());
        }
        let soft = self.random.one_in(2);
        for patience in 0..PATIENCE {
            self.check()?;
            if self.running.is_none()
                && self.requests.is_empty()
                && self.disks.iter().all(|d| d.pending() == 0)
            {
                return self.check_nobody_waits();
            }
            while self.advance_host_request() {
                self.take_done()?;
            }
            for disk in 0..self.disks.len() {
                while self.disks[disk].complete_one(self.now) {}
            }
            self.poll(false)?;
            if patience % 1000 == 0
                && let Some(running) = &mut self.running
            {
                running.pushed = None;
            }
            self.push_on(soft);
            self.let_time_pass()?;
        }
        let info = self.running.as_ref().map(|running| running.job.query());
        broken(
            "oracle i",
            format!(
                "no end: {} guest requests, pending {:?}, job {info:?}",
                self.requests.len(),
                self.disks.iter().map(Disk::pending).collect::<Vec<_>>()
            ),
        )
    }

    /// To the next moment at which something will happen; there must be one.
    fn let_time_pass(&mut self) -> Result<(), Broken> {
        let due = self.disks.iter().filter_map(Disk::next_due).min().unwrap_or(u64::MAX);
        let ready =
            |running: &Running| running.woken.load(Ordering::SeqCst) || running.state == PollState::Busy;
        let wake = self.running.as_ref().map_or(u64::MAX, |r| if ready(r) { self.now } else { r.wake_at.0 });
        if due.min(wake) != u64::MAX {
            self.now = self.now.max(due.min(wake));
        } else if let Some(running) = &self.running {
            let info = running.job.query();
            let guests: Vec<_> = self.requests.keys().collect();
            let text = format!("everybody sleeps, guests {guests:?} wait, the job is not over: {info:?}");
            return broken("oracle i", text);
        }
        Ok(())
    }

    fn check_nobody_waits(&mut self) -> Result<(), Broken> {
        for front in &mut self.fronts {
            front.take_opened();
            if front.turned_away {
                return broken("G-8", "a begin was turned away, and nobody said that the gate is open again");
            }
        }
        Ok(())
    }

    /// What an operator does who wants the job to end well.
    fn push_on(&mut self, soft: bool) {
        let Some(running) = &mut self.running else { return };
        while running.drains > 0 {
            running.job.drain_end().expect("begun and not ended");
            running.drains -= 1;
        }
        let info = running.job.query();
        if running.pushed == Some((info.status, info.paused)) {
            // Asking again and again would keep it from sleeping.
            return;
        }
        running.pushed = Some((info.status, info.paused));
        if info.paused {
            let _ = running.job.resume();
        }
        let front = running.front;
        let result = match info.status {
            Status::Created => running.job.start(),
            Status::Ready if soft => {
                let result = running.job.cancel(false);
                if result.is_ok() && running.cancelled_at.is_none() {
                    running.cancelled_at =
                        Some(self.fronts[front].oracle.snapshot(ByteRange::between(0, self.length)));
                }
                result
            }
            Status::Ready => running.job.complete(),
            Status::Pending => running.job.finalize(),
            _ => return,
        };
        self.note(|| format!("push on from {}: {}", info.status.name(), said(&result)));
    }

    /// A guest's last look at its disk.
    pub(super) fn read_everything(&mut self) -> Result<(), Broken> {
        for front in 0..self.fronts.len() {
            // Nobody's: no guest has so many requests.
            let nobody = self.guests.len();
            self.submit(
                (nobody, front),
                Kind::Read,
                ByteRange::between(0, self.length),
                GuestFlags::default(),
            );
        }
        for _ in 0..PATIENCE {
            self.check()?;
            if self.requests.is_empty() {
                return Ok(());
            }
            for disk in &self.disks {
                while disk.complete_one(self.now) {}
            }
            self.now += 1_000_000;
        }
        broken("oracle i", "the last read does not end")
    }
}
