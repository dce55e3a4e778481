//! `blkmirror bench`: what the library costs on this machine, one question a command.

mod allocations;
mod bitmap;
mod converge;
mod copy_loop;
mod cpu;
mod file;
mod guest_latency;
mod guest_ready;
mod guest_write;
mod latency;
mod report;
mod scale;
mod timeline;

use crate::failure::Failure;
use clap::{Args, Subcommand};

/// Measure what the library costs on this machine
///
/// Each command repeats its measurement and tells the median. Compare only figures of one run: machines differ, and so
/// does one machine from hour to hour.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,

    /// Print one JSON object for each row
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    CopyLoop(copy_loop::Arguments),
    GuestWrite(guest_write::Arguments),
    GuestLatency(guest_latency::Arguments),
    GuestReady(guest_ready::Arguments),
    Bitmap(bitmap::Arguments),
    Latency(latency::Arguments),
    File(file::Arguments),
    Converge(converge::Arguments),
    Scale(scale::Arguments),
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let rows = match &arguments.what {
        What::CopyLoop(what) => copy_loop::run(what),
        What::GuestWrite(what) => guest_write::run(what),
        What::GuestLatency(what) => guest_latency::run(what),
        What::GuestReady(what) => guest_ready::run(what),
        What::Bitmap(what) => bitmap::run(what),
        What::Latency(what) => latency::run(what),
        What::File(what) => file::run(what),
        What::Converge(what) => converge::run(what),
        What::Scale(what) => scale::run(what),
    }?;
    report::print(&rows, arguments.json)
}
