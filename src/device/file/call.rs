//! Operations that are one system call: which one it is, and what is left to do when it has returned.
//!
//! This is for an engine that doesn't call the system itself but has it done. What such an engine can't do, or what the
//! kernel refuses to do for it, is carried out by a thread instead ([`Storage::carry_out`]), which knows all ways round.

use super::io;
use super::storage::{FileKind, Operation, Route, Storage};
use crate::device::Kind;
use crate::error::{Errno, IoResult};
use crate::range::ByteRange;

/// Copying less than this is sooner done than handed to somebody else.
const LARGE: u64 = 64 << 10;

/// Which of a file's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descriptor {
    Cached,
    Direct,
}

/// A system call that carries out an operation, or its next part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read(Descriptor),
    Write {
        to: Descriptor,
        durably: bool,
        /// It keeps a processor busy for long: not the caller's, if it has something else to do.
        copies_much: bool,
    },
    Punch,
    ZeroRange,
    Flush,
}

/// What follows a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The operation is finished.
    Done(IoResult),
    /// What is left of the operation is another call.
    Call,
    /// What is left of the operation is for [`Storage::carry_out`].
    CarryOut,
}

impl Storage {
    /// The call that comes next, `None` if the operation is not so simple.
    pub(super) fn next_call(&self, operation: &Operation) -> Option<Call> {
        let Operation { kind, range, flags, ref iov, .. } = *operation;
        let Methods { punch, zero_range, durable } = self.methods();
        match kind {
            Kind::Read => self.straight(range, iov).map(Call::Read),
            Kind::Write if flags.fua && !durable => None,
            Kind::Write => self.straight(range, iov).map(|to| Call::Write {
                to,
                durably: flags.fua,
                copies_much: range.len() >= LARGE && (to == Descriptor::Cached || self.in_memory),
            }),
            Kind::Zero if flags.may_unmap && punch => Some(Call::Punch),
            Kind::Zero if zero_range => Some(Call::ZeroRange),
            Kind::Discard if self.kind() == FileKind::Regular && punch => Some(Call::Punch),
            Kind::Flush => Some(Call::Flush),
            Kind::Zero | Kind::Discard | Kind::Extents | Kind::Truncate | Kind::Copy => None,
        }
    }

    /// Takes note that a call has returned `answer`, a number of bytes or a negative errno.
    pub(super) fn settle(&self, operation: &mut Operation, answer: i32) -> Next {
        if let Ok(moved) = u32::try_from(answer) {
            return self.succeeded(operation, u64::from(moved));
        }
        match Errno::from_number(-answer).unwrap_or(Errno::EIO) {
            // Either the file can't do it this way, or the kernel can't do it for others. A plain call will tell.
            errno
                if io::is_unsupported(errno)
                    || matches!(
                        errno.number(),
                        libc::EINVAL | libc::EAGAIN | libc::EINTR | libc::ECANCELED
                    ) =>
            {
                Next::CarryOut
            }
            errno => Next::Done(Err(errno)),
        }
    }

    fn succeeded(&self, operation: &mut Operation, moved: u64) -> Next {
        match operation.kind {
            // The file ends here: it is shorter than it was when it was opened.
            Kind::Read | Kind::Write if moved == 0 => Next::Done(Err(Errno::EIO)),
            Kind::Read | Kind::Write => {
                let range = operation.range;
                operation.range = ByteRange::between(range.end().min(range.offset() + moved), range.end());
                if operation.range.is_empty() {
                    return Next::Done(Ok(()));
                }
                io::advance(&mut operation.iov, moved as usize);
                Next::Call
            }
            Kind::Zero | Kind::Discard => {
                self.data_map.forget();
                if !operation.flags.fua {
                    return Next::Done(Ok(()));
                }
                operation.kind = Kind::Flush;
                Next::Call
            }
            _ => Next::Done(Ok(())),
        }
    }

    fn straight(&self, range: ByteRange, iov: &[crate::device::IoVec]) -> Option<Descriptor> {
        match self.route(range, iov) {
            Route::Through(file) if std::ptr::eq(file, &raw const self.file) => Some(Descriptor::Cached),
            Route::Through(_) => Some(Descriptor::Direct),
            Route::Bounced(_) => None,
        }
    }

    fn methods(&self) -> Methods {
        Methods {
            punch: !self.methods.punch.is_missing(),
            zero_range: !self.methods.zero_range.is_missing(),
            durable: !self.methods.write_durably.is_missing(),
        }
    }
}

/// Which methods there may be.
struct Methods {
    punch: bool,
    zero_range: bool,
    durable: bool,
}

#[cfg(test)]
mod tests {
    use super::super::aligned::AlignedBuffer;
    use super::super::storage::Direct;
    use super::*;
    use crate::device::{Flags, Request};

    const FUA: Flags = Flags { may_unmap: false, fua: true };
    const MAY_UNMAP: Flags = Flags { may_unmap: true, fua: false };
    const PLAIN: Flags = Flags { may_unmap: false, fua: false };

    fn temporary() -> std::fs::File {
        tempfile::tempfile().expect("a temporary file")
    }

    fn storage(kind: FileKind) -> Storage {
        let direct = Direct { file: temporary(), offset_alignment: 512, memory_alignment: 512 };
        let mut storage = Storage::new(temporary(), Some(direct), kind, false).expect("memory");
        storage.in_memory = false;
        storage
    }

    fn operation(kind: Kind, start: u64, end: u64, flags: Flags, buffer: &AlignedBuffer) -> Operation {
        let range = ByteRange::between(start, end);
        let iov = [buffer.buffer_to_write(range.len() as usize)];
        let iov = if matches!(kind, Kind::Read | Kind::Write) { &iov[..] } else { &[] };
        Operation::new(&Request { kind, range, flags, iov, from: None }, Vec::new())
    }

    #[test]
    fn each_operation_has_its_call() {
        let buffer = AlignedBuffer::new(1 << 20, 4096).expect("memory");
        let regular = storage(FileKind::Regular);
        let block = storage(FileKind::Block { logical_block: 512 });
        let direct = |durably| Call::Write { to: Descriptor::Direct, durably, copies_much: false };
        let cached = |copies_much| Call::Write { to: Descriptor::Cached, durably: false, copies_much };
        for (kind, start, end, flags, call) in [
            (Kind::Read, 512, 1024, PLAIN, Some(Call::Read(Descriptor::Direct))),
            (Kind::Read, 512, 1000, PLAIN, Some(Call::Read(Descriptor::Cached))),
            (Kind::Write, 0, 1 << 20, PLAIN, Some(direct(false))),
            (Kind::Write, 0, 512, FUA, Some(direct(true))),
            (Kind::Write, 1, 512, PLAIN, Some(cached(false))),
            (Kind::Write, 1, 1 + LARGE, PLAIN, Some(cached(true))),
            (Kind::Zero, 0, 512, MAY_UNMAP, Some(Call::Punch)),
            (Kind::Zero, 0, 512, PLAIN, Some(Call::ZeroRange)),
            (Kind::Discard, 0, 512, PLAIN, Some(Call::Punch)),
            (Kind::Flush, 0, 0, PLAIN, Some(Call::Flush)),
            (Kind::Extents, 0, 512, PLAIN, None),
            (Kind::Truncate, 0, 512, PLAIN, None),
        ] {
            let operation = operation(kind, start, end, flags, &buffer);
            assert_eq!(regular.next_call(&operation), call, "{kind:?} {start} {flags:?}");
        }
        assert_eq!(block.next_call(&operation(Kind::Discard, 0, 512, PLAIN, &buffer)), None);
        regular.forget_methods();
        for (kind, flags) in [(Kind::Zero, MAY_UNMAP), (Kind::Discard, PLAIN), (Kind::Write, FUA)] {
            assert_eq!(regular.next_call(&operation(kind, 0, 512, flags, &buffer)), None, "{kind:?}");
        }
    }

    #[test]
    fn in_memory_even_direct_io_is_copying() {
        let buffer = AlignedBuffer::new(1 << 20, 4096).expect("memory");
        let mut storage = storage(FileKind::Regular);
        storage.in_memory = true;
        let call = storage.next_call(&operation(Kind::Write, 0, 1 << 20, PLAIN, &buffer));
        let to = Descriptor::Direct;
        assert_eq!(call, Some(Call::Write { to, durably: false, copies_much: true }));
    }

    #[test]
    fn a_short_call_is_followed_by_another_for_the_rest() {
        let buffer = AlignedBuffer::new(4096, 4096).expect("memory");
        let storage = storage(FileKind::Regular);
        let mut read = operation(Kind::Read, 100, 1100, PLAIN, &buffer);
        assert_eq!(storage.settle(&mut read, 300), Next::Call);
        assert_eq!(read.range, ByteRange::between(400, 1100));
        assert_eq!(read.iov[0].base() as usize, buffer.as_ptr() as usize + 300);
        assert_eq!(read.iov[0].len(), 700);
        assert_eq!(storage.settle(&mut read, 700), Next::Done(Ok(())));
        let mut short = operation(Kind::Write, 100, 1100, PLAIN, &buffer);
        assert_eq!(storage.settle(&mut short, 0), Next::Done(Err(Errno::EIO)));
    }

    #[test]
    fn a_durable_zero_ends_with_a_flush() {
        let buffer = AlignedBuffer::new(4096, 4096).expect("memory");
        let storage = storage(FileKind::Regular);
        let mut zero = operation(Kind::Zero, 0, 512, FUA, &buffer);
        assert_eq!(storage.settle(&mut zero, 0), Next::Call);
        assert_eq!(storage.next_call(&zero), Some(Call::Flush));
        assert_eq!(storage.settle(&mut zero, 0), Next::Done(Ok(())));
        let mut plain = operation(Kind::Zero, 0, 512, PLAIN, &buffer);
        assert_eq!(storage.settle(&mut plain, 0), Next::Done(Ok(())));
    }

    #[test]
    fn a_failure_is_told_and_a_refusal_is_tried_otherwise() {
        let buffer = AlignedBuffer::new(4096, 4096).expect("memory");
        let storage = storage(FileKind::Regular);
        for (errno, next) in [
            (libc::EIO, Next::Done(Err(Errno::EIO))),
            (libc::ENOSPC, Next::Done(Err(Errno::ENOSPC))),
            (libc::EOPNOTSUPP, Next::CarryOut),
            (libc::EINVAL, Next::CarryOut),
            (libc::EINTR, Next::CarryOut),
            (libc::ECANCELED, Next::CarryOut),
            (libc::EAGAIN, Next::CarryOut),
        ] {
            let mut write = operation(Kind::Write, 0, 512, PLAIN, &buffer);
            assert_eq!(storage.settle(&mut write, -errno), next, "{errno}");
            assert_eq!(write.range, ByteRange::between(0, 512), "nothing of it is done");
        }
    }
}
