//! Jobs' whole lives among guests, faults and an operator, drawn from a seed.
//!
//! A world has one filter or two, whose devices change as jobs switch them. In each step a guest, a disk, the time, the
//! host that polls or the operator does one thing; then the oracles are asked. `draw` makes disks and jobs, `front` is a
//! filter and what its guests may read, `guests` issue requests, `operator` is the host, `verbs` what it asks of a
//! job, `check` holds what is claimed against the disks, `end` winds down.
//!
//! # Steps that can be left out
//! Each step draws from a generator of its own, made of the seed and the step's number. So a run of some of a seed's
//! steps does in each of them much what the whole run did, and a failure can be made small by leaving steps out.

mod check;
mod draw;
mod end;
mod front;
mod guests;
mod operator;
mod verbs;
mod verdict;

pub use draw::Shape;
pub use verdict::{Broken, Failure, Outcome, Run, Tally};

use super::disk::Disk;
use super::faults::{Fault, Faults};
use super::lent::Lent;
use super::oracle::{Oracle, SECTOR, Stamp};
use super::random::Random;
use crate::device::Kind;
use crate::error::IoResult;
use crate::filter::Filter;
use crate::range::ByteRange;
use draw::{Traits, draw_disk, draw_source};
use front::Front;
use guests::{Guest, Request};
use operator::Running;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use verdict::broken;

type Done = Arc<Mutex<Vec<(u64, IoResult)>>>;

/// The world of one seed.
pub struct World {
    seed: u64,
    random: Random,
    now: u64,
    /// Bytes that the guests see.
    length: u64,
    /// What all disks want requests to be multiples of.
    alignment: u64,
    /// What the guests' requests are multiples of.
    unit: u64,
    /// The first of these units in which guests' requests begin, and how many there are.
    window: (u64, u64),
    fronts: Vec<Front>,
    /// Bytes at which requests that ended not long ago began or ended: what is wrong is wrong there first.
    places: [u64; 4],
    guests: Vec<Guest>,
    disks: Vec<Disk>,
    lent: Lent,
    stamps: Stamp,
    next_request: u64,
    done: Done,
    faulty: bool,
    /// A job's target has panicked: what was out then may be refused.
    sabotaged: bool,
    outcome: Outcome,
    history: Option<String>,
    running: Option<Running>,
    /// Dropped last: until the job and the filter are gone somebody may write to a request's memory.
    requests: BTreeMap<u64, Request>,
}

impl World {
    /// Runs the first `steps` steps of a seed and winds down. The failure shows the last things that happened: 40
    /// lines, or as many as `HISTORY` says.
    pub fn run(seed: u64, steps: u32) -> Result<Outcome, Box<Failure>> {
        let run = Self::play(seed, 0..steps);
        if run.result.is_ok() {
            return Ok(run.outcome);
        }
        let Run { result, history, .. } = Self::tell(seed, 0..steps);
        let broken = result.err().unwrap_or(Broken {
            rule: "determinism",
            text: format!("{:?}, and the second time it went well", run.result),
        });
        let lines = std::env::var("HISTORY").ok().and_then(|lines| lines.parse().ok()).unwrap_or(40);
        let skip = history.lines().count().saturating_sub(lines);
        let history = history.lines().skip(skip).map(|line| format!("  {line}\n")).collect();
        Err(Box::new(Failure { seed, steps, broken, history }))
    }

    /// Runs these steps of a seed and winds down.
    #[must_use]
    pub fn play(seed: u64, steps: impl IntoIterator<Item = u32>) -> Run {
        Self::new(seed, None).live_on(steps)
    }

    /// The same, and tells all that happens.
    #[must_use]
    pub fn tell(seed: u64, steps: impl IntoIterator<Item = u32>) -> Run {
        Self::new(seed, Some(String::new())).live_on(steps)
    }

    fn live_on(mut self, steps: impl IntoIterator<Item = u32>) -> Run {
        let result = catch_unwind(AssertUnwindSafe(|| self.live(steps)))
            .unwrap_or_else(|panic| broken("panic", panic_text(&*panic)));
        Run {
            outcome: std::mem::take(&mut self.outcome),
            result,
            ended_ns: self.now,
            history: self.history.take().unwrap_or_default(),
        }
    }

    fn new(seed: u64, history: Option<String>) -> Self {
        let mut random = Random::new(seed);
        let sectors = random.pick(&[0, 1, 2, 7, 8, 32, 63, 128, 300, 512]);
        let odd = if random.one_in(3) { random.pick(&[1, 1, 7, 8, 100, 504, 511]) } else { 0 };
        let alignment = if random.one_in(3) { random.pick(&[512u64, 1024, 4096]) } else { 1 };
        let mut world = Self {
            seed,
            now: 1,
            length: sectors * SECTOR + odd,
            alignment,
            unit: alignment.max(SECTOR),
            window: (0, 0),
            fronts: Vec::new(),
            places: [0; 4],
            guests: Vec::new(),
            disks: Vec::new(),
            lent: Lent::default(),
            stamps: 1,
            requests: BTreeMap::new(),
            next_request: 0,
            done: Done::default(),
            running: None,
            faulty: random.one_in(2),
            sabotaged: false,
            outcome: Outcome::default(),
            history,
            random,
        };
        world.draw_window();
        let fronts = if world.random.one_in(3) { 2 } else { 1 };
        for _ in 0..fronts {
            world.add_front();
        }
        for _ in 0..world.random.within(1, 6) {
            let front = world.random.within(0, fronts) as usize;
            world.guests.push(Guest { front, depth: world.random.pick(&[1, 1, 3, 8]) });
        }
        world
    }

    fn add_front(&mut self) {
        let layer = draw_source(&mut self.random, self.length);
        let traits = Traits { alignment: self.alignment, ..Traits::default() };
        let disk = draw_disk(&mut self.random, &layer, traits);
        let filter =
            Filter::with_alignment(disk.device(), self.alignment as u32).expect("a new disk has a seat");
        let initial = stamps(&layer.bytes()).expect("a layer's marks are whole");
        let source = self.add_disk(disk);
        let host_io = self.random.one_in(5);
        self.fronts.push(Front::new(filter, source, Oracle::new(&initial, self.length), host_io));
    }

    fn add_disk(&mut self, disk: Disk) -> usize {
        disk.share_memory(&self.lent);
        self.disks.push(disk);
        self.disks.len() - 1
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(history) = &mut self.history {
            let _ = writeln!(history, "{:>12} {}", self.now, text());
        }
    }

    fn live(&mut self, steps: impl IntoIterator<Item = u32>) -> Result<(), Broken> {
        for step in steps {
            self.begin_step(u64::from(step));
            self.step()?;
        }
        self.begin_step(u64::MAX);
        self.faulty = false;
        self.wind_down()?;
        self.read_everything()
    }

    /// From now on everybody draws what is drawn in this step, whatever was drawn before.
    fn begin_step(&mut self, step: u64) {
        let seed = Random::new(self.seed).draw();
        // Odd, so that each step has another; the generator mixes it.
        self.random = Random::new(seed ^ (step.wrapping_add(1)).wrapping_mul(0xd134_2543_de82_ef95));
        for disk in &self.disks {
            disk.reseed(self.random.draw());
        }
        self.outcome.steps += 1;
        self.note(|| format!("-- step {step}"));
    }

    fn step(&mut self) -> Result<(), Broken> {
        match self.random.within(0, 100) {
            0..30 => self.guest(),
            30..63 => self.complete_one(),
            63..77 => self.pass_time(),
            77..92 => self.poll(false)?,
            92..95 => self.change_faults(),
            95..99 => self.operate()?,
            _ => self.begin_or_free()?,
        }
        self.check()
    }

    fn complete_one(&mut self) {
        let disk = self.random.within(0, self.disks.len() as u64) as usize;
        if self.disks[disk].complete_one(self.now) {
            self.note(|| format!("disk {disk} completes one"));
        }
    }

    /// To the next moment at which something can happen, or a little way.
    fn pass_time(&mut self) {
        let due = self.disks.iter().filter_map(Disk::next_due).min().unwrap_or(u64::MAX);
        let wake = self.running.as_ref().map_or(u64::MAX, |running| running.wake_at.0);
        let next = due.min(wake);
        if next != u64::MAX && next > self.now {
            self.now = next;
        } else {
            self.now += self.random.within(1, 100_000);
        }
    }

    fn change_faults(&mut self) {
        if !self.faulty {
            return;
        }
        for index in 0..self.disks.len() {
            let faults = self.draw_faults();
            self.disks[index].set_faults(faults);
        }
        if let Some(running) = &mut self.running
            && self.random.one_in(20)
            && !running.job.query().status.is_over()
        {
            running.sabotaged = true;
            self.sabotaged = true;
            self.disks[running.target].set_faults(Faults { panics: true, ..Faults::default() });
        }
        self.note(|| "other faults".to_owned());
    }

    fn draw_faults(&mut self) -> Faults {
        // What is rare twice.
        let kinds = [
            Kind::Read,
            Kind::Write,
            Kind::Zero,
            Kind::Zero,
            Kind::Discard,
            Kind::Discard,
            Kind::Flush,
            Kind::Flush,
            Kind::Extents,
            Kind::Truncate,
            Kind::Copy,
        ];
        let aimed = self.random.one_in(3);
        Faults {
            error_one_in: if aimed { 1 } else { self.random.pick(&[0, 0, 0, 40, 200]) },
            full: self.random.one_in(3),
            hold: self.random.one_in(6),
            only: (aimed || self.random.one_in(4)).then(|| self.random.pick(&kinds)),
            within: self.random.one_in(4).then(|| self.range()),
            most: (aimed || self.random.one_in(4)).then(|| self.random.within(1, 4)),
            again_one_in: self.random.pick(&[0, 0, 3]),
            repeat_one_in: self.random.pick(&[0, 0, 2]),
            ..Faults::default()
        }
    }

    /// Counts what went wrong in this step, by the state in which it found the job.
    fn count_faults(&mut self) {
        let status = self.running.as_ref().map_or("no job", |running| running.status.name());
        for disk in &self.disks {
            let Some(counts) = disk.take_counts() else { continue };
            self.outcome.faults.add(&counts);
            for (fault, count) in counts.iter() {
                *self.outcome.faults_in.entry((status, fault)).or_default() += count;
            }
        }
    }

    fn count_fault(&mut self, fault: Fault) {
        let status = self.running.as_ref().map_or("no job", |running| running.status.name());
        self.outcome.faults.count(fault);
        *self.outcome.faults_in.entry((status, fault)).or_default() += 1;
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

/// Sectors of this stamp; the last may be shorter than it.
fn stamped(range: ByteRange, stamp: Stamp) -> Vec<u8> {
    let word = stamp.to_le_bytes();
    word.into_iter().cycle().take(range.len() as usize).collect()
}

/// The stamps of these sectors. A sector that holds two is torn.
fn stamps(bytes: &[u8]) -> Result<Vec<Stamp>, Broken> {
    bytes
        .chunks(SECTOR as usize)
        .map(|sector| {
            let mut word = [0; 8];
            let known = sector.len().min(8);
            word[..known].copy_from_slice(&sector[..known]);
            if sector.chunks(8).all(|next| *next == word[..next.len()]) {
                Ok(Stamp::from_le_bytes(word))
            } else {
                broken("oracle a", format!("a torn sector: {sector:x?}"))
            }
        })
        .collect()
}
