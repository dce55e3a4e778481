//! The specification, read aloud: one behaviour each, over simulated disks that do what a script says and when.
//!
//! One file for each of its sections. A test names the rules that it holds; `docs/RULES.md` is the way back, from each
//! rule to its tests, and `tests/rules.rs` keeps it true.

mod script;

mod conflicts;
mod copy;
mod devices;
mod errors;
mod finish;
mod guest;
mod life;
mod offload;
mod options;
mod query;
mod start;
mod window;
mod zeroes;
