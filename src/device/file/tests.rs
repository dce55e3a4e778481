//! The file device as its users see it.
//!
//! What needs root (a full file system, a block device) is `#[ignore]`d: `cargo test -- --ignored` as root.

use super::*;
use crate::device::testing::TestClient;
use crate::device::{Extent, ExtentFlags, Flags, Limits};
use crate::range::ByteRange;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const MAY_UNMAP: Flags = Flags { may_unmap: true, fua: false };
const FUA: Flags = Flags { may_unmap: false, fua: true };

/// A directory with a file of this content.
fn scratch(content: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("disk");
    fs::write(&path, content).expect("is written");
    (dir, path)
}

fn open_at(path: &Path, base: OpenOptions) -> Device {
    open(path, &base).expect("opens")
}

fn range(offset: u64, length: u64) -> ByteRange {
    ByteRange::new(offset, length).expect("in range")
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 ^ seed | 1).collect()
}

fn hole(length: u64) -> Extent {
    let flags = ExtentFlags::HOLE;
    Extent { length, flags }
}

fn data(length: u64) -> Extent {
    let flags = ExtentFlags::DATA;
    Extent { length, flags }
}

fn run(program: &str, arguments: &[&OsStr]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is there");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A file opened for direct I/O; if where temporary files are there is none, that is said.
fn open_direct(path: &Path, base: OpenOptions) -> Option<Device> {
    let options = OpenOptions { direct: true, ..base };
    match open(path, &options) {
        Err(error) if error.message().contains("direct") => {
            eprintln!("NOT TESTED: {error}; set TMPDIR to a file system that does");
            None
        }
        opened => Some(opened.expect("opens")),
    }
}

/// A file opened on a system that can only read, write and flush.
fn open_without_methods(path: &Path, options: &OpenOptions) -> Device {
    let opened = open::open(path, options).expect("opens");
    opened.storage.forget_methods();
    device(opened, options).expect("a device")
}

fn what_can_not_be_opened_says_why(base: OpenOptions) {
    let (dir, _) = scratch(&[]);
    let pipe = dir.path().join("pipe");
    run("mkfifo", &[pipe.as_os_str()]);
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let writing = base;
    let reading = OpenOptions { read_only: true, ..writing };
    let creating = OpenOptions { create: Some(MIB), ..writing };
    let at = |name: &str| dir.path().join(name);
    for (path, options, errno, message) in [
        (at("missing"), writing, Errno::ENOENT, "no such file"),
        (at("no/disk"), creating, Errno::ENOENT, "no such directory"),
        (at(""), writing, Errno::EINVAL, "a directory, not a regular"),
        (pipe, reading, Errno::EINVAL, "a pipe, not"),
        (socket, writing, Errno::EINVAL, "a socket, not"),
        ("/dev/null".into(), writing, Errno::EINVAL, "a character device, not"),
        (OsStr::from_bytes(b"a\0b").into(), writing, Errno::EINVAL, "zero byte"),
        (at(&"x".repeat(300)), writing, Errno::ENAMETOOLONG, "too long"),
    ] {
        let error = open(&path, &options).expect_err(message);
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.message().starts_with(&*path.to_string_lossy()), "{error} names the path");
        assert!(error.message().contains(message), "{error}");
    }
}

#[cfg(target_os = "linux")]
fn the_kernels_own_files_refuse_to_be_written_or_bypassed(base: OpenOptions) {
    let writing = base;
    let direct = OpenOptions { read_only: true, direct: true, ..writing };
    for (path, options, errno, message) in [
        // Even root may not write this one.
        ("/sys/kernel/uevent_seqnum", writing, Errno::EACCES, "open it read-only"),
        ("/sys/kernel/notes", direct, Errno::EINVAL, "open it without DIRECT"),
    ] {
        let error = open(Path::new(path), &options).expect_err(message);
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.message().contains(message), "{error}");
    }
}

fn senseless_options_are_refused(base: OpenOptions) {
    let (_dir, path) = scratch(&[]);
    let good = base;
    for (options, message) in [
        (OpenOptions { read_only: true, create: Some(1), ..good }, "choose one"),
        (OpenOptions { workers: 65, ..good }, "workers 65: must be"),
    ] {
        let error = open(&path, &options).expect_err(message);
        assert_eq!(error.errno(), Errno::EINVAL);
        assert!(error.message().contains(message), "{error}");
    }
}

fn create_makes_what_is_missing_and_fills_what_is_empty(base: OpenOptions) {
    let (dir, empty) = scratch(&[]);
    let creating = OpenOptions { create: Some(5 * MIB + 7), ..base };
    for path in [dir.path().join("new"), empty] {
        let device = Device::open_file(&path, &creating).expect("opens");
        assert_eq!(device.length(), 5 * MIB + 7);
        assert!(device.limits().reads_zero);
        let client = TestClient::new(&device);
        assert_eq!(client.read_vec(5 * MIB, 7), [0; 7]);
    }
}

fn create_leaves_alone_what_is_there(base: OpenOptions) {
    let (_dir, path) = scratch(b"precious");
    let creating = OpenOptions { create: Some(MIB), ..base };
    let device = open(&path, &creating).expect("opens");
    assert_eq!(device.length(), 8);
    assert!(!device.limits().reads_zero);
    assert_eq!(fs::read(&path).expect("is there"), b"precious");
}

fn a_file_that_can_not_be_made_as_long_is_not_left_behind(base: OpenOptions) {
    let (dir, _) = scratch(&[]);
    let path = dir.path().join("huge");
    let creating = OpenOptions { create: Some(u64::MAX), ..base };
    let error = open(&path, &creating).expect_err("too long");
    assert!(error.message().contains("can't be made"), "{error}");
    assert!(!path.exists());
}

fn what_is_written_is_read(base: OpenOptions) {
    let (_dir, path) = scratch(&[0; 1 << 20]);
    let device = open_at(&path, base);
    let client = TestClient::new(&device).with_segments(1000);
    let bytes = pattern(300_001, 0x5a);
    assert_eq!(client.write(12_345, &bytes), Ok(()));
    assert_eq!(client.flush(), Ok(()));
    assert_eq!(client.read_vec(12_345, bytes.len()), bytes);
    assert_eq!(client.read_vec(12_344, 1), [0]);
    let file = fs::read(&path).expect("is there");
    assert_eq!(file.len() as u64, MIB);
    assert_eq!(file[12_345..12_345 + bytes.len()], bytes);
    assert_eq!(device.refused_completions(), 0);
}

fn a_long_list_of_buffers_is_sent_in_parts(base: OpenOptions) {
    let (_dir, path) = scratch(&[0; 1 << 16]);
    let client = TestClient::new(&open_at(&path, base)).with_segments(7);
    let bytes = pattern(1 << 16, 3);
    assert_eq!(client.write(0, &bytes), Ok(()));
    assert_eq!(client.read_vec(0, 1 << 16), bytes);
}

fn a_durable_write_is_a_write(base: OpenOptions) {
    let (_dir, path) = scratch(&[0; 8192]);
    for device in [open_at(&path, base), open_without_methods(&path, &base)] {
        let client = TestClient::new(&device).with_segments(100);
        assert_eq!(client.write(0, &[0; 8192]), Ok(()));
        assert_eq!(client.write_with(100, &pattern(5000, 9), FUA), Ok(()));
        assert_eq!(client.read_vec(100, 5000), pattern(5000, 9));
    }
}

fn a_read_only_device_refuses_changes(base: OpenOptions) {
    let (_dir, path) = scratch(&[7; 8192]);
    let options = OpenOptions { read_only: true, ..base };
    let device = open(&path, &options).expect("opens");
    let limits = device.limits();
    assert!(limits.read_only && !limits.cheap_zero && !limits.discard_zeroes);
    assert!(!device.supports(Kind::Truncate));
    let client = TestClient::new(&device);
    assert_eq!(client.write(0, &[1; 512]), Err(Errno::EROFS));
    assert_eq!(client.zero(range(0, 512), MAY_UNMAP), Err(Errno::EROFS));
    assert_eq!(client.discard(range(0, 512)), Err(Errno::EROFS));
    assert_eq!(client.truncate(1 << 20), Err(Errno::EROFS));
    assert_eq!(client.flush(), Ok(()));
    assert_eq!(client.read_vec(0, 8192), [7; 8192]);
}

fn a_file_that_shrank_fails_where_it_ends(base: OpenOptions) {
    let (_dir, path) = scratch(&[7; 8192]);
    let client = TestClient::new(&open_at(&path, base));
    let file = fs::File::options().write(true).open(&path).expect("opens");
    file.set_len(4096).expect("shrinks");
    assert_eq!(client.read(4096, &mut [0; 512]), Err(Errno::EIO));
    assert_eq!(client.read(4000, &mut [0; 512]), Err(Errno::EIO));
    assert_eq!(client.extents(range(0, 8192)), Err(Errno::EIO));
    assert_eq!(client.read_vec(0, 4096), [7; 4096]);
}

fn a_file_grows(base: OpenOptions) {
    let (_dir, path) = scratch(&[7; 1000]);
    let device = open_at(&path, base);
    assert!(device.supports(Kind::Truncate));
    let client = TestClient::new(&device);
    assert_eq!(client.truncate(10_000), Ok(()));
    assert_eq!(device.length(), 10_000);
    assert_eq!(client.read_vec(999, 9001)[..2], [7, 0]);
    assert_eq!(client.write(9999, &[5]), Ok(()));
    assert_eq!(fs::metadata(&path).expect("is there").len(), 10_000);
}

fn extents_are_data_and_holes_without_gaps(base: OpenOptions) {
    let (_dir, path) = scratch(&[]);
    let creating = OpenOptions { create: Some(8 * MIB), ..base };
    let device = open(&path, &creating).expect("opens");
    let client = TestClient::new(&device);
    assert_eq!(client.extents(range(0, 8 * MIB)), Ok(vec![hole(8 * MIB)]));
    for at in [MIB, 5 * MIB] {
        assert_eq!(client.write(at, &[7; 1 << 20]), Ok(()));
    }
    for (asked, told) in [
        (range(0, 8 * MIB), vec![hole(MIB), data(MIB), hole(3 * MIB), data(MIB), hole(2 * MIB)]),
        (range(MIB + 512, 1024), vec![data(1024)]),
        (range(MIB - 512, 1024), vec![hole(512), data(512)]),
        (range(2 * MIB - 512, 1024), vec![data(512), hole(512)]),
        (range(3 * MIB, MIB), vec![hole(MIB)]),
        (range(8 * MIB - 1, 1), vec![hole(1)]),
    ] {
        assert_eq!(client.extents(asked), Ok(told), "{asked:?}");
    }
    assert!(!open_at(&path, base).limits().reads_zero, "it was all hole, and is no more");
}

fn a_file_without_data_reads_zero(base: OpenOptions) {
    let (_dir, path) = scratch(&[]);
    let file = fs::File::options().write(true).open(&path).expect("opens");
    file.set_len(MIB).expect("grows");
    assert!(open_at(&path, base).limits().reads_zero);
    fs::write(&path, [0; 4096]).expect("is written");
    assert!(!open_at(&path, base).limits().reads_zero);
}

fn a_zero_that_may_unmap_and_a_discard_free_blocks(base: OpenOptions) {
    let (_dir, path) = scratch(&[7; 2 << 20]);
    let device = open_at(&path, base);
    assert!(device.limits().cheap_zero && device.limits().discard_zeroes);
    let client = TestClient::new(&device);
    assert_eq!(client.flush(), Ok(()));
    // In units of 512 bytes, whatever the file system's own.
    let blocks = || fs::metadata(&path).expect("is there").blocks();
    let full = blocks();
    assert!(full >= 4096, "{full} blocks");
    assert_eq!(client.zero(range(0, MIB), MAY_UNMAP), Ok(()));
    assert!(blocks() <= full - 2000, "{} of {full} blocks left", blocks());
    assert_eq!(client.discard(range(MIB, MIB)), Ok(()));
    assert!(blocks() <= full - 4000, "{} of {full} blocks left", blocks());
    assert_eq!(client.read_vec(0, 2 << 20), vec![0; 2 << 20]);
    assert_eq!(fs::metadata(&path).expect("is there").len(), 2 * MIB);
}

fn a_zero_that_may_not_unmap_keeps_blocks(base: OpenOptions) {
    let (_dir, path) = scratch(&[7; 1 << 20]);
    let client = TestClient::new(&open_at(&path, base));
    assert_eq!(client.flush(), Ok(()));
    let blocks = || fs::metadata(&path).expect("is there").blocks();
    let full = blocks();
    assert_eq!(client.zero(range(0, MIB), Flags::default()), Ok(()));
    assert_eq!(client.flush(), Ok(()));
    assert_eq!(blocks(), full);
    assert_eq!(client.read_vec(0, 1 << 20), vec![0; 1 << 20]);
}

fn zeroes_end_where_they_were_asked_to(base: OpenOptions) {
    let (_dir, path) = scratch(&[7; 3 << 20]);
    let asked = range(1001, 2 * MIB + 777);
    let end = asked.end() as usize;
    for device in [open_at(&path, base), open_without_methods(&path, &base)] {
        let client = TestClient::new(&device);
        for flags in [Flags::default(), MAY_UNMAP, FUA] {
            assert_eq!(client.write(0, &[7; 3 << 20]), Ok(()));
            assert_eq!(client.zero(asked, flags), Ok(()), "{flags:?}");
            let bytes = client.read_vec(0, 3 << 20);
            assert!(bytes[..1001].iter().all(|byte| *byte == 7), "{flags:?}");
            assert!(bytes[1001..end].iter().all(|byte| *byte == 0), "{flags:?}");
            assert!(bytes[end..].iter().all(|byte| *byte == 7), "{flags:?}");
        }
    }
}

fn direct_io_reaches_an_odd_end(base: OpenOptions) {
    const LENGTH: usize = 1_000_001;
    let (_dir, path) = scratch(&pattern(LENGTH, 0));
    let Some(device) = open_direct(&path, base) else { return };
    let limits = *device.limits();
    assert!(limits.request_alignment >= 512, "{limits:?}");
    assert_eq!(device.length(), LENGTH as u64);
    let last = LENGTH as u64 & !(u64::from(limits.request_alignment) - 1);
    let tail = range(last, LENGTH as u64 - last);
    assert!(limits.admits(tail, device.length()));
    let client = TestClient::new(&device);
    assert_eq!(client.read_vec(0, LENGTH), pattern(LENGTH, 0));
    assert_eq!(client.read_vec(last, tail.len() as usize), pattern(LENGTH, 0)[last as usize..]);

    // The tail alone, the rest alone, and both in one.
    let new = pattern(LENGTH, 0x70);
    assert_eq!(client.write(last, &new[last as usize..]), Ok(()));
    assert_eq!(client.write(0, &new[..last as usize]), Ok(()));
    assert_eq!(client.read_vec(0, LENGTH), new);
    assert_eq!(fs::read(&path).expect("is there"), new);
    let newer = pattern(LENGTH, 0x28);
    assert_eq!(client.write_with(0, &newer, FUA), Ok(()));
    assert_eq!(client.read_vec(0, LENGTH), newer);
    assert_eq!(fs::read(&path).expect("is there"), newer);
}

fn direct_io_takes_buffers_of_odd_lengths(base: OpenOptions) {
    const LENGTH: usize = 3 << 20;
    let (_dir, path) = scratch(&[0; LENGTH]);
    let Some(device) = open_direct(&path, base) else { return };
    let client = TestClient::new(&device).with_segments(9999);
    let bytes = pattern(LENGTH, 0x11);
    assert_eq!(client.write(0, &bytes), Ok(()));
    assert_eq!(client.read_vec(0, LENGTH), bytes);
    assert_eq!(fs::read(&path).expect("is there"), bytes);
    let at = 8192 + LENGTH / 2;
    assert_eq!(client.write_with(8192, &bytes[..LENGTH / 2], FUA), Ok(()));
    assert_eq!(client.read_vec(8192, LENGTH / 2), bytes[..LENGTH / 2]);
    assert_eq!(client.read_vec(at as u64, 4096), bytes[at..at + 4096]);
}

fn direct_io_writes_zeroes_where_nothing_else_does(base: OpenOptions) {
    const LENGTH: usize = 2_000_003;
    let (_dir, path) = scratch(&[7; LENGTH]);
    if open_direct(&path, base).is_none() {
        return;
    }
    let options = OpenOptions { direct: true, ..base };
    let client = TestClient::new(&open_without_methods(&path, &options));
    assert_eq!(client.zero(range(8192, LENGTH as u64 - 8192), MAY_UNMAP), Ok(()));
    let bytes = client.read_vec(0, LENGTH);
    assert!(bytes[..8192].iter().all(|byte| *byte == 7));
    assert!(bytes[8192..].iter().all(|byte| *byte == 0));
}

fn two_paths_to_a_file_are_the_same_storage(base: OpenOptions) {
    // SPEC O-6
    let (dir, path) = scratch(&[7; 512]);
    let link = dir.path().join("link");
    let hard = dir.path().join("hard");
    let copy = dir.path().join("copy");
    std::os::unix::fs::symlink(&path, &link).expect("links");
    fs::hard_link(&path, &hard).expect("links");
    fs::copy(&path, &copy).expect("copies");
    let device = open_at(&path, base);
    assert!(device.is_same_storage(&open_at(&link, base)));
    assert!(device.is_same_storage(&open_at(&hard, base)));
    assert!(!device.is_same_storage(&open_at(&copy, base)));
    assert!(!device.is_same_storage(&Device::memory(512).expect("memory")));
}

fn eight_threads_do_not_disturb_each_other(base: OpenOptions) {
    const THREADS: u64 = 8;
    let (_dir, path) = scratch(&[0; 8 << 20]);
    let device = open_at(&path, base);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let device = &device;
            scope.spawn(move || {
                let client = TestClient::new(device).with_segments(5000);
                for round in 0..50u64 {
                    // Each writes every eighth stripe, so that neighbours share pages.
                    let at = (round * THREADS + thread) * 9001;
                    let bytes = pattern(9001, (round * 31 + thread) as u8);
                    assert_eq!(client.write(at, &bytes), Ok(()));
                    assert_eq!(client.read_vec(at, 9001), bytes, "thread {thread} round {round}");
                }
                assert_eq!(client.flush(), Ok(()));
            });
        }
    });
    let client = TestClient::new(&device);
    for thread in 0..THREADS {
        for round in 0..50u64 {
            let at = (round * THREADS + thread) * 9001;
            let bytes = pattern(9001, (round * 31 + thread) as u8);
            assert_eq!(client.read_vec(at, 9001), bytes);
        }
    }
    assert_eq!(device.refused_completions(), 0);
}

fn many_requests_in_flight_all_complete(base: OpenOptions) {
    let (_dir, path) = scratch(&[0; 1 << 20]);
    let device = open_at(&path, base);
    let client = TestClient::new(&device);
    for round in 0..20u8 {
        let send = |at: u64| {
            let bytes = pattern(16 << 10, round ^ at as u8);
            client.send(Kind::Write, range(at << 14, 16 << 10), Flags::default(), &bytes)
        };
        let sent: Vec<_> = (0..64).map(send).collect();
        for sent in &sent {
            assert_eq!(client.wait(sent).result, Ok(()));
        }
        for at in 0..64 {
            let bytes = pattern(16 << 10, round ^ at as u8);
            assert_eq!(client.read_vec(at << 14, 16 << 10), bytes);
        }
    }
    assert_eq!(device.refused_completions(), 0);
}

#[test]
fn dropping_a_device_cancels_what_no_thread_has_begun_with() {
    let (_dir, path) = scratch(&[0; 8192]);
    let options = OpenOptions { workers: 1, threads: true, ..OpenOptions::default() };
    let device = open(&path, &options).expect("opens");
    let client = TestClient::new(&device);
    let (go_on, wait) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    let block = move || {
        entered.send(()).expect("somebody waits");
        wait.recv().expect("told to go on");
    };
    let send = |then| client.send_then(Kind::Write, range(0, 512), Flags::default(), &[1; 512], then);
    let first = send(Some(Box::new(block)));
    // The worker is the host's for now.
    inside.recv().expect("the write completes");
    let second = client.send(Kind::Write, range(512, 512), Flags::default(), &[2; 512]);
    let third = client.send(Kind::Extents, range(0, 8192), Flags::default(), &[]);
    client.release();
    drop(device);
    go_on.send(()).expect("somebody waits");
    assert_eq!(client.wait(&first).result, Ok(()));
    assert_eq!(client.wait(&second).result, Err(Errno::ECANCELED));
    assert_eq!(client.wait(&third).result, Err(Errno::ECANCELED));
    assert_eq!(fs::read(&path).expect("is there")[..1024], [[1; 512], [0; 512]].concat());
}

fn dropping_a_device_in_use_waits_for_what_is_in_flight(base: OpenOptions) {
    const EACH: usize = 256 << 10;
    for round in 0..4u8 {
        let (_dir, path) = scratch(&[0; 32 * EACH]);
        let device = open_at(&path, OpenOptions { workers: 32, ..base });
        let client = TestClient::new(&device).with_segments(EACH / 3);
        let write = |at: u64| {
            let bytes = pattern(EACH, round ^ at as u8);
            client.send(Kind::Write, range(at * EACH as u64, EACH as u64), FUA, &bytes)
        };
        let sent: Vec<_> = (0..32).map(write).collect();
        client.release();
        drop(device);
        let file = |at: usize| fs::read(&path).expect("is there")[at * EACH..][..EACH].to_vec();
        for (at, sent) in sent.iter().enumerate() {
            // The buffers come back now. Whoever was still writing from them would be seen by a checker of memory.
            match client.wait(sent).result {
                Ok(()) => assert_eq!(file(at), pattern(EACH, round ^ at as u8)),
                result => assert_eq!(result, Err(Errno::ECANCELED)),
            }
        }
    }
}

fn the_last_handle_may_be_dropped_in_a_completion(base: OpenOptions) {
    for workers in [1, 4] {
        let (_dir, path) = scratch(&[0; 8192]);
        let device = open_at(&path, OpenOptions { workers, ..base });
        let client = TestClient::new(&device);
        let (released, wait) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let drop_it = move || {
            wait.recv().expect("told to go on");
            drop(device);
            tell.send(()).expect("somebody waits");
        };
        std::thread::scope(|scope| {
            // The completion may come in the call that sends.
            let sending = scope.spawn(|| {
                let range = ByteRange::default();
                client.send_then(Kind::Flush, range, Flags::default(), &[], Some(Box::new(drop_it)))
            });
            client.release_when_used();
            released.send(()).expect("somebody waits");
            told.recv().expect("the drop returns");
            let sent = sending.join().expect("it is sent");
            assert_eq!(client.wait(&sent).result, Ok(()));
        });
    }
}

fn the_file_is_closed_when_the_last_handle_is_dropped(base: OpenOptions) {
    let (_dir, path) = scratch(&[0; 8192]);
    for used in [false, true] {
        let opened = open::open(&path, &base).expect("opens");
        let mut storage = std::sync::Weak::new();
        let device = Device::new(opened.length, Limits::default(), |completions| {
            let made = FileDevice::new(opened.storage, false, opened.identity, completions, &base);
            storage = Arc::downgrade(&made.storage);
            Ok(made)
        })
        .expect("a device");
        if used {
            let client = TestClient::new(&device);
            let send = |_| client.send(Kind::Read, range(0, 8192), Flags::default(), &[]);
            let sent: Vec<_> = (0..32).map(send).collect();
            assert!(sent.iter().all(|sent| client.wait(sent).result.is_ok()));
        }
        // A worker that has just completed may have been the last but one, for a moment.
        while Arc::strong_count(device.core()) > 1 {
            std::thread::yield_now();
        }
        drop(device);
        assert!(storage.upgrade().is_none(), "used: {used}");
    }
}

/// Undoes what a test did to the system, also when it fails.
#[cfg(target_os = "linux")]
struct Undo(&'static str, std::ffi::OsString);

#[cfg(target_os = "linux")]
impl Drop for Undo {
    fn drop(&mut self) {
        let _ = Command::new(self.0)
            .args(if self.0 == "losetup" { &["-d"][..] } else { &[] })
            .arg(&self.1)
            .status();
    }
}

#[cfg(target_os = "linux")]
fn a_full_file_system_is_enospc_and_tmpfs_has_no_zero_range(base: OpenOptions) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = dir.path().as_os_str();
    let words = ["-t", "tmpfs", "-o", "size=1m", "none"].map(OsStr::new);
    run("mount", &[&words[..], &[at]].concat());
    let _undo = Undo("umount", at.to_owned());
    let creating = OpenOptions { create: Some(4 * MIB), ..base };
    let client = TestClient::new(&open(&dir.path().join("disk"), &creating).expect("opens"));
    assert_eq!(client.write(0, &[7; 512 << 10]), Ok(()));
    assert_eq!(client.zero(range(100, 100_000), Flags::default()), Ok(()));
    assert_eq!(client.read_vec(100, 100_000), [0; 100_000]);
    assert_eq!(client.read_vec(100_100, 1000), [7; 1000]);
    assert_eq!(client.write(MIB, &[7; 1 << 20]), Err(Errno::ENOSPC));
    assert_eq!(client.zero(range(2 * MIB, MIB), Flags::default()), Err(Errno::ENOSPC));
    assert_eq!(client.discard(range(MIB, MIB)), Ok(()));
    assert_eq!(client.write(3 * MIB, &[7; 256 << 10]), Ok(()));
}

#[cfg(target_os = "linux")]
fn a_block_device_is_a_device(base: OpenOptions) {
    let (dir, image) = scratch(&pattern(4 << 20, 0));
    let loop_device = run("losetup", &[OsStr::new("--find"), OsStr::new("--show"), image.as_os_str()]);
    let _undo = Undo("losetup", loop_device.clone().into());
    let path = Path::new(&loop_device);
    // A loop device stays write-protected if whoever had it before left it so.
    run("blockdev", &[OsStr::new("--setrw"), OsStr::new(&loop_device)]);
    // Some sandboxes let root make a loop device and then forbid to change it.
    let forbidden = std::fs::OpenOptions::new().write(true).open(path).and_then(|file| {
        file.write_all_at(&pattern(512, 0), 0)?;
        file.sync_all()
    });
    if forbidden.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)) {
        eprintln!("NOT TESTED: this system forbids writing to loop devices");
        return;
    }
    let device = open_at(path, base);
    assert_eq!(device.length(), 4 * MIB);
    assert_eq!(device.limits().request_alignment, 1);
    assert_eq!(device.limits().zero_alignment, 512);
    assert!(!device.limits().discard_zeroes && !device.limits().reads_zero);
    assert!(device.limits().cheap_zero, "a loop device punches its file");
    assert!(!device.supports(Kind::Extents) && !device.supports(Kind::Truncate));

    let client = TestClient::new(&device);
    assert_eq!(client.read_vec(0, 4 << 20), pattern(4 << 20, 0));
    assert_eq!(client.zero(range(MIB, MIB), MAY_UNMAP), Ok(()));
    assert_eq!(client.zero(range(2 * MIB, MIB), FUA), Ok(()));
    assert_eq!(client.zero(range(100, 1000), MAY_UNMAP), Ok(()), "not aligned");
    assert_eq!(client.discard(range(3 * MIB + 1, MIB - 1)), Ok(()));
    assert_eq!(client.discard(range(3 * MIB + 1, 500)), Ok(()), "no whole block");
    let mut expected = pattern(4 << 20, 0);
    expected[100..1100].fill(0);
    expected[1 << 20..3 << 20].fill(0);
    assert_eq!(client.read_vec(0, 3 << 20), expected[..3 << 20]);
    assert_eq!(client.read_vec(3 << 20, 512), expected[3 << 20..][..512]);

    let node = dir.path().join("node");
    let number = fs::metadata(path).expect("is there").rdev();
    let (major, minor) = (libc::major(number).to_string(), libc::minor(number).to_string());
    let words = ["b", &major, &minor].map(OsStr::new);
    run("mknod", &[&[node.as_os_str()], &words[..]].concat());
    assert!(device.is_same_storage(&open_at(&node, base)), "two nodes, one disk");
    drop((client, device));

    let direct = open_direct(path, base).expect("a block device does direct I/O");
    assert_eq!(direct.limits().request_alignment, 512);
    let client = TestClient::new(&direct).with_segments(700);
    assert_eq!(client.write(512, &pattern(MIB as usize, 5)), Ok(()));
    assert_eq!(client.read_vec(512, MIB as usize), pattern(MIB as usize, 5));
}

/// Runs each of them on each engine. Where there is no io_uring, both are the same.
macro_rules! on_both_engines {
    ($($(#[$attribute:meta])* $test:ident,)*) => {
        mod on_io_uring {
            $($(#[$attribute])* #[test] fn $test() { super::$test(super::OpenOptions::default()); })*
        }
        mod on_threads {
            $($(#[$attribute])* #[test] fn $test() {
                super::$test(super::OpenOptions { threads: true, ..super::OpenOptions::default() });
            })*
        }
    };
}

on_both_engines! {
    what_can_not_be_opened_says_why,
    #[cfg(target_os = "linux")]
    the_kernels_own_files_refuse_to_be_written_or_bypassed,
    senseless_options_are_refused,
    create_makes_what_is_missing_and_fills_what_is_empty,
    create_leaves_alone_what_is_there,
    a_file_that_can_not_be_made_as_long_is_not_left_behind,
    what_is_written_is_read,
    a_long_list_of_buffers_is_sent_in_parts,
    a_durable_write_is_a_write,
    a_read_only_device_refuses_changes,
    a_file_that_shrank_fails_where_it_ends,
    a_file_grows,
    extents_are_data_and_holes_without_gaps,
    a_file_without_data_reads_zero,
    a_zero_that_may_unmap_and_a_discard_free_blocks,
    a_zero_that_may_not_unmap_keeps_blocks,
    zeroes_end_where_they_were_asked_to,
    direct_io_reaches_an_odd_end,
    direct_io_takes_buffers_of_odd_lengths,
    direct_io_writes_zeroes_where_nothing_else_does,
    two_paths_to_a_file_are_the_same_storage,
    eight_threads_do_not_disturb_each_other,
    many_requests_in_flight_all_complete,
    dropping_a_device_in_use_waits_for_what_is_in_flight,
    the_last_handle_may_be_dropped_in_a_completion,
    the_file_is_closed_when_the_last_handle_is_dropped,
    #[cfg(target_os = "linux")]
    #[ignore = "mounts a tmpfs: needs root"]
    a_full_file_system_is_enospc_and_tmpfs_has_no_zero_range,
    #[cfg(target_os = "linux")]
    #[ignore = "makes a loop device: needs root"]
    a_block_device_is_a_device,
}
