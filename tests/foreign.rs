//! Code of others that misbehaves: devices, closures and hooks that panic, callbacks that wait, requests that nobody
//! ends.

use blkmirror::clock::Nanos;
use blkmirror::device::{Answer, Backend, Callback, Device, IoVec, Kind, Limits, Request, Token};
use blkmirror::engine::{Options, Status};
use blkmirror::error::{Errno, IoResult};
use blkmirror::filter::{Begin, Filter, GuestFlags, GuestIo};
use blkmirror::job::{Job, JobOptions, PollState};
use blkmirror::range::ByteRange;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LENGTH: u64 = 64 << 10;

/// Succeeds at everything, until it is told to panic.
#[derive(Default)]
struct Switches {
    panics: AtomicBool,
    dropped: AtomicBool,
}

struct Fragile(Arc<Switches>);

impl Fragile {
    fn device() -> (Device, Arc<Switches>) {
        let switches = Arc::new(Switches::default());
        let mut limits = Limits::default();
        limits.max_transfer = 4096;
        let backend = Self(Arc::clone(&switches));
        (Device::new(LENGTH, limits, |_| Ok(backend)).expect("a device"), switches)
    }
}

impl Backend for Fragile {
    fn submit(&self, _: Token, _: &Request<'_>) -> Answer {
        assert!(!self.0.panics.load(Ordering::SeqCst), "on purpose");
        Answer::Done(Ok(()))
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::SeqCst);
    }
}

fn drive(job: &Job, until: Status) {
    let mut now = 1;
    for _ in 0..10_000 {
        let poll = job.poll(Nanos(now)).expect("nobody else polls");
        if job.query().status == until {
            return;
        }
        if poll.state == PollState::Idle && poll.wake_at != Nanos::NEVER {
            now = now.max(poll.wake_at.0);
        }
    }
    panic!("never {until:?}: {:?}", job.query());
}

/// A write of 512 bytes whose `done` is this closure.
fn write_then(filter: &Filter, then: impl FnOnce(IoResult) + Send + 'static) {
    let memory = vec![1u8; 512].leak();
    // SAFETY: leaked, so it lives for ever.
    let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), 512) }];
    let range = ByteRange::new(0, 512).expect("in range");
    let io = GuestIo { kind: Kind::Write, range, flags: GuestFlags::default(), iov: &iov };
    filter.submit(&io, Callback::from_closure(then)).expect("accepted");
}

#[test]
fn a_device_that_panics_fails_the_request_and_no_other() {
    // SPEC E-3, G-9: in one piece, and in the second of several steps.
    let (source, switches) = Fragile::device();
    let filter = Filter::new(&source).expect("a seat");
    for length in [512, 16384] {
        switches.panics.store(true, Ordering::SeqCst);
        let failure = filter.write_at(0, &vec![1; length]).expect_err("it panics");
        assert_eq!(failure.errno(), Errno::EIO);
        switches.panics.store(false, Ordering::SeqCst);
        filter.write_at(0, &vec![1; length]).expect("it is well again");
    }
    let options = Options { auto_complete: true, ..Options::default() };
    let target = Device::memory(LENGTH).expect("memory");
    let job = Job::new(&filter, &target, JobOptions { options, ..JobOptions::default() }).expect("legal");
    job.start().expect("created");
    // The gate drains: nothing of the failed requests is counted any more.
    drive(&job, Status::Null);
    assert!(filter.device().is_same_storage(&target));
}

#[test]
fn a_wake_hook_that_panics_keeps_no_guest_waiting() {
    let filter = Filter::new(&Device::memory(LENGTH).expect("memory")).expect("a seat");
    let target = Device::memory(LENGTH).expect("memory");
    let woken = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&woken);
    let wake: Box<dyn Fn() + Send + Sync> = Box::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        panic!("on purpose");
    });
    let job = Job::new(&filter, &target, JobOptions { wake: Some(wake), ..JobOptions::default() });
    let job = job.expect("legal");
    job.start().expect("created");
    drive(&job, Status::Ready);
    while job.poll(Nanos(1)).expect("nobody else polls").state == PollState::Busy {}
    let before = woken.load(Ordering::SeqCst);
    let told = Arc::new(Mutex::new(None));
    let tell = Arc::clone(&told);
    write_then(&filter, move |result| *tell.lock().expect("no panic") = Some(result));
    assert_eq!(*told.lock().expect("no panic"), Some(Ok(())));
    assert_eq!(woken.load(Ordering::SeqCst), before + 1, "the write wakes the host");
}

#[test]
fn a_callback_may_wait_for_a_request_of_its_own() {
    // DESIGN, law 1: a callback may call any function.
    let filter = Filter::new(&Device::memory(LENGTH).expect("memory")).expect("a seat");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let inner = filter.clone();
        write_then(&filter, move |_| {
            let _ = tell.send(inner.write_at(4096, &[2; 512]).map_err(|error| error.errno()));
        });
    });
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(Ok(())), "it waits for itself");
}

#[test]
fn a_filter_that_is_dropped_with_an_open_ticket_lets_go_of_its_device() {
    // API: begin and end. Without a handle nobody can end it.
    let (source, switches) = Fragile::device();
    let filter = Filter::new(&source).expect("a seat");
    drop(source);
    let begin = filter.begin(Kind::Write, ByteRange::new(0, 512).expect("in range"));
    assert!(matches!(begin, Ok(Begin::Go(_))), "{begin:?}");
    drop(filter);
    assert!(switches.dropped.load(Ordering::SeqCst), "the device is kept for ever");
}
