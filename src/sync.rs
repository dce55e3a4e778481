//! The atomics and locks that the concurrent parts are written over: the real ones, or loom's model of them, so that
//! the same source is what ships and what is model-checked.

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

pub(crate) use std::sync::PoisonError;
