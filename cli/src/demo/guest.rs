//! The guest: threads that write to the disk all the time and remember what they were told is done.

use super::image::{Image, STRIPE};
use super::stamp::{BLOCK, Stamp, next};
use crate::failure::Failure;
use blkmirror::filter::Filter;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longest write, in blocks.
const MOST_BLOCKS: u64 = 8;
/// A writer rests for this many times as long as its write took, so that a slow disk has something left for the copy,
const REST: u32 = 3;
/// and within these bounds.
const SHORTEST_REST: Duration = Duration::from_millis(2);
const LONGEST_REST: Duration = Duration::from_millis(20);

/// Where the demo is, as far as the guest's account is concerned. The guest itself doesn't care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Copying,
    Ready,
    Switching,
    Switched,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Copying, Self::Ready, Self::Switching, Self::Switched];
}

/// The running guest. It stops when it is dropped.
pub(super) struct Guest {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<Account, String>>>,
}

struct Shared {
    filter: Filter,
    image: Image,
    writers: u32,
    phase: AtomicUsize,
    stop: AtomicBool,
}

/// What a guest has done.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// The last write of each block that was acknowledged.
    pub(super) acknowledged: HashMap<u64, Stamp>,
    /// Writes by the phase in which they began.
    writes: [u64; Phase::ALL.len()],
    /// Those that ran at some time during the switch: the longest.
    pub(super) longest_around_switch: Duration,
    /// All of them together.
    total_latency: Duration,
}

impl Account {
    pub(super) fn writes_in(&self, phase: Phase) -> u64 {
        self.writes[phase as usize]
    }

    pub(super) fn writes(&self) -> u64 {
        self.writes.iter().sum()
    }

    pub(super) fn mean_latency(&self) -> Duration {
        self.total_latency.checked_div(self.writes().try_into().unwrap_or(u32::MAX)).unwrap_or_default()
    }

    fn note(&mut self, began: Phase, ended: Phase, latency: Duration) {
        self.writes[began as usize] += 1;
        self.total_latency += latency;
        if began <= Phase::Switching && ended >= Phase::Switching {
            self.longest_around_switch = self.longest_around_switch.max(latency);
        }
    }

    fn add(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.longest_around_switch = self.longest_around_switch.max(other.longest_around_switch);
        self.total_latency += other.total_latency;
        for (mine, others) in self.writes.iter_mut().zip(other.writes) {
            *mine += others;
        }
    }
}

impl Guest {
    pub(super) fn start(filter: &Filter, image: Image, writers: u32) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            filter: filter.clone(),
            image,
            writers,
            phase: AtomicUsize::new(Phase::Copying as usize),
            stop: AtomicBool::new(false),
        });
        let mut guest = Self { shared, threads: Vec::new() };
        for writer in 1..=writers {
            let shared = Arc::clone(&guest.shared);
            let thread = thread::Builder::new()
                .name(format!("guest-{writer}"))
                .spawn(move || write(&shared, writer))
                .map_err(Failure::with("a guest's thread can't be started"))?;
            guest.threads.push(thread);
        }
        Ok(guest)
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.shared.phase.store(phase as usize, Ordering::SeqCst);
    }

    /// Whether a writer has given up, which only happens when a write fails.
    pub(super) fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits until the last writes are done. The error is that of the first write that failed.
    pub(super) fn stop(mut self) -> Result<Account, Failure> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut all = Account::default();
        for thread in self.threads.drain(..) {
            let account = thread.join().map_err(|_| Failure::failed("a guest's thread panicked"))?;
            all.add(account.map_err(Failure::Failed)?);
        }
        Ok(all)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // It is the way out of another error, which matters more.
            let _ = thread.join();
        }
    }
}

/// One writer: writes to blocks of its own, here and there, until it is to stop.
fn write(shared: &Shared, writer: u32) -> Result<Account, String> {
    let mut account = Account::default();
    let mut random = shared.image.seed ^ u64::from(writer) << 32;
    let mut bytes = vec![0; MOST_BLOCKS as usize * BLOCK];
    for sequence in 1.. {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let (first, count) = shared.choose(writer, &mut random);
        let bytes = &mut bytes[..count as usize * BLOCK];
        let (blocks, _) = bytes.as_chunks_mut::<BLOCK>();
        let stamp = |block| Stamp { writer, sequence, block };
        for (index, block) in (first..).zip(blocks) {
            stamp(index).fill(shared.image.seed, block);
        }
        let (began, start) = (shared.phase(), Instant::now());
        shared
            .filter
            .write_at(first * BLOCK as u64, bytes)
            .map_err(|error| format!("writer {writer}, write {sequence}: {error}"))?;
        let latency = start.elapsed();
        account.acknowledged.extend((first..first + count).map(|block| (block, stamp(block))));
        account.note(began, shared.phase(), latency);
        thread::sleep((latency * REST).clamp(SHORTEST_REST, LONGEST_REST));
    }
    Ok(account)
}

impl Shared {
    fn phase(&self) -> Phase {
        Phase::ALL[self.phase.load(Ordering::SeqCst)]
    }

    /// Where the next write goes: the first block, and how many.
    fn choose(&self, writer: u32, random: &mut u64) -> (u64, u64) {
        let stripes = self.image.blocks.div_ceil(STRIPE);
        let writers = u64::from(self.writers);
        let mine = (stripes - u64::from(writer - 1)).div_ceil(writers);
        let stripe = next(random) % mine * writers + u64::from(writer - 1);
        let (begin, end) = (stripe * STRIPE, self.image.blocks.min((stripe + 1) * STRIPE));
        let first = begin + next(random) % (end - begin);
        (first, 1 + next(random) % MOST_BLOCKS.min(end - first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;
    use blkmirror::device::Device;

    #[test]
    fn each_writer_keeps_to_blocks_of_its_own() {
        for (size, writers) in [(512 << 10, 1), (512 << 10, 8), (550 << 10, 3), (4 << 20, 64)] {
            let image = Image::new(Size(size), writers, 9).expect("large enough");
            let filter = Filter::new(&Device::memory(image.length()).expect("memory")).expect("filter");
            let shared =
                Shared { filter, image, writers, phase: AtomicUsize::new(0), stop: AtomicBool::new(false) };
            let mut owners = HashMap::new();
            for writer in 1..=writers {
                let mut random = u64::from(writer);
                for _ in 0..1000 {
                    let (first, count) = shared.choose(writer, &mut random);
                    for block in first..first + count {
                        assert!(block < image.blocks);
                        assert_eq!(*owners.entry(block).or_insert(writer), writer, "block {block}");
                    }
                }
            }
            let all = owners.len() as u64;
            assert!(all > image.blocks * 9 / 10, "{all} of {} blocks are ever written", image.blocks);
        }
    }
}
