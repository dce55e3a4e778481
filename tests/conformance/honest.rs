//! Devices that are what they say: nothing is found on them.

use super::*;
use blkmirror::device::file::OpenOptions;
use blkmirror::device::{Kind, Null, NullOptions};
use blkmirror::testing::{Disk, DiskOptions};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn an_honest_device_conforms_in_every_manner_of_answering() {
    for manner in
        [Manner::Inline, Manner::Early, Manner::Later, Manner::Polled, Manner::Shallow, Manner::Kicked]
    {
        let (length, limits) = everything();
        conforms(&device(length, limits, manner, Defect::Nothing), &format!("{manner:?}"));
    }
}

#[test]
fn an_honest_device_conforms_with_limits_of_every_kind() {
    for (what, length, of) in [
        ("no byte", 0, Limits::default()),
        ("one byte", 1, Limits::default()),
        ("a hundred bytes in sectors", 100, limits(|limits| limits.request_alignment = 512)),
        ("an odd end", MIB + 100, limits(|limits| limits.request_alignment = 4096)),
        ("large units", MIB, limits(|limits| limits.request_alignment = 1 << 16)),
        ("large memory units", MIB, limits(|limits| limits.memory_alignment = 1 << 16)),
        ("one buffer", MIB, limits(|limits| limits.max_iov = 1)),
        ("small requests", MIB, limits(|limits| limits.max_transfer = 512)),
        (
            "small zeroes and discards",
            MIB,
            limits(|limits| [limits.max_zero, limits.max_discard] = [512, 1024]),
        ),
        ("clusters", MIB, limits(|limits| limits.cluster_size = 1 << 16)),
        ("read-only", MIB, limits(|limits| limits.read_only = true)),
        ("no promise", MIB, Limits::default()),
        ("a long one", (1 << 42) + 5000, limits(|limits| limits.reads_zero = true)),
    ] {
        conforms(&device(length, of, Manner::Polled, Defect::Nothing), what);
    }
}

#[test]
fn another_seed_tries_something_else_and_finds_nothing_either() {
    let mut requests = BTreeSet::new();
    for seed in 0..4 {
        let (length, limits) = everything();
        let options = Options { seed, ..options() };
        let report = judge(&device(length, limits, Manner::Inline, Defect::Nothing), &options);
        assert!(report.conforms(), "seed {seed}: {}", lines(&report));
        requests.insert(report.requests);
    }
    assert!(requests.len() > 1, "{requests:?}");
}

#[test]
fn memory_conforms() {
    let report = conforms(&Device::memory(3 * MIB + 5).expect("memory"), "memory");
    assert!(report.bytes <= 2 * MIB && report.bytes > MIB, "{report:?}");
    let skipped: Vec<_> = report.stages.iter().filter(|(_, progress)| *progress != Progress::Done).collect();
    assert_eq!(skipped, [&("refusals", Progress::Skipped("the device is not read-only"))]);
}

#[test]
fn a_null_device_is_told_what_it_breaks() {
    for (read_zeroes, rule) in [(false, Rule::ReadFills), (true, Rule::WriteStores)] {
        let options = NullOptions { read_zeroes, unallocated: true };
        let device = Null::device(MIB, Limits::default(), options).expect("a device");
        let report = judge(&device, &super::options());
        assert_eq!(report.findings[0].rule, rule, "{}", lines(&report));
        assert!(report.untold > 0, "a few of each rule are enough");
    }
}

#[test]
fn files_conform_cached_and_direct() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    for (name, direct, length) in
        [("cached", false, MIB + 777), ("direct", true, MIB), ("odd", true, MIB + 777)]
    {
        let path = folder.path().join(name);
        let options = OpenOptions { direct, create: Some(length), ..OpenOptions::default() };
        let device = Device::open_file(&path, &options).expect("opens");
        conforms(&device, name);
        assert_eq!(device.length(), length, "it is as long as it was");
        drop(device);
        read_only(&path, direct);
    }
}

fn read_only(path: &Path, direct: bool) {
    let before = std::fs::read(path).expect("readable");
    let options = OpenOptions { direct, read_only: true, ..OpenOptions::default() };
    let report = conforms(&Device::open_file(path, &options).expect("opens"), "read-only");
    assert!(report.stages.contains(&("refusals", Progress::Done)));
    assert!(std::fs::read(path).expect("readable") == before, "it is what it was");
}

#[test]
fn simulated_disks_conform() {
    for (seed, inline_one_in, early_one_in, depth) in [(1, 0, 0, 0), (2, 3, 3, 0), (3, 0, 4, 3)] {
        let options = DiskOptions {
            length: MIB + 512 * 7,
            limits: limits(|limits| (limits.request_alignment, limits.discard_zeroes) = (512, seed == 2)),
            supports: vec![Kind::Zero, Kind::Discard, Kind::Flush, Kind::Extents],
            inline_one_in,
            early_one_in,
            latency_ns: (1, 1000),
            depth,
        };
        let disk = Disk::new(seed, options).expect("a disk");
        disk.set_exact_extents();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut now = 0;
                while !over.load(Ordering::Relaxed) {
                    now += 1000;
                    if !disk.complete_one(now) {
                        std::thread::sleep(Duration::from_micros(20));
                    }
                }
            });
            let report = judge(disk.device(), &super::options());
            over.store(true, Ordering::Relaxed);
            assert!(report.conforms(), "seed {seed}: {}", lines(&report));
        });
        assert_eq!(disk.violation(), None, "the check keeps to the limits too");
    }
}
