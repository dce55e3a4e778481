//! What belongs to no object: the version, the clock, and the buffer that all of them use.

use super::constants::MIRROR_VERSION;
use super::guard;
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
    use super::super::constants::{MIRROR_VERSION_MAJOR, MIRROR_VERSION_MINOR, MIRROR_VERSION_PATCH};
    use super::*;

    #[test]
    fn the_number_and_the_text_name_the_same_version() {
        let [_, major, minor, patch] = MIRROR_VERSION.to_be_bytes();
        assert_eq!(format!("{major}.{minor}.{patch}"), env!("CARGO_PKG_VERSION"));
        let parts = [MIRROR_VERSION_MAJOR, MIRROR_VERSION_MINOR, MIRROR_VERSION_PATCH];
        assert_eq!([major, minor, patch].map(u32::from), parts);
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
