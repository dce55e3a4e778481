//! A world in which jobs run in virtual time over simulated disks, from a seed (feature `testing`).
//!
//! [`Disk`] is a device that delays, reorders, refuses and fails; it holds a [`Layer`], by itself or over others;
//! [`Oracle`] knows what a guest may read; [`World`] lets guests, an operator and time act on a job in an order drawn from
//! a seed, checks the oracles all the way, and in the end demands that everything comes to its end. A failure names the
//! seed: the same seed runs the same history.

mod disk;
mod faults;
mod layer;
mod lent;
mod oracle;
mod world;

use crate::random;
pub use crate::random::Random;
pub use disk::{Disk, DiskOptions, Seen};
pub use faults::{Fault, FaultCounts, Faults};
pub use layer::{Backing, Discard, Layer, LayerOptions, MIN_CLUSTER};
pub use oracle::{Oracle, SECTOR, Stamp};
pub use world::{Broken, Failure, Outcome, Run, Shape, Tally, World};
