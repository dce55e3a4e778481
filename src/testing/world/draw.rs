//! Drawing disks and jobs: every limit, every sync mode, and layers wherever a mode has a use for them.

use super::super::disk::{Disk, DiskOptions};
use super::super::layer::{Backing, Discard, Layer, LayerOptions, MIN_CLUSTER};
use super::super::oracle::{SECTOR, Stamp};
use super::super::random::Random;
use super::{World, stamped};
use crate::device::{Kind, Limits};
use crate::engine::{CopyMode, ErrorPolicy, JobKind, Options, Sync};
use crate::range::ByteRange;

/// What a job copies, and what to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// Everything, to a disk of its own.
    Full,
    /// Everything, to a layer that gets a backing nobody must ever see.
    FullOverlay,
    /// What is written, to a disk that holds the rest already.
    None,
    /// What is written, to a layer that gets the source, or a copy of it as it was, as its backing.
    NoneOverlay,
    /// What lies above the base, to a layer that gets the base as its backing.
    TopOverlay,
    /// The same, to a layer that has it.
    TopAttached,
    /// The same, to a disk that holds a copy of the base.
    TopCopy,
    /// What lies above the base, down into it.
    Commit,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 8] = [
        Self::Full,
        Self::FullOverlay,
        Self::None,
        Self::NoneOverlay,
        Self::TopOverlay,
        Self::TopAttached,
        Self::TopCopy,
        Self::Commit,
    ];

    /// Whether the target shares nothing with the source's chain: what other guests write to it, or to the chain,
    /// concerns nobody else.
    fn stands_alone(self) -> bool {
        matches!(self, Self::Full | Self::FullOverlay | Self::None | Self::TopCopy)
    }

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::FullOverlay => "full-overlay",
            Self::None => "none",
            Self::NoneOverlay => "none-overlay",
            Self::TopOverlay => "top-overlay",
            Self::TopAttached => "top-attached",
            Self::TopCopy => "top-copy",
            Self::Commit => "commit",
        }
    }

    fn sync(self) -> Sync {
        match self {
            Self::Full | Self::FullOverlay => Sync::Full,
            Self::None | Self::NoneOverlay => Sync::None,
            Self::TopOverlay | Self::TopAttached | Self::TopCopy | Self::Commit => Sync::Top,
        }
    }
}

/// A job's target and what it is asked to do.
pub(super) struct Drawn {
    /// Whose filter is copied.
    pub(super) front: usize,
    /// Whose filter is switched, if not that.
    pub(super) replaces: Option<usize>,
    pub(super) shape: Shape,
    pub(super) target: usize,
    /// The backing that the target gets before the switch.
    pub(super) attach: Option<Layer>,
    pub(super) options: Options,
}

/// What is true of a new disk.
#[derive(Clone, Copy, Default)]
pub(super) struct Traits {
    pub(super) alignment: u64,
    /// It reads as zero, and may say so.
    pub(super) reads_zero: bool,
    /// Its backing is attached later.
    pub(super) unattached: bool,
    /// It takes no discards: they would show a backing that isn't the source's.
    pub(super) keeps: bool,
}

/// The guests' first disk: by itself, or the top of a chain.
pub(super) fn draw_source(random: &mut Random, length: u64) -> Layer {
    if random.one_in(2) {
        let layer = draw_flat(random, length);
        scribble(random, &layer, 0xaaaa);
        return layer;
    }
    let mut backing = Backing::None;
    let depth = random.within(2, 4);
    for level in 0..depth {
        let top = level + 1 == depth;
        let length = if top { length } else { other_length(random, length) };
        let above = if top { random.within(1, depth) as u32 } else { 1 };
        let layer = draw_layer(random, length, backing, above);
        scribble(random, &layer, 0xaaa0 + level);
        backing = Backing::Layer(layer);
    }
    let Backing::Layer(layer) = backing else { unreachable!("a chain has a top") };
    layer
}

/// Bases are often as long as what lies above them; else they end with a sector, so that none is torn.
fn other_length(random: &mut Random, length: u64) -> u64 {
    let sectors = length / SECTOR;
    match random.within(0, 6) {
        0 => sectors / 2 * SECTOR,
        1 => sectors.saturating_sub(random.within(0, 6)) * SECTOR,
        2 => (sectors + random.within(1, 140)) * SECTOR,
        _ => length,
    }
}

/// Leaves marks in some places of a layer, and zeroes in others.
fn scribble(random: &mut Random, layer: &Layer, mark: u64) {
    let length = layer.length();
    let sectors = length.div_ceil(SECTOR);
    let most = random.pick(&[2, 4, 16, 64]);
    let (mut at, mut until) = (0, sectors);
    if random.one_in(3) {
        // Most of it belongs to what lies below.
        at = random.within(0, sectors);
        until = (at + random.within(1, sectors / 4 + 2)).min(sectors);
    }
    while at < until {
        let end = (at + random.within(1, most)).min(until);
        match random.within(0, 6) {
            0..2 => {
                for sector in at..end {
                    let range = ByteRange::between(sector * SECTOR, ((sector + 1) * SECTOR).min(length));
                    layer.write(range.offset(), &stamped(range, mark << 48 | sector));
                }
            }
            2..4 => layer.zero(ByteRange::between(at * SECTOR, (end * SECTOR).min(length)), false),
            _ => {}
        }
        at = end;
    }
}

fn draw_discard(random: &mut Random) -> Discard {
    random.pick(&[Discard::Zeroes, Discard::Deallocates])
}

fn draw_flat(random: &mut Random, length: u64) -> Layer {
    let discard = random.pick(&[Discard::Zeroes, Discard::Anything]);
    Layer::flat(length, discard)
}

fn draw_layer(random: &mut Random, length: u64, backing: Backing, above_base: u32) -> Layer {
    Layer::new(LayerOptions {
        length,
        cluster: random.pick(&[MIN_CLUSTER, 1024, 1024, 4096, 4096, 16384, 65536]),
        backing,
        discard: draw_discard(random),
        above_base,
        tells_backing: random.one_in(2),
    })
}

/// A disk that holds this layer.
pub(super) fn draw_disk(random: &mut Random, layer: &Layer, traits: Traits) -> Disk {
    let mut supports = Vec::new();
    for kind in [Kind::Zero, Kind::Discard, Kind::Flush, Kind::Extents, Kind::Truncate] {
        if !random.one_in(3) && (kind != Kind::Discard || !traits.keeps) {
            supports.push(kind);
        }
    }
    // A copy by the disk itself stands for a read and a write, which are to be seen more often.
    if random.one_in(4) {
        supports.push(Kind::Copy);
    }
    let small = random.one_in(3);
    let flat = layer.cluster() == MIN_CLUSTER && layer.backing().is_none() && !traits.unattached;
    let limits = Limits {
        request_alignment: traits.alignment as u32,
        memory_alignment: random.pick(&[1, 1, 512, 4096]),
        max_iov: random.pick(&[1024, 1, 2, 16]),
        max_transfer: if small { random.pick(&[4096, 8192, 65536]) } else { 0 },
        max_zero: if small { random.pick(&[4096, 8192, 0]) } else { 0 },
        max_discard: if small { random.pick(&[4096, 32768]) } else { 0 },
        zero_alignment: random.pick(&[0, 0, 0, 4096, 16384]),
        discard_alignment: random.pick(&[0, 0, 0, 4096, 16384]),
        cheap_zero: random.one_in(2),
        reads_zero: traits.reads_zero && !random.one_in(3),
        discard_zeroes: layer.discards() == Discard::Zeroes,
        cluster_size: if flat { random.pick(&[0, 0, 4096, 65536]) } else { layer.cluster() },
        unattached_backing: traits.unattached,
        ..Limits::default()
    };
    // The library sees zeroes as "no limit"; the disk enforces what that comes to.
    let limits = limits.checked().expect("sensible limits");
    let options = DiskOptions {
        length: layer.length(),
        limits,
        supports,
        inline_one_in: random.pick(&[0, 1, 2, 4]),
        early_one_in: random.pick(&[0, 0, 3]),
        latency_ns: random.pick(&[(0, 1), (1000, 50_000), (0, 3_000_000)]),
        depth: random.pick(&[0, 0, 1, 3, 8]) as usize,
    };
    Disk::with_layer(random.draw(), options, layer).expect("sensible limits")
}

impl World {
    /// The next job of a front, or `None` if the draw makes no sense now.
    pub(super) fn draw_job(&mut self, front: usize) -> Option<Drawn> {
        let source = self.disks[self.fronts[front].source].layer();
        let base = source.base();
        let shape = if base.is_some() {
            self.random.pick(&Shape::ALL)
        } else {
            self.random.pick(&[Shape::Full, Shape::Full, Shape::FullOverlay, Shape::None, Shape::NoneOverlay])
        };
        if self.is_still_written(&source, shape) {
            return None;
        }
        let length = source.length();
        let (layer, attach, reads_zero) = match (shape, base) {
            (Shape::Full, _) => {
                let (layer, reads_zero) = self.draw_full_target(length);
                (layer, None, reads_zero)
            }
            (Shape::FullOverlay, _) => {
                let length = other_length(&mut self.random, length);
                (self.draw_overlay(source.length()), Some(self.draw_garbage(length)), false)
            }
            (Shape::None, _) => (self.draw_copy(length, &source.bytes()), None, false),
            (Shape::NoneOverlay, _) => {
                // Over a copy a target shows what was not copied; over the source nobody could tell.
                let copy = self.random.one_in(2).then(|| self.draw_copy(length, &source.bytes()));
                (self.draw_overlay(length), Some(copy.unwrap_or(source)), false)
            }
            (Shape::TopOverlay, Some(base)) => (self.draw_overlay(length), Some(base), false),
            (Shape::TopAttached, Some(base)) => {
                (draw_layer(&mut self.random, length, Backing::Layer(base), 1), None, false)
            }
            (Shape::TopCopy, Some(base)) => (self.draw_copy(length, &base.bytes()), None, false),
            (Shape::Commit, Some(base)) => (base, None, false),
            _ => return None,
        };
        let source = self.disks[self.fronts[front].source].layer();
        let keeps =
            shape == Shape::NoneOverlay && attach.as_ref().is_some_and(|backing| !backing.is(&source));
        let unattached = attach.is_some();
        let traits = Traits { alignment: self.alignment, reads_zero, unattached, keeps };
        let target = self.disk_of(&layer, traits);
        let host_io = self.fronts[front].host_io;
        let mut options = self.draw_options(shape, host_io);
        options.target_is_zero = reads_zero && self.random.one_in(2);
        let other = (0..self.fronts.len()).find(|other| *other != front);
        // A commit leaves its filter on a base that may be longer than what its guests know.
        let fits = |other: &usize| self.fronts[*other].filter.length() == self.disks[target].layer().length();
        let replaces = other.filter(fits).filter(|_| shape.stands_alone() && self.random.one_in(2));
        Some(Drawn { front, shape, target, attach, options, replaces })
    }

    /// Whether a job that was freed may still be writing to the chain below this layer: what is not certain yet can't
    /// be a backing, nor be copied, because no guest would mark what changes there. That it is no target either is the
    /// library's affair.
    fn is_still_written(&self, top: &Layer, shape: Shape) -> bool {
        let target = top.base().filter(|_| shape == Shape::Commit);
        std::iter::successors(top.backing(), Layer::backing)
            .filter(|layer| !target.as_ref().is_some_and(|target| target.is(layer)))
            .any(|layer| self.disks.iter().any(|disk| disk.layer().is(&layer) && disk.pending() > 0))
    }

    /// The disk that holds this layer, or a new one.
    fn disk_of(&mut self, layer: &Layer, traits: Traits) -> usize {
        if let Some(known) = self.disks.iter().position(|disk| disk.layer().is(layer)) {
            return known;
        }
        let disk = draw_disk(&mut self.random, layer, traits);
        self.add_disk(disk)
    }

    /// Zeroes, or garbage that must not be seen afterwards; by itself or over more garbage.
    fn draw_full_target(&mut self, length: u64) -> (Layer, bool) {
        match self.random.within(0, 4) {
            0 => (draw_flat(&mut self.random, length), true),
            1 => (draw_layer(&mut self.random, length, Backing::None, 1), true),
            2 => {
                let length_below = other_length(&mut self.random, length);
                let backing = Backing::Layer(self.draw_garbage(length_below));
                (draw_layer(&mut self.random, length, backing, 1), false)
            }
            _ => (self.draw_garbage(length), false),
        }
    }

    fn draw_garbage(&mut self, length: u64) -> Layer {
        let layer = draw_flat(&mut self.random, length);
        let garbage: Stamp = 0xdead_0000_0000_0000;
        for sector in 0..length.div_ceil(SECTOR) {
            let range = ByteRange::between(sector * SECTOR, ((sector + 1) * SECTOR).min(length));
            layer.write(range.offset(), &stamped(range, garbage | sector));
        }
        layer
    }

    fn draw_overlay(&mut self, length: u64) -> Layer {
        let filler = self.random.pick(&[0, 0xee]);
        draw_layer(&mut self.random, length, Backing::Unattached(filler), 1)
    }

    /// A disk that holds these bytes, cut or followed by zeroes.
    fn draw_copy(&mut self, length: u64, bytes: &[u8]) -> Layer {
        let layer = if self.random.one_in(2) {
            draw_flat(&mut self.random, length)
        } else {
            draw_layer(&mut self.random, length, Backing::None, 1)
        };
        layer.write(0, &bytes[..bytes.len().min(length as usize)]);
        layer
    }

    fn draw_options(&mut self, shape: Shape, host_io: bool) -> Options {
        let random = &mut self.random;
        // Small ones more often: a disk of few chunks has few of anything.
        let granularity =
            random.pick(&[512u64, 512, 1024, 1024, 4096, 4096, 16384, 65536]).max(self.alignment);
        let policies = [ErrorPolicy::Report, ErrorPolicy::Ignore, ErrorPolicy::Stop, ErrorPolicy::Enospc];
        let write_blocking = !host_io && random.one_in(2);
        Options {
            kind: if shape == Shape::Commit { JobKind::CommitActive } else { JobKind::Mirror },
            sync: shape.sync(),
            copy_mode: if write_blocking { CopyMode::WriteBlocking } else { CopyMode::Background },
            granularity,
            buf_size: granularity * random.within(1, 20),
            max_in_flight: random.within(0, 17) as u32,
            max_io: granularity.max(512) * random.pick(&[1, 1, 2, 4, 8, 16]),
            speed: if random.one_in(6) { random.pick(&[1, 1000, 100_000, 10_000_000, u64::MAX]) } else { 0 },
            on_source_error: random.pick(&policies),
            on_target_error: random.pick(&policies),
            unmap: !random.one_in(3),
            detect_zeroes: !random.one_in(4),
            auto_finalize: !random.one_in(4),
            auto_dismiss: random.one_in(2),
            auto_complete: random.one_in(8),
            pass_interval_ns: random.pick(&[0, 50_000_000]),
            guest_first_io: random.pick(&[0, 512, 4096, 256 << 10]),
            guest_first_in_flight: random.pick(&[0, 1, 2, 5]),
            ..Options::default()
        }
    }
}
