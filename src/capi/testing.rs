//! What only builds for tests have, and no header: a device with a defect, for C programs that must live through a panic
//! inside the library.

use super::convert::check_pointer;
use super::device::{built_in, mirror_device};
use super::guard;
use crate::device::{Answer, Backend, Device, Kind, Limits, Request, Token};
use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

/// Does nothing, well, so many times. Then it panics, whatever it is asked.
struct Defective {
    left: AtomicU64,
}

impl Backend for Defective {
    fn submit(&self, _: Token, _: &Request<'_>) -> Answer {
        let left = self.left.load(Ordering::SeqCst);
        assert!(left > 0, "a defect in the library");
        self.left.store(left - 1, Ordering::SeqCst);
        Answer::Done(Ok(()))
    }

    fn supports(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Read | Kind::Write | Kind::Flush)
    }
}

/// Makes a device that panics after so many requests. 0, and `*out` is to be freed with `mirror_device_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_testing_device_new_defective(
    length: u64,
    requests: u64,
    out: *mut *mut mirror_device,
) -> c_int {
    guard::unit("mirror_testing_device_new_defective", || {
        check_pointer(out, "out")?;
        let left = AtomicU64::new(requests);
        let device = Device::new(length, Limits::default(), |_| Ok(Defective { left }))?;
        let handle = built_in(device)?;
        // SAFETY: `out` was checked.
        unsafe { out.write(handle) };
        Ok(())
    })
}
