//! The host and its operator: begin jobs, poll them as they ask for it, try verbs, free them, see them conclude.

use super::super::disk::Faults;
use super::super::layer::Layer;
use super::super::oracle::Stamp;
use super::World;
use super::check::differing;
use super::draw::{Drawn, Shape};
use crate::clock::Nanos;
use crate::engine::{CopyMode, Event, Info, Status, Verb};
use crate::error::Errno;
use crate::job::{Job, JobOptions, PollState, PrepareHook};
use crate::range::ByteRange;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(super) struct Running {
    pub(super) job: Job,
    pub(super) shape: Shape,
    pub(super) target: usize,
    /// The backing that the target gets before the switch.
    pub(super) attach: Option<Layer>,
    pub(super) granularity: u64,
    pub(super) max_in_flight: u32,
    pub(super) woken: Arc<AtomicBool>,
    pub(super) wake_at: Nanos,
    pub(super) state: PollState,
    /// The oracle when a soft cancel was accepted.
    pub(super) cancelled_at: Option<Vec<Vec<(Stamp, bool)>>>,
    pub(super) last: Option<Info>,
    pub(super) status: Status,
    pub(super) milestones: Vec<Event>,
    /// Drains that have not ended.
    pub(super) drains: u32,
    /// Its target was told to panic; any other panic is the library's own.
    pub(super) sabotaged: bool,
    /// What was wrong when the prepare hook ran.
    pub(super) broken: Arc<Mutex<Option<String>>>,
    /// What the operator saw when it last pushed the job on.
    pub(super) pushed: Option<(Status, bool)>,
}

impl World {
    pub(super) fn begin_or_free(&mut self) {
        if self.running.is_some() {
            if self.random.one_in(4) {
                self.free();
            }
            return;
        }
        let Some(Drawn { shape, target, attach, options }) = self.draw_job() else { return };
        let woken = Arc::new(AtomicBool::new(true));
        let told = Arc::clone(&woken);
        let inline = self.random.one_in(2);
        let broken = Arc::default();
        let job_options = JobOptions {
            options: options.clone(),
            inline,
            wake: Some(Box::new(move || told.store(true, Ordering::SeqCst))),
            prepare: Some(self.prepare_hook(target, attach.clone(), Arc::clone(&broken))),
            ..JobOptions::default()
        };
        let job = match Job::new(&self.filter, self.disks[target].device(), job_options) {
            Ok(job) => job,
            Err(error) if error.errno() == Errno::EBUSY && self.disks[target].pending() > 0 => {
                self.note(|| format!("{shape:?} to disk {target} is refused: {error}"));
                return;
            }
            Err(error) => unreachable!("legal options are refused: {error}"),
        };
        self.disks[target].set_exclusive(options.granularity);
        self.outcome.jobs.entry(shape).or_default().begun += 1;
        self.note(|| format!("{shape:?} to disk {target}, inline {inline}: {options:?}"));
        if self.random.one_in(10) {
            let _ = job.pause();
        }
        let _ = job.start();
        self.running = Some(Running {
            max_in_flight: options.max_in_flight,
            job,
            shape,
            target,
            attach,
            granularity: options.granularity,
            woken,
            wake_at: Nanos(0),
            state: PollState::Busy,
            cancelled_at: None,
            last: None,
            status: Status::Created,
            milestones: Vec::new(),
            drains: 0,
            sabotaged: false,
            broken,
            pushed: None,
        });
    }

    /// Looks at both sides when nothing runs any more, and attaches the backing.
    fn prepare_hook(
        &mut self,
        target: usize,
        attach: Option<Layer>,
        broken: Arc<Mutex<Option<String>>>,
    ) -> PrepareHook {
        let (source, target) = (self.disks[self.source].clone(), self.disks[target].clone());
        let refuses = self.random.one_in(10);
        Box::new(move |_| {
            let everything = ByteRange::between(0, source.layer().length());
            let differs = differing(&source.layer(), &target.layer(), attach.as_ref(), everything);
            if let Some(sector) = differs {
                let text = format!("about to switch, and sector {sector} differs (oracle b)");
                broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
            }
            // After the pivot the target is the guests', who may overlap as they like.
            target.set_exclusive(0);
            target.set_faults(Faults::default());
            if refuses {
                return Err(Errno::EACCES);
            }
            if let Some(backing) = &attach {
                target.layer().attach_backing(backing);
            }
            Ok(())
        })
    }

    pub(super) fn free(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.note(|| "free the job".to_owned());
        self.disks[running.target].set_exclusive(0);
        self.disks[running.target].set_faults(Faults::default());
        drop(running.job);
        self.after_job(running.shape, running.target, None);
    }

    /// Polls the job if there is reason to: it said busy, it woke its host, or its time has come. A host that slept on
    /// an idle job would never know otherwise.
    pub(super) fn poll(&mut self, must: bool) -> Result<(), String> {
        let spurious = self.random.one_in(16);
        let Some(running) = &mut self.running else { return Ok(()) };
        let due = running.wake_at.0 <= self.now;
        let woken = running.woken.swap(false, Ordering::SeqCst);
        if !(must || spurious || woken || due || running.state == PollState::Busy) {
            return Ok(());
        }
        let poll = running.job.poll(Nanos(self.now)).map_err(|error| format!("poll: {error}"))?;
        running.state = poll.state;
        running.wake_at = poll.wake_at;
        self.note(|| format!("poll: {poll:?}"));
        if poll.state == PollState::Concluded {
            self.conclude()?;
        }
        Ok(())
    }

    pub(super) fn operate(&mut self) {
        if self.random.one_in(8) {
            self.drain();
            return;
        }
        let verb = self.random.pick(&Verb::ALL);
        let force = self.random.one_in(3);
        let (speed, mode) = (
            self.random.pick(&[0, 100_000]),
            self.random.pick(&[CopyMode::Background, CopyMode::WriteBlocking]),
        );
        if verb == Verb::Cancel && !self.random.one_in(3) {
            return;
        }
        let Some(running) = &mut self.running else { return };
        let job = &running.job;
        let status = job.query().status;
        let result = match verb {
            Verb::Cancel => job.cancel(force),
            Verb::Pause => job.pause(),
            Verb::Resume => job.resume(),
            Verb::SetSpeed => job.set_speed(speed),
            Verb::Change => job.change(mode),
            Verb::Complete => job.complete(),
            Verb::Finalize => job.finalize(),
            Verb::Dismiss => job.dismiss(),
        };
        if result.is_ok() && verb == Verb::Cancel && running.cancelled_at.is_none() {
            running.cancelled_at = Some(self.oracle.snapshot(ByteRange::between(0, self.length)));
        }
        *self.outcome.verbs.entry((status.name(), verb.name(), result.is_ok())).or_default() += 1;
        self.note(|| format!("{} (force {force}) in {}: {result:?}", verb.name(), status.name()));
    }

    /// The host needs a moment in which nothing of the background is begun, or doesn't any more.
    fn drain(&mut self) {
        let begins = self.random.one_in(2);
        let Some(running) = &mut self.running else { return };
        if begins {
            running.job.drain_begin();
            running.drains += 1;
        } else if running.drains > 0 {
            running.job.drain_end().expect("begun and not ended");
            running.drains -= 1;
        }
        let drains = running.drains;
        self.note(|| format!("{drains} drains"));
    }

    /// The job is over: what became of the filter and the target?
    fn conclude(&mut self) -> Result<(), String> {
        self.take_events()?;
        let Some(running) = self.running.take() else { return Ok(()) };
        self.disks[running.target].set_exclusive(0);
        let over = running.milestones.last().copied();
        let target = &self.disks[running.target];
        target.set_faults(Faults::default());
        if over == Some(Event::Completed(Err(Errno::ENOTRECOVERABLE))) && !running.sabotaged {
            return Err(format!("an internal failure (E-3): {:?}", running.job.query().error));
        }
        let pivoted = self.filter.device().is_same_storage(target.device());
        match over {
            Some(Event::Completed(Ok(()))) if pivoted => {}
            Some(Event::Completed(Ok(()))) => {
                let Some(before) = &running.cancelled_at else {
                    return Err("completed, and not switched".to_owned());
                };
                self.check_copy(&running, before)?;
                self.outcome.jobs.entry(running.shape).or_default().copies += 1;
            }
            Some(Event::Completed(Err(_)) | Event::Cancelled) if pivoted => {
                return Err(format!("switched, and ended with {over:?}"));
            }
            Some(Event::Completed(Err(_)) | Event::Cancelled) => {}
            other => return Err(format!("over without saying so: {other:?}")),
        }
        drop(running.job);
        self.after_job(running.shape, running.target, over);
        Ok(())
    }

    fn after_job(&mut self, shape: Shape, target: usize, over: Option<Event>) {
        if self.filter.device().is_same_storage(self.disks[target].device()) {
            self.source = target;
            self.outcome.jobs.entry(shape).or_default().pivots += 1;
        } else if over != Some(Event::Completed(Ok(()))) {
            self.outcome.failures += 1;
        }
    }
}
