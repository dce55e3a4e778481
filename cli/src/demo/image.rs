//! The disk that the guest begins with: data with holes between, all of it known from a seed.

use super::stamp::{BLOCK, ORIGINAL, Stamp, next};
use crate::size::Size;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Blocks that belong to one writer before the next writer's begin. A write never leaves them.
pub(super) const STRIPE: u64 = 16;
/// Blocks that are all data or all hole.
const REGION: u64 = 64;

/// An image, by its size and seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    pub(super) seed: u64,
    pub(super) blocks: u64,
}

impl Image {
    /// An image of at most `size` bytes in which each writer has blocks of its own. The error says how large it must be.
    pub(super) fn new(size: Size, writers: u32, seed: u64) -> Result<Self, String> {
        let least = (u64::from(writers) * STRIPE).max(2 * REGION) * BLOCK as u64;
        // More than a file can have.
        let most = 1 << 60;
        if !(least..=most).contains(&size.0) {
            return Err(format!(
                "size {}: must be from {} for {writers} writers to {}",
                size.0,
                Size(least),
                Size(most)
            ));
        }
        Ok(Self { seed, blocks: size.0 / BLOCK as u64 })
    }

    pub(super) fn length(&self) -> u64 {
        self.blocks * BLOCK as u64
    }

    /// What the block holds before anybody has written to it; `None` for a hole.
    pub(super) fn original(&self, block: u64) -> Option<Stamp> {
        self.is_data(block / REGION).then_some(Stamp { writer: ORIGINAL, sequence: 0, block })
    }

    /// Two regions in three are data; the first is, and the second is not, however small the image.
    fn is_data(&self, region: u64) -> bool {
        match region {
            0 => true,
            1 => false,
            _ => !next(&mut (self.seed ^ region << 20)).is_multiple_of(3),
        }
    }

    /// Writes the image to a new file. How many bytes of data it has.
    pub(super) fn create(&self, path: &Path) -> io::Result<u64> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(self.length())?;
        let mut data = 0;
        let mut bytes = vec![0; REGION as usize * BLOCK];
        for region in (0..self.blocks.div_ceil(REGION)).filter(|region| self.is_data(*region)) {
            let first = region * REGION;
            let count = REGION.min(self.blocks - first);
            let bytes = &mut bytes[..count as usize * BLOCK];
            let (blocks, _) = bytes.as_chunks_mut::<BLOCK>();
            for (index, block) in (first..).zip(blocks) {
                Stamp { writer: ORIGINAL, sequence: 0, block: index }.fill(self.seed, block);
            }
            file.write_all_at(bytes, first * BLOCK as u64)?;
            data += bytes.len() as u64;
        }
        Ok(data)
    }
}
