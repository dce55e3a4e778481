//! The file device.
