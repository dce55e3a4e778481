//! The kernel's ring: two queues in shared memory, and the call that says that one of them has changed.
//!
//! The queues are one thread's at a time, who has the [`Queues`] of the ring; the calls are anybody's, several at once.

use super::super::call::{Call, Descriptor};
use super::super::storage::{Direct, Operation, Storage};
use crate::device::{IoVec, MAX_IOV};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// What is queued at a time; a longer burst takes several calls.
const ENTRIES: u32 = 64;
/// What is in flight at a time: a job's most, and more than a disk can make use of. The kernel keeps room for as many
/// completions.
pub(super) const MOST_IN_FLIGHT: u32 = 2048;
/// What the kernel takes as one buffer.
const REGISTERED_PIECE: usize = 1 << 30;
/// The name of what nobody waits for.
const NOBODY: u64 = u64::MAX;

/// The right to touch a ring's queues. There is one for each ring.
pub(super) struct Queues(());

/// Memory that the kernel has been told of, and keeps in place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registered(IoVec);

impl Registered {
    /// The number of the piece that holds the whole buffer.
    pub(super) fn piece(&self, buffer: &IoVec) -> Option<u16> {
        let start = buffer.base().addr().checked_sub(self.0.base().addr())?;
        let end = start.checked_add(buffer.len())?;
        let piece = start / REGISTERED_PIECE;
        (end <= self.0.len() && !buffer.is_empty() && (end - 1) / REGISTERED_PIECE == piece)
            .then_some(piece as u16)
    }
}

pub(super) struct Ring {
    uring: IoUring,
}

impl Ring {
    /// A ring for this file. Fails where the kernel has none, is too old for one, or forbids it.
    pub(super) fn new(storage: &Storage) -> io::Result<(Self, Queues)> {
        let uring = IoUring::builder().setup_clamp().setup_cqsize(MOST_IN_FLIGHT).build(ENTRIES)?;
        // The last of these came with Linux 5.12. Before it, requests were not carried out by threads that belong to
        // the process.
        let parameters = uring.params();
        if !(parameters.is_feature_nodrop()
            && parameters.is_feature_submit_stable()
            && parameters.is_feature_native_workers())
        {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is older than Linux 5.12"));
        }
        let cached = storage.file.as_raw_fd();
        let direct = storage.direct.as_ref().map_or(cached, |Direct { file, .. }| file.as_raw_fd());
        uring.submitter().register_files(&[cached, direct])?;
        Ok((Self { uring }, Queues(())))
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// Tells the kernel of memory that will be used again and again. `None` if it doesn't want to keep so much in place.
    ///
    /// # Safety
    /// While the ring is used, buffers at these addresses are in this memory.
    pub(super) unsafe fn register(&self, memory: IoVec) -> Option<Registered> {
        let pieces: Vec<libc::iovec> = (0..memory.len())
            .step_by(REGISTERED_PIECE)
            .map(|at| memory.slice(at, REGISTERED_PIECE))
            .map(|piece| libc::iovec { iov_base: piece.base(), iov_len: piece.len() })
            .collect();
        // SAFETY: the memory is there, and what the kernel pins stays valid whatever becomes of the addresses; that
        // they keep their meaning is the caller's affair.
        match unsafe { self.uring.submitter().register_buffers(&pieces) } {
            Ok(()) => Some(Registered(memory)),
            Err(error) => {
                log::info!("blkmirror: copying through memory that is not registered: {error}");
                None
            }
        }
    }

    /// Lets go of the file and the memory: at once, where closing the ring would do it some time later. Nothing is in
    /// flight.
    pub(super) fn let_go(&self) {
        // Whatever can't be let go of now is when the ring is closed.
        let _ = self.uring.submitter().unregister_files();
        let _ = self.uring.submitter().unregister_buffers();
    }

    /// Queues a call. It is begun with when somebody calls [`Ring::send`].
    ///
    /// # Safety
    /// The operation's list of buffers stays where it is, and the memory that it names is lent, until the kernel has
    /// answered.
    pub(super) unsafe fn queue(
        &self,
        queues: &mut Queues,
        name: u32,
        call: Call,
        operation: &Operation,
        registered: Option<&Registered>,
    ) {
        let entry = entry(call, operation, registered).user_data(u64::from(name));
        self.push(queues, &entry);
    }

    /// Queues the wish that all that is in flight be hurried.
    pub(super) fn queue_cancel(&self, queues: &mut Queues) {
        self.push(queues, &opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(NOBODY));
    }

    /// Queues a completion that says nothing, for waking who waits.
    pub(super) fn queue_wakeup(&self, queues: &mut Queues) {
        self.push(queues, &opcode::Nop::new().build().user_data(NOBODY));
    }

    fn push(&self, _: &mut Queues, entry: &Entry) {
        loop {
            // SAFETY: whoever has the `Queues` is the only one to touch them, and the entry's memory is vouched for.
            if unsafe { self.uring.submission_shared().push(entry) }.is_ok() {
                return;
            }
            self.send();
        }
    }

    /// Whether something was queued and not yet sent.
    pub(super) fn has_unsent(&self, _: &mut Queues) -> bool {
        // SAFETY: as for `push`.
        unsafe { !self.uring.submission_shared().is_empty() }
    }

    /// Has the kernel begin with what is queued, or with some of it. What can be done at once is done here.
    pub(super) fn send(&self) {
        self.enter(ENTRIES, 0, 0);
    }

    /// Sleeps until there is a completion.
    pub(super) fn wait(&self) {
        /// `IORING_ENTER_GETEVENTS`.
        const GET_EVENTS: u32 = 1;
        self.enter(0, 1, GET_EVENTS);
    }

    fn enter(&self, to_submit: u32, min_complete: u32, flags: u32) {
        // SAFETY: what is queued was vouched for; no argument is passed.
        let entered =
            unsafe { self.uring.submitter().enter::<libc::sigset_t>(to_submit, min_complete, flags, None) };
        if let Err(error) = entered
            && error.raw_os_error() != Some(libc::EINTR)
        {
            // The kernel has no memory for it now. What was queued stays queued, and the caller tries again.
            log::debug!("blkmirror: io_uring_enter: {error}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Takes what is finished: the name it was queued with, and the kernel's answer. Whether there was anything.
    pub(super) fn take(&self, _: &mut Queues, mut each: impl FnMut(u32, i32)) -> bool {
        // SAFETY: whoever has the `Queues` is the only one to touch them.
        let completions = unsafe { self.uring.completion_shared() };
        let mut any = false;
        for completion in completions {
            any = true;
            if completion.user_data() != NOBODY {
                each(completion.user_data() as u32, completion.result());
            }
        }
        any
    }
}

fn entry(call: Call, operation: &Operation, registered: Option<&Registered>) -> Entry {
    let range = operation.range;
    match call {
        Call::Read(from) => transfer(from, operation, registered, Transfer::Read),
        Call::Write { to, durably, copies_much } => {
            let entry = transfer(to, operation, registered, Transfer::Write { durably });
            // A thread of the kernel copies, while this one goes on with what else there is.
            if copies_much { entry.flags(Flags::ASYNC) } else { entry }
        }
        Call::Punch => opcode::Fallocate::new(CACHED, range.len())
            .offset(range.offset())
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
        Call::ZeroRange => opcode::Fallocate::new(CACHED, range.len())
            .offset(range.offset())
            .mode(libc::FALLOC_FL_ZERO_RANGE)
            .build(),
        Call::Flush => opcode::Fsync::new(CACHED).flags(FsyncFlags::DATASYNC).build(),
    }
}

const CACHED: Fixed = Fixed(0);
const DIRECT: Fixed = Fixed(1);

enum Transfer {
    Read,
    Write { durably: bool },
}

fn transfer(
    descriptor: Descriptor,
    operation: &Operation,
    registered: Option<&Registered>,
    transfer: Transfer,
) -> Entry {
    let file = match descriptor {
        Descriptor::Cached => CACHED,
        Descriptor::Direct => DIRECT,
    };
    let at = operation.range.offset();
    // What was moved before leaves empty buffers at the beginning.
    let moved = operation.iov.iter().take_while(|buffer| buffer.is_empty()).count();
    let iov = &operation.iov[moved..];
    let iov = &iov[..iov.len().min(MAX_IOV as usize)];
    let flags = match transfer {
        Transfer::Write { durably: true } => libc::RWF_DSYNC,
        _ => 0,
    };
    if let [buffer] = iov {
        let (base, len) = (buffer.base().cast::<u8>(), buffer.len() as u32);
        let piece = registered.and_then(|registered| registered.piece(buffer));
        return match (transfer, piece) {
            (Transfer::Read, None) => opcode::Read::new(file, base, len).offset(at).build(),
            (Transfer::Read, Some(piece)) => {
                opcode::ReadFixed::new(file, base, len, piece).offset(at).build()
            }
            (Transfer::Write { .. }, None) => {
                opcode::Write::new(file, base, len).offset(at).rw_flags(flags).build()
            }
            (Transfer::Write { .. }, Some(piece)) => {
                opcode::WriteFixed::new(file, base, len, piece).offset(at).rw_flags(flags).build()
            }
        };
    }
    // `IoVec` is laid out as `iovec`.
    let (list, count) = (iov.as_ptr().cast(), iov.len() as u32);
    match transfer {
        Transfer::Read => opcode::Readv::new(file, list, count).offset(at).build(),
        Transfer::Write { .. } => opcode::Writev::new(file, list, count).offset(at).rw_flags(flags).build(),
    }
}
