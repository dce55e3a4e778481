//! The atomics that the concurrent parts are written over: the real ones, or loom's model of them, so that
//! the same source is what ships and what is model-checked.

#[cfg(loom)]
pub(crate) use loom::sync::atomic;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic;
