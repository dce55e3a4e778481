//! What a device can do, told once when it is made (SPEC D-4).

use crate::error::{Error, Result};
use crate::range::ByteRange;

/// Largest request that is ever sent to a device, whatever it allows: it keeps an emulated zero within one
/// list of buffers.
pub const MAX_TRANSFER: u64 = 64 << 20;
/// Largest zero or discard that is ever sent in one request (SPEC I-4).
pub const MAX_ZERO: u64 = 2 << 30;
/// Longest list of buffers that is ever sent, POSIX's `IOV_MAX` on Linux.
pub const MAX_IOV: u32 = 1024;

/// The limits and promises of a device. `Default` is a device without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Offsets and lengths of requests are multiples of this: a power of two up to 64 KiB. The device's end
    /// counts as aligned.
    pub request_alignment: u32,
    /// Buffers begin on multiples of this: a power of two up to 64 KiB.
    pub memory_alignment: u32,
    /// Most buffers in one request.
    pub max_iov: u32,
    /// Most bytes in one read or write.
    pub max_transfer: u64,
    /// Most bytes in one zero.
    pub max_zero: u64,
    /// Most bytes in one discard.
    pub max_discard: u64,
    /// Zeroes are worth sending on multiples of this, 0 for any.
    pub zero_alignment: u64,
    /// Discards are worth sending on multiples of this, 0 for any.
    pub discard_alignment: u64,
    /// The device's own allocation unit, 0 if it has none.
    pub cluster_size: u64,
    /// Refuses every change.
    pub read_only: bool,
    /// A zero with `may_unmap` is much cheaper than writing zeroes.
    pub cheap_zero: bool,
    /// Every byte reads as zero when the device is made. What is written through it ends that:
    /// [`Device::reads_zero`](super::Device::reads_zero).
    pub reads_zero: bool,
    /// A discarded range reads as zero.
    pub discard_zeroes: bool,
    /// A backing layer will be attached later: what is unallocated does not read as zero then. A discard lets go of whole
    /// clusters, so that the backing will show; with `discard_zeroes` as well, none is sent.
    pub unattached_backing: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_alignment: 1,
            memory_alignment: 1,
            max_iov: MAX_IOV,
            max_transfer: MAX_TRANSFER,
            max_zero: MAX_ZERO,
            max_discard: MAX_ZERO,
            zero_alignment: 0,
            discard_alignment: 0,
            cluster_size: 0,
            read_only: false,
            cheap_zero: false,
            reads_zero: false,
            discard_zeroes: false,
            unattached_backing: false,
        }
    }
}

impl Limits {
    /// The same limits with 0 read as "no limit", everything capped at what the library sends, and the maximum
    /// sizes rounded down to the alignment; `EINVAL` names the field that makes no sense.
    pub fn checked(mut self) -> Result<Self> {
        for (name, value) in [
            ("request_alignment", &mut self.request_alignment),
            ("memory_alignment", &mut self.memory_alignment),
        ] {
            *value = (*value).max(1);
            if !value.is_power_of_two() || *value > 1 << 16 {
                return Err(Error::invalid(format!(
                    "{name} {value}: must be a power of two from 1 to 65536"
                )));
            }
        }
        for (name, value) in [
            ("zero_alignment", self.zero_alignment),
            ("discard_alignment", self.discard_alignment),
            ("cluster_size", self.cluster_size),
        ] {
            if value != 0 && (!value.is_power_of_two() || value > 1 << 30) {
                return Err(Error::invalid(format!(
                    "{name} {value}: must be 0 or a power of two up to 1 GiB"
                )));
            }
        }
        // Parts of a request are cut at multiples of both, so that each begins where the device can take it.
        let alignment = u64::from(self.request_alignment.max(self.memory_alignment));
        for (name, value, cap) in [
            ("max_transfer", &mut self.max_transfer, MAX_TRANSFER),
            ("max_zero", &mut self.max_zero, MAX_ZERO),
            ("max_discard", &mut self.max_discard, MAX_ZERO),
        ] {
            let told = if *value == 0 { cap } else { *value };
            *value = told.min(cap) & !(alignment - 1);
            if *value < 512.max(alignment) {
                return Err(Error::invalid(format!(
                    "{name} {told}: must be 0 or at least 512 and the alignments"
                )));
            }
        }
        self.max_iov = if self.max_iov == 0 { MAX_IOV } else { self.max_iov.min(MAX_IOV) };
        Ok(self)
    }

    /// Whether a request for this range keeps to the request alignment on a device of `length` bytes: its end
    /// may also be the device's.
    #[must_use]
    pub fn admits(&self, range: ByteRange, length: u64) -> bool {
        let alignment = u64::from(self.request_alignment) - 1;
        range.offset() & alignment == 0 && (range.end() & alignment == 0 || range.end() == length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_no_limit_and_everything_is_capped() {
        let limits = Limits {
            max_transfer: 0,
            max_zero: u64::MAX,
            max_iov: 0,
            request_alignment: 0,
            ..Limits::default()
        }
        .checked()
        .expect("valid");
        assert_eq!(limits.max_transfer, MAX_TRANSFER);
        assert_eq!(limits.max_zero, MAX_ZERO);
        assert_eq!(limits.max_iov, MAX_IOV);
        assert_eq!(limits.request_alignment, 1);
    }

    #[test]
    fn each_senseless_limit_is_named() {
        // SPEC D-4
        let good = Limits::default();
        for (limits, name) in [
            (Limits { request_alignment: 3, ..good }, "request_alignment 3"),
            (Limits { memory_alignment: 1 << 17, ..good }, "memory_alignment 131072"),
            (Limits { cluster_size: 1000, ..good }, "cluster_size 1000"),
            (Limits { zero_alignment: 7, ..good }, "zero_alignment 7"),
            (Limits { discard_alignment: 1 << 40, ..good }, "discard_alignment"),
            (Limits { max_transfer: 511, ..good }, "max_transfer 511"),
            (Limits { max_zero: 4095, request_alignment: 4096, ..good }, "max_zero 4095"),
            (Limits { max_discard: 1, ..good }, "max_discard 1"),
        ] {
            let error = limits.checked().expect_err(name);
            assert!(error.message().starts_with(name), "{error}");
        }
    }

    #[test]
    fn the_end_of_the_device_counts_as_aligned() {
        // SPEC D-4, D-5
        let limits = Limits { request_alignment: 512, ..Limits::default() };
        let range = |offset, length| ByteRange::new(offset, length).expect("valid");
        assert!(limits.admits(range(512, 488), 1000));
        assert!(!limits.admits(range(512, 100), 1000));
        assert!(!limits.admits(range(100, 412), 1000));
    }
}
