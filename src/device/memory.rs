//! A device in memory, for tests, demonstrations and scratch disks.

use super::{
    Answer, Backend, Completions, Device, Extent, ExtentFlags, Flags, IoVec, Kind, Limits, Request, Token,
    gather, scatter,
};
use crate::error::{Errno, Error, IoResult, Result};
use crate::range::ByteRange;
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
        let mut report = |run: Extent| {
            // A request that was given up meanwhile needs no answer.
            let _ = run.length > 0 && self.completions.extent(token, run).is_ok();
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
    pages.try_reserve_exact(count.saturating_sub(pages.len())).map_err(|_| no_memory())?;
    pages.resize_with(count.max(pages.len()), OnceCell::new);
    Ok(())
}

fn zeroed_page() -> Option<Page> {
    let mut page = Vec::new();
    page.try_reserve_exact(PAGE as usize).ok()?;
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
        })
    }

    fn supports(&self, _: Kind) -> bool {
        true
    }
}
