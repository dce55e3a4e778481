//! A device in memory, for tests, demonstrations and scratch disks.

use super::{
    Answer, Backend, Completions, Device, Extent, ExtentFlags, Flags, IoVec, Kind, Limits, Request, Token,
    gather, scatter,
};
use crate::error::{Errno, Error, IoResult, Result};
use crate::range::ByteRange;
use crate::reserve;
use once_cell::sync::OnceCell;
use std::sync::{Mutex, PoisonError, RwLock};

/// Memory is held in pages of this size; a page that was never written takes no room and reads as zero.
const PAGE: u64 = 64 << 10;

type Page = Box<[u8]>;

/// Bytes in memory; every request is finished inline. Pages are allocated when they are first written, so a
/// thin device is thin here too.
///
/// Overlapping requests are atomic by page, as on a disk with sectors of 64 KiB.
#[derive(Debug)]
pub struct Memory {
    pages: RwLock<Vec<OnceCell<Mutex<Option<Page>>>>>,
    completions: Completions,
}

impl Memory {
    /// A device of `length` bytes, all zero. `ENOMEM` if even its table of pages can't be had.
    pub fn device(length: u64, limits: Limits) -> Result<Device> {
        Device::new(length, limits, |completions| {
            let mut pages = Vec::new();
            grow(&mut pages, length)?;
            Ok(Self { pages: RwLock::new(pages), completions })
        })
    }

    fn each_page(
        &self,
        range: ByteRange,
        mut visit: impl FnMut(&OnceCell<Mutex<Option<Page>>>, ByteRange, u64),
    ) {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut offset = range.offset();
        while offset < range.end() {
            let page = offset / PAGE;
            let within = ByteRange::between(offset % PAGE, PAGE.min(range.end() - page * PAGE));
            visit(&pages[page as usize], within, offset - range.offset());
            offset += within.len();
        }
    }

    fn read(&self, range: ByteRange, iov: &[IoVec]) {
        static ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];
        self.each_page(range, |page, within, at| {
            let held = page.get().map(|page| page.lock().unwrap_or_else(PoisonError::into_inner));
            let bytes = held.as_ref().and_then(|page| page.as_deref()).unwrap_or(&ZEROES);
            scatter(iov, at, &bytes[within.offset() as usize..within.end() as usize]);
        });
    }

    fn change(&self, range: ByteRange, flags: Flags, iov: Option<&[IoVec]>) -> IoResult {
        let mut result = Ok(());
        self.each_page(range, |page, within, at| {
            if iov.is_none() && page.get().is_none() {
                return;
            }
            let mut held =
                page.get_or_init(|| Mutex::new(None)).lock().unwrap_or_else(PoisonError::into_inner);
            if iov.is_none() && (held.is_none() || (flags.may_unmap && within.len() == PAGE)) {
                *held = None;
                return;
            }
            if held.is_none() {
                *held = zeroed_page();
            }
            let Some(bytes) = held.as_deref_mut() else {
                result = Err(Errno::ENOMEM);
                return;
            };
            let bytes = &mut bytes[within.offset() as usize..within.end() as usize];
            match iov {
                Some(iov) => gather(iov, at, bytes),
                None => bytes.fill(0),
            }
        });
        result
    }

    fn extents(&self, token: Token, range: ByteRange) {
        let mut run = Extent { length: 0, flags: ExtentFlags::HOLE };
        let mut wanted = true;
        let mut report = |run: Extent| {
            // A request that was given up meanwhile needs no answer.
            wanted = wanted && (run.length == 0 || self.completions.extent(token, run) == Ok(true));
        };
        self.each_page(range, |page, within, _| {
            let held = page.get().map(|page| page.lock().unwrap_or_else(PoisonError::into_inner));
            let flags =
                if held.is_some_and(|page| page.is_some()) { ExtentFlags::DATA } else { ExtentFlags::HOLE };
            if flags != run.flags {
                report(run);
                run = Extent { length: 0, flags };
            }
            run.length += within.len();
        });
        report(run);
    }

    fn truncate(&self, length: u64) -> IoResult {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        grow(&mut pages, length).map_err(|error| error.errno())
    }
}

fn grow(pages: &mut Vec<OnceCell<Mutex<Option<Page>>>>, length: u64) -> Result<()> {
    let no_memory = || Error::new(Errno::ENOMEM, format!("no memory for a memory device of {length} bytes"));
    let count = usize::try_from(length.div_ceil(PAGE)).map_err(|_| no_memory())?;
    let more = count.saturating_sub(pages.len());
    reserve::may_fail(|| pages.try_reserve_exact(more)).map_err(|_| no_memory())?;
    pages.resize_with(count.max(pages.len()), OnceCell::new);
    Ok(())
}

fn zeroed_page() -> Option<Page> {
    let mut page = Vec::new();
    reserve::may_fail(|| page.try_reserve_exact(PAGE as usize)).ok()?;
    page.resize(PAGE as usize, 0);
    Some(page.into_boxed_slice())
}

impl Backend for Memory {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        Answer::Done(match request.kind {
            Kind::Read => {
                self.read(request.range, request.iov);
                Ok(())
            }
            Kind::Write => self.change(request.range, request.flags, Some(request.iov)),
            Kind::Zero => self.change(request.range, request.flags, None),
            Kind::Discard => self.change(request.range, Flags { may_unmap: true, fua: false }, None),
            Kind::Flush => Ok(()),
            Kind::Extents => {
                self.extents(token, request.range);
                Ok(())
            }
            Kind::Truncate => self.truncate(request.range.end()),
            Kind::Copy => Err(Errno::EOPNOTSUPP),
        })
    }

    fn supports(&self, kind: Kind) -> bool {
        kind != Kind::Copy
    }

    fn has_poll(&self) -> bool {
        false
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::testing::TestClient;

    const MAY_UNMAP: Flags = Flags { may_unmap: true, fua: false };

    fn pages(count: u64) -> u64 {
        count * PAGE
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    fn hole(length: u64) -> Extent {
        let flags = ExtentFlags::HOLE;
        Extent { length, flags }
    }

    fn data(length: u64) -> Extent {
        let flags = ExtentFlags::DATA;
        Extent { length, flags }
    }

    #[test]
    fn what_is_written_across_pages_is_read() {
        let client = TestClient::new(&Device::memory(pages(4) + 100).expect("memory")).with_segments(999);
        let bytes: Vec<u8> = (0..pages(2)).map(|at| (at % 251) as u8 + 1).collect();
        assert_eq!(client.write(PAGE - 7, &bytes), Ok(()));
        assert_eq!(client.read_vec(PAGE - 7, bytes.len()), bytes);
        assert_eq!(client.read_vec(PAGE - 8, 2), [0, 1]);
        assert_eq!(client.write(pages(4) + 50, &[9; 50]), Ok(()));
        assert_eq!(client.read_vec(pages(4) + 49, 51)[..2], [0, 9]);
        assert_eq!(client.flush(), Ok(()));
    }

    #[test]
    fn extents_cover_what_was_asked_for() {
        let client = TestClient::new(&Device::memory(pages(5) + 100).expect("memory"));
        assert_eq!(client.write(pages(1) + 5, &[1]), Ok(()));
        assert_eq!(client.write(pages(2), &[1]), Ok(()));
        let all = range(0, pages(5) + 100);
        assert_eq!(client.extents(all), Ok(vec![hole(PAGE), data(pages(2)), hole(pages(2) + 100)]));
        assert_eq!(client.extents(range(PAGE - 10, PAGE + 10)), Ok(vec![hole(10), data(10)]));
    }

    #[test]
    fn no_extent_is_told_beyond_what_is_enough() {
        let client = TestClient::new(&Device::memory(pages(5)).expect("memory")).with_enough(2);
        assert_eq!(client.write(pages(1), &[1]), Ok(()));
        assert_eq!(client.write(pages(3), &[1]), Ok(()));
        assert_eq!(client.extents(range(0, pages(5))), Ok(vec![hole(PAGE), data(PAGE)]));
    }

    #[test]
    fn zeroes_and_discards_free_whole_pages() {
        let client = TestClient::new(&Device::memory(pages(4)).expect("memory"));
        assert_eq!(client.write(0, &vec![7; pages(4) as usize]), Ok(()));
        assert_eq!(client.zero(range(0, PAGE), Flags::default()), Ok(()));
        assert_eq!(client.zero(range(PAGE, pages(2) + 10), MAY_UNMAP), Ok(()));
        assert_eq!(client.discard(range(pages(3), pages(4))), Ok(()));
        assert_eq!(
            client.extents(range(0, pages(4))),
            Ok(vec![data(PAGE), hole(PAGE), data(PAGE), hole(PAGE)])
        );
        assert_eq!(client.read_vec(0, pages(2) as usize + 10), vec![0; pages(2) as usize + 10]);
        assert_eq!(client.read_vec(pages(2) + 10, 1), [7]);
        assert_eq!(client.read_vec(pages(3), PAGE as usize), vec![0; PAGE as usize]);
    }

    #[test]
    fn a_device_grows() {
        let device = Device::memory(100).expect("memory");
        let client = TestClient::new(&device);
        assert_eq!(client.write(0, &[7; 100]), Ok(()));
        assert_eq!(client.truncate(pages(2) + 1), Ok(()));
        assert_eq!(device.length(), pages(2) + 1);
        assert_eq!(client.read_vec(99, 2), [7, 0]);
        assert_eq!(client.write(pages(2), &[8]), Ok(()));
        assert_eq!(client.read_vec(pages(2), 1), [8]);
    }

    #[test]
    fn a_device_that_is_too_long_is_enomem() {
        let error = Device::memory(u64::MAX).expect_err("no memory for it");
        assert_eq!(error.errno(), Errno::ENOMEM);
        assert!(error.message().contains("18446744073709551615 bytes"), "{error}");
        let client = TestClient::new(&Device::memory(100).expect("memory"));
        assert_eq!(client.truncate(u64::MAX), Err(Errno::ENOMEM));
        assert_eq!(client.read_vec(0, 100), [0; 100]);
    }
}
