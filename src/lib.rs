//! Live block-device mirroring as a library.
#![cfg_attr(loom, allow(dead_code, unused_imports))]

pub mod bitmap;
#[cfg(not(loom))]
pub mod capi;
pub mod clock;
pub mod device;
pub mod engine;
pub mod error;
pub mod filter;
pub mod job;
pub mod range;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
