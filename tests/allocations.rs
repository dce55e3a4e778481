//! Nothing is allocated per request in the steady state (SPEC C-6), and a job takes the memory that it says.

use blkmirror::clock::Nanos;
use blkmirror::device::{Callback, Device, IoVec, Kind, Limits, Null, NullOptions};
use blkmirror::engine::{Options, Status};
use blkmirror::error::Errno;
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{Job, JobOptions};
use blkmirror::range::ByteRange;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{c_int, c_void};

struct Counting;

// Each thread counts its own: the test harness allocates, too, whenever a test ends.
thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
    /// More than this at a time is not to be had.
    static LARGEST: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Whether it is to be had.
fn count(layout: Layout) -> bool {
    if layout.size() > LARGEST.get() {
        return false;
    }
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    BYTES.set(BYTES.get().wrapping_add(layout.size() as u64));
    true
}

// SAFETY: hands everything through to the system's allocator, or says that there is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !count(layout) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !count(layout) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller vouches.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get().wrapping_sub(layout.size() as u64));
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn null(length: u64) -> Device {
    Null::device(length, Limits::default(), NullOptions::default()).expect("a null device")
}

fn options(granularity: u64) -> JobOptions {
    let options = Options { granularity, max_io: granularity, detect_zeroes: false, ..Options::default() };
    JobOptions { options, ..JobOptions::default() }
}

#[test]
fn the_copy_loop_allocates_nothing_per_request() {
    // SPEC C-6
    let filter = Filter::new(&null(16 << 30)).expect("a seat");
    let job = Job::new(&filter, &null(16 << 30), options(64 << 10)).expect("a job");
    job.start().expect("starts");
    let mut now = 1;
    let mut poll = |times: u32| {
        for _ in 0..times {
            now += 1_000_000;
            job.poll(Nanos(now)).expect("nobody else polls");
        }
    };
    // Until the window fits the link.
    poll(40);
    let before = (ALLOCATIONS.get(), job.query().reads.ops);
    poll(100);
    let info = job.query();
    let after = ALLOCATIONS.get();
    assert_eq!(info.status, Status::Running, "still in the steady state");
    let copied = info.reads.ops - before.1;
    assert!(copied > 10_000, "{copied} pieces are too few to say anything");
    // `query` itself makes a copy of the id; twice.
    assert!(after - before.0 <= 2, "{} allocations for {copied} pieces", after - before.0);
}

unsafe extern "C" fn told(_: *mut c_void, _: c_int) {}

#[test]
fn guest_writes_allocate_nothing_in_background_mode() {
    // SPEC G-2
    let filter = Filter::new(&null(1 << 30)).expect("a seat");
    let _job = Job::new(&filter, &null(1 << 30), options(4096)).expect("a job");
    let mut memory = vec![1u8; 4096];
    let mut write = |times: u64| {
        for at in 0..times {
            // SAFETY: the null device is done with the buffer when `submit` returns.
            let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), memory.len()) }];
            let range = ByteRange::new(at * 4096, 4096).expect("in range");
            // SAFETY: `told` ignores its pointer.
            let done = unsafe { Callback::from_raw(told, std::ptr::null_mut()) };
            let io = GuestIo { kind: Kind::Write, range, flags: GuestFlags::default(), iov: &iov };
            filter.submit(&io, done).expect("legal");
        }
    };
    write(10);
    let before = ALLOCATIONS.get();
    write(10_000);
    assert_eq!(ALLOCATIONS.get() - before, 0);
}

#[test]
fn a_job_on_a_tebibyte_takes_its_buffers_and_a_bit_per_chunk() {
    // SPEC O-2, C-6
    let filter = Filter::new(&null(1 << 40)).expect("a seat");
    let target = null(1 << 40);
    let before = BYTES.get();
    let job = Job::new(&filter, &target, options(64 << 10)).expect("a job");
    job.start().expect("starts");
    for now in 1..20 {
        job.poll(Nanos(now * 1_000_000)).expect("nobody else polls");
    }
    let taken = BYTES.get() - before;
    let promised = (16 << 20) + (1u64 << 40 >> 16 >> 3);
    assert!(taken <= promised + promised / 20, "{taken} bytes, {promised} promised");
    assert!(taken >= promised, "the arena and the bitmap are there: {taken} bytes");
}

#[test]
fn a_job_without_memory_is_refused_and_leaves_nothing_behind() {
    // SPEC C-6: for its buffers, or its bitmap.
    let filter = Filter::new(&null(1 << 40)).expect("a seat");
    let target = null(1 << 40);
    for (largest, what) in [(8 << 20, "a buffer of 16777216 bytes"), (1 << 20, "a dirty bitmap")] {
        LARGEST.set(largest);
        let refused = Job::new(&filter, &target, options(64 << 10));
        LARGEST.set(usize::MAX);
        let error = refused.expect_err(what);
        assert_eq!(error.errno(), Errno::ENOMEM);
        assert!(error.message().contains(what), "{error}");
        Job::new(&filter, &target, options(64 << 10)).expect("the filter is free");
    }
}
