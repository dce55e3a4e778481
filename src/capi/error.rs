//! What went wrong, in words: each thread's last error, and the process-wide log sink.

use super::convert::{Opaque, level_from_c};
use super::guard;
use crate::error::{Errno, Error, Result};
use crate::reserve::{self, Need};
use arc_swap::ArcSwapOption;
use once_cell::sync::{Lazy, OnceCell};
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Arc;

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// Text that C can read: a NUL inside, which would cut it short, becomes a question mark.
pub(super) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

/// What [`mirror_last_error`] says from now on in this thread.
pub(super) fn set_last(name: &str, message: &str) {
    // A thread that is ending has nobody left to ask.
    let _ = LAST.try_with(|last| *last.borrow_mut() = c_text(&format!("{name}: {message}")));
}

/// What was wrong with this thread's last call that failed: the name of the function, and the value and the rule
/// that it broke. Empty if none has failed; a call that succeeds leaves it.
///
/// The text is the library's, good until this thread's next call that fails. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn mirror_last_error() -> *const c_char {
    guard::value("mirror_last_error", c"".as_ptr(), || {
        LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
    })
}

/// Where messages go.
struct Sink {
    write: unsafe extern "C" fn(opaque: *mut c_void, level: u32, message: *const c_char),
    opaque: Opaque,
}

static SINK: Lazy<ArcSwapOption<Sink>> = Lazy::new(ArcSwapOption::empty);

/// Sends the library's messages to `log`, of this level and the more important ones: `MIRROR_LOG_ERROR` to
/// `MIRROR_LOG_TRACE`. NULL, or `MIRROR_LOG_OFF`, sends them nowhere, as it is at first.
///
/// There is one sink in a process. `log` gets `opaque`, the level and one line of text that is good during the call;
/// it is called from whichever thread has something to say, several at once, never with a lock held, and may call the
/// library (what that logs is not told). `closed`, if it isn't NULL, is called with `opaque` exactly once: when another
/// sink has taken its place and no call of `log` is running, or when this call fails.
///
/// Any thread. 0; `-EINVAL` for an unknown level; `-EBUSY` if the process is a Rust program with a logger of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_set_log(
    log: Option<unsafe extern "C" fn(opaque: *mut c_void, level: u32, message: *const c_char)>,
    opaque: *mut c_void,
    level: u32,
    closed: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
) -> c_int {
    // SAFETY: the caller vouches for `closed`.
    let opaque = unsafe { Opaque::new(opaque, closed) };
    guard::unit("mirror_set_log", || {
        reserve::demand(Need::Make)?;
        let level = level_from_c(level)?;
        install()?;
        let sink = log.map(|write| Arc::new(Sink { write, opaque }));
        log::set_max_level(if sink.is_some() { level } else { log::LevelFilter::Off });
        // The sink that gives way is closed once nobody is in it.
        drop(SINK.swap(sink));
        Ok(())
    })
}

fn install() -> Result<()> {
    static INSTALLED: OnceCell<()> = OnceCell::new();
    INSTALLED
        .get_or_try_init(|| log::set_logger(&Logger))
        .copied()
        .map_err(|_| Error::new(Errno::EBUSY, "the process has a Rust logger of its own: set the sink there"))
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = Message { level: record.level(), text: c_text(&record.args().to_string()) };
        match HELD.try_with(|held| held.hold(message)) {
            Ok(None) | Err(_) => {}
            Ok(Some(message)) => deliver(&[message]),
        }
    }

    fn flush(&self) {}
}

struct Message {
    level: log::Level,
    text: CString,
}

/// Messages of this thread that wait for its call to be over.
///
/// They are logged deep inside, where locks are held under which a host must not be called.
struct Held {
    calls: Cell<u32>,
    delivering: Cell<bool>,
    messages: RefCell<Vec<Message>>,
}

/// Most messages that one call keeps; a call that says more has said enough.
const MAX_HELD: usize = 256;

thread_local! {
    static HELD: Held =
        const { Held { calls: Cell::new(0), delivering: Cell::new(false), messages: RefCell::new(Vec::new()) } };
}

impl Held {
    /// Keeps the message, or gives it back if no call is running on this thread.
    fn hold(&self, message: Message) -> Option<Message> {
        if self.delivering.get() {
            return None;
        }
        if self.calls.get() == 0 {
            return Some(message);
        }
        let mut messages = self.messages.borrow_mut();
        if messages.len() < MAX_HELD {
            messages.push(message);
        }
        None
    }
}

/// While one lives, messages of this thread are held; the outermost delivers them when it goes.
pub(super) struct HoldMessages;

impl HoldMessages {
    pub(super) fn begin() -> Self {
        let _ = HELD.try_with(|held| held.calls.set(held.calls.get() + 1));
        Self
    }
}

impl Drop for HoldMessages {
    fn drop(&mut self) {
        let messages = HELD.try_with(|held| {
            held.calls.set(held.calls.get() - 1);
            if held.calls.get() == 0 { held.messages.take() } else { Vec::new() }
        });
        if let Ok(messages) = messages
            && !messages.is_empty()
        {
            deliver(&messages);
        }
    }
}

fn deliver(messages: &[Message]) {
    let Some(sink) = SINK.load_full() else {
        return;
    };
    let _ = HELD.try_with(|held| held.delivering.set(true));
    for message in messages {
        // SAFETY: who set the sink vouched that it may be called from any thread; the text outlives the call.
        unsafe { (sink.write)(sink.opaque.pointer(), message.level as u32, message.text.as_ptr()) }
    }
    let _ = HELD.try_with(|held| held.delivering.set(false));
}
