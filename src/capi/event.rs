//! Events, and names for the numbers in them.

use super::constants::*;
use super::convert::{Versioned, to_c};
use super::guard;
use crate::engine::{Event, Failure};
use crate::error::{self, Errno};
use std::ffi::{c_char, c_int};
use std::mem::zeroed;

/// Something that happened to a job. Set `struct_size` before `mirror_job_next_event` fills in the rest; fields that a
/// type doesn't name are 0.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_event {
    /// `sizeof(mirror_event)`.
    pub struct_size: usize,
    /// What happened: `MIRROR_EVENT_`.
    pub r#type: u32,
    /// `MIRROR_EVENT_STATUS`: the new state, `MIRROR_STATUS_`.
    pub status: u32,
    /// `MIRROR_EVENT_COMPLETED`, `_CANCELLED`: how the job ended, 0 or `-errno`. `MIRROR_EVENT_ERROR`: how the request
    /// failed, `-errno`.
    pub result: c_int,
    /// `MIRROR_EVENT_ERROR`: what was asked for, `MIRROR_OP_`.
    pub operation: u32,
    /// `MIRROR_EVENT_ERROR`: of which device, `MIRROR_SIDE_`.
    pub side: u32,
    /// `MIRROR_EVENT_ERROR`: what is done about it, `MIRROR_ACTION_`.
    pub action: u32,
    /// `MIRROR_EVENT_ERROR`: where, in bytes.
    pub offset: u64,
    /// `MIRROR_EVENT_ERROR`: how much, in bytes.
    pub length: u64,
}

// SAFETY: repr(C), begins with the size; integers only.
unsafe impl Versioned for mirror_event {
    const NAME: &'static str = "mirror_event";
    const FIRST: usize = size_of::<Self>();
}

impl mirror_event {
    pub(super) fn of(event: Event) -> Self {
        // SAFETY: zero is a value of each field.
        let nothing = Self { struct_size: size_of::<Self>(), ..unsafe { zeroed() } };
        match event {
            Event::Status(status) => Self { r#type: MIRROR_EVENT_STATUS, status: to_c(status), ..nothing },
            Event::Ready => Self { r#type: MIRROR_EVENT_READY, ..nothing },
            Event::Pending => Self { r#type: MIRROR_EVENT_PENDING, ..nothing },
            Event::Error(Failure { operation, side, range, errno, action }) => Self {
                r#type: MIRROR_EVENT_ERROR,
                result: -errno.number(),
                operation: to_c(operation),
                side: to_c(side),
                action: to_c(action),
                offset: range.offset(),
                length: range.len(),
                ..nothing
            },
            Event::Completed(result) => {
                Self { r#type: MIRROR_EVENT_COMPLETED, result: error::to_c(result), ..nothing }
            }
            Event::Cancelled => {
                Self { r#type: MIRROR_EVENT_CANCELLED, result: -Errno::ECANCELED.number(), ..nothing }
            }
        }
    }
}

/// The word for a `MIRROR_STATUS_`: "running"; "unknown" for any other number. Static. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn mirror_status_name(status: u32) -> *const c_char {
    guard::value("mirror_status_name", c"".as_ptr(), || {
        let name = match status {
            MIRROR_STATUS_CREATED => c"created",
            MIRROR_STATUS_RUNNING => c"running",
            MIRROR_STATUS_PAUSED => c"paused",
            MIRROR_STATUS_READY => c"ready",
            MIRROR_STATUS_STANDBY => c"standby",
            MIRROR_STATUS_WAITING => c"waiting",
            MIRROR_STATUS_PENDING => c"pending",
            MIRROR_STATUS_ABORTING => c"aborting",
            MIRROR_STATUS_CONCLUDED => c"concluded",
            MIRROR_STATUS_NULL => c"null",
            _ => c"unknown",
        };
        name.as_ptr()
    })
}

/// The word for a `MIRROR_EVENT_`: "ready"; "unknown" for any other number. Static. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn mirror_event_name(event_type: u32) -> *const c_char {
    guard::value("mirror_event_name", c"".as_ptr(), || {
        let name = match event_type {
            MIRROR_EVENT_STATUS => c"status",
            MIRROR_EVENT_READY => c"ready",
            MIRROR_EVENT_PENDING => c"pending",
            MIRROR_EVENT_ERROR => c"error",
            MIRROR_EVENT_COMPLETED => c"completed",
            MIRROR_EVENT_CANCELLED => c"cancelled",
            _ => c"unknown",
        };
        name.as_ptr()
    })
}

/// The word for a `MIRROR_OP_`: "write"; "unknown" for any other number. Static. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn mirror_operation_name(operation: u32) -> *const c_char {
    guard::value("mirror_operation_name", c"".as_ptr(), || {
        let name = match operation {
            MIRROR_OP_READ => c"read",
            MIRROR_OP_WRITE => c"write",
            MIRROR_OP_ZERO => c"zero",
            MIRROR_OP_DISCARD => c"discard",
            MIRROR_OP_FLUSH => c"flush",
            MIRROR_OP_EXTENTS => c"extents",
            MIRROR_OP_TRUNCATE => c"truncate",
            MIRROR_OP_COPY => c"copy",
            _ => c"unknown",
        };
        name.as_ptr()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capi::convert::from_c;
    use crate::engine::{Kind, Status};
    use std::ffi::CStr;

    #[test]
    fn the_names_are_the_library_s() {
        // SAFETY: the names are static strings.
        let text = |name| unsafe { CStr::from_ptr(name) }.to_str().expect("ASCII");
        for status in Status::ALL {
            assert_eq!(text(mirror_status_name(to_c(status))), status.name());
        }
        for operation in MIRROR_OP_READ..=MIRROR_OP_COPY {
            let kind = from_c::<Kind>("operation", operation).expect("known");
            assert_eq!(text(mirror_operation_name(operation)), kind.name());
        }
        assert_eq!(text(mirror_status_name(0)), "unknown");
        assert_eq!(text(mirror_event_name(99)), "unknown");
        assert_eq!(text(mirror_operation_name(u32::MAX)), "unknown");
    }
}
