//! A host that runs blkmirror inside Wasmtime: the disks, the clock and the guest are the host's, and the module that
//! decides what is copied when can do nothing but what it is asked for. Whatever becomes of it, the disks are whole.

pub mod bench;
pub mod constants;
pub mod disks;
pub mod guest;
pub mod layout;
pub mod mirror;
pub mod module;
