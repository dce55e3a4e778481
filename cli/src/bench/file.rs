//! Files on a real file system.

use super::cpu;
use super::report::Row;
use crate::drive::{drive, wake_hook};
use crate::failure::Failure;
use crate::size::Size;
use blkmirror::device::file;
use blkmirror::engine::Options;
use blkmirror::error::Result as Outcome;
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions};
use clap::Args;
use std::fs::OpenOptions;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One file to another, in a folder of yours
///
/// The source holds random bytes; the target is as long and, unless the source has holes, written before, so that what is
/// measured is copying and not the making of blocks. `mb_per_s` counts data (10^6 bytes), `cpu_s_per_gib` processor time
/// for each GiB of it, `peak_mib` the process's memory at its largest, `allocated_mib` what the target has on the disk.
#[derive(Args)]
pub(super) struct Arguments {
    /// Where the two files are made, and removed afterwards
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Bytes of data
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    size: Size,

    /// The source's length: the data is spread over it in pieces of 64 KiB [default: as much as there is data]
    #[arg(long, value_name = "SIZE")]
    length: Option<Size>,

    /// Bypass the page cache
    #[arg(long)]
    direct: bool,

    /// How often; the median is told
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u32,
}

const PIECE: u64 = 64 << 10;

pub(super) fn run(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    let length = arguments.length.map_or(arguments.size.0, |Size(bytes)| bytes);
    if arguments.size.0 < PIECE || length < arguments.size.0 {
        return Err(Failure::Usage("size must be at least 64K, and length at least the size".into()));
    }
    let dir = tempfile::tempdir_in(&arguments.dir).map_err(Failure::with(arguments.dir.display()))?;
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    let sparse = length > arguments.size.0;
    fill(&source, arguments.size.0, length, 1).map_err(Failure::with(source.display()))?;
    let (mut seconds, mut cpu_s) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds.max(1) {
        let data = if sparse { 0 } else { arguments.size.0 };
        if sparse || !target.exists() {
            fill(&target, data, length, 2).map_err(Failure::with(target.display()))?;
        }
        let (began, cpu) = (Instant::now(), cpu::cpu_ns());
        copy(&source, &target, arguments.direct)?;
        seconds.push(began.elapsed().as_secs_f64());
        cpu_s.push((cpu::cpu_ns() - cpu) as f64 / 1e9);
    }
    let allocated = target.metadata().map_err(Failure::with(target.display()))?.blocks() * 512;
    let data = arguments.size.0 as f64;
    Ok(vec![
        Row::new()
            .with("data", arguments.size.0)
            .with("length", length)
            .with("direct", arguments.direct)
            .figure("seconds", cpu::median(seconds.clone()))
            .figure("mb_per_s", data / cpu::median(seconds) / 1e6)
            .figure("cpu_s_per_gib", cpu::median(cpu_s) * (1u64 << 30) as f64 / data)
            .figure("peak_mib", cpu::peak_memory() as f64 / f64::from(1 << 20))
            .figure("allocated_mib", allocated as f64 / f64::from(1 << 20)),
    ])
}

/// A file with random bytes in pieces that are spread evenly, and holes between them.
pub(super) fn fill(path: &Path, data: u64, length: u64, seed: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.set_len(length)?;
    let pieces = data / PIECE;
    let mut random = seed;
    let mut bytes = vec![0u8; PIECE as usize];
    for piece in 0..pieces {
        for word in bytes.as_chunks_mut::<8>().0 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *word = random.to_le_bytes();
        }
        let at = (u128::from(piece) * u128::from(length / PIECE) / u128::from(pieces)) as u64 * PIECE;
        file.write_all_at(&bytes, at)?;
    }
    file.sync_all()
}

fn copy(source: &Path, target: &Path, direct: bool) -> Result<(), Failure> {
    let open = file::OpenOptions { direct, threads: !direct, ..file::OpenOptions::default() };
    let filter = Filter::new(&file::open(source, &file::OpenOptions { read_only: true, ..open })?)?;
    let target = file::open(target, &open)?;
    let options = Options { auto_complete: true, auto_dismiss: false, ..Options::default() };
    let job_options = JobOptions { options, wake: wake_hook(), ..JobOptions::default() };
    let job = Job::new(&filter, &target, job_options)?;
    job.start()?;
    let look = |_: &Job| -> Outcome<ControlFlow<()>> { Ok(ControlFlow::Continue(())) };
    drive(&job, look)?;
    match job.query().error {
        Some((_, message)) => Err(Failure::failed(message)),
        None => Ok(()),
    }
}
