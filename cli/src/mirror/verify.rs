//! Reading both sides again and comparing them.

use super::progress::Progress;
use super::summary::Verified;
use crate::failure::Failure;
use crate::interrupt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How much is read and compared at a time.
const PIECE: usize = 1 << 20;

/// Compares two files or block devices of one length. What both have as a hole is equal.
pub(super) fn compare(source: &Path, target: &Path) -> Result<Verified, Failure> {
    let (source, target) = (Side::open(source)?, Side::open(target)?);
    let length = source.length()?;
    let shorter = length.min(target.length()?);
    let mut progress = Progress::new("verifying");
    let mut pieces = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < shorter {
        if interrupt::requested() {
            return Ok(Verified::Interrupted);
        }
        if progress.is_due() {
            progress.show(at, length);
        }
        at = source.next_data(at).min(target.next_data(at));
        let size = shorter.saturating_sub(at).min(PIECE as u64) as usize;
        let (left, right) = (&mut pieces.0[..size], &mut pieces.1[..size]);
        source.read(at, left)?;
        target.read(at, right)?;
        if let Some(first) = first_difference(left, right) {
            return Ok(Verified::Differs { offset: at + first as u64 });
        }
        at += size as u64;
    }
    if shorter < length { Ok(Verified::Differs { offset: shorter }) } else { Ok(Verified::Equal) }
}

/// Equal pieces are the rule, and compared at the speed of memory.
fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right { None } else { left.iter().zip(right).position(|(left, right)| left != right) }
}

struct Side<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Side<'a> {
    fn open(path: &'a Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(Failure::with(path.display()))?;
        // What is flushed and let go of is read from the disk, not from where it was written. It is a hint: whatever
        // comes of it, the comparison is right.
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(Self { path, file })
    }

    /// A block device's metadata doesn't tell its length; its end does.
    fn length(&self) -> Result<u64, Failure> {
        (&self.file).seek(SeekFrom::End(0)).map_err(Failure::with(self.path.display()))
    }

    /// Where data begins at or after `at`, as far as the file system tells.
    fn next_data(&self, at: u64) -> u64 {
        #[cfg(any(target_os = "linux", target_os = "freebsd", target_vendor = "apple"))]
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data.max(at),
            Err(rustix::io::Errno::NXIO) => u64::MAX,
            Err(_) => at,
        }
        #[cfg(not(any(target_os = "linux", target_os = "freebsd", target_vendor = "apple")))]
        at
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        self.file.read_exact_at(bytes, at).map_err(|error: io::Error| {
            Failure::failed(format_args!("{}: can't be read at offset {at}: {error}", self.path.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::NamedTempFile;

    fn file(length: u64, data: &[(u64, &[u8])]) -> NamedTempFile {
        let file = NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(length).expect("grows");
        for (offset, bytes) in data {
            file.as_file().write_all_at(bytes, *offset).expect("is written");
        }
        file
    }

    #[test]
    fn the_first_difference_is_found_wherever_it_is() {
        const LENGTH: u64 = 5 * PIECE as u64 + 100;
        let plain = file(LENGTH, &[(1 << 20, &[1; 5000])]);
        for (other, expected) in [
            (file(LENGTH, &[(1 << 20, &[1; 5000])]), Verified::Equal),
            (file(LENGTH, &[(1 << 20, &[1; 5000]), (3 << 20, &[0; 9000])]), Verified::Equal),
            (file(LENGTH, &[(1 << 20, &[1; 4999])]), Verified::Differs { offset: (1 << 20) + 4999 }),
            (file(LENGTH, &[(1 << 20, &[1; 5000]), (0, &[1])]), Verified::Differs { offset: 0 }),
            (
                file(LENGTH, &[(1 << 20, &[1; 5000]), (LENGTH - 1, &[1])]),
                Verified::Differs { offset: LENGTH - 1 },
            ),
            (file(LENGTH, &[]), Verified::Differs { offset: 1 << 20 }),
            (file(LENGTH - 1, &[(1 << 20, &[1; 5000])]), Verified::Differs { offset: LENGTH - 1 }),
        ] {
            let found = compare(plain.path(), other.path()).expect("both can be read");
            assert_eq!(found, expected);
            let found = compare(other.path(), plain.path()).expect("both can be read");
            if other.as_file().metadata().expect("exists").len() == LENGTH {
                assert_eq!(found, expected, "the other way round");
            }
        }
    }

    #[test]
    fn nothing_equals_nothing() {
        let (one, other) = (file(0, &[]), file(0, &[]));
        assert_eq!(compare(one.path(), other.path()).expect("both can be read"), Verified::Equal);
    }
}
