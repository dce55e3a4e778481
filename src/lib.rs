//! Live block-device mirroring as a library.
#![cfg_attr(loom, allow(dead_code, unused_imports))]

pub mod bitmap;
#[cfg(not(loom))]
pub mod capi;
pub mod clock;
#[cfg(not(loom))]
pub mod conformance;
pub mod device;
pub mod engine;
pub mod error;
pub mod filter;
pub mod job;
#[cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "public with the feature `testing`"))]
mod random;
pub mod range;
mod reserve;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
