//! What a filter adds to a guest's 4 KiB write, over a device that does nothing.

use blkmirror::device::{Callback, Device, IoVec, Kind, Limits, Null, NullOptions};
use blkmirror::engine::Options;
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{Job, JobOptions};
use blkmirror::range::ByteRange;
use criterion::{Criterion, criterion_group, criterion_main};
use std::ffi::{c_int, c_void};

fn null(length: u64) -> Device {
    Null::device(length, Limits::default(), NullOptions::default()).expect("a null device")
}

unsafe extern "C" fn told(_: *mut c_void, result: c_int) {
    assert_eq!(result, 0);
}

fn write(filter: &Filter, memory: &mut [u8], at: &mut u64) {
    *at = (*at + 17 * 4096) % (1 << 30);
    // SAFETY: the null device is done with the buffer when `submit` returns.
    let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), memory.len()) }];
    let range = ByteRange::new(*at, memory.len() as u64).expect("in range");
    // SAFETY: `told` ignores its pointer.
    let done = unsafe { Callback::from_raw(told, std::ptr::null_mut()) };
    filter
        .submit(&GuestIo { kind: Kind::Write, range, flags: GuestFlags::default(), iov: &iov }, done)
        .expect("legal");
}

fn guest_write(c: &mut Criterion) {
    let mut group = c.benchmark_group("guest_write_4k");
    let mut memory = vec![1u8; 4096];
    let mut at = 0;
    let filter = Filter::new(&null(1 << 30)).expect("a seat");
    group.bench_function("no_job", |b| b.iter(|| write(&filter, &mut memory, &mut at)));
    let job = Job::new(
        &filter,
        &null(1 << 30),
        JobOptions { options: Options::default(), ..JobOptions::default() },
    )
    .expect("a job");
    group.bench_function("background", |b| b.iter(|| write(&filter, &mut memory, &mut at)));
    drop(job);
    group.finish();
}

criterion_group!(benches, guest_write);
criterion_main!(benches);
