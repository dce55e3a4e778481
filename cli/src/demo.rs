//! `blkmirror demo`: a disk that is written to all the time is moved to another file, and nothing is lost.
//!
//! The proof doesn't trust the library: each block says who wrote it and when (`stamp`), each writer remembers what it was
//! told is done (`guest`), and in the end the new file is read with nothing but the standard library (`check`).

mod check;
mod guest;
mod image;
mod script;
mod stamp;

use crate::failure::Failure;
use crate::mirror::CopyMode;
use crate::output::say;
use crate::size::Size;
use clap::Args;
use image::Image;
use std::env;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// Watch a disk being moved while it is written to, and see the proof that nothing was lost
#[derive(Args)]
pub(crate) struct Arguments {
    /// How large the disk is
    #[arg(long, default_value = "256M")]
    size: Size,

    /// Where the two files are put while it runs [default: the directory for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,

    /// How long the guest goes on after the copy is ready, half of it before the switch and half after
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(..=86400))]
    seconds: u32,

    /// How many threads write to the disk
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    writers: u32,

    /// Repeats the same image and the same choice of writes [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// How writes reach the new disk before the switch
    #[arg(long, value_enum, default_value_t = CopyMode::Background)]
    copy_mode: CopyMode,

    /// Leave the two files where they are
    #[arg(long)]
    keep: bool,
}

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let image = Image::new(arguments.size, arguments.writers, arguments.seed.unwrap_or_else(some_seed))
        .map_err(Failure::Usage)?;
    let parent = arguments.dir.clone().unwrap_or_else(env::temp_dir);
    let directory = tempfile::Builder::new().prefix("blkmirror-demo-").tempdir_in(&parent).map_err(
        Failure::with(format_args!("{}: no directory for the demo can be made", parent.display())),
    )?;
    let result = script::play(arguments, image, directory.path());
    let kept = tidy_up(directory, arguments.keep);
    result.and(kept)
}

fn tidy_up(directory: TempDir, keep: bool) -> Result<(), Failure> {
    if keep {
        return say(format_args!("The files are in {}.", directory.keep().display()));
    }
    let path = directory.path().to_owned();
    directory.close().map_err(Failure::with(format_args!("{}: can't be removed", path.display())))
}

fn some_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Short, so that a person can type it.
    u64::from(now.subsec_nanos() ^ now.as_secs() as u32) % 1_000_000
}
