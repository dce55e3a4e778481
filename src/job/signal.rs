//! How a sleeping host learns that its job is worth polling: a descriptor to wait for, and a hook.

use crate::error::{Errno, Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The host's `wake` hook.
pub(super) type WakeHook = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
pub(super) struct Signal {
    /// There is news since the last poll began; whoever raises it tells the host.
    raised: AtomicBool,
    hook: Mutex<Option<WakeHook>>,
    #[cfg(target_os = "linux")]
    event: once_cell::sync::OnceCell<event_fd::EventFd>,
}

impl Signal {
    pub(super) fn new(hook: Option<WakeHook>) -> Self {
        Self { hook: Mutex::new(hook), ..Self::default() }
    }

    /// There is news. Tells the host unless it was told since its last poll.
    pub(super) fn raise(&self) {
        if self.raised.swap(true, Ordering::SeqCst) {
            return;
        }
        #[cfg(target_os = "linux")]
        if let Some(event) = self.event.get() {
            event.set();
        }
        let hook = self.hook().clone();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// A poll begins: what comes from now on is news.
    pub(super) fn lower(&self) {
        if self.raised.load(Ordering::SeqCst) {
            #[cfg(target_os = "linux")]
            if let Some(event) = self.event.get() {
                event.clear();
            }
            self.raised.store(false, Ordering::SeqCst);
        }
    }

    /// The host is gone: it is told nothing more.
    pub(super) fn forget_host(&self) {
        let hook = self.hook().take();
        drop(hook);
    }

    /// A descriptor that is readable while there is news.
    #[cfg(target_os = "linux")]
    pub(super) fn fd(&self) -> Result<i32> {
        let event = self.event.get_or_try_init(event_fd::EventFd::new)?;
        if self.raised.load(Ordering::SeqCst) {
            event.set();
        }
        Ok(event.number())
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn fd(&self) -> Result<i32> {
        Err(Error::new(Errno::EOPNOTSUPP, "there is no eventfd on this system: use the wake hook"))
    }

    fn hook(&self) -> MutexGuard<'_, Option<WakeHook>> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(target_os = "linux")]
mod event_fd {
    use super::{Errno, Error, Result};
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, FromRawFd};

    /// Linux's counter that can be waited for.
    pub(super) struct EventFd(File);

    impl EventFd {
        pub(super) fn new() -> Result<Self> {
            // SAFETY: no memory is involved.
            let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            if fd < 0 {
                let errno = std::io::Error::last_os_error().raw_os_error().and_then(Errno::from_number);
                return Err(Error::new(
                    errno.unwrap_or(Errno::EIO),
                    "no descriptor for waking the host can be had",
                ));
            }
            // SAFETY: just opened, and owned by nobody else.
            Ok(Self(unsafe { File::from_raw_fd(fd) }))
        }

        pub(super) fn number(&self) -> i32 {
            self.0.as_raw_fd()
        }

        pub(super) fn set(&self) {
            // It can't be full: it is set once for each time that it is cleared.
            let _ = (&self.0).write(&1u64.to_ne_bytes());
        }

        pub(super) fn clear(&self) {
            // Nothing to read is as good as cleared.
            let _ = (&self.0).read(&mut [0; 8]);
        }
    }
}
