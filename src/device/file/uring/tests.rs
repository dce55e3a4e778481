//! What only the ring does. That it is a file device like the other is for the tests of the file device.
//!
//! On a kernel that has no ring, or forbids it, all that can be tested is that there is none; each test says so.

use super::*;
use crate::device::file::{OpenOptions, open};
use crate::device::testing::{Sent, TestClient};
use crate::device::{AlignedBuffer, Flags};
use crate::range::ByteRange;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const KIB: u64 = 1 << 10;

fn scratch(length: usize) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("disk");
    fs::write(&path, vec![7; length]).expect("is written");
    (dir, path)
}

/// The file on a ring.
fn on_ring(path: &Path, options: &OpenOptions) -> Option<Device> {
    let device = match open(path, options) {
        Err(error) if error.message().contains("direct") => {
            eprintln!("NOT TESTED: {error}; set TMPDIR to a file system that does");
            return None;
        }
        opened => opened.expect("opens"),
    };
    if device.engine() != Some(c"io_uring") {
        eprintln!("NOT TESTED: this system has no io_uring");
        return None;
    }
    Some(device)
}

fn cached(path: &Path) -> Option<Device> {
    on_ring(path, &OpenOptions::default())
}

fn write(client: &TestClient, at: u64, bytes: &[u8]) -> Sent {
    client.send(Kind::Write, ByteRange::between(at, at + bytes.len() as u64), Flags::default(), bytes)
}

fn is_readable(fd: i32, patience_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // A signal, such as the kernel's own about a completion, ends the waiting early.
    loop {
        // SAFETY: one structure, which is written to.
        match unsafe { libc::poll(&raw mut poll, 1, patience_ms) } {
            -1 => {}
            answer => return answer == 1,
        }
    }
}

/// Runs it in a thread of its own, where this call of the system is refused, and in the threads that it starts.
fn where_refused(call: libc::c_long, errno: i32, run: impl FnOnce() + Send) {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};
    let step = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, call as u32),
        step(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let program = program_address(&program);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: the program and its steps outlive the scope, and are read during the call only.
            let answer = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, program)
            };
            assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
            run();
        });
    });
}

fn program_address(program: &libc::sock_fprog) -> usize {
    (&raw const *program).addr()
}

#[test]
fn where_the_kernel_refuses_a_ring_files_are_left_to_threads() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM] {
        let (_dir, path) = scratch(8192);
        where_refused(libc::SYS_io_uring_setup, errno, || {
            let device = open(&path, &OpenOptions::default()).expect("opens");
            assert_eq!(device.engine(), Some(c"threads"));
            assert!(device.with_lane(IoVec::none()).lane().is_none());
            let client = TestClient::new(&device);
            assert_eq!(client.write(1000, &[1; 500]), Ok(()));
            assert_eq!(client.read_vec(999, 502)[..2], [7, 1]);
            assert_eq!(client.flush(), Ok(()));
        });
    }
}

#[test]
fn where_a_ring_can_not_have_the_file_it_is_left_to_threads() {
    let (_dir, path) = scratch(8192);
    where_refused(libc::SYS_io_uring_register, libc::ENOMEM, || {
        let device = open(&path, &OpenOptions::default()).expect("opens");
        assert_eq!(device.engine(), Some(c"threads"));
        assert_eq!(TestClient::new(&device).read_vec(0, 8192), [7; 8192]);
    });
}

#[test]
fn threads_are_there_for_who_wants_them() {
    let (_dir, path) = scratch(8192);
    let options = OpenOptions { threads: true, ..OpenOptions::default() };
    assert_eq!(open(&path, &options).expect("opens").engine(), Some(c"threads"));
    assert_eq!(Device::memory(512).expect("memory").engine(), None);
}

#[test]
fn a_lane_begins_with_a_burst_when_it_is_told_to() {
    let (_dir, path) = scratch(1 << 20);
    let Some(device) = cached(&path) else { return };
    let device = device.with_lane(IoVec::none());
    let lane = device.lane().expect("a lane");
    lane.set_attended(true);
    let client = TestClient::new(&device);
    let sent: Vec<_> = (0..50).map(|at| write(&client, at * 4 * KIB, &[at as u8; 4096])).collect();
    lane.reap();
    assert_eq!(fs::read(&path).expect("is there"), [7; 1 << 20], "nobody has said so yet");
    lane.send();
    for (at, sent) in sent.iter().enumerate() {
        while !client.is_done(sent) {
            assert!(is_readable(lane.descriptor().expect("one"), 10_000), "a completion within ten seconds");
            lane.reap();
        }
        assert_eq!(client.wait(sent).result, Ok(()));
        assert_eq!(fs::read(&path).expect("is there")[at * 4096], at as u8);
    }
    lane.reap();
    assert!(!is_readable(lane.descriptor().expect("one"), 0), "all of them are reaped");
}

#[test]
fn more_than_the_queue_holds_is_sent_in_parts() {
    let (_dir, path) = scratch(1 << 20);
    let Some(device) = cached(&path) else { return };
    let device = device.with_lane(IoVec::none());
    let clients: Vec<_> = (0..4).map(|_| TestClient::new(&device)).collect();
    let sent: Vec<_> = clients
        .iter()
        .enumerate()
        .flat_map(|(index, client)| {
            (0..60).map(move |at| (client, write(client, (index as u64 * 60 + at) * 4 * KIB, &[9; 4096])))
        })
        .collect();
    device.lane().expect("a lane").send();
    assert!(sent.iter().all(|(client, sent)| client.wait(sent).result == Ok(())));
    assert_eq!(fs::read(&path).expect("is there")[..240 * 4096], [9; 240 * 4096]);
}

#[test]
fn an_attended_lane_waits_for_its_user_and_any_other_completes_by_itself() {
    let (_dir, path) = scratch(1 << 20);
    let Some(device) = cached(&path) else { return };
    let device = device.with_lane(IoVec::none());
    let lane = device.lane().expect("a lane");
    let client = TestClient::new(&device);
    // A flush is never finished in the call that sends it.
    let flush = || {
        let sent = client.send(Kind::Flush, ByteRange::default(), Flags::default(), &[]);
        lane.send();
        sent
    };
    assert_eq!(client.wait(&flush()).result, Ok(()), "nobody attends yet");

    lane.set_attended(true);
    let sent = flush();
    assert!(is_readable(lane.descriptor().expect("one"), 10_000));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!client.is_done(&sent), "it is left to the user");
    lane.reap();
    assert_eq!(client.wait(&sent).result, Ok(()));

    let sent = flush();
    lane.set_attended(false);
    assert_eq!(client.wait(&sent).result, Ok(()), "what was in flight is not forgotten");
    assert_eq!(client.wait(&flush()).result, Ok(()));
}

#[test]
fn what_a_thread_has_sent_outlives_the_thread() {
    let (_dir, path) = scratch(1 << 20);
    let Some(device) = cached(&path) else { return };
    let client = TestClient::new(&device);
    for round in 0..20 {
        let sent: Vec<_> = std::thread::scope(|scope| {
            // Large enough to be left to threads of the kernel, which end with the thread that they work for.
            let send = || (0..8).map(|at| write(&client, at * 128 * KIB, &[round; 128 << 10])).collect();
            scope.spawn(send).join().expect("it ends")
        });
        assert!(sent.iter().all(|sent| client.wait(sent).result == Ok(())), "round {round}");
        assert_eq!(client.read_vec(0, 1 << 20), [round; 1 << 20]);
    }
}

#[test]
fn memory_that_is_used_again_is_registered_and_right() {
    let (_dir, path) = scratch(1 << 20);
    let buffer = AlignedBuffer::new(SIZE, 4096).expect("memory");
    let Some((_device, lane)) = direct_lane(&path, &buffer) else { return };
    for round in 0..16 {
        copy_through(&lane, &buffer, &path, round);
        // Once all of it was used.
        assert!(matches!(lane.shared.lock().memory, Memory::Registered(_)), "round {round}");
    }
    let Memory::Registered(registered) = lane.shared.lock().memory else {
        unreachable!("it was a moment ago")
    };
    // SAFETY: as in `direct_lane`; and one byte more is only talked about.
    let (inside, across) =
        unsafe { (buffer.lend(1, SIZE - 1), IoVec::new(buffer.lend(0, 1).base(), SIZE + 1)) };
    assert_eq!(registered.piece(&inside), Some(0));
    assert_eq!(registered.piece(&across), None);
    assert_eq!(registered.piece(&IoVec::none()), None);
}

#[test]
fn memory_that_the_kernel_refuses_to_keep_in_place_is_used_as_it_is() {
    let (_dir, path) = scratch(1 << 20);
    let buffer = AlignedBuffer::new(SIZE, 4096).expect("memory");
    let Some((_device, lane)) = direct_lane(&path, &buffer) else { return };
    where_refused(libc::SYS_io_uring_register, libc::ENOMEM, || {
        (0..4).for_each(|round| copy_through(&lane, &buffer, &path, round));
        assert!(matches!(lane.shared.lock().memory, Memory::Any));
    });
}

/// How much is copied at a time.
const SIZE: usize = 64 << 10;

/// A lane with this memory, to a file that is opened for direct I/O. Its requests are nobody's.
fn direct_lane(path: &Path, buffer: &AlignedBuffer) -> Option<(Device, Uring)> {
    struct Backend(Uring);
    impl crate::device::Backend for Backend {
        fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
            self.0.submit(token, request)
        }
    }
    let options = OpenOptions { direct: true, ..OpenOptions::default() };
    on_ring(path, &options)?;
    // SAFETY: each test keeps the buffer until nothing is in flight.
    let memory = unsafe { buffer.lend(0, SIZE) };
    let opened = crate::device::file::open::open(path, &options).expect("opens");
    let mut lane = None;
    let device = Device::new(opened.length, opened.limits, |completions| {
        let storage = Arc::new(opened.storage);
        let workers = Arc::new(Workers::new(Arc::clone(&storage), completions.clone(), 1));
        let uring =
            Uring::new(Parts { storage, workers, completions, read_only: false }).expect("was there before");
        lane = Some(uring.lane(memory).expect("was there before"));
        Ok(Backend(uring))
    })
    .expect("a device");
    let lane = lane?;
    if matches!(lane.shared.lock().memory, Memory::Any) {
        eprintln!("NOT TESTED: a file system in memory gains nothing from registered buffers");
        return None;
    }
    Some((device, lane))
}

/// Writes something at a place of its own, and reads it back.
fn copy_through(lane: &Uring, buffer: &AlignedBuffer, path: &Path, round: u8) {
    // SAFETY: this waits until the request is done.
    let iov = [unsafe { buffer.lend(0, SIZE) }];
    let start = u64::from(round) * SIZE as u64;
    let (range, flags) = (ByteRange::between(start, start + SIZE as u64), Flags::default());
    let bytes = [round + 1; SIZE];
    let carry_out = |kind| {
        let request = Request { kind, range, flags, iov: &iov, from: None };
        assert_eq!(lane.shared.queue(Token::from_raw(1), &request), Answer::Pending);
        lane.send();
        while !lane.shared.lock().is_idle() {
            std::thread::yield_now();
        }
    };
    crate::device::scatter(&iov, 0, &bytes);
    carry_out(Kind::Write);
    let mut seen = vec![0; SIZE];
    fs::File::open(path).and_then(|file| file.read_exact_at(&mut seen, start)).expect("is there");
    assert_eq!(seen, bytes);
    crate::device::scatter(&iov, 0, &[0xee; SIZE]);
    carry_out(Kind::Read);
    crate::device::gather(&iov, 0, &mut seen);
    assert_eq!(seen, bytes);
}
