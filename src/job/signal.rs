//! How a sleeping host learns that its job is worth polling: a descriptor to wait for, and a hook.

use crate::error::{Errno, Error, Result, contain};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use std::sync::Arc;

/// The host's `wake` hook.
pub(super) type WakeHook = Arc<dyn Fn() + Send + Sync>;

pub(super) struct Signal {
    /// There is news since the last poll began; whoever raises it tells the host. Changed under the descriptor's lock,
    /// so that the two always say the same.
    raised: AtomicBool,
    descriptor: Mutex<Descriptor>,
    hook: Mutex<Option<WakeHook>>,
}

/// The descriptor, once somebody has asked for it. Readable exactly while the flag is up, or one of the descriptors that
/// it was put together with is.
#[derive(Default)]
struct Descriptor {
    #[cfg(target_os = "linux")]
    event: Option<EventFd>,
    /// Stands for the event and for others.
    #[cfg(target_os = "linux")]
    any: Option<EpollFd>,
}

impl Descriptor {
    /// Whether the flag was down.
    fn raise(&self, raised: &AtomicBool) -> bool {
        let first = !raised.swap(true, Ordering::SeqCst);
        #[cfg(target_os = "linux")]
        if let Some(event) = self.event.as_ref().filter(|_| first) {
            event.set();
        }
        first
    }

    fn lower(&self, raised: &AtomicBool) {
        #[cfg(target_os = "linux")]
        if let Some(event) = self.event.as_ref().filter(|_| raised.load(Ordering::SeqCst)) {
            event.clear();
        }
        raised.store(false, Ordering::SeqCst);
    }

    #[cfg(target_os = "linux")]
    fn number(&mut self, raised: &AtomicBool, others: [Option<i32>; 2]) -> Result<i32> {
        if let Some(any) = &self.any {
            return Ok(any.number());
        }
        let event = match self.event.take() {
            Some(event) => event,
            None => {
                let event = EventFd::new()?;
                if raised.load(Ordering::SeqCst) {
                    event.set();
                }
                event
            }
        };
        let number = event.number();
        self.event = Some(event);
        if others == [None; 2] {
            return Ok(number);
        }
        let any = EpollFd::new(others.into_iter().flatten().chain([number]))?;
        Ok(self.any.insert(any).number())
    }
}

impl Signal {
    pub(super) fn new(hook: Option<WakeHook>) -> Self {
        Self {
            raised: AtomicBool::new(false),
            descriptor: Mutex::new(Descriptor::default()),
            hook: Mutex::new(hook),
        }
    }

    /// There is news. Tells the host unless it was told since its last poll.
    ///
    /// Without a lock where the flag is up already: whoever lowers it looks at the news afterwards, and what this caller
    /// has left there is visible to whoever overtakes the flag that it saw.
    pub(super) fn raise(&self) {
        if self.raised.load(Ordering::SeqCst) || !self.descriptor().raise(&self.raised) {
            return;
        }
        let hook = self.hook().clone();
        if let Some(hook) = hook {
            // It may be a guest's thread, whose request is not finished yet.
            let _ = contain("a wake hook", || hook());
        }
    }

    /// A poll begins: what comes from now on is news.
    pub(super) fn lower(&self) {
        if self.raised.load(Ordering::SeqCst) {
            self.descriptor().lower(&self.raised);
        }
    }

    /// The host is gone: it is told nothing more.
    pub(super) fn forget_host(&self) {
        let hook = self.hook().take();
        drop(hook);
    }

    /// A descriptor that is readable while there is news, or one of these is; which those are is settled by the first
    /// call.
    #[cfg(target_os = "linux")]
    pub(super) fn fd(&self, others: [Option<i32>; 2]) -> Result<i32> {
        self.descriptor().number(&self.raised, others)
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn fd(&self, _: [Option<i32>; 2]) -> Result<i32> {
        Err(Error::new(Errno::EOPNOTSUPP, "there is no eventfd on this system: use the wake hook"))
    }

    fn descriptor(&self) -> MutexGuard<'_, Descriptor> {
        self.descriptor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hook(&self) -> MutexGuard<'_, Option<WakeHook>> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(target_os = "linux", not(loom)))]
use event_fd::{EpollFd, EventFd};
#[cfg(all(target_os = "linux", loom))]
use model::{EpollFd, EventFd};

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
                return Err(no_descriptor());
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

    /// Linux's set of descriptors, itself a descriptor that is readable while one of them is.
    pub(super) struct EpollFd(File);

    impl EpollFd {
        pub(super) fn new(descriptors: impl Iterator<Item = i32>) -> Result<Self> {
            // SAFETY: no memory is involved.
            let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
            if fd < 0 {
                return Err(no_descriptor());
            }
            // SAFETY: just opened, and owned by nobody else.
            let set = Self(unsafe { File::from_raw_fd(fd) });
            for descriptor in descriptors {
                let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
                // SAFETY: one structure, which is read.
                let answer = unsafe { libc::epoll_ctl(fd, libc::EPOLL_CTL_ADD, descriptor, &raw mut event) };
                if answer < 0 {
                    return Err(no_descriptor());
                }
            }
            Ok(set)
        }

        pub(super) fn number(&self) -> i32 {
            self.0.as_raw_fd()
        }
    }

    fn no_descriptor() -> Error {
        let errno = std::io::Error::last_os_error().raw_os_error().and_then(Errno::from_number);
        Error::new(errno.unwrap_or(Errno::EIO), "no descriptor for waking the host can be had")
    }
}

#[cfg(all(test, target_os = "linux", not(loom)))]
mod tests {
    use super::*;

    fn is_readable(fd: i32) -> bool {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which is written to.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_there_is_news() {
        let signal = Signal::new(None);
        signal.raise();
        let fd = signal.fd([None; 2]).expect("a descriptor");
        assert!(is_readable(fd), "there was news before anybody asked for it");
        assert_eq!(signal.fd([None; 2]).expect("the same"), fd);
        signal.lower();
        assert!(!is_readable(fd));
        signal.raise();
        signal.raise();
        assert!(is_readable(fd));
        signal.lower();
        assert!(!is_readable(fd), "a host that waits for it would spin");
    }
}

#[cfg(all(target_os = "linux", loom))]
mod model {
    use super::*;

    /// Stands in for the descriptor: readable or not.
    pub(super) struct EventFd(AtomicBool);

    impl EventFd {
        pub(super) fn new() -> Result<Self> {
            Ok(Self(AtomicBool::new(false)))
        }

        pub(super) fn number(&self) -> i32 {
            i32::from(self.0.load(Ordering::SeqCst))
        }

        pub(super) fn set(&self) {
            self.0.store(true, Ordering::SeqCst);
        }

        pub(super) fn clear(&self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }

    /// Is not part of the model.
    pub(super) struct EpollFd;

    impl EpollFd {
        pub(super) fn new(_: impl Iterator<Item = i32>) -> Result<Self> {
            Ok(Self)
        }

        pub(super) fn number(&self) -> i32 {
            0
        }
    }

    #[cfg(test)]
    #[test]
    fn descriptor_and_flag_say_the_same_whoever_changes_them_at_once() {
        loom::model(|| {
            let signal = loom::sync::Arc::new(Signal::new(None));
            signal.fd([None; 2]).unwrap();
            let host = {
                let signal = signal.clone();
                loom::thread::spawn(move || signal.lower())
            };
            let news = {
                let signal = signal.clone();
                loom::thread::spawn(move || signal.raise())
            };
            signal.raise();
            host.join().unwrap();
            news.join().unwrap();
            let readable = signal.fd([None; 2]).unwrap() == 1;
            assert_eq!(readable, signal.raised.load(Ordering::SeqCst));
        });
    }
}
