//! What an operator asks of a job: every verb in every state, legal or not; and whether the answer is right.

use super::World;
use super::operator::Running;
use super::verdict::{Broken, broken};
use crate::engine::{CopyMode, Info, JobKind, Status, Verb};
use crate::error::{Errno, Result as Answer};
use crate::range::ByteRange;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Cancel { force: bool },
    SetSpeed(u64),
    Change(CopyMode),
    Plain(Verb),
}

impl Wish {
    fn verb(self) -> Verb {
        match self {
            Self::Cancel { .. } => Verb::Cancel,
            Self::SetSpeed(_) => Verb::SetSpeed,
            Self::Change(_) => Verb::Change,
            Self::Plain(verb) => verb,
        }
    }
}

impl World {
    pub(super) fn operate(&mut self) -> Result<(), Broken> {
        match self.random.within(0, 16) {
            0..2 => self.drain(),
            2 => return self.start_again(),
            _ => {
                let wish = self.wish();
                // Else no job would live to see anything.
                if !matches!(wish, Wish::Cancel { .. }) || self.random.one_in(4) {
                    return self.ask(wish);
                }
            }
        }
        Ok(())
    }

    fn wish(&mut self) -> Wish {
        if self.random.one_in(3)
            && let Some(running) = &self.running
        {
            // What somebody asks for who wants it to end well.
            match running.job.query() {
                Info { paused: true, .. } => return Wish::Plain(Verb::Resume),
                Info { status: Status::Ready, .. } => return Wish::Plain(Verb::Complete),
                Info { status: Status::Pending, .. } => return Wish::Plain(Verb::Finalize),
                _ => {}
            }
        }
        match self.random.pick(&Verb::ALL) {
            Verb::Cancel => Wish::Cancel { force: self.random.one_in(3) },
            Verb::SetSpeed => {
                Wish::SetSpeed(self.random.pick(&[0, 0, 0, 1, 1000, 100_000, 10_000_000, u64::MAX]))
            }
            Verb::Change => Wish::Change(self.random.pick(&[CopyMode::Background, CopyMode::WriteBlocking])),
            verb => Wish::Plain(verb),
        }
    }

    fn ask(&mut self, wish: Wish) -> Result<(), Broken> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let (job, before) = (&running.job, running.job.query());
        let answer = match wish {
            Wish::Cancel { force } => job.cancel(force),
            Wish::SetSpeed(speed) => job.set_speed(speed),
            Wish::Change(mode) => job.change(mode),
            Wish::Plain(Verb::Pause) => job.pause(),
            Wish::Plain(Verb::Resume) => job.resume(),
            Wish::Plain(Verb::Complete) => job.complete(),
            Wish::Plain(Verb::Finalize) => job.finalize(),
            Wish::Plain(_) => job.dismiss(),
        };
        let (status, verb) = (before.status.name(), wish.verb());
        let host_io = self.fronts[running.front].host_io;
        let right = running.is_right(wish, &before, host_io, &answer);
        if answer.is_ok() {
            match verb {
                Verb::Cancel if running.cancelled_at.is_none() => {
                    let everything = ByteRange::between(0, self.length);
                    running.cancelled_at = Some(self.fronts[running.front].oracle.snapshot(everything));
                    running.finishing = true;
                }
                Verb::Complete => running.finishing = true,
                _ => {}
            }
        }
        *self.outcome.verbs.entry((status, verb.name(), answer.is_ok())).or_default() += 1;
        self.note(|| format!("{wish:?} in {status}: {}", said(&answer)));
        if right {
            return Ok(());
        }
        broken("L-2", format!("{wish:?} in {status}: {}; it was {before:?}", said(&answer)))
    }

    /// A job is started once (SPEC L-1).
    fn start_again(&mut self) -> Result<(), Broken> {
        let Some(running) = &self.running else { return Ok(()) };
        let status = running.job.query().status;
        let answer = running.job.start();
        *self.outcome.verbs.entry((status.name(), "start", answer.is_ok())).or_default() += 1;
        self.note(|| format!("start in {}: {}", status.name(), said(&answer)));
        if answer.is_ok() == (status == Status::Created) {
            return Ok(());
        }
        broken("L-1", format!("start in {}: {}", status.name(), said(&answer)))
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

    /// A job that is over is asked for something now and then.
    pub(super) fn try_verbs_when_over(&mut self) -> Result<(), Broken> {
        if self.random.one_in(3) {
            for _ in 0..self.random.within(1, 5) {
                let wish = self.wish();
                self.ask(wish)?;
            }
        }
        Ok(())
    }
}

impl Running {
    /// Whether this answer is the one that the job owed (SPEC L-2, L-3, F-2, F-5, F-6).
    fn is_right(&self, wish: Wish, before: &Info, host_io: bool, answer: &Answer<()>) -> bool {
        let legal = before.status.accepts(wish.verb());
        match answer {
            Ok(()) => legal && (before.paused || !matches!(wish, Wish::Plain(Verb::Resume))),
            Err(error) if error.errno() == Errno::EOPNOTSUPP => match wish {
                Wish::Change(mode) => {
                    before.kind == JobKind::CommitActive || (host_io && mode == CopyMode::WriteBlocking)
                }
                _ => false,
            },
            Err(error) => error.errno() == Errno::EPERM && (!legal || self.may_refuse(wish, before)),
        }
    }

    /// Whether there is a reason to refuse this though the state is one in which it is legal.
    fn may_refuse(&self, wish: Wish, before: &Info) -> bool {
        match wish {
            Wish::Cancel { force } => (!force && before.paused) || before.status == Status::Pending,
            Wish::SetSpeed(_) => false,
            Wish::Change(_) => self.finishing,
            Wish::Plain(Verb::Pause) => before.paused,
            Wish::Plain(Verb::Resume) => !before.paused || self.drains > 0,
            Wish::Plain(Verb::Complete) => self.cancelled_at.is_some(),
            Wish::Plain(_) => false,
        }
    }
}

/// An answer without what differs from one run of a seed to the next: the job's name.
pub(super) fn said(answer: &Answer<()>) -> String {
    match answer {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.errno().to_string(),
    }
}
