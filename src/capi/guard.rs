//! The one way in: every entry point runs its body here, so that no panic leaves the library (SPEC E-3) and every
//! failure becomes an errno and a text.

use super::error;
use crate::error::{Errno, Result};
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs the body of the entry point `name`: its value if it is well, `-errno` and the thread's last error if it
/// isn't, `-ENOTRECOVERABLE` if it panics.
pub(super) fn call(name: &'static str, body: impl FnOnce() -> Result<c_int>) -> c_int {
    let failure = match run(name, body) {
        Ok(value) => return value,
        Err(failure) => failure,
    };
    error::set_last(name, failure.message());
    -failure.errno().number()
}

/// As [`call`] for a body whose success is nothing but 0.
pub(super) fn unit(name: &'static str, body: impl FnOnce() -> Result<()>) -> c_int {
    call(name, || body().map(|()| 0))
}

/// As [`call`] for an entry point that has no way to say that it failed: it answers `otherwise`.
pub(super) fn value<T>(name: &'static str, otherwise: T, body: impl FnOnce() -> T) -> T {
    run(name, || Ok(body())).unwrap_or(otherwise)
}

fn run<T>(name: &'static str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let _messages = error::HoldMessages::begin();
    // Unwind-safe: what the library shares between calls is behind atomics, or behind locks that it takes over when
    // they are poisoned; a job that panicked poisons itself.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("without a message");
        let message = format!("internal failure: {text}");
        log::error!("blkmirror: {name}: {message}");
        // The payload's destructor is foreign code that could panic in its turn: it isn't run.
        std::mem::forget(panic);
        Err(crate::error::Error::new(Errno::ENOTRECOVERABLE, message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last_error() -> String {
        // SAFETY: the pointer is good until this thread's next failing call.
        unsafe { CStr::from_ptr(error::mirror_last_error()) }.to_str().expect("UTF-8").to_owned()
    }

    #[test]
    fn a_panic_becomes_an_errno_and_a_text() {
        // SPEC E-3
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let result = call("mirror_test", || panic!("at the {}", "disco"));
        let fallback = value("mirror_test", 7, || std::panic::panic_any(3u8));
        std::panic::set_hook(hook);
        assert_eq!(result, -Errno::ENOTRECOVERABLE.number());
        assert_eq!(last_error(), "mirror_test: internal failure: at the disco");
        assert_eq!(fallback, 7);
    }

    #[test]
    fn a_failure_sets_the_last_error_and_a_success_leaves_it() {
        assert_eq!(unit("mirror_one", || Err(Errno::ENOSPC.into())), -Errno::ENOSPC.number());
        assert_eq!(call("mirror_two", || Ok(2)), 2);
        assert_eq!(last_error(), "mirror_one: no space left on device (ENOSPC)");
    }

    #[test]
    fn each_entry_point_is_guarded_under_its_own_name() {
        let sources = [
            include_str!("mod.rs"),
            include_str!("error.rs"),
            include_str!("device.rs"),
            include_str!("filter.rs"),
            include_str!("job.rs"),
            include_str!("options.rs"),
            include_str!("event.rs"),
            include_str!("check.rs"),
            include_str!("wasm.rs"),
        ];
        let mut entries = 0;
        for source in sources {
            for entry in source.split("extern \"C\" fn mirror_").skip(1) {
                let name = entry.split('(').next().expect("a split has a first part");
                let body = entry.split("\n}").next().expect("a split has a first part");
                let guarded = ["call", "unit", "value"]
                    .iter()
                    .any(|guard| body.contains(&format!("guard::{guard}(\"mirror_{name}\"")));
                assert!(guarded, "mirror_{name} is not guarded under its own name");
                entries += 1;
            }
        }
        assert!(entries > 40, "only {entries} entry points found");
    }
}
