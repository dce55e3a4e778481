//! The proof: the new disk's file, read with nothing but the standard library, against what it must hold.

use super::image::Image;
use super::stamp::{BLOCK, ORIGINAL, Stamp};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Blocks that are read at a time.
const PIECE: u64 = 256;
/// More losses than this are counted, not kept.
const MOST_KEPT: usize = 10;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Blocks that hold the guest's last acknowledged write.
    pub(super) written: u64,
    /// Blocks that the guest never wrote and that are as they were.
    pub(super) untouched: u64,
    /// Blocks that hold something else.
    pub(super) lost: u64,
    /// The first of them.
    pub(super) losses: Vec<Loss>,
}

/// A block that doesn't hold what it must.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) block: u64,
    pub(super) expected: Content,
    pub(super) found: Content,
}

/// What a block holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Zeroes,
    Stamped(Stamp),
    /// It begins with this stamp, and doesn't go on as it should.
    Torn(Stamp),
    /// Neither.
    Unknown,
    /// The file ends before it.
    Missing,
}

/// Checks each block of the file.
pub(super) fn check(disk: &File, image: &Image, acknowledged: &HashMap<u64, Stamp>) -> io::Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut bytes = vec![0; PIECE as usize * BLOCK];
    let there = disk.metadata()?.len() / BLOCK as u64;
    for first in (0..image.blocks).step_by(PIECE as usize) {
        let end = image.blocks.min(first + PIECE);
        let readable = there.clamp(first, end) - first;
        let bytes = &mut bytes[..readable as usize * BLOCK];
        disk.read_exact_at(bytes, first * BLOCK as u64)?;
        let (blocks, _) = bytes.as_chunks::<BLOCK>();
        for index in first..end {
            let written = acknowledged.get(&index).copied();
            let expected = match written.or_else(|| image.original(index)) {
                Some(stamp) => Content::Stamped(stamp),
                None => Content::Zeroes,
            };
            let found = blocks
                .get((index - first) as usize)
                .map_or(Content::Missing, |block| content(image.seed, block));
            if found != expected {
                verdict.lose(Loss { block: index, expected, found });
            } else if written.is_some() {
                verdict.written += 1;
            } else {
                verdict.untouched += 1;
            }
        }
    }
    Ok(verdict)
}

fn content(seed: u64, block: &[u8; BLOCK]) -> Content {
    if block.iter().all(|byte| *byte == 0) {
        return Content::Zeroes;
    }
    let Some(stamp) = Stamp::read(seed, block) else { return Content::Unknown };
    let mut whole = [0; BLOCK];
    stamp.fill(seed, &mut whole);
    if whole == *block { Content::Stamped(stamp) } else { Content::Torn(stamp) }
}

impl Verdict {
    fn lose(&mut self, loss: Loss) {
        self.lost += 1;
        if self.losses.len() < MOST_KEPT {
            self.losses.push(loss);
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}: must hold {}, holds {}", self.block, self.expected, self.found)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeroes => f.write_str("zeroes"),
            Self::Stamped(stamp) => write!(f, "{stamp}"),
            Self::Torn(stamp) => write!(f, "a part of {stamp}"),
            Self::Unknown => f.write_str("what nobody wrote"),
            Self::Missing => f.write_str("nothing: the file ends before it"),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.writer {
            ORIGINAL => write!(f, "block {} of the original", self.block),
            writer => write!(f, "writer {writer}'s write {} to block {}", self.sequence, self.block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;
    use tempfile::TempDir;

    const SEED: u64 = 3;

    /// An image on which writer 1 wrote blocks 5 and 70, in a hole, each twice.
    fn disk() -> (TempDir, File, Image, HashMap<u64, Stamp>) {
        let image = Image::new(Size(1 << 20), 1, SEED).expect("large enough");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        image.create(&path).expect("is written");
        let disk = File::options().read(true).write(true).open(&path).expect("opens");
        let mut acknowledged = HashMap::new();
        for (sequence, block) in [(1, 5), (2, 70), (3, 5), (4, 70)] {
            let stamp = Stamp { writer: 1, sequence, block };
            put(&disk, block, stamp);
            acknowledged.insert(block, stamp);
        }
        (directory, disk, image, acknowledged)
    }

    fn put(disk: &File, block: u64, stamp: Stamp) {
        let mut bytes = [0; BLOCK];
        stamp.fill(SEED, &mut bytes);
        disk.write_all_at(&bytes, block * BLOCK as u64).expect("is written");
    }

    #[test]
    fn a_disk_with_everything_on_it_passes() {
        let (_directory, disk, image, acknowledged) = disk();
        let verdict = check(&disk, &image, &acknowledged).expect("can be read");
        assert_eq!((verdict.written, verdict.untouched, verdict.lost), (2, 254, 0));
    }

    #[test]
    fn each_kind_of_loss_is_found_and_described() {
        type Spoil = fn(&File);
        let rows: [(u64, Spoil, &str); 8] = [
            (
                5,
                |disk| put(disk, 5, Stamp { writer: 1, sequence: 1, block: 5 }),
                "block 5: must hold writer 1's write 3 to block 5, holds writer 1's write 1 to block 5",
            ),
            (
                5,
                |disk| put(disk, 5, Stamp { writer: ORIGINAL, sequence: 0, block: 5 }),
                "block 5: must hold writer 1's write 3 to block 5, holds block 5 of the original",
            ),
            (
                70,
                |disk| disk.write_all_at(&[0; BLOCK], 70 * BLOCK as u64).expect("is written"),
                "block 70: must hold writer 1's write 4 to block 70, holds zeroes",
            ),
            (
                70,
                |disk| disk.write_all_at(&[9], 70 * BLOCK as u64 + 4095).expect("is written"),
                "block 70: must hold writer 1's write 4 to block 70, holds a part of writer 1's write 4 to block 70",
            ),
            (
                6,
                |disk| put(disk, 6, Stamp { writer: 1, sequence: 9, block: 7 }),
                "block 6: must hold block 6 of the original, holds writer 1's write 9 to block 7",
            ),
            (
                6,
                |disk| disk.write_all_at(&[9], 6 * BLOCK as u64).expect("is written"),
                "block 6: must hold block 6 of the original, holds what nobody wrote",
            ),
            (
                100,
                |disk| disk.write_all_at(&[9], 101 * BLOCK as u64 - 1).expect("is written"),
                "block 100: must hold zeroes, holds what nobody wrote",
            ),
            (
                255,
                |disk| disk.set_len(256 * BLOCK as u64 - 1).expect("is cut"),
                "block 255: must hold zeroes, holds nothing: the file ends before it",
            ),
        ];
        for (block, spoil, message) in rows {
            let (_directory, disk, image, acknowledged) = disk();
            spoil(&disk);
            let verdict = check(&disk, &image, &acknowledged).expect("can be read");
            assert_eq!((verdict.lost, verdict.written + verdict.untouched), (1, 255), "{message}");
            assert_eq!(verdict.losses[0].block, block);
            assert_eq!(verdict.losses[0].to_string(), message);
        }
    }

    #[test]
    fn of_many_losses_the_first_are_kept() {
        let (_directory, disk, image, acknowledged) = disk();
        disk.set_len(0).expect("is cut");
        let verdict = check(&disk, &image, &acknowledged).expect("can be read");
        assert_eq!((verdict.lost, verdict.losses.len()), (256, MOST_KEPT));
    }
}
