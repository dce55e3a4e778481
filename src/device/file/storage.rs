//! An open file as storage: through which descriptor, and by which method, a request is carried out.
//!
//! **Direct or cached.** A file that was opened for direct I/O has two descriptors. What is aligned goes
//! through the direct one. A file's length need not be a multiple of the alignment, and its end counts as
//! aligned, so the request that reaches an odd end goes through the page cache, all of it. That is coherent:
//! the file systems take turns between a cached write and direct I/O to the same file, and drop what is
//! cached of a range that is written directly. A block device has no odd end, so there nothing is mixed.
//! Buffers whose *lengths* are odd (only their beginnings are promised) are copied through an aligned buffer.
//!
//! **Methods.** Not every file system can punch holes or zero a range. What turns out to be missing is not
//! tried again, and the next best method takes its place, writing zeroes in the end.

use super::FileDevice;
use super::aligned::AlignedBuffer;
use super::extents::DataMap;
use super::io;
use crate::device::{Extent, Flags, IoVec, Kind, Request, gather, scatter};
use crate::error::{Errno, IoResult};
use crate::range::ByteRange;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Zeroes are written from one buffer of this size, several times over.
const ZEROES: usize = 64 << 10;
/// How much is written or copied at a time when a request has to be taken apart; the size with which the
/// disks of today reach their speed.
const PIECE: usize = 1 << 20;

/// A request of which nothing belongs to the caller any more, but for the memory of its buffers.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    pub(super) range: ByteRange,
    pub(super) flags: Flags,
    pub(super) iov: Vec<IoVec>,
    /// Where a copy comes from.
    pub(super) from: Option<Arc<Storage>>,
}

impl Operation {
    /// A copy of the request. The list of buffers is copied into `list`, which is empty.
    pub(super) fn new(request: &Request<'_>, mut list: Vec<IoVec>) -> Self {
        debug_assert!(list.is_empty());
        list.extend_from_slice(request.iov);
        let from =
            request.from.and_then(|from| from.backend::<FileDevice>()).map(|from| Arc::clone(from.storage()));
        Self { kind: request.kind, range: request.range, flags: request.flags, iov: list, from }
    }

    /// The list, empty, for the next request.
    pub(super) fn into_list(self) -> Vec<IoVec> {
        let mut list = self.iov;
        list.clear();
        list
    }
}

/// What a path turned out to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// A regular file.
    Regular,
    /// A block device with logical blocks of this size.
    Block { logical_block: u64 },
}

/// The second descriptor of a file that is opened for direct I/O.
#[derive(Debug)]
pub(super) struct Direct {
    /// Bypasses the page cache.
    pub(super) file: File,
    /// What offsets and lengths must be multiples of, those of each buffer too.
    pub(super) offset_alignment: u32,
    /// Where buffers must begin.
    pub(super) memory_alignment: u32,
}

/// An open file. Any number of threads may carry out operations at a time.
#[derive(Debug)]
pub(super) struct Storage {
    /// Goes through the page cache; also for what carries no data.
    pub(super) file: File,
    pub(super) direct: Option<Direct>,
    kind: FileKind,
    /// The file system is in memory, so that even direct I/O is copying.
    #[cfg_attr(
        not(all(feature = "uring", target_os = "linux")),
        expect(dead_code, reason = "threads copy in any case")
    )]
    pub(super) in_memory: bool,
    /// It was promised that what is discarded reads as zero.
    discard_zeroes: bool,
    zeroes: AlignedBuffer,
    pub(super) methods: Methods,
    pub(super) data_map: DataMap,
}

impl Storage {
    /// `ENOMEM` if there is none for a buffer of zeroes.
    pub(super) fn new(
        file: File,
        direct: Option<Direct>,
        kind: FileKind,
        discard_zeroes: bool,
    ) -> Result<Self, Errno> {
        Ok(Self {
            in_memory: io::is_in_memory(&file),
            file,
            direct,
            kind,
            discard_zeroes,
            // So aligned, it suits any memory alignment that a device may have.
            zeroes: AlignedBuffer::new(ZEROES, ZEROES)?,
            methods: Methods::default(),
            data_map: DataMap::default(),
        })
    }

    pub(super) fn kind(&self) -> FileKind {
        self.kind
    }

    /// Carries out one operation, however long it takes. Extents are told to `report`, which can end it with
    /// an error.
    pub(super) fn carry_out(
        &self,
        operation: &mut Operation,
        report: &mut dyn FnMut(Extent) -> bool,
    ) -> IoResult {
        let Operation { kind, range, flags, .. } = *operation;
        let iov = &mut operation.iov;
        let result = match kind {
            Kind::Read => self.read(range, iov),
            Kind::Write => self.write(range, iov, flags.fua),
            Kind::Zero => self.zero(range, flags.may_unmap, iov).and_then(|()| self.flush_if(flags.fua)),
            Kind::Discard => self.discard(range, iov).and_then(|()| self.flush_if(flags.fua)),
            Kind::Flush => io::flush(&self.file),
            Kind::Extents => self.data_map.extents(&self.file, range, report),
            Kind::Truncate => io::truncate(&self.file, range.end()),
            Kind::Copy => self.copy(operation.from.as_deref(), range),
        };
        if matches!(kind, Kind::Zero | Kind::Discard | Kind::Truncate | Kind::Copy) {
            self.data_map.forget();
        }
        result
    }

    fn read(&self, range: ByteRange, iov: &mut [IoVec]) -> IoResult {
        match self.route(range, iov) {
            Route::Through(file) => io::read(file, iov, range.offset()),
            Route::Bounced(direct) => {
                let mut bounce = direct.bounce(range)?;
                for piece in pieces(range, PIECE) {
                    let len = piece.len() as usize;
                    io::read(&direct.file, &mut [bounce.buffer_to_fill(len)], piece.offset())?;
                    scatter(iov, piece.offset() - range.offset(), &bounce[..len]);
                }
                Ok(())
            }
        }
    }

    fn write(&self, range: ByteRange, iov: &mut [IoVec], fua: bool) -> IoResult {
        match self.route(range, iov) {
            Route::Through(file) => self.write_to(file, iov, range.offset(), fua),
            Route::Bounced(direct) => {
                let mut bounce = direct.bounce(range)?;
                for piece in pieces(range, PIECE) {
                    let len = piece.len() as usize;
                    gather(iov, piece.offset() - range.offset(), &mut bounce[..len]);
                    let buffer = bounce.buffer_to_write(len);
                    self.write_to(&direct.file, &mut [buffer], piece.offset(), fua)?;
                }
                Ok(())
            }
        }
    }

    fn write_to(&self, file: &File, iov: &mut [IoVec], offset: u64, fua: bool) -> IoResult {
        if !fua {
            return io::write(file, iov, offset);
        }
        self.methods.write_durably.attempt(|| io::write_durably(file, iov, offset)).unwrap_or_else(|| {
            io::write(file, iov, offset)?;
            io::flush(file)
        })
    }

    pub(super) fn route(&self, range: ByteRange, iov: &[IoVec]) -> Route<'_> {
        match &self.direct {
            Some(direct) if range.is_aligned(u64::from(direct.offset_alignment)) => {
                if iov.iter().all(|buffer| direct.takes(buffer)) {
                    Route::Through(&direct.file)
                } else {
                    Route::Bounced(direct)
                }
            }
            _ => Route::Through(&self.file),
        }
    }

    /// `scratch` is an empty list that this may use.
    fn zero(&self, range: ByteRange, may_unmap: bool, scratch: &mut Vec<IoVec>) -> IoResult {
        let mut result = None;
        if may_unmap {
            result = self.methods.punch.attempt(|| io::punch(&self.file, range));
        }
        result
            .or_else(|| self.methods.zero_range.attempt(|| io::zero_range(&self.file, range)))
            .unwrap_or_else(|| self.write_zeroes(range, scratch))
    }

    fn write_zeroes(&self, range: ByteRange, scratch: &mut Vec<IoVec>) -> IoResult {
        for piece in pieces(range, PIECE) {
            scratch.clear();
            scratch
                .extend(pieces(piece, ZEROES).map(|part| self.zeroes.buffer_to_write(part.len() as usize)));
            self.write(piece, scratch, false)?;
        }
        Ok(())
    }

    fn discard(&self, range: ByteRange, scratch: &mut Vec<IoVec>) -> IoResult {
        match self.kind {
            FileKind::Regular => {
                if let Some(result) = self.methods.punch.attempt(|| io::punch(&self.file, range)) {
                    return result;
                }
                // A hint may be skipped, but a promise is kept.
                if self.discard_zeroes {
                    return self.zero(range, true, scratch);
                }
                Ok(())
            }
            FileKind::Block { logical_block } => {
                let whole = whole_blocks(range, logical_block);
                if whole.is_empty() {
                    return Ok(());
                }
                self.methods
                    .discard_blocks
                    .attempt(|| io::discard_blocks(&self.file, whole))
                    .unwrap_or(Ok(()))
            }
        }
    }

    /// Whether the system may have a way to copy from that file that is better than through buffers: blocks that both share
    /// until one changes, or a server that copies by itself. Else the kernel would copy page by page, which takes longer.
    pub(super) fn copies_from(&self, from: &Self) -> bool {
        self.kind == FileKind::Regular
            && from.kind == FileKind::Regular
            && io::may_share_blocks(&self.file, &from.file)
    }

    fn copy(&self, from: Option<&Self>, range: ByteRange) -> IoResult {
        let from = from.ok_or(Errno::EOPNOTSUPP)?;
        let shared = self.methods.share_blocks.attempt(|| io::share_blocks(&from.file, &self.file, range));
        // What is not in whole blocks is copied by the server, if there is one.
        shared.unwrap_or_else(|| {
            if io::has_server(&self.file) {
                io::copy_range(&from.file, &self.file, range)
            } else if self.methods.share_blocks.is_missing() {
                Err(Errno::EOPNOTSUPP)
            } else {
                Err(Errno::EINVAL)
            }
        })
    }

    fn flush_if(&self, wanted: bool) -> IoResult {
        if wanted { io::flush(&self.file) } else { Ok(()) }
    }
}

/// How the data of a request travels.
pub(super) enum Route<'a> {
    /// Straight between the request's buffers and this descriptor.
    Through(&'a File),
    /// Through an aligned buffer.
    Bounced(&'a Direct),
}

impl Direct {
    fn takes(&self, buffer: &IoVec) -> bool {
        buffer.base().addr() & (self.memory_alignment as usize - 1) == 0
            && buffer.len() & (self.offset_alignment as usize - 1) == 0
    }

    fn bounce(&self, range: ByteRange) -> Result<AlignedBuffer, Errno> {
        let len = range.len().min(PIECE as u64) as usize;
        AlignedBuffer::new(len, self.memory_alignment as usize)
    }
}

/// What is known of the methods that not every file has.
#[derive(Debug, Default)]
pub(super) struct Methods {
    pub(super) punch: Method,
    pub(super) zero_range: Method,
    pub(super) write_durably: Method,
    discard_blocks: Method,
    share_blocks: Method,
}

/// A method that is tried until it turns out to be missing.
#[derive(Debug, Default)]
pub(super) struct Method {
    missing: AtomicBool,
}

impl Method {
    pub(super) fn is_missing(&self) -> bool {
        self.missing.load(Ordering::Relaxed)
    }

    /// The outcome, or `None` if the method is missing or doesn't suit this request (a block device refuses
    /// what isn't aligned to its blocks): something else must be done then.
    fn attempt(&self, call: impl FnOnce() -> IoResult) -> Option<IoResult> {
        if self.is_missing() {
            return None;
        }
        match call() {
            Err(errno) if io::is_unsupported(errno) => {
                self.missing.store(true, Ordering::Relaxed);
                None
            }
            Err(Errno::EINVAL) => None,
            result => Some(result),
        }
    }
}

/// The range in pieces of at most `size` bytes.
fn pieces(range: ByteRange, size: usize) -> impl Iterator<Item = ByteRange> {
    (range.offset()..range.end())
        .step_by(size)
        .map(move |start| ByteRange::between(start, range.end().min(start.saturating_add(size as u64))))
}

/// The blocks that lie wholly in the range.
fn whole_blocks(range: ByteRange, block: u64) -> ByteRange {
    let start = range.offset().checked_next_multiple_of(block).unwrap_or(u64::MAX);
    ByteRange::between(start, range.end() - range.end() % block)
}

#[cfg(test)]
impl Storage {
    /// Makes it a file on a system that can only read, write and flush.
    pub(super) fn forget_methods(&self) {
        let Methods { punch, zero_range, write_durably, discard_blocks, .. } = &self.methods;
        for method in [punch, zero_range, write_durably, discard_blocks] {
            method.missing.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn storage(file: File, discard_zeroes: bool) -> Storage {
        Storage::new(file, None, FileKind::Regular, discard_zeroes).expect("memory")
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    #[test]
    fn only_what_is_aligned_goes_directly_and_only_odd_ends_go_through_the_cache() {
        // Whatever this system would accept.
        let direct = Direct {
            file: tempfile::tempfile().expect("a temporary file"),
            offset_alignment: 512,
            memory_alignment: 4096,
        };
        let file = tempfile::tempfile().expect("a temporary file");
        let storage = Storage::new(file, Some(direct), FileKind::Regular, false).expect("memory");
        let buffer = AlignedBuffer::new(8192, 4096).expect("memory");
        let whole = buffer.buffer_to_write(8192);
        let cut = |at: usize| [whole.slice(0, at), whole.slice(at, 8192)];
        for (range, iov, expected) in [
            (range(512, 8704), cut(4096), "direct"),
            (range(512, 8704), cut(512), "bounced"),
            (range(512, 8704), cut(100), "bounced"),
            (range(512, 8700), cut(4096), "cached"),
            (range(512, 8700), cut(100), "cached"),
        ] {
            let through = match storage.route(range, &iov) {
                Route::Through(file) if std::ptr::eq(file, &raw const storage.file) => "cached",
                Route::Through(_) => "direct",
                Route::Bounced(_) => "bounced",
            };
            assert_eq!(through, expected, "{range:?} of {iov:?}");
        }
    }

    #[test]
    fn a_discard_is_skipped_unless_it_was_promised_to_zero() {
        for promised in [false, true] {
            let mut file = tempfile::tempfile().expect("a temporary file");
            file.write_all(&[7; 8192]).expect("is written");
            let storage = storage(file, promised);
            storage.forget_methods();
            assert_eq!(storage.discard(range(0, 4096), &mut Vec::new()), Ok(()));
            let mut bytes = AlignedBuffer::new(8192, 1).expect("memory");
            let iov = &mut [bytes.buffer_to_fill(8192)];
            assert_eq!(storage.read(range(0, 8192), iov), Ok(()));
            assert_eq!(bytes[..4096], [if promised { 0 } else { 7 }; 4096]);
            assert_eq!(bytes[4096..], [7; 4096]);
        }
    }

    #[test]
    fn a_missing_method_is_tried_once() {
        for missing in [libc::EOPNOTSUPP, libc::ENOSYS, libc::ENOTTY, libc::ENODEV] {
            let missing = Errno::from_number(missing).expect("an errno");
            let method = Method::default();
            assert_eq!(method.attempt(|| Err(missing)), None);
            assert_eq!(method.attempt(|| unreachable!("{missing} is remembered")), None);
        }
    }

    #[test]
    fn a_method_that_does_not_suit_is_tried_again() {
        let method = Method::default();
        assert_eq!(method.attempt(|| Err(Errno::EINVAL)), None);
        assert_eq!(method.attempt(|| Ok(())), Some(Ok(())));
        assert_eq!(method.attempt(|| Err(Errno::EIO)), Some(Err(Errno::EIO)));
        assert_eq!(method.attempt(|| Ok(())), Some(Ok(())));
    }

    #[test]
    fn only_whole_blocks_are_discarded() {
        assert_eq!(whole_blocks(range(1, 5000), 512), range(512, 4608));
        assert_eq!(whole_blocks(range(512, 1024), 512), range(512, 1024));
        assert!(whole_blocks(range(1, 1023), 512).is_empty());
        assert!(whole_blocks(range(u64::MAX - 1, u64::MAX), 512).is_empty());
    }
}
