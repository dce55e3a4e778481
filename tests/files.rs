//! Jobs between files, on each engine that carries out their requests, and for each way in which a host is woken.
#![cfg(all(feature = "file", target_os = "linux"))]

use blkmirror::clock::{Nanos, monotonic};
use blkmirror::device::Device;
use blkmirror::device::file::{OpenOptions, open};
use blkmirror::engine::{CopyMode, Options, Status};
use blkmirror::error::Errno;
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions, PollState};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Nothing that a host waits for takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a host learns that its job is worth polling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    Descriptor,
    Hook,
    /// And what brings news drives the job as well.
    Inline,
}

const WAYS: [Woken; 3] = [Woken::Descriptor, Woken::Hook, Woken::Inline];

/// Both engines, through the page cache and, where there is such a thing, past it.
fn each_setting(mut test: impl FnMut(OpenOptions, Woken)) {
    for threads in [false, true] {
        for direct in [false, true] {
            for woken in WAYS {
                eprintln!("threads {threads}, direct {direct}, woken {woken:?}");
                test(OpenOptions { threads, direct, ..OpenOptions::default() }, woken);
            }
        }
    }
}

struct Host {
    job: Job,
    woken: Woken,
    news: Receiver<()>,
}

impl Host {
    fn new(filter: &Filter, target: &Device, woken: Woken, options: &Options) -> Self {
        let (tell, news) = channel();
        let hook = move || -> Box<dyn Fn() + Send + Sync> {
            let tell = tell.clone();
            Box::new(move || {
                let _ = tell.send(());
            })
        };
        let end = Instant::now() + PATIENCE;
        let job = loop {
            let options = JobOptions {
                options: options.clone(),
                inline: woken == Woken::Inline,
                wake: (woken != Woken::Descriptor).then(&hook),
                ..JobOptions::default()
            };
            match Job::new(filter, target, options) {
                // The kernel still carries out what a freed job had asked for.
                Err(error) if error.errno() == Errno::EBUSY && Instant::now() < end => {
                    std::thread::yield_now();
                }
                made => break made.expect("a job"),
            }
        };
        job.start().expect("starts");
        Self { job, woken, news }
    }

    /// Polls when woken, and when the job has asked for it, until something is so.
    fn drive(&self, until: impl Fn(&Job) -> bool) {
        while !until(&self.job) {
            let poll = match self.job.poll(monotonic()) {
                // What brings news is driving.
                Err(error) if error.errno() == Errno::EBUSY && self.woken == Woken::Inline => {
                    std::thread::yield_now();
                    continue;
                }
                poll => poll.expect("nobody else polls"),
            };
            if poll.state == PollState::Concluded {
                assert!(until(&self.job), "over too soon: {:?}", self.job.query());
            }
            if poll.state == PollState::Idle && !until(&self.job) {
                self.sleep(poll.wake_at);
            }
        }
    }

    fn sleep(&self, wake_at: Nanos) {
        let longest = Duration::from_nanos(wake_at.since(monotonic())).min(PATIENCE);
        let was_woken = match self.woken {
            Woken::Descriptor => wait_for(self.job.fd().expect("a descriptor"), longest),
            Woken::Hook | Woken::Inline => self.news.recv_timeout(longest) != Err(RecvTimeoutError::Timeout),
        };
        assert!(was_woken || longest < PATIENCE, "nothing happens {:?}: {:?}", self.woken, self.job.query());
    }
}

fn wait_for(fd: i32, longest: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let milliseconds = longest.as_millis() as i32 + 1;
    // SAFETY: one structure, which is written to.
    match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
        // A signal ended it. Polling the job for nothing does no harm.
        -1 => true,
        ready => ready == 1,
    }
}

/// Data that is nowhere zero and nowhere like elsewhere, with holes.
fn make_image(path: &Path, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let file = fs::File::create(path).expect("is made");
    file.set_len(length as u64).expect("grows");
    for piece in (0..length).step_by(192 << 10) {
        let end = length.min(piece + (96 << 10));
        for (at, byte) in bytes[piece..end].iter_mut().enumerate() {
            *byte = ((piece + at) / 512 % 255) as u8 + 1;
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[piece..end], piece as u64).expect("writes");
    }
    bytes
}

/// Source and target; `None` where the file system has no direct I/O.
fn open_both(folder: &Path, length: usize, base: OpenOptions) -> Option<(Device, Device)> {
    let source = match open(&folder.join("old"), &base) {
        Err(error) if error.message().contains("direct") => {
            eprintln!("NOT TESTED: {error}");
            return None;
        }
        opened => opened.expect("opens"),
    };
    let create = Some(length as u64);
    let target = open(&folder.join("new"), &OpenOptions { create, ..base }).expect("opens");
    Some((source, target))
}

#[test]
fn a_file_is_copied_whoever_carries_it_out_and_however_the_host_is_woken() {
    const LENGTH: usize = (9 << 20) + 4096;
    each_setting(|base, woken| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bytes = make_image(&folder.path().join("old"), LENGTH);
        let Some((source, target)) = open_both(folder.path(), LENGTH, base) else { return };
        let filter = Filter::new(&source).expect("a filter");
        let options = Options { buf_size: 1 << 20, ..Options::default() };
        let host = Host::new(&filter, &target, woken, &options);
        host.drive(|job| job.query().ready);
        host.job.complete().expect("is ready");
        host.drive(|job| job.query().status.is_over());
        assert!(host.job.query().error.is_none(), "{:?}", host.job.query());
        assert!(filter.device().is_same_storage(&target));
        drop((host, filter, source, target));
        assert!(fs::read(folder.path().join("new")).expect("is there") == bytes, "{base:?} {woken:?}");
    });
}

struct StopGuests<'a>(&'a AtomicBool);

impl Drop for StopGuests<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn guests_write_to_a_file_while_it_is_mirrored_and_both_end_up_equal() {
    const LENGTH: usize = 4 << 20;
    const BLOCK: usize = 4096;
    for copy_mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        each_setting(|base, woken| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            make_image(&folder.path().join("old"), LENGTH);
            let Some((source, target)) = open_both(folder.path(), LENGTH, base) else { return };
            let filter = Filter::new(&source).expect("a filter");
            let options = Options { buf_size: 1 << 20, copy_mode, ..Options::default() };
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // Both end also when something fails here, or the guests would be waited for in vain.
                let stopping = StopGuests(&stop);
                let host = Host::new(&filter, &target, woken, &options);
                for guest in 0..2usize {
                    let (filter, stop) = (&filter, &stop);
                    scope.spawn(move || {
                        for round in 0.. {
                            let at = (round * 7 + guest) % (LENGTH / BLOCK) * BLOCK;
                            let bytes = [(round + guest * 50) as u8 | 1; BLOCK];
                            filter.write_at(at as u64, &bytes).expect("writes");
                            if stop.load(Ordering::SeqCst) {
                                break;
                            }
                            // Without an end to it, dirty chunks would never be few.
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    });
                }
                host.drive(|job| job.query().ready);
                drop(stopping);
                host.job.complete().expect("is ready");
                host.drive(|job| job.query().status == Status::Null);
                assert!(host.job.query().error.is_none(), "{:?}", host.job.query());
            });
            // What guests wrote after the switch is on the target only.
            let mut after = vec![0; LENGTH];
            filter.read_at(0, &mut after).expect("reads");
            drop((filter, source, target));
            assert!(fs::read(folder.path().join("new")).expect("is there") == after, "{base:?} {woken:?}");
        });
    }
}

#[test]
fn a_guest_needs_nobody_who_polls() {
    each_setting(|base, woken| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bytes = make_image(&folder.path().join("old"), 1 << 20);
        let Some((source, target)) = open_both(folder.path(), 1 << 20, base) else { return };
        let filter = Filter::new(&source).expect("a filter");
        let host = Host::new(&filter, &target, woken, &Options::default());
        let _ = host.job.fd().expect("a descriptor");
        let mut read = vec![0; 1 << 20];
        filter.read_at(0, &mut read).expect("reads");
        assert!(read == bytes);
        filter.write_at(8192, &[3; 4096]).expect("writes");
        filter.flush().expect("flushes");
        assert_eq!(fs::read(folder.path().join("old")).expect("is there")[8192..12_288], [3; 4096]);
    });
}

/// Whether a job has the filter still.
fn is_taken(filter: &Filter) -> bool {
    let elsewhere = Device::memory(filter.length()).expect("memory");
    let made = Job::new(filter, &elsewhere, JobOptions::default());
    made.is_err_and(|error| error.errno() == Errno::EBUSY)
}

#[test]
fn a_job_that_is_freed_in_the_middle_gives_its_buffers_back_when_the_kernel_has_done() {
    const LENGTH: usize = 6 << 20;
    each_setting(|base, woken| {
        for polls in [1, 2, 5] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            make_image(&folder.path().join("old"), LENGTH);
            let Some((source, target)) = open_both(folder.path(), LENGTH, base) else { return };
            let filter = Filter::new(&source).expect("a filter");
            let host = Host::new(&filter, &target, woken, &Options::default());
            let _ = host.job.fd().expect("a descriptor");
            for _ in 0..polls {
                let polled = host.job.poll(monotonic());
                assert!(polled.is_ok() || woken == Woken::Inline, "nobody else polls");
            }
            drop(host);
            // Another may have the filter, at once unless a thread that drove the job inline is not done yet; and the
            // devices live on.
            while woken == Woken::Inline && is_taken(&filter) {
                std::thread::yield_now();
            }
            let again = Host::new(&filter, &target, woken, &Options::default());
            again.drive(|job| job.query().ready);
            drop(again);
            drop((filter, source, target));
            let [old, new] = ["old", "new"].map(|name| fs::read(folder.path().join(name)).expect("is there"));
            assert!(old == new, "{base:?} {woken:?} {polls}");
        }
    });
}

/// Undoes a mount, also when a test fails.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

fn run(command: &mut Command) {
    let done = command.output().expect("it is installed");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
#[ignore = "mounts a btrfs: needs root"]
fn files_in_a_file_system_that_shares_blocks_share_them() {
    // SPEC C-13
    const LENGTH: usize = (24 << 20) + 1000;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (image, at) = (folder.path().join("image"), folder.path().join("mounted"));
    fs::File::create(&image).and_then(|file| file.set_len(160 << 20)).expect("an image");
    fs::create_dir(&at).expect("a folder");
    run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
    run(Command::new("mount").args(["-o", "loop"]).args([&image, &at]));
    let _unmount = Unmount(&at);
    for (threads, direct) in [(false, false), (true, false), (false, true)] {
        for offload in [true, false] {
            let bytes = make_image(&at.join("old"), LENGTH);
            let base = OpenOptions { threads, direct, ..OpenOptions::default() };
            let (source, target) = open_both(&at, LENGTH, base).expect("btrfs has direct I/O");
            assert!(target.copies_from(&source));
            let filter = Filter::new(&source).expect("a filter");
            let options = Options { copy_offload: offload, ..Options::default() };
            let host = Host::new(&filter, &target, Woken::Descriptor, &options);
            host.drive(|job| job.query().ready);
            let info = host.job.query();
            let data = bytes.chunks(96 << 10).filter(|piece| piece.iter().any(|byte| *byte != 0));
            let data: u64 = data.map(|piece| piece.len() as u64).sum();
            if offload {
                assert!(info.copies.bytes >= data && info.copies.errors == 0, "{info:?}");
                assert_eq!((info.reads.ops, info.writes.ops), (0, 0), "{info:?}");
            } else {
                assert_eq!(info.copies.ops, 0, "{info:?}");
                assert!(info.writes.bytes >= data, "{info:?}");
            }
            filter.write_at(4096, &[7; 8192]).expect("writes");
            host.job.complete().expect("is ready");
            host.drive(|job| job.query().status.is_over());
            assert!(host.job.query().error.is_none(), "{:?}", host.job.query());
            filter.write_at(16384, &[8; 512]).expect("writes to the new one");
            drop((host, filter, source, target));
            let mut wanted = bytes;
            wanted[4096..12288].fill(7);
            let old = fs::read(at.join("old")).expect("is there");
            assert!(old == wanted, "the old file is as it was at the switch");
            wanted[16384..16896].fill(8);
            assert!(fs::read(at.join("new")).expect("is there") == wanted);
            fs::remove_file(at.join("new")).expect("is removed");
        }
    }
}

#[test]
fn where_files_share_no_blocks_they_are_copied_through_buffers() {
    // SPEC C-13
    let folder = tempfile::tempdir().expect("a temporary folder");
    make_image(&folder.path().join("old"), 1 << 20);
    let (source, target) = open_both(folder.path(), 1 << 20, OpenOptions::default()).expect("no direct I/O");
    assert!(!source.copies_from(&Device::memory(1 << 20).expect("memory")));
    let filter = Filter::new(&source).expect("a filter");
    let host = Host::new(&filter, &target, Woken::Descriptor, &Options::default());
    host.drive(|job| job.query().ready);
    let info = host.job.query();
    // The folder may lie where they do.
    assert_eq!(info.copies.ops > 0, target.copies_from(&source), "{info:?}");
}
