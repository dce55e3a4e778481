//! The host: begins jobs, polls them as they ask for it, frees them, sees them conclude.

use super::super::disk::{Disk, DiskOptions};
use super::super::faults::{Fault, Faults};
use super::super::layer::Layer;
use super::super::oracle::Stamp;
use super::World;
use super::check::{as_attached, differing};
use super::draw::{Drawn, Shape};
use super::front::{Switch, Switched};
use super::verdict::{Broken, broken};
use crate::clock::Nanos;
use crate::device::{Kind, Limits};
use crate::engine::MAX_IN_FLIGHT;
use crate::engine::{Event, Info, Status};
use crate::error::Errno;
use crate::job::{Job, JobOptions, PollState, PrepareHook};
use crate::range::ByteRange;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Rounds in one poll, and one for what was found finished at its beginning. In each round a background operation in
/// flight ends at most one of its steps (SPEC C-10).
const ROUNDS: u64 = 65;

pub(super) struct Running {
    pub(super) job: Job,
    pub(super) shape: Shape,
    /// Whose filter is copied.
    pub(super) front: usize,
    /// Whose filter is switched, if not that.
    pub(super) replaces: Option<usize>,
    pub(super) switched: Switched,
    pub(super) target: usize,
    /// The backing that the target gets before the switch.
    pub(super) attach: Option<Layer>,
    pub(super) granularity: u64,
    pub(super) max_in_flight: u32,
    auto_finalize: bool,
    /// Whoever has news drives it.
    pub(super) inline: bool,
    pub(super) woken: Arc<AtomicBool>,
    pub(super) wake_at: Nanos,
    pub(super) state: PollState,
    /// The oracle when a soft cancel was accepted.
    pub(super) cancelled_at: Option<Vec<Vec<(Stamp, bool)>>>,
    /// It was asked to end, by somebody or by its options.
    pub(super) finishing: bool,
    /// Requests that had failed before it came.
    failed_before: u64,
    pub(super) last: Option<Info>,
    pub(super) status: Status,
    pub(super) milestones: Vec<Event>,
    /// Drains that have not ended.
    pub(super) drains: u32,
    /// Its target was told to panic; any other panic is the library's own.
    pub(super) sabotaged: bool,
    /// What was wrong when the prepare hook ran.
    pub(super) broken: Arc<Mutex<Option<String>>>,
    /// The prepare hook has refused.
    refused: Arc<AtomicBool>,
    /// What the operator saw when it last pushed the job on.
    pub(super) pushed: Option<(Status, bool)>,
}

/// What the prepare hook leaves for the world.
#[derive(Clone, Default)]
struct Seen {
    broken: Arc<Mutex<Option<String>>>,
    refused: Arc<AtomicBool>,
    switched: Switched,
}

impl World {
    pub(super) fn begin_or_free(&mut self) -> Result<(), Broken> {
        if self.running.is_none() {
            self.begin();
        } else if self.random.one_in(16) {
            // Most live to an end of their own.
            self.free()?;
        } else if self.random.one_in(4) {
            self.begin_another()?;
        }
        Ok(())
    }

    fn begin(&mut self) {
        self.draw_window();
        let front = self.random.within(0, self.fronts.len() as u64) as usize;
        let Some(drawn) = self.draw_job(front) else { return };
        let Drawn { shape, target, replaces, .. } = drawn;
        let woken = Arc::new(AtomicBool::new(true));
        let told = Arc::clone(&woken);
        let inline = self.random.one_in(2);
        let seen = Seen::default();
        let job_options = JobOptions {
            options: drawn.options.clone(),
            inline,
            replaces: replaces.map(|other| self.fronts[other].filter.clone()),
            wake: Some(Box::new(move || told.store(true, Ordering::SeqCst))),
            prepare: Some(self.prepare_hook(&drawn, &seen)),
            clock: None,
        };
        let job = match Job::new(&self.fronts[front].filter, self.disks[target].device(), job_options) {
            Ok(job) => job,
            Err(error) if error.errno() == Errno::EBUSY && self.disks[target].pending() > 0 => {
                self.note(|| format!("{shape:?} to disk {target} is refused: {}", error.errno()));
                return;
            }
            Err(error) => unreachable!("legal options are refused: {error}"),
        };
        let failed_before = self.failed();
        let Drawn { attach, options, .. } = drawn;
        self.disks[target].set_exclusive(options.granularity);
        self.outcome.jobs.entry(shape).or_default().begun += 1;
        self.spoil_beginning(shape, front, target);
        self.note(|| {
            format!("{shape:?} of front {front} to disk {target}, replaces {replaces:?}, inline {inline}: {options:?}")
        });
        if self.random.one_in(10) {
            let _ = job.pause();
        }
        // The operator, or whoever winds down, starts it later.
        if !self.random.one_in(4) {
            let _ = job.start();
        }
        self.running = Some(Running {
            max_in_flight: if options.max_in_flight == 0 { MAX_IN_FLIGHT } else { options.max_in_flight },
            auto_finalize: options.auto_finalize,
            finishing: options.auto_complete,
            failed_before,
            job,
            shape,
            front,
            replaces,
            switched: seen.switched,
            target,
            attach,
            granularity: options.granularity,
            inline,
            woken,
            wake_at: Nanos(0),
            state: PollState::Busy,
            cancelled_at: None,
            last: None,
            status: Status::Created,
            milestones: Vec::new(),
            drains: 0,
            sabotaged: false,
            broken: seen.broken,
            refused: seen.refused,
            pushed: None,
        });
    }

    /// The first that a job does to its target goes wrong now and then.
    fn spoil_beginning(&mut self, shape: Shape, front: usize, target: usize) {
        if !self.faulty || !self.random.one_in(2) {
            return;
        }
        if self.random.one_in(3) {
            let faults = self.draw_faults();
            self.disks[self.fronts[front].source].set_faults(faults);
        }
        let mut faults = self.draw_faults();
        if self.random.one_in(2) {
            let kinds = [Kind::Zero, Kind::Zero, Kind::Zero, Kind::Write, Kind::Discard, Kind::Flush];
            let only = if shape == Shape::Commit { Kind::Truncate } else { self.random.pick(&kinds) };
            let most = self.random.pick(&[1, 2, 4]);
            faults = Faults { error_one_in: 1, only: Some(only), most: Some(most), ..Faults::default() };
        }
        self.disks[target].set_faults(faults);
    }

    /// A filter has one job at a time, be it for copying or for being switched (SPEC O-6).
    fn begin_another(&mut self) -> Result<(), Broken> {
        let Some(running) = &self.running else { return Ok(()) };
        if running.job.query().status.is_over() {
            return Ok(());
        }
        let taken = running.replaces.filter(|_| self.random.one_in(2)).unwrap_or(running.front);
        let limits = Limits { request_alignment: self.alignment as u32, ..Limits::default() };
        let options = DiskOptions {
            length: self.length,
            limits: limits.checked().expect("sensible limits"),
            supports: vec![Kind::Zero],
            inline_one_in: 1,
            early_one_in: 0,
            latency_ns: (0, 1),
            depth: 0,
        };
        let disk = Disk::new(1, options).expect("sensible limits");
        match Job::new(&self.fronts[taken].filter, disk.device(), JobOptions::default()) {
            Err(error) if error.errno() == Errno::EBUSY => Ok(()),
            other => broken("O-6", format!("a second job on a filter: {:?}", other.map(drop))),
        }
    }

    /// Looks at both sides when nothing runs any more, and attaches the backing.
    fn prepare_hook(&mut self, drawn: &Drawn, seen: &Seen) -> PrepareHook {
        let source = self.disks[self.fronts[drawn.front].source].clone();
        let target = self.disks[drawn.target].clone();
        let (attach, seen, done) = (drawn.attach.clone(), seen.clone(), Arc::clone(&self.done));
        let refuses = self.random.one_in(10);
        Box::new(move |_| {
            let everything = ByteRange::between(0, source.layer().length());
            let differs = differing(&source.layer(), &target.layer(), attach.as_ref(), everything);
            if let Some(sector) = differs {
                let text = format!("about to switch, and sector {sector} differs");
                seen.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
            }
            if !target.is_flushed() {
                let text = "about to switch, and the target is not flushed (F-2)".to_owned();
                seen.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
            }
            // After the pivot the target is the guests', who may overlap as they like.
            target.set_exclusive(0);
            target.set_faults(Faults::default());
            if refuses {
                seen.refused.store(true, Ordering::SeqCst);
                return Err(Errno::EACCES);
            }
            let bytes = as_attached(&target.layer(), attach.as_ref(), everything);
            let done = done.lock().unwrap_or_else(PoisonError::into_inner).len();
            *seen.switched.lock().unwrap_or_else(PoisonError::into_inner) = Some(Switch::new(bytes, done));
            if let Some(backing) = &attach {
                target.layer().attach_backing(backing);
            }
            Ok(())
        })
    }

    pub(super) fn free(&mut self) -> Result<(), Broken> {
        self.take_done()?;
        let Some(running) = self.running.take() else { return Ok(()) };
        self.note(|| "free the job".to_owned());
        self.disks[running.target].set_exclusive(0);
        self.disks[running.target].set_faults(Faults::default());
        self.sabotaged |= running.sabotaged;
        let (front, shape, target) =
            (running.replaces.unwrap_or(running.front), running.shape, running.target);
        drop(running);
        self.after_job((front, shape, target), None);
        Ok(())
    }

    /// Polls the job if there is reason to: it said busy, it woke its host, or its time has come. A host that slept on
    /// an idle job would never know otherwise.
    pub(super) fn poll(&mut self, must: bool) -> Result<(), Broken> {
        let spurious = self.random.one_in(16);
        let Some(running) = &mut self.running else { return Ok(()) };
        let due = running.wake_at.0 <= self.now;
        let woken = running.woken.swap(false, Ordering::SeqCst);
        if !(must || spurious || woken || due || running.state == PollState::Busy) {
            return Ok(());
        }
        let before = operations(&running.job.query());
        let poll = running.job.poll(Nanos(self.now)).or_else(|error| broken("poll", error.to_string()))?;
        running.state = poll.state;
        running.wake_at = poll.wake_at;
        let info = running.job.query();
        let ended = operations(&info) - before;
        // A job that drives itself does so again for each piece of news that it makes.
        if !running.inline && ended > ROUNDS * u64::from(running.max_in_flight) {
            return broken("C-10", format!("a poll has seen {ended} operations end"));
        }
        let settled = poll.state == PollState::Idle && info.paused && info.in_flight_ops == 0;
        if settled && matches!(info.status, Status::Running | Status::Ready) {
            return broken(
                "P-1",
                format!("paused with nothing in flight, and its status is {:?}", info.status),
            );
        }
        self.note(|| format!("poll: {poll:?}"));
        match poll.state {
            PollState::Concluded => self.conclude(),
            PollState::Idle if self.random.one_in(4) => self.check_idle(),
            _ => Ok(()),
        }
    }

    /// Idle means that nothing can be done: without news, and at the same time, another poll does nothing.
    fn check_idle(&mut self) -> Result<(), Broken> {
        let submitted =
            |disks: &[Disk]| -> Vec<u64> { disks.iter().map(|disk| disk.counts().0).collect::<Vec<_>>() };
        let may_have_room = self.disks.iter().any(|disk| disk.faults().again_one_in > 0);
        let before = submitted(&self.disks);
        let Some(running) = &mut self.running else { return Ok(()) };
        if may_have_room || running.woken.load(Ordering::SeqCst) {
            return Ok(());
        }
        let then = running.job.query();
        let poll = running.job.poll(Nanos(self.now)).or_else(|error| broken("poll", error.to_string()))?;
        let now = running.job.query();
        let same = then.status == now.status && then.done == now.done && then.total == now.total;
        if poll.state != PollState::Idle || !same || before != submitted(&self.disks) {
            let text = format!("idle, and the next poll did something: {poll:?}, {then:?}, then {now:?}");
            return broken("oracle i", text);
        }
        self.outcome.idle_checks += 1;
        Ok(())
    }

    /// The job is over: what became of the filter and the target?
    fn conclude(&mut self) -> Result<(), Broken> {
        self.take_done()?;
        self.try_verbs_when_over()?;
        self.take_events()?;
        if self.running.as_ref().is_some_and(|running| running.refused.load(Ordering::SeqCst)) {
            self.count_fault(Fault::Prepare);
        }
        let Some(running) = self.running.take() else { return Ok(()) };
        self.disks[running.target].set_exclusive(0);
        self.sabotaged |= running.sabotaged;
        let over = running.check_milestones(running.auto_finalize)?;
        let target = &self.disks[running.target];
        target.set_faults(Faults::default());
        if over == Event::Completed(Err(Errno::ENOTRECOVERABLE)) && !running.sabotaged {
            return broken("E-3", format!("an internal failure: {:?}", running.job.query().error));
        }
        if let Event::Completed(Err(errno)) = over
            && !self.may_fail(&running, errno)
        {
            return broken("E-1", format!("it failed without a reason: {:?}", running.job.query().error));
        }
        let front = running.replaces.unwrap_or(running.front);
        let pivoted = self.fronts[front].filter.device().is_same_storage(target.device());
        match over {
            Event::Completed(Ok(())) if pivoted => {}
            Event::Completed(Ok(())) => {
                let Some(before) = &running.cancelled_at else {
                    return broken("F-2", "completed, and not switched");
                };
                self.check_copy(&running, before)?;
                self.outcome.jobs.entry(running.shape).or_default().copies += 1;
            }
            _ if pivoted => return broken("F-2", format!("switched, and ended with {over:?}")),
            _ => {}
        }
        if running.replaces.is_some() {
            self.outcome.jobs.entry(running.shape).or_default().replaced += u64::from(pivoted);
        }
        let (shape, target) = (running.shape, running.target);
        drop(running.job);
        self.after_job((front, shape, target), Some(over));
        Ok(())
    }

    /// Requests that disks have made fail.
    fn failed(&self) -> u64 {
        self.disks.iter().map(|disk| disk.counts().1).sum()
    }

    /// Whether something was done to a job that can end it so.
    fn may_fail(&self, running: &Running, errno: Errno) -> bool {
        match errno {
            Errno::EIO | Errno::ENOSPC => self.failed() > running.failed_before,
            Errno::EACCES => running.refused.load(Ordering::SeqCst),
            // A base that is shorter than its overlay, and can't be grown or takes no request there.
            Errno::EINVAL => running.shape == Shape::Commit,
            _ => running.sabotaged,
        }
    }

    fn after_job(&mut self, (front, shape, target): (usize, Shape, usize), over: Option<Event>) {
        let front = &mut self.fronts[front];
        if front.filter.device().is_same_storage(self.disks[target].device()) {
            front.source = target;
            self.outcome.jobs.entry(shape).or_default().pivots += 1;
        } else if over != Some(Event::Completed(Ok(()))) {
            self.outcome.failures += 1;
        }
    }
}

/// Background operations that have ended.
fn operations(info: &Info) -> u64 {
    info.reads.ops + info.writes.ops + info.zeroes.ops + info.discards.ops
}
