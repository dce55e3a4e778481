//! What the operating system is asked to do to an open file: each function is one blocking operation on a
//! descriptor, finished when it returns, and knows nothing of devices or threads.
//!
//! Whatever else shares the descriptor does no harm: nothing here uses or depends on its file offset. `lseek`
//! for data and holes moves it, but only what it returns counts, so that any number may run in parallel.

use crate::device::{IoVec, MAX_IOV};
use crate::error::{Errno, IoResult};
use crate::range::ByteRange;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Fills the buffers from `offset` on; `EIO` if the file ends before they are full.
///
/// The list is used up: what is left in it is of no meaning.
pub(super) fn read(file: &File, iov: &mut [IoVec], offset: u64) -> IoResult {
    transfer(iov, offset, |iov, offset| {
        // SAFETY: the list is live and `IoVec` is laid out as `iovec`; whoever made each `IoVec` vouched for
        // its memory until the request is done, which it isn't before this returns.
        unsafe { libc::preadv(file.as_raw_fd(), iov.as_ptr().cast(), iov.len() as _, offset) }
    })
}

/// Writes the buffers from `offset` on. The list is used up.
pub(super) fn write(file: &File, iov: &mut [IoVec], offset: u64) -> IoResult {
    transfer(iov, offset, |iov, offset| {
        // SAFETY: as for `read`.
        unsafe { libc::pwritev(file.as_raw_fd(), iov.as_ptr().cast(), iov.len() as _, offset) }
    })
}

/// As [`write()`], and durable when it returns. An error that [`is_unsupported`] comes before anything is
/// written.
#[cfg(target_os = "linux")]
pub(super) fn write_durably(file: &File, iov: &mut [IoVec], offset: u64) -> IoResult {
    transfer(iov, offset, |iov, offset| {
        let fd = file.as_raw_fd();
        // SAFETY: as for `read`.
        unsafe { libc::pwritev2(fd, iov.as_ptr().cast(), iov.len() as _, offset, libc::RWF_DSYNC) }
    })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn write_durably(_: &File, _: &mut [IoVec], _: u64) -> IoResult {
    Err(Errno::EOPNOTSUPP)
}

/// Repeats `call` with what is left of the list until nothing is, however little it moves at a time.
fn transfer(
    mut iov: &mut [IoVec],
    mut offset: u64,
    call: impl Fn(&[IoVec], libc::off_t) -> libc::ssize_t,
) -> IoResult {
    let mut first = true;
    loop {
        let moved_on = iov.iter().take_while(|buffer| buffer.is_empty()).count();
        iov = &mut iov[moved_on..];
        if iov.is_empty() {
            return Ok(());
        }
        let at = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let moved = call(&iov[..iov.len().min(MAX_IOV as usize)], at);
        match usize::try_from(moved) {
            // The file ends here: it is shorter than it was when it was opened.
            Ok(0) => return Err(Errno::EIO),
            Ok(moved) => {
                advance(iov, moved);
                offset += moved as u64;
                first = false;
            }
            Err(_) => match last_errno() {
                errno if errno.number() == libc::EINTR => {}
                // What begins well and then is "invalid" is direct I/O that stopped within a block.
                Errno::EINVAL if !first => return Err(Errno::EIO),
                errno => return Err(errno),
            },
        }
    }
}

/// Takes the first `moved` bytes off the buffers.
pub(super) fn advance(iov: &mut [IoVec], mut moved: usize) {
    for buffer in iov {
        let part = moved.min(buffer.len());
        *buffer = buffer.slice(part, usize::MAX);
        moved -= part;
        if moved == 0 {
            return;
        }
    }
}

/// Makes what is written durable.
pub(super) fn flush(file: &File) -> IoResult {
    file.sync_data().map_err(|error| errno_of(&error))
}

/// Makes a regular file this long.
pub(super) fn truncate(file: &File, length: u64) -> IoResult {
    file.set_len(length).map_err(|error| errno_of(&error))
}

/// Makes the range read as zero and gives its blocks back; on a block device, as far as it knows how to do
/// that without writing. Partial blocks of a regular file are zeroed.
pub(super) fn punch(file: &File, range: ByteRange) -> IoResult {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, range);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = (file, range);
        Err(Errno::EOPNOTSUPP)
    }
}

/// Makes the range read as zero and keeps its blocks; on a block device the kernel writes zeroes if there is
/// no better way.
pub(super) fn zero_range(file: &File, range: ByteRange) -> IoResult {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return fallocate(file, libc::FALLOC_FL_ZERO_RANGE, range);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = (file, range);
        Err(Errno::EOPNOTSUPP)
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn fallocate(file: &File, mode: libc::c_int, range: ByteRange) -> IoResult {
    let offset = libc::off_t::try_from(range.offset()).map_err(|_| Errno::EINVAL)?;
    let length = libc::off_t::try_from(range.len()).map_err(|_| Errno::EINVAL)?;
    retry(|| {
        // SAFETY: takes numbers only; the descriptor is open.
        unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) }
    })
    .map(drop)
}

/// Tells a block device that the range, of whole logical blocks, is not needed.
pub(super) fn discard_blocks(file: &File, range: ByteRange) -> IoResult {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // `_IO(0x12, 119)`, beside `_IO(0x12, 104)`: how `_IO` is put together depends on the architecture.
        const BLKDISCARD: libc::Ioctl = libc::BLKSSZGET + 15;
        let bounds = [range.offset(), range.len()];
        retry(|| {
            // SAFETY: `BLKDISCARD` reads two `u64` behind the pointer, which are live.
            unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, bounds.as_ptr()) }
        })
        .map(drop)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = (file, range);
        Err(Errno::EOPNOTSUPP)
    }
}

/// The first byte at or after `offset` that is data; `None` if there is a hole up to the file's end, or
/// nothing.
pub(super) fn next_data(file: &File, offset: u64) -> Result<Option<u64>, Errno> {
    match seek(file, offset, Seek::Data) {
        Err(Errno::ENXIO) => Ok(None),
        found => found.map(Some),
    }
}

/// The first byte at or after `offset` that is in a hole; the file's end counts as one.
pub(super) fn next_hole(file: &File, offset: u64) -> Result<u64, Errno> {
    seek(file, offset, Seek::Hole)
}

#[derive(Clone, Copy)]
enum Seek {
    Data,
    Hole,
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_vendor = "apple"))]
fn seek(file: &File, offset: u64, what: Seek) -> Result<u64, Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::ENXIO)?;
    let whence = match what {
        Seek::Data => libc::SEEK_DATA,
        Seek::Hole => libc::SEEK_HOLE,
    };
    // SAFETY: takes numbers only; the descriptor is open.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| last_errno())
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_vendor = "apple")))]
fn seek(_: &File, _: u64, what: Seek) -> Result<u64, Errno> {
    match what {
        Seek::Data | Seek::Hole => Err(Errno::EOPNOTSUPP),
    }
}

/// How direct I/O has to be aligned, where the kernel tells: offset and length, then memory. 0 and 0 where
/// the file can't be had directly.
pub(super) fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a `statx` is numbers, for which zero is a value.
        let mut told: libc::statx = unsafe { std::mem::zeroed() };
        // SAFETY: the path is an empty C string, which `AT_EMPTY_PATH` allows, and the result has room for a
        // `statx`.
        let answer = unsafe {
            libc::statx(
                file.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_DIOALIGN,
                &raw mut told,
            )
        };
        (answer == 0 && told.stx_mask & libc::STATX_DIOALIGN != 0)
            .then_some((told.stx_dio_offset_align, told.stx_dio_mem_align))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        None
    }
}

/// The logical block size of a block device.
pub(super) fn logical_block(file: &File) -> Option<u32> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let mut size: libc::c_int = 0;
        // SAFETY: `BLKSSZGET` writes an `int` behind the pointer, which is live.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET as _, &raw mut size) };
        (answer == 0).then_some(size).and_then(|size| size.try_into().ok())
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = file;
        None
    }
}

/// Whether the file lies in a file system that has no disk.
pub(super) fn is_in_memory(file: &File) -> bool {
    /// `tmpfs`, and `ramfs`, which the C library has no name for.
    const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
    file_system(file).is_some_and(|found| IN_MEMORY.contains(&found))
}

/// Whether the file lies on a server that copies by itself: NFS, SMB, CIFS, Ceph.
pub(super) fn has_server(file: &File) -> bool {
    const SERVERS: [u32; 4] = [0x6969, 0xfe53_4d42, 0xff53_4d42, 0x00c3_6400];
    file_system(file).is_some_and(|found| SERVERS.contains(&found))
}

/// Whether the two lie in one file system, of a kind in which files may share blocks until one changes them, or that has
/// a server.
pub(super) fn may_share_blocks(file: &File, other: &File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    /// Btrfs, XFS, OCFS2, bcachefs, ZFS, and overlays, which ask what is below.
    const SHARING: [u32; 6] = [0x9123_683e, 0x5846_5342, 0x7461_636f, 0xca45_1a4e, 0x2fc1_2fc1, 0x794c_7630];
    let system = |file: &File| file.metadata().map(|told| told.dev()).ok();
    let one = system(file).is_some_and(|device| system(other) == Some(device));
    one && (has_server(file) || file_system(file).is_some_and(|found| SHARING.contains(&found)))
}

/// The number by which Linux names the kind of file system that the file lies in.
fn file_system(file: &File) -> Option<u32> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a `statfs` is numbers, for which zero is a value.
        let mut told: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the result has room for a `statfs`, and the descriptor is open.
        let answer = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut told) };
        // Its type differs between architectures; the numbers have 32 bits.
        (answer == 0).then_some(told.f_type as u32)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        None
    }
}

/// Makes the range of `to` share the blocks of the same range of `from`. `EINVAL` unless it is in whole blocks, or ends
/// where both files end.
pub(super) fn share_blocks(from: &File, to: &File, range: ByteRange) -> IoResult {
    #[cfg(target_os = "linux")]
    {
        let asked = libc::file_clone_range {
            src_fd: from.as_raw_fd().into(),
            src_offset: range.offset(),
            src_length: range.len(),
            dest_offset: range.offset(),
        };
        retry(|| {
            // SAFETY: `FICLONERANGE` reads a `file_clone_range` behind the pointer, which is live; the descriptors are open.
            unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE as _, &raw const asked) }
        })
        .map(drop)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (from, to, range);
        Err(Errno::EOPNOTSUPP)
    }
}

/// Has the system copy the range of `from` to the same range of `to`.
pub(super) fn copy_range(from: &File, to: &File, range: ByteRange) -> IoResult {
    #[cfg(target_os = "linux")]
    {
        let (mut at, end) = (range.offset(), range.end());
        while at < end {
            let offset = libc::loff_t::try_from(at).map_err(|_| Errno::EINVAL)?;
            let (mut read_at, mut write_at) = (offset, offset);
            let length = usize::try_from(end - at).unwrap_or(usize::MAX);
            // SAFETY: the two offsets are live, and the descriptors are open.
            let copied = unsafe {
                let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
                libc::copy_file_range(from, &raw mut read_at, to, &raw mut write_at, length, 0)
            };
            match copied {
                // The source ends here: it is shorter than it was when it was opened.
                0 => return Err(Errno::EIO),
                -1 if last_errno().number() == libc::EINTR => {}
                -1 => return Err(last_errno()),
                copied => at += copied as u64,
            }
        }
        Ok(())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (from, to, range);
        Err(Errno::EOPNOTSUPP)
    }
}

/// Whether a block device refuses every change. The kernel lets it be opened for writing all the same.
pub(super) fn is_write_protected(file: &File) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // `_IO(0x12, 94)`, beside `_IO(0x12, 104)`, as for `BLKDISCARD`.
        const BLKROGET: libc::Ioctl = libc::BLKSSZGET - 10;
        let mut protected: libc::c_int = 0;
        // SAFETY: `BLKROGET` writes an `int` behind the pointer, which is live.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET, &raw mut protected) };
        answer == 0 && protected != 0
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = file;
        false
    }
}

/// Whether the errno says that this file can't do the thing at all, as opposed to a failure or to a request
/// that it doesn't suit.
pub(super) fn is_unsupported(errno: Errno) -> bool {
    matches!(errno.number(), libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV)
}

/// The errno of an error of the standard library.
pub(super) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().and_then(Errno::from_number).unwrap_or(Errno::EIO)
}

fn last_errno() -> Errno {
    errno_of(&io::Error::last_os_error())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn retry(call: impl Fn() -> libc::c_int) -> Result<libc::c_int, Errno> {
    loop {
        match call() {
            -1 => match last_errno() {
                errno if errno.number() == libc::EINTR => {}
                errno => return Err(errno),
            },
            answer => return Ok(answer),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::device::{gather, scatter};
    use std::cell::RefCell;

    fn list(buffers: &mut [Vec<u8>]) -> Vec<IoVec> {
        buffers
            .iter_mut()
            // SAFETY: the vectors outlive the list in each test.
            .map(|b| unsafe { IoVec::new(b.as_mut_ptr().cast(), b.len()) })
            .collect()
    }

    fn set_errno(number: libc::c_int) -> libc::ssize_t {
        // SAFETY: the location is this thread's own `errno`.
        unsafe {
            *libc::__errno_location() = number;
        }
        -1
    }

    #[test]
    fn a_transfer_goes_on_after_short_moves_and_interruptions() {
        let source: Vec<u8> = (0..20).collect();
        let mut memory = [vec![0u8; 3], vec![], vec![0; 7], vec![0; 10]];
        let whole = list(&mut memory);
        let steps = RefCell::new(vec![1, 10, 4, 5].into_iter());
        let interrupted = RefCell::new(false);
        let result = transfer(&mut whole.clone(), 0, |iov, at| {
            if !interrupted.replace(true) {
                return set_errno(libc::EINTR);
            }
            interrupted.replace(false);
            let step = steps.borrow_mut().next().expect("no call after the end");
            scatter(iov, 0, &source[at as usize..at as usize + step]);
            step as isize
        });
        assert_eq!(result, Ok(()));
        let mut moved = [0; 20];
        gather(&whole, 0, &mut moved);
        assert_eq!(moved[..], source[..]);
        assert_eq!(steps.borrow_mut().next(), None);
    }

    #[test]
    fn a_transfer_that_stops_is_an_error() {
        for (first, then, expected) in [
            (4, 0, Errno::EIO),
            (0, 0, Errno::EIO),
            (4, -libc::EINVAL, Errno::EIO),
            (-libc::EINVAL, 0, Errno::EINVAL),
            (4, -libc::ENOSPC, Errno::ENOSPC),
        ] {
            let mut memory = [vec![0u8; 8]];
            let result = transfer(&mut list(&mut memory), 0, |_, at| {
                let answer = if at == 0 { first } else { then };
                if answer < 0 { set_errno(-answer) } else { answer as isize }
            });
            assert_eq!(result, Err(expected), "{first} then {then}");
        }
    }

    #[test]
    fn an_offset_beyond_what_the_system_can_name_is_refused() {
        let file = tempfile::tempfile().expect("a temporary file");
        let mut memory = [vec![0u8; 8]];
        assert_eq!(write(&file, &mut list(&mut memory), u64::MAX - 8), Err(Errno::EINVAL));
        assert_eq!(next_data(&file, u64::MAX), Ok(None));
    }
}
