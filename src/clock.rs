//! Time as the library sees it: nanoseconds on a monotonic clock that the caller supplies.

use std::ops::Add;

/// A point in time: nanoseconds since an arbitrary origin, on a clock that never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Later than any time that a clock will show.
    pub const NEVER: Self = Self(u64::MAX);

    /// The time from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Nanos {
    type Output = Self;

    fn add(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_add(nanoseconds))
    }
}

/// Nanoseconds on this process's monotonic clock, for a host that has no clock of its own to pass to `poll`.
///
/// A WebAssembly module imports no clock, so it answers 0 there and the host passes its own time.
#[must_use]
pub fn monotonic() -> Nanos {
    #[cfg(not(target_family = "wasm"))]
    {
        use once_cell::sync::Lazy;
        use std::time::Instant;
        static ORIGIN: Lazy<Instant> = Lazy::new(Instant::now);
        // One second is added so that 0 never names a real instant.
        Nanos(u64::try_from(ORIGIN.elapsed().as_nanos()).unwrap_or(u64::MAX)) + 1_000_000_000
    }
    #[cfg(target_family = "wasm")]
    Nanos(0)
}
