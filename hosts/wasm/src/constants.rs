//! The numbers of `blkmirror.h` that this host uses.

pub const DONE: i32 = 0;

pub const FUA: u32 = 1;
pub const MAY_UNMAP: u32 = 2;

pub const COPY_BACKGROUND: u32 = 0;
pub const COPY_WRITE_BLOCKING: u32 = 1;

pub const POLL_IDLE: i32 = 0;
pub const POLL_BUSY: i32 = 1;
pub const POLL_CONCLUDED: i32 = 2;

pub const STATUS_CONCLUDED: u64 = 9;
pub const STATUS_NULL: u64 = 10;

pub const EVENT_STATUS: u64 = 1;
pub const EVENT_READY: u64 = 2;
pub const EVENT_COMPLETED: u64 = 5;
pub const EVENT_CANCELLED: u64 = 6;

pub const EIO: i32 = 5;
pub const ENOMEM: i32 = 12;
pub const EINVAL: i32 = 22;
