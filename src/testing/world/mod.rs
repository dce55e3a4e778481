//! Jobs' whole lives among guests, faults and an operator, drawn from a seed.
//!
//! A world has one filter, whose device changes as jobs switch it. In each step a guest, a disk, the time, the host
//! that polls or the operator does one thing; then the oracles are asked. `draw` makes disks and jobs, `guests` issue
//! requests, `operator` is the host, `check` holds what is claimed against the disks, `end` winds down.

mod check;
mod draw;
mod end;
mod guests;
mod operator;

pub use draw::Shape;

use super::disk::{Disk, Faults};
use super::oracle::{Oracle, SECTOR, Stamp};
use super::random::Random;
use crate::error::IoResult;
use crate::filter::Filter;
use crate::range::ByteRange;
use draw::{Traits, draw_disk, draw_source};
use guests::Request;
use operator::Running;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What became of the jobs of one shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Jobs begun.
    pub begun: u64,
    /// Filters switched.
    pub pivots: u64,
    /// Jobs that ended as a copy of an instant.
    pub copies: u64,
}

/// What a run has seen, to tell whether it was worth anything.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Guest requests submitted.
    pub guest_requests: u64,
    /// Jobs by their shape.
    pub jobs: BTreeMap<Shape, Tally>,
    /// Jobs that ended without success, or were freed early.
    pub failures: u64,
    /// States in which a verb was tried: (status, verb, accepted) and how often.
    pub verbs: BTreeMap<(&'static str, &'static str, bool), u64>,
    /// Times that source and target were held against each other while the job said that they were equal.
    pub synced_checks: u64,
    /// Chunks that were clean and held against the source.
    pub clean_chunks: u64,
    /// Chunks that were known to be zero and held against the target.
    pub zero_chunks: u64,
}

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
    source: usize,
    filter: Filter,
    disks: Vec<Disk>,
    oracle: Oracle,
    stamps: Stamp,
    next_request: u64,
    done: Done,
    /// The host does some requests by itself, between `begin` and `end`.
    host_io: bool,
    /// A `begin` was turned away and has not been told to try again.
    turned_away: bool,
    opened: Arc<AtomicBool>,
    faulty: bool,
    outcome: Outcome,
    history: Vec<String>,
    running: Option<Running>,
    /// Dropped last: until the job and the filter are gone somebody may write to a request's memory.
    requests: BTreeMap<u64, Request>,
}

const MAX_GUEST_REQUESTS: usize = 12;

impl World {
    /// Runs `steps` steps of a seed and winds down. The error names the seed, the rule that was broken and the last
    /// things that happened.
    pub fn run(seed: u64, steps: u32) -> Result<Outcome, String> {
        let mut world = Self::new(seed);
        let result = world.live(steps);
        let outcome = std::mem::take(&mut world.outcome);
        result.map(|()| outcome).map_err(|broken| {
            let mut text = format!("seed {seed}, {steps} steps, at {} ns: {broken}", world.now);
            let lines = std::env::var("HISTORY").ok().and_then(|lines| lines.parse().ok()).unwrap_or(40);
            for line in world.history.iter().rev().take(lines).rev() {
                let _ = write!(text, "\n  {line}");
            }
            text
        })
    }

    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let sectors = random.pick(&[0, 1, 2, 7, 8, 32, 63, 128, 300, 512]);
        let odd = if random.one_in(3) { random.pick(&[1, 1, 7, 8, 100, 504, 511]) } else { 0 };
        let length = sectors * SECTOR + odd;
        let alignment = if random.one_in(3) { random.pick(&[512u64, 1024, 4096]) } else { 1 };
        let layer = draw_source(&mut random, length);
        let traits = Traits { alignment, ..Traits::default() };
        let source = draw_disk(&mut random, &layer, traits);
        let filter =
            Filter::with_alignment(source.device(), alignment as u32).expect("a new disk has a seat");
        let initial = stamps(&layer.bytes()).expect("a layer's marks are whole");
        let mut world = Self {
            seed,
            now: 1,
            length,
            alignment,
            unit: alignment.max(SECTOR),
            disks: vec![source],
            source: 0,
            filter,
            oracle: Oracle::new(&initial, length),
            stamps: 1,
            requests: BTreeMap::new(),
            next_request: 0,
            done: Done::default(),
            host_io: random.one_in(5),
            turned_away: false,
            opened: Arc::default(),
            running: None,
            faulty: random.one_in(2),
            outcome: Outcome::default(),
            history: Vec::new(),
            random,
        };
        if world.host_io {
            world.become_host();
        }
        world
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.history.len() > 4000 {
            self.history.drain(..2000);
        }
        let line = format!("{:>12} {}", self.now, text());
        self.history.push(line);
    }

    fn live(&mut self, steps: u32) -> Result<(), String> {
        for _ in 0..steps {
            self.step()?;
        }
        self.faulty = false;
        self.wind_down()?;
        self.read_everything()
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.within(0, 100) {
            0..30 => self.guest(),
            30..65 => self.complete_one(),
            65..80 => self.pass_time(),
            80..95 => self.poll(false)?,
            95..97 => self.change_faults(),
            97..99 => self.operate(),
            _ => self.begin_or_free(),
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
        for disk in &self.disks {
            disk.set_faults(Faults {
                error_one_in: self.random.pick(&[0, 0, 0, 40, 200]),
                full: self.random.one_in(3),
                hold: self.random.one_in(6),
                ..Faults::default()
            });
        }
        if let Some(running) = &mut self.running
            && self.random.one_in(20)
            && !running.job.query().status.is_over()
        {
            running.sabotaged = true;
            self.disks[running.target].set_faults(Faults { panics: true, ..Faults::default() });
        }
    }

    /// Whether the gate has been opened for a `begin` that was turned away.
    fn take_opened(&mut self) {
        if self.opened.swap(false, Ordering::SeqCst) {
            self.turned_away = false;
        }
    }
}

/// Sectors of this stamp; the last may be shorter than it.
fn stamped(range: ByteRange, stamp: Stamp) -> Vec<u8> {
    let word = stamp.to_le_bytes();
    word.into_iter().cycle().take(range.len() as usize).collect()
}

/// The stamps of these sectors. A sector that holds two is torn.
fn stamps(bytes: &[u8]) -> Result<Vec<Stamp>, String> {
    bytes
        .chunks(SECTOR as usize)
        .map(|sector| {
            let mut word = [0; 8];
            let known = sector.len().min(8);
            word[..known].copy_from_slice(&sector[..known]);
            if sector.chunks(8).all(|next| *next == word[..next.len()]) {
                Ok(Stamp::from_le_bytes(word))
            } else {
                Err(format!("a torn sector: {sector:x?}"))
            }
        })
        .collect()
}
