//! The C API: the functions of `include/blkmirror.h`, whose documentation is generated from the comments here.
//!
//! Shims only: each checks what a host passed, converts it, calls the library and converts the answer back. Everything
//! unsafe about foreign pointers lives here, and each entry point runs inside `guard`.
//!
//! # Safety
//! What the functions demand of their caller is said once, in the header's overview: pointers are NULL where that is
//! allowed, or point to what their type says for the duration of the call; a device's and a request's memory and hooks
//! live as long as they are documented to be used.
#![allow(non_camel_case_types, clippy::missing_safety_doc)]

mod check;
mod constants;
mod convert;
mod device;
mod error;
mod event;
mod filter;
mod guard;
mod handle;
mod info;
mod job;
mod options;
#[cfg(feature = "testing")]
mod testing;
mod version;
// Its tests need no WebAssembly.
#[cfg(any(target_family = "wasm", test))]
mod wasm;

pub use check::*;
pub use constants::*;
pub use device::*;
pub use error::{mirror_last_error, mirror_set_log};
pub use event::*;
pub use filter::*;
pub use info::*;
pub use job::*;
pub use options::*;
#[cfg(feature = "testing")]
pub use testing::mirror_testing_device_new_defective;
pub use version::*;
#[cfg(any(target_family = "wasm", test))]
pub use wasm::*;
