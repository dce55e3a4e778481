//! What a file says it holds: where its data is and where its holes are.
//!
//! A file system finds the next hole by walking over the data before it, which for a file without holes is all the rest of
//! it. Who asks for one stretch after the other would make it walk there each time: so a run of data is remembered.
//!
//! A run of data that is no longer true does no harm: what has become a hole is read as the zeroes that it holds. A hole
//! that is no longer true would hide data. So holes are never remembered.

use super::io;
use crate::device::{Extent, ExtentFlags};
use crate::error::{Errno, IoResult};
use crate::range::ByteRange;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is remembered of a file's data: the run that was found last.
#[derive(Debug, Default)]
pub(super) struct DataMap {
    run: Mutex<ByteRange>,
}

impl DataMap {
    /// Tells what the range holds, for as long as `report` wants more.
    pub(super) fn extents(
        &self,
        file: &File,
        range: ByteRange,
        report: &mut dyn FnMut(Extent) -> bool,
    ) -> IoResult {
        let mut tell = |length: u64, flags: ExtentFlags| length == 0 || report(Extent { length, flags });
        let mut at = range.offset();
        while at < range.end() {
            let data = match self.next_data(file, at) {
                Ok(Some(data)) => data.min(range.end()),
                Ok(None) => end_of_holes(file, range)?,
                Err(errno) if errno == Errno::EINVAL || io::is_unsupported(errno) => {
                    tell(range.end() - at, ExtentFlags::DATA);
                    break;
                }
                Err(errno) => return Err(errno),
            };
            if !tell(data - at, ExtentFlags::HOLE) || data == range.end() {
                break;
            }
            // A hole may be punched right here meanwhile; one byte at least keeps this loop moving.
            let hole = self.end_of_data(file, data)?.max(data + 1).min(range.end());
            if !tell(hole - data, ExtentFlags::DATA) {
                break;
            }
            at = hole;
        }
        Ok(())
    }

    /// Something may have become a hole.
    pub(super) fn forget(&self) {
        *self.lock() = ByteRange::default();
    }

    fn next_data(&self, file: &File, at: u64) -> Result<Option<u64>, Errno> {
        if holds(*self.lock(), at) {
            return Ok(Some(at));
        }
        io::next_data(file, at)
    }

    /// Where the data that is at `at` ends. While one thread has it found, the others wait for what it finds.
    fn end_of_data(&self, file: &File, at: u64) -> Result<u64, Errno> {
        let mut run = self.lock();
        if !holds(*run, at) {
            let end = io::next_hole(file, at)?;
            *run = ByteRange::between(at, end.max(at));
        }
        Ok(run.end())
    }

    fn lock(&self) -> MutexGuard<'_, ByteRange> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn holds(run: ByteRange, at: u64) -> bool {
    (run.offset()..run.end()).contains(&at)
}

/// There is no data any more: because there is a hole, not because the file has shrunk below the range.
fn end_of_holes(file: &File, range: ByteRange) -> Result<u64, Errno> {
    let length = file.metadata().map_err(|error| io::errno_of(&error))?.len();
    if length < range.end() {
        return Err(Errno::EIO);
    }
    Ok(range.end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    fn told(map: &DataMap, file: &File, asked: ByteRange) -> Vec<Extent> {
        let mut told = Vec::new();
        let result = map.extents(file, asked, &mut |extent| {
            told.push(extent);
            true
        });
        assert_eq!(result, Ok(()));
        told
    }

    fn extent(length: u64, flags: ExtentFlags) -> Extent {
        Extent { length, flags }
    }

    /// `/proc/self/mem` is a file whose `lseek` knows no data and holes.
    #[cfg(target_os = "linux")]
    #[test]
    fn without_data_and_holes_everything_is_data() {
        let file = File::open("/proc/self/mem").expect("is readable");
        let asked = range(4096, 1 << 20);
        assert_eq!(told(&DataMap::default(), &file, asked), [extent(asked.len(), ExtentFlags::DATA)]);
    }

    #[test]
    fn extents_stop_when_nobody_wants_them() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(1 << 20).expect("grows");
        file.write_all_at(&[1; 4096], 512 << 10).expect("writes");
        let mut told = Vec::new();
        let result = DataMap::default().extents(&file, range(0, 1 << 20), &mut |extent| {
            told.push(extent);
            false
        });
        assert_eq!((result, told.len()), (Ok(()), 1));
    }

    #[test]
    fn data_is_remembered_until_it_may_be_a_hole_and_holes_are_not() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&[1; 1 << 20], 0).expect("writes");
        file.set_len(2 << 20).expect("grows");
        let map = DataMap::default();
        let (data, hole) = (ExtentFlags::DATA, ExtentFlags::HOLE);
        assert_eq!(told(&map, &file, range(0, 4096)), [extent(4096, data)]);
        // Behind the device's back it is all a hole now: nobody looks.
        file.set_len(0).expect("shrinks");
        file.set_len(2 << 20).expect("grows");
        assert_eq!(told(&map, &file, range(8192, 1 << 20)), [extent((1 << 20) - 8192, data)]);
        map.forget();
        assert_eq!(told(&map, &file, range(8192, 1 << 20)), [extent((1 << 20) - 8192, hole)]);
        // A hole that was seen is looked at again.
        file.write_all_at(&[1; 1 << 20], 0).expect("writes");
        assert_eq!(told(&map, &file, range(8192, 1 << 20)), [extent((1 << 20) - 8192, data)]);
    }
}
