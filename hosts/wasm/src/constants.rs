//! The numbers of `blkmirror.h` that this host uses.
#![allow(missing_docs, reason = "the header says what they are, by the same names")]

pub const DONE: i32 = 0;
pub const PENDING: i32 = 1;

pub const FUA: u32 = 1;
pub const WRITE_STABLE: u32 = 4;

pub const JOB_INLINE: u64 = 64;

pub const SYNC_FULL: u64 = 0;
pub const SYNC_TOP: u64 = 1;
pub const SYNC_NONE: u64 = 2;

pub const COPY_BACKGROUND: u32 = 0;
pub const COPY_WRITE_BLOCKING: u32 = 1;

pub const POLL_BUSY: i32 = 1;
pub const POLL_CONCLUDED: i32 = 2;

pub const EVENT_STATUS: u64 = 1;
pub const EVENT_READY: u64 = 2;
pub const EVENT_COMPLETED: u64 = 5;

pub const EXTENT_DATA: u32 = 1;
pub const EXTENT_ZERO: u32 = 2;
pub const EXTENT_ALLOCATED: u32 = 4;

pub const EIO: i32 = 5;
pub const ENOMEM: i32 = 12;
pub const EINVAL: i32 = 22;
