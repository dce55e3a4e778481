//! Errors: an errno for programs and a message for people.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU16;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What every fallible call of the library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The outcome of a device request: done, or the errno with which it failed.
pub type IoResult = std::result::Result<(), Errno>;

/// Runs code that is not the library's and was written in Rust, so that it may panic: that is logged, and goes no
/// further. `None` if it panicked.
pub(crate) fn contain<T>(whose: &str, code: impl FnOnce() -> T) -> Option<T> {
    // Unwind-safe: whatever it leaves half done is its own.
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(value) => Some(value),
        Err(panic) => {
            log::error!("blkmirror: {whose} panicked");
            // The payload's destructor is foreign code that could panic in its turn: it isn't run.
            std::mem::forget(panic);
            None
        }
    }
}

/// An error number of the operating system (on WebAssembly, Linux's numbering).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(NonZeroU16);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = {
                #[cfg(unix)]
                let number = libc::$name;
                #[cfg(not(unix))]
                let number = $number;
                match NonZeroU16::new(number as u16) {
                    Some(number) => Self(number),
                    None => panic!("an errno is not zero"),
                }
            };)*

            const NAMES: &'static [(Self, &'static str, &'static str)] =
                &[$((Self::$name, stringify!($name), $text)),*];
        }
    };
}

errnos! {
    /// Not allowed in this state.
    EPERM = 1, "operation not permitted";
    /// No such file, token or object.
    ENOENT = 2, "no such file or object";
    /// The device failed.
    EIO = 5, "input/output error";
    /// The device is gone.
    ENXIO = 6, "no such device or address";
    /// Bad handle.
    EBADF = 9, "bad file descriptor";
    /// Try again.
    EAGAIN = 11, "resource temporarily unavailable";
    /// Out of memory.
    ENOMEM = 12, "cannot allocate memory";
    /// Access denied.
    EACCES = 13, "permission denied";
    /// Somebody else has it.
    EBUSY = 16, "device or resource busy";
    /// The name is taken.
    EEXIST = 17, "already exists";
    /// Not between these two.
    EXDEV = 18, "invalid cross-device link";
    /// The device is gone.
    ENODEV = 19, "no such device";
    /// A bad argument.
    EINVAL = 22, "invalid argument";
    /// Larger than the file system, or the process's limit, allows.
    EFBIG = 27, "file too large";
    /// The device is full.
    ENOSPC = 28, "no space left on device";
    /// Read-only.
    EROFS = 30, "read-only device";
    /// Beyond the end.
    ERANGE = 34, "out of range";
    /// The name is too long.
    ENAMETOOLONG = 36, "name too long";
    /// Not there at all.
    ENOSYS = 38, "function not implemented";
    /// Not supported by this device.
    EOPNOTSUPP = 95, "operation not supported";
    /// Took too long.
    ETIMEDOUT = 110, "timed out";
    /// The user's share of the disk is used up.
    EDQUOT = 122, "disk quota exceeded";
    /// Cancelled.
    ECANCELED = 125, "operation cancelled";
    /// An internal failure; the job can't be trusted any more.
    ENOTRECOVERABLE = 131, "state not recoverable";
}

impl Errno {
    /// The largest number that is taken for an errno; what lies beyond is not one.
    pub const MAX: i32 = 4095;

    /// The errno with this positive number, if it is one.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        if (1..=Self::MAX).contains(&number) { NonZeroU16::new(number as u16).map(Self) } else { None }
    }

    /// What a host's callback or completion said: 0 is success, `-errno` a failure, anything else is
    /// nonsense and counts as `EIO` (SPEC D-6).
    pub fn check(answer: i32) -> IoResult {
        match answer {
            0 => Ok(()),
            _ => Err(answer.checked_neg().and_then(Self::from_number).unwrap_or(Self::EIO)),
        }
    }

    /// The positive number.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0.get())
    }

    /// The symbol, such as `EIO`; empty if this library has no name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|entry| entry.0 == self).map_or("", |entry| entry.1)
    }
}

/// `0` or `-errno`, as C callers see an outcome.
#[must_use]
pub fn to_c(result: IoResult) -> i32 {
    result.map_or_else(|errno| -errno.number(), |()| 0)
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|entry| entry.0 == *self) {
            Some((_, name, text)) => write!(f, "{text} ({name})"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            "" => write!(f, "Errno({})", self.0),
            name => f.write_str(name),
        }
    }
}

impl std::error::Error for Errno {}

/// An errno and a sentence that says what was wrong and what would be right.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    errno: Errno,
    message: Cow<'static, str>,
}

impl Error {
    /// An error with its message.
    pub fn new(errno: Errno, message: impl Into<Cow<'static, str>>) -> Self {
        Self { errno, message: message.into() }
    }

    /// `EINVAL` with a message.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Errno::EINVAL, message)
    }

    /// The errno.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The message, without the errno.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error, its message preceded by `context` and a colon.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self { errno: self.errno, message: format!("{context}: {}", self.message).into() }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::new(errno, errno.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.errno, self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_from_a_callback_is_an_io_error() {
        // SPEC D-6
        for (answer, expected) in [
            (0, Ok(())),
            (-28, Err(Errno::ENOSPC)),
            (3, Err(Errno::EIO)),
            (i32::MIN, Err(Errno::EIO)),
            (-4096, Err(Errno::EIO)),
        ] {
            assert_eq!(Errno::check(answer), expected, "{answer}");
        }
    }

    #[test]
    fn an_errno_prints_its_name_and_a_text() {
        assert_eq!(Errno::ENOSPC.to_string(), "no space left on device (ENOSPC)");
        assert_eq!(Errno::from_number(4000).expect("in range").to_string(), "errno 4000");
        assert_eq!(Errno::from_number(0), None);
    }
}
