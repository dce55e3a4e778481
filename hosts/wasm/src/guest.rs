//! A guest: seeded writes and reads, each read compared with what it was told is written.

use crate::mirror::Mirror;
use std::collections::BTreeMap;

/// Requests begin and end on multiples of this.
const BLOCK: u64 = 4096;
/// Most blocks in a request.
const MOST: u64 = 16;

/// What it waits for.
enum Asked {
    Write { at: usize, data: Vec<u8> },
    Read { at: usize, length: usize },
}

/// Uses a disk, and knows what must be on it.
pub struct Guest {
    state: u64,
    /// What it was told is done.
    pub model: Vec<u8>,
    asked: BTreeMap<u32, Asked>,
}

impl Guest {
    /// The disk's content as it begins; the same seed does the same.
    #[must_use]
    pub fn new(seed: u64, model: Vec<u8>) -> Self {
        Self { state: seed, model, asked: BTreeMap::new() }
    }

    /// Asks for something new that doesn't touch what it waits for: two writes in three, one read.
    pub fn ask(&mut self, mirror: &mut Mirror) {
        let blocks = self.model.len() as u64 / BLOCK;
        let count = 1 + self.draw() % MOST.min(blocks);
        let at = (self.draw() % (blocks - count + 1) * BLOCK) as usize;
        let length = (count * BLOCK) as usize;
        let kind = self.draw() % 3;
        let is_free = self.asked.values().all(|asked| {
            let (other, other_length) = match asked {
                Asked::Write { at, data } => (*at, data.len()),
                Asked::Read { at, length } => (*at, *length),
            };
            at + length <= other || other + other_length <= at
        });
        if !is_free {
            return;
        }
        if kind == 0 {
            self.asked.insert(mirror.read(at as u64, length), Asked::Read { at, length });
        } else {
            let byte = self.draw() as u8;
            let data: Vec<u8> = (0..length).map(|index| byte.wrapping_add((index / 512) as u8)).collect();
            self.asked.insert(mirror.write(at as u64, data.clone()), Asked::Write { at, data });
        }
    }

    /// Takes what is done. An error, or a read that finds something else than it must, is told.
    pub fn settle(&mut self, mirror: &mut Mirror) -> Result<(), String> {
        while let Some((number, outcome)) = mirror.finished() {
            let asked =
                self.asked.remove(&number).ok_or_else(|| format!("request {number} is done twice"))?;
            let found = outcome.map_err(|error| format!("request {number}: {error}"))?;
            match asked {
                Asked::Write { at, data } => self.model[at..at + data.len()].copy_from_slice(&data),
                Asked::Read { at, length } if found != self.model[at..at + length] => {
                    return Err(format!("a read of {length} bytes at {at} found what isn't there"));
                }
                Asked::Read { .. } => {}
            }
        }
        Ok(())
    }

    /// Requests that it waits for.
    #[must_use]
    pub fn waits_for(&self) -> usize {
        self.asked.len()
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
