//! What a simulated disk holds: a layer of clusters, over another layer or over nothing.
//!
//! A cluster is the layer's own, with data or as zeroes, or it is left to the backing. A change that covers only a
//! part of a cluster that the layer doesn't own takes the rest of it from the backing first ("copy on write").
//!
//! A layer can be made with a backing that is *attached later*, as images are that are mirrored before they join a
//! chain. Until then it reads as some filler where the backing will show; and what was copied from there, into the
//! rest of a cluster, stays wrong for ever. It also does what real images do that don't know their future: a zero
//! that may deallocate lets go of the cluster, because nothing is below it yet (SPEC C-5, I-5).

use crate::device::{Extent, ExtentFlags};
use crate::range::ByteRange;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Smallest cluster, and the unit in which extents are told of a layer without any.
pub const MIN_CLUSTER: u64 = 512;

/// What is below a layer.
#[derive(Clone, Debug)]
pub enum Backing {
    /// Nothing: what the layer doesn't own reads as zero.
    None,
    /// This layer; what lies beyond its end reads as zero.
    Layer(Layer),
    /// What [`Layer::attach_backing`] will be given; until then it reads as this byte.
    Unattached(u8),
}

/// What a discard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// The range reads as zero.
    Zeroes,
    /// Whole clusters are let go of, so that the backing shows; nothing else happens.
    Deallocates,
    /// Nothing, or the range is garbage.
    Anything,
}

/// How a layer is made.
#[derive(Clone, Debug)]
pub struct LayerOptions {
    /// Bytes.
    pub length: u64,
    /// Bytes in a cluster: a power of two from [`MIN_CLUSTER`] on.
    pub cluster: u64,
    /// What is below.
    pub backing: Backing,
    /// What a discard does.
    pub discard: Discard,
    /// How many layers, this one included, lie above the base that extents are told of.
    pub above_base: u32,
    /// Extents tell what is at and below the base too; without that, it is the backing's affair.
    pub tells_backing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cluster {
    /// Left to the backing.
    Unallocated,
    Zero,
    Data,
}

#[derive(Debug)]
struct State {
    options: LayerOptions,
    bytes: Vec<u8>,
    clusters: Vec<Cluster>,
}

/// A handle to a layer. Clones are the same layer.
#[derive(Clone, Debug)]
pub struct Layer {
    state: Arc<Mutex<State>>,
}

impl Layer {
    /// A layer that owns nothing.
    #[must_use]
    pub fn new(options: LayerOptions) -> Self {
        assert!(options.cluster.is_power_of_two() && options.cluster >= MIN_CLUSTER);
        let state = State {
            bytes: vec![0; options.length as usize],
            clusters: vec![Cluster::Unallocated; options.length.div_ceil(options.cluster) as usize],
            options,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A layer by itself, whose clusters are as small as can be.
    #[must_use]
    pub fn flat(length: u64, discard: Discard) -> Self {
        Self::new(LayerOptions {
            length,
            cluster: MIN_CLUSTER,
            backing: Backing::None,
            discard,
            above_base: 1,
            tells_backing: true,
        })
    }

    // Layers are locked from the top down.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the two are the same layer.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// Bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.lock().options.length
    }

    /// Bytes in a cluster.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.lock().options.cluster
    }

    /// What a discard does.
    #[must_use]
    pub fn discards(&self) -> Discard {
        self.lock().options.discard
    }

    /// What is below, if anything is and it is attached.
    #[must_use]
    pub fn backing(&self) -> Option<Self> {
        match &self.lock().options.backing {
            Backing::Layer(layer) => Some(layer.clone()),
            _ => None,
        }
    }

    /// The layer that extents are told relative to: what is allocated in the layers above it is told as allocated.
    #[must_use]
    pub fn base(&self) -> Option<Self> {
        let above = self.lock().options.above_base;
        (0..above).try_fold(self.clone(), |layer, _| layer.backing())
    }

    /// Gives a layer the backing that it was made to wait for.
    pub fn attach_backing(&self, backing: &Self) {
        let mut state = self.lock();
        assert!(matches!(state.options.backing, Backing::Unattached(_)), "a backing is attached once");
        state.options.backing = Backing::Layer(backing.clone());
    }

    /// Clusters that are the layer's own.
    #[must_use]
    pub fn allocated_clusters(&self) -> usize {
        self.lock().clusters.iter().filter(|cluster| **cluster != Cluster::Unallocated).count()
    }

    /// Whether each cluster that the range touches is the layer's own.
    #[must_use]
    pub fn owns(&self, range: ByteRange) -> bool {
        let state = self.lock();
        state.touched(range).all(|(index, _)| state.clusters[index] != Cluster::Unallocated)
    }

    /// What it holds.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.read(ByteRange::between(0, self.length()))
    }

    /// What a range holds.
    #[must_use]
    pub fn read(&self, range: ByteRange) -> Vec<u8> {
        let mut bytes = vec![0; range.len() as usize];
        self.lock().read(range, &mut bytes);
        bytes
    }

    /// What a range would hold if this were the layer's backing.
    #[must_use]
    pub fn read_over(&self, backing: &Self, range: ByteRange) -> Vec<u8> {
        let state = self.lock();
        let mut bytes = vec![0; range.len() as usize];
        for (index, part) in state.touched(range) {
            let out = &mut bytes[offsets(part, range.offset())];
            if state.clusters[index] == Cluster::Unallocated {
                read_below(&Backing::Layer(backing.clone()), part, out);
            } else {
                state.read(part, out);
            }
        }
        bytes
    }

    /// Writes.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let range = ByteRange::between(offset, offset + bytes.len() as u64);
        let mut state = self.lock();
        let touched: Vec<_> = state.touched(range).collect();
        for (index, part) in touched {
            state.own(index, part);
            state.bytes[offsets(part, 0)].copy_from_slice(&bytes[offsets(part, offset)]);
        }
    }

    /// Makes a range read as zero.
    pub fn zero(&self, range: ByteRange, may_unmap: bool) {
        let mut state = self.lock();
        let touched: Vec<_> = state.touched(range).collect();
        for (index, part) in touched {
            let attached = matches!(state.options.backing, Backing::Layer(_));
            if part == state.cluster(index) {
                let frees = may_unmap && !attached;
                state.clusters[index] = if frees { Cluster::Unallocated } else { Cluster::Zero };
            } else if state.clusters[index] != Cluster::Zero {
                state.own(index, part);
                state.bytes[offsets(part, 0)].fill(0);
            }
        }
    }

    /// Discards a range. `garbage`: where nothing is promised, that is what is left.
    pub fn discard(&self, range: ByteRange, garbage: bool) {
        let discard = self.lock().options.discard;
        match discard {
            Discard::Zeroes => self.zero(range, true),
            Discard::Deallocates => {
                let mut state = self.lock();
                let touched: Vec<_> = state.touched(range).collect();
                for (index, part) in touched {
                    if part == state.cluster(index) {
                        state.clusters[index] = Cluster::Unallocated;
                    }
                }
            }
            Discard::Anything if garbage => self.write(range.offset(), &vec![0xdd; range.len() as usize]),
            Discard::Anything => {}
        }
    }

    /// Grows to `length`; what is new reads as zero.
    pub fn truncate(&self, length: u64) {
        let mut state = self.lock();
        let old = state.options.length;
        let cluster = state.options.cluster;
        let hides = !matches!(state.options.backing, Backing::None);
        if hides && !old.is_multiple_of(cluster) {
            let last = state.clusters.len() - 1;
            state.own(last, ByteRange::default());
        }
        state.options.length = length;
        state.bytes.resize(length as usize, 0);
        let new = if hides { Cluster::Zero } else { Cluster::Unallocated };
        state.clusters.resize(length.div_ceil(cluster) as usize, new);
    }

    /// What a range is told to hold.
    #[must_use]
    pub fn extents(&self, range: ByteRange) -> Vec<Extent> {
        let (above, tells_backing) = {
            let state = self.lock();
            (state.options.above_base, state.options.tells_backing)
        };
        let mut told: Vec<Extent> = Vec::new();
        let mut at = range.offset();
        while at < range.end() {
            let (flags, end) = self.look(at, above, tells_backing);
            let end = end.min(range.end());
            match told.last_mut() {
                Some(last) if last.flags == flags => last.length += end - at,
                _ => told.push(Extent { length: end - at, flags }),
            }
            at = end;
        }
        told
    }

    /// What this byte is told to be, and up to where that may be said.
    fn look(&self, at: u64, above: u32, tells_backing: bool) -> (ExtentFlags, u64) {
        let state = self.lock();
        let allocated = above > 0;
        if at >= state.options.length {
            // A short layer hides what its base has there.
            return (ExtentFlags { data: false, zero: true, allocated }, u64::MAX);
        }
        let index = (at / state.options.cluster) as usize;
        let end = state.cluster(index).end();
        let flags = match (state.clusters[index], &state.options.backing) {
            _ if !allocated && !tells_backing => ExtentFlags::UNALLOCATED,
            (Cluster::Data, _) => ExtentFlags { data: true, zero: false, allocated },
            (Cluster::Zero, _) => ExtentFlags { data: false, zero: true, allocated },
            (Cluster::Unallocated, Backing::None) => ExtentFlags::HOLE,
            (Cluster::Unallocated, Backing::Unattached(_)) => ExtentFlags::UNALLOCATED,
            (Cluster::Unallocated, Backing::Layer(below)) => {
                let (flags, below_end) = below.look(at, above.saturating_sub(1), tells_backing);
                return (flags, end.min(below_end));
            }
        };
        (flags, end)
    }
}

impl State {
    fn cluster(&self, index: usize) -> ByteRange {
        let start = index as u64 * self.options.cluster;
        ByteRange::between(start, (start + self.options.cluster).min(self.options.length))
    }

    /// The clusters that a range touches, each with the part of the range in it.
    fn touched(&self, range: ByteRange) -> impl Iterator<Item = (usize, ByteRange)> + '_ {
        assert!(range.end() <= self.options.length, "{range:?} lies beyond the end");
        let first = range.offset() / self.options.cluster;
        let end = if range.is_empty() { first } else { range.end().div_ceil(self.options.cluster) };
        (first as usize..end as usize).map(move |index| (index, self.cluster(index).intersection(range)))
    }

    fn read(&self, range: ByteRange, out: &mut [u8]) {
        for (index, part) in self.touched(range) {
            let out = &mut out[offsets(part, range.offset())];
            match self.clusters[index] {
                Cluster::Data => out.copy_from_slice(&self.bytes[offsets(part, 0)]),
                Cluster::Zero => out.fill(0),
                Cluster::Unallocated => read_below(&self.options.backing, part, out),
            }
        }
    }

    /// Makes a cluster the layer's own, with data, for a change of `part` of it: the rest keeps what it reads as.
    fn own(&mut self, index: usize, part: ByteRange) {
        let cluster = self.cluster(index);
        if self.clusters[index] != Cluster::Data {
            if part != cluster {
                let mut rest = vec![0; cluster.len() as usize];
                self.read(cluster, &mut rest);
                self.bytes[offsets(cluster, 0)].copy_from_slice(&rest);
            }
            self.clusters[index] = Cluster::Data;
        }
    }
}

fn read_below(backing: &Backing, range: ByteRange, out: &mut [u8]) {
    match backing {
        Backing::None => out.fill(0),
        Backing::Unattached(filler) => out.fill(*filler),
        Backing::Layer(below) => {
            let below = below.lock();
            let there = range.intersection(ByteRange::between(0, below.options.length));
            out.fill(0);
            if !there.is_empty() {
                below.read(there, &mut out[offsets(there, range.offset())]);
            }
        }
    }
}

/// A range as indexes into bytes that begin at `from`.
fn offsets(range: ByteRange, from: u64) -> std::ops::Range<usize> {
    (range.offset() - from) as usize..(range.end() - from) as usize
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn over(backing: Backing, discard: Discard) -> Layer {
        Layer::new(LayerOptions {
            length: 8192,
            cluster: 4096,
            backing,
            discard,
            above_base: 1,
            tells_backing: false,
        })
    }

    fn base() -> Layer {
        let base = Layer::flat(8192, Discard::Zeroes);
        base.write(0, &[0xbb; 8192]);
        base
    }

    #[test]
    fn a_small_write_takes_the_rest_of_its_cluster_from_the_backing() {
        let layer = over(Backing::Layer(base()), Discard::Deallocates);
        layer.write(512, &[1; 512]);
        let bytes = layer.bytes();
        assert_eq!((bytes[0], bytes[512], bytes[1024], bytes[4096]), (0xbb, 1, 0xbb, 0xbb));
        assert_eq!(layer.allocated_clusters(), 1);
    }

    #[test]
    fn a_small_write_before_the_backing_is_attached_spoils_its_cluster() {
        // SPEC C-5: the trap.
        let layer = over(Backing::Unattached(0xee), Discard::Deallocates);
        layer.write(512, &[1; 512]);
        assert_eq!(layer.read_over(&base(), ByteRange::between(0, 1)), [0xee]);
        layer.attach_backing(&base());
        let bytes = layer.bytes();
        assert_eq!((bytes[0], bytes[512], bytes[4096]), (0xee, 1, 0xbb));
    }

    #[test]
    fn a_zero_deallocates_only_where_nothing_is_below_yet() {
        let whole = ByteRange::between(0, 4096);
        let attached = over(Backing::Layer(base()), Discard::Deallocates);
        attached.zero(whole, true);
        assert_eq!((attached.bytes()[0], attached.allocated_clusters()), (0, 1));
        let trap = over(Backing::Unattached(0), Discard::Deallocates);
        trap.zero(whole, true);
        assert_eq!((trap.bytes()[0], trap.allocated_clusters()), (0, 0));
        trap.zero(whole, false);
        trap.zero(ByteRange::between(5000, 5001), true);
        assert_eq!(trap.allocated_clusters(), 2);
    }

    #[test]
    fn a_discard_does_what_was_promised() {
        let some = ByteRange::between(0, 4096 + 512);
        let shows = over(Backing::Layer(base()), Discard::Deallocates);
        shows.write(0, &[1; 8192]);
        shows.discard(some, true);
        assert_eq!((shows.bytes()[0], shows.bytes()[4096], shows.bytes()[8000]), (0xbb, 1, 1));
        let zeroes = over(Backing::Layer(base()), Discard::Zeroes);
        zeroes.write(0, &[1; 8192]);
        zeroes.discard(some, true);
        assert_eq!((zeroes.bytes()[0], zeroes.bytes()[4096], zeroes.bytes()[8000]), (0, 0, 1));
    }

    #[test]
    fn extents_tell_what_lies_above_the_base() {
        let (data, zero) = (ExtentFlags::DATA, ExtentFlags::ZERO);
        let told = |layer: &Layer, tells_backing| {
            layer.lock().options.tells_backing = tells_backing;
            let extents = layer.extents(ByteRange::between(512, 8192));
            extents.iter().map(|extent| (extent.length, extent.flags)).collect::<Vec<_>>()
        };
        let middle = over(Backing::Layer(base()), Discard::Deallocates);
        middle.write(4096, &[1; 4096]);
        let top = over(Backing::Layer(middle.clone()), Discard::Deallocates);
        let below = ExtentFlags { allocated: false, ..data };
        assert_eq!(told(&top, false), [(7680, ExtentFlags::UNALLOCATED)]);
        assert_eq!(told(&top, true), [(7680, below)]);
        top.lock().options.above_base = 2;
        assert_eq!(told(&top, false), [(3584, ExtentFlags::UNALLOCATED), (4096, data)]);
        assert!(top.base().expect("two down").is(&middle.backing().expect("attached")));
        top.zero(ByteRange::between(0, 4096), false);
        assert_eq!(told(&top, true), [(3584, zero), (4096, data)]);
        let short = Layer::new(LayerOptions { length: 4096, ..middle.lock().options.clone() });
        top.lock().options.backing = Backing::Layer(short);
        assert_eq!(told(&top, false), [(7680, zero)], "a short layer hides its base");
    }

    #[test]
    fn what_a_layer_grows_by_reads_as_zero() {
        let layer = over(Backing::Layer(base()), Discard::Deallocates);
        let short = Layer::new(LayerOptions { length: 5000, ..layer.lock().options.clone() });
        short.truncate(8192);
        assert_eq!((short.bytes()[4999], short.bytes()[5000], short.length()), (0xbb, 0, 8192));
    }
}
