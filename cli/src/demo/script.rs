//! What happens in the demo, in order, and what is said of it.

use super::Arguments;
use super::check::{Verdict, check};
use super::guest::{Account, Guest, Phase};
use super::image::Image;
use crate::drive::{drive, wake_hook};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::say;
use crate::size::Size;
use blkmirror::device::{Device, file};
use blkmirror::engine::{Event, Info, Options};
use blkmirror::error::Error;
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions};
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Plays the demo in this directory, which is empty.
pub(super) fn play(arguments: &Arguments, image: Image, directory: &Path) -> Result<(), Failure> {
    let (old, new) = (directory.join("old.img"), directory.join("new.img"));
    let data = image.create(&old).map_err(Failure::with(old.display()))?;
    say(format_args!(
        "Made a disk of {} in {}: {} of data, the rest holes. (--seed {})",
        Size(image.length()),
        old.display(),
        Size(data),
        image.seed
    ))?;

    let source = file::open(&old, &file::OpenOptions::default())?;
    let target = file::open(
        &new,
        &file::OpenOptions { create: Some(image.length()), ..file::OpenOptions::default() },
    )?;
    let filter = Filter::new(&source)?;
    let guest = Guest::start(&filter, image, arguments.writers)?;
    let scene = Scene { job: start_job(&filter, &target, arguments)?, guest };
    say(format_args!("{} guest threads write to it, and won't stop for any of this.", arguments.writers))?;

    let half = Duration::from_secs(arguments.seconds.into()) / 2;
    let ready_after = scene.copy()?;
    let copied = scene.job.query();
    say(format_args!(
        "Copied it to {} behind their backs: ready after {}, {} at {}/s.",
        new.display(),
        Seconds(ready_after),
        Size(copied.done),
        Size((copied.done as f64 / ready_after.as_secs_f64().max(1e-9)) as u64),
    ))?;
    scene.stay_ready(half)?;
    let switched_after = scene.switch()?;
    let job = scene.job.query();
    scene.go_on(half)?;
    let account = scene.guest.stop()?;
    filter.flush()?;
    drop((scene.job, filter, source, target));

    tell_of_the_guest(&account, &job, switched_after)?;
    let disk = File::open(&new).map_err(Failure::with(new.display()))?;
    let verdict = check(&disk, &image, &account.acknowledged).map_err(Failure::with(new.display()))?;
    tell_of_the_proof(&verdict, &image)
}

fn start_job(filter: &Filter, target: &Device, arguments: &Arguments) -> Result<Job, Failure> {
    let options =
        Options { id: Some("demo".to_owned()), copy_mode: arguments.copy_mode.into(), ..Options::default() };
    let job = Job::new(filter, target, JobOptions { options, wake: wake_hook(), ..JobOptions::default() })?;
    job.start()?;
    Ok(job)
}

/// A job and the guest that it has to cope with. The job goes first, so that the guest isn't left waiting for it.
struct Scene {
    job: Job,
    guest: Guest,
}

impl Scene {
    /// Until source and target are equal. How long it took.
    fn copy(&self) -> Result<Duration, Failure> {
        let begin = Instant::now();
        self.drive_until(|event, _| event == Some(Event::Ready))?;
        self.guest.enter(Phase::Ready);
        Ok(begin.elapsed())
    }

    /// Keeps them equal for a while.
    fn stay_ready(&self, time: Duration) -> Result<(), Failure> {
        self.drive_until(|_, elapsed| elapsed >= time)
    }

    /// Until the guest's disk is the new one. How long it took.
    fn switch(&self) -> Result<Duration, Failure> {
        let begin = Instant::now();
        self.guest.enter(Phase::Switching);
        self.job.complete()?;
        self.drive_until(|event, _| event == Some(Event::Completed(Ok(()))))?;
        self.guest.enter(Phase::Switched);
        Ok(begin.elapsed())
    }

    /// The guest writes to the new disk for a while. Nobody needs to poll the job any more.
    fn go_on(&self, time: Duration) -> Result<(), Failure> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.check_on_the_guest()?;
            thread::park_timeout(time.saturating_sub(begin.elapsed()).min(Duration::from_millis(100)));
        }
        Ok(())
    }

    /// Polls until `enough` says so of an event, or of the time.
    fn drive_until(&self, enough: impl Fn(Option<Event>, Duration) -> bool) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut outcome = Err(Failure::failed("the job ended too soon"));
        drive(&self.job, |job| {
            let found = std::iter::from_fn(|| job.next_event())
                .any(|event| enough(Some(event), begin.elapsed()))
                || enough(None, begin.elapsed());
            let watched = self.check_on_the_guest();
            if found || watched.is_err() {
                outcome = watched;
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        match self.job.query().error {
            Some((errno, message)) => Err(Error::new(errno, message).into()),
            None => outcome,
        }
    }

    fn check_on_the_guest(&self) -> Result<(), Failure> {
        if interrupt::requested() {
            return Err(Failure::Interrupted("interrupted: nothing is proven".to_owned()));
        }
        if self.guest.has_failed() {
            return Err(Failure::failed("a guest's write failed"));
        }
        Ok(())
    }
}

fn tell_of_the_guest(account: &Account, job: &Info, switched_after: Duration) -> Result<(), Failure> {
    say(format_args!(
        "The guest wrote {} times while it was copied and {} times while both were kept equal, in {} passes.",
        account.writes_in(Phase::Copying),
        account.writes_in(Phase::Ready),
        job.passes,
    ))?;
    say(format_args!(
        "Then its disk was switched to the new file under its hands, {} after it was asked for.",
        Seconds(switched_after)
    ))?;
    say(format_args!(
        "The longest that a write took around the switch: {}; on average they take {}.",
        Seconds(account.longest_around_switch),
        Seconds(account.mean_latency()),
    ))?;
    say(format_args!(
        "It went on writing, {} times to the new disk, and has stopped now. {} writes were acknowledged in all.",
        account.writes_in(Phase::Switched),
        account.writes(),
    ))
}

fn tell_of_the_proof(verdict: &Verdict, image: &Image) -> Result<(), Failure> {
    say(format_args!(
        "Read the new disk back: {} of {} blocks verified.",
        verdict.written + verdict.untouched,
        image.blocks
    ))?;
    say(format_args!(
        "  {} hold the last write that was acknowledged to the guest, {} are as they were.",
        verdict.written, verdict.untouched
    ))?;
    say(format_args!("  lost: {}", verdict.lost))?;
    if verdict.lost == 0 {
        return Ok(());
    }
    for loss in &verdict.losses {
        say(format_args!("    {loss}"))?;
    }
    Err(Failure::failed(format_args!(
        "{} of {} blocks are lost (--seed {})",
        verdict.lost, image.blocks, image.seed
    )))
}

/// A time as a person reads it.
struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_secs_f64() {
            seconds if seconds < 0.001 => write!(f, "{:.0} us", seconds * 1e6),
            seconds if seconds < 1.0 => write!(f, "{:.1} ms", seconds * 1e3),
            seconds => write!(f, "{seconds:.2} s"),
        }
    }
}
