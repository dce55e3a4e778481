//! The C API: the functions of `include/blkmirror.h`, whose documentation is generated from the comments here.
//!
//! Shims only: each checks what a host passed, converts it, calls the library and converts the answer back. Everything
//! unsafe about foreign pointers lives here, and each entry point runs inside [`guard`].
//!
//! # Safety
//! What the functions demand of their caller is said once, in the header's overview: pointers are NULL where that is
//! allowed, or point to what their type says for the duration of the call; a device's and a request's memory and hooks
//! live as long as they are documented to be used.
#![allow(non_camel_case_types, clippy::missing_safety_doc)]

mod constants;
mod convert;
mod device;
mod error;
mod event;
mod filter;
mod guard;
mod handle;
mod info;
mod job;
mod options;

pub use constants::*;
pub use device::*;
pub use error::{mirror_last_error, mirror_set_log};
pub use event::*;
pub use filter::*;
pub use info::*;
pub use job::*;
pub use options::*;

use std::ffi::{c_char, c_void};

/// A buffer: `len` bytes at `base`. Laid out as POSIX `struct iovec`, so that a list of those can be cast.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_iovec {
    /// The first byte. NULL only if `len` is 0.
    pub base: *mut c_void,
    /// How many bytes.
    pub len: usize,
}

/// The version of the library that runs, as `MIRROR_VERSION` is that of the header. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn mirror_version() -> u32 {
    guard::value("mirror_version", MIRROR_VERSION, || MIRROR_VERSION)
}

/// The version of the library that runs, as text: "0.1.0". Static. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn mirror_version_string() -> *const c_char {
    const TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    guard::value("mirror_version_string", c"".as_ptr(), || TEXT.as_ptr().cast())
}

/// Nanoseconds on this process's monotonic clock, for a host that has no clock of its own to pass to
/// `mirror_job_poll`. On WebAssembly, which imports no clock, it is always 0. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn mirror_clock_ns() -> u64 {
    guard::value("mirror_clock_ns", 0, || crate::clock::monotonic().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_and_the_text_name_the_same_version() {
        let [_, major, minor, patch] = MIRROR_VERSION.to_be_bytes();
        assert_eq!(format!("{major}.{minor}.{patch}"), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn an_iovec_of_c_is_one_of_the_library_and_of_posix() {
        use crate::device::IoVec;
        assert_eq!(size_of::<mirror_iovec>(), size_of::<IoVec>());
        assert_eq!(align_of::<mirror_iovec>(), align_of::<IoVec>());
        #[cfg(unix)]
        {
            assert_eq!(size_of::<mirror_iovec>(), size_of::<libc::iovec>());
            assert_eq!(std::mem::offset_of!(mirror_iovec, base), std::mem::offset_of!(libc::iovec, iov_base));
            assert_eq!(std::mem::offset_of!(mirror_iovec, len), std::mem::offset_of!(libc::iovec, iov_len));
        }
    }
}
