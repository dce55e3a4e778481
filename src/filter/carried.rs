//! Writes that are carried: handed to the job, which writes them to both devices, and taken back from it.

use super::bounce;
use super::core::Core;
use super::gate::{Counted, Inside};
use super::slots::Path;
use crate::device::{AlignedBuffer, Flags, IoVec, Kind, slice_into, total};
use crate::error::{Errno, IoResult, Result};
use crate::range::ByteRange;
use std::sync::Arc;

/// The job, as the filter sees it.
pub(crate) trait Carrier: Send + Sync {
    /// Takes a write over. It comes back through [`Core::finish_carried`] or [`Core::forward_carried`].
    fn carry(&self, slot: u16);

    /// Something that the job may wait for has happened: a mark while it slept, or the last request of a kind is done.
    fn news(&self);
}

/// A carried request, as the job sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CarriedRequest {
    pub(crate) kind: Kind,
    pub(crate) range: ByteRange,
    pub(crate) flags: Flags,
    pub(crate) owns_data: bool,
}

impl Core {
    /// Hands a write that has passed the gate to the job.
    pub(super) fn carry(&self, index: u16, inside: Inside) {
        // The job may do much of its own on this thread: nobody is to wait for that.
        let carrier = self.hooks.get(&inside).map(|hooks| Arc::clone(&hooks.carrier));
        self.see(self.gate.step_out(inside));
        // SAFETY: the caller owns the slot.
        let guest = unsafe { self.slots.owned(index) };
        let Some(carrier) = carrier else {
            // The job is gone: as if it had never been.
            self.forward_carried(index);
            return;
        };
        if guest.kind == Kind::Write && !guest.stable {
            let alignment = self.device().map_or(1, |device| device.limits().memory_alignment);
            match self.bounce.take(guest.range.len(), alignment) {
                Ok(buffer) => {
                    bounce::fill(&buffer, &guest.iov);
                    guest.bounce = Some(buffer);
                }
                // Without memory for a copy the write is not carried: it is marked, and copied later.
                Err(_) => {
                    self.forward_carried(index);
                    return;
                }
            }
        }
        carrier.carry(index);
    }

    /// Takes a carried request back from the job that no longer wants it: to the device, and marked.
    pub(crate) fn forward_carried(&self, index: u16) {
        // SAFETY: the job hands over a slot that was handed to it, or this thread owns it.
        let guest = unsafe { self.slots.owned(index) };
        if guest.path == Path::Carried {
            self.gate.recount_as_marked(usize::from(guest.shard));
        }
        guest.path = Path::Stepped(Counted::Marked);
        self.send_stepped(index);
    }

    /// The job that has a carried request is letting go of the filter: the request ends as one that wasn't carried.
    pub(crate) fn disown_carried(&self, index: u16) {
        // SAFETY: the slot is the job's until it hands it back.
        let guest = unsafe { self.slots.owned(index) };
        if guest.path == Path::Carried {
            self.gate.recount_as_marked(usize::from(guest.shard));
            guest.path = Path::Direct(Counted::Marked);
        }
    }

    /// A carried request, for the job that it was handed to.
    pub(crate) fn carried(&self, index: u16) -> CarriedRequest {
        // SAFETY: the slot is the job's until it hands it back.
        let guest = unsafe { self.slots.owned(index) };
        CarriedRequest {
            kind: guest.kind,
            range: guest.range,
            flags: guest.flags,
            owns_data: guest.bounce.is_some() || guest.kind != Kind::Write,
        }
    }

    /// Appends the buffers of a part of a carried write.
    pub(crate) fn carried_buffers(
        &self,
        index: u16,
        skip: u64,
        length: u64,
        max: usize,
        out: &mut Vec<IoVec>,
    ) -> u64 {
        // SAFETY: the slot is the job's until it hands it back.
        let guest = unsafe { self.slots.owned(index) };
        match &guest.bounce {
            Some(buffer) => slice_into(&[bounce::whole(buffer)], skip, length, max, out),
            None => slice_into(&guest.iov, skip, length, max, out),
        }
    }

    /// A copy of these buffers, for a device that wants its memory aligned so.
    pub(crate) fn bounce_copy(&self, iov: &[IoVec], alignment: u32) -> Result<AlignedBuffer> {
        let buffer = self.bounce.take(total(iov).ok_or(Errno::EINVAL)?, alignment)?;
        bounce::fill(&buffer, iov);
        Ok(buffer)
    }

    /// A carried request's copy of the data, which the job must keep until the target no longer reads it.
    pub(crate) fn take_bounce(&self, index: u16) -> Option<AlignedBuffer> {
        // SAFETY: the slot is the job's until it hands it back.
        unsafe { self.slots.owned(index) }.bounce.take()
    }

    pub(crate) fn give_back_bounce(&self, buffer: AlignedBuffer) {
        self.bounce.give_back(buffer);
    }

    /// A carried request is done on both sides; marking it was the job's affair.
    pub(crate) fn finish_carried(&self, index: u16, result: IoResult) {
        self.finish(index, result).run();
    }
}
