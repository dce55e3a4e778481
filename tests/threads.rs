//! Real threads: guests that write, devices that complete from threads of their own, and jobs that come and go.

use blkmirror::clock::monotonic;
use blkmirror::device::{
    Answer, Backend, Completions, Device, IoVec, Kind, Limits, Request, Token, gather, scatter,
};
use blkmirror::engine::{CopyMode, Options};
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions, PollState};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 256;
const GUESTS: u64 = 3;

type Work = (Token, Kind, u64, u64, Vec<IoVec>);

/// What waits, and whether the device is gone.
type Queue = (Mutex<(VecDeque<Work>, bool)>, Condvar);

/// Memory behind two threads that complete, and a queue with room for six.
struct Threaded {
    queue: Arc<Queue>,
}

impl Threaded {
    fn device() -> Device {
        Device::new(BLOCK * BLOCKS, Limits::default(), |completions: Completions| {
            let queue = Arc::new(Queue::default());
            let bytes = Arc::new(Mutex::new(vec![0u8; (BLOCK * BLOCKS) as usize]));
            for _ in 0..2 {
                let (queue, bytes, completions) =
                    (Arc::clone(&queue), Arc::clone(&bytes), completions.clone());
                std::thread::spawn(move || worker(&queue, &bytes, &completions));
            }
            Ok(Self { queue })
        })
        .expect("a device")
    }
}

fn worker(
    queue: &(Mutex<(VecDeque<Work>, bool)>, Condvar),
    bytes: &Mutex<Vec<u8>>,
    completions: &Completions,
) {
    loop {
        let work = {
            let mut state = queue.0.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                if let Some(work) = state.0.pop_front() {
                    break work;
                }
                if state.1 {
                    return;
                }
                state = queue.1.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let (token, kind, start, end, iov) = work;
        {
            let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
            let range = &mut bytes[start as usize..end as usize];
            match kind {
                Kind::Read => scatter(&iov, 0, range),
                Kind::Write => gather(&iov, 0, range),
                _ => {}
            }
        }
        // Refused once the job is gone.
        let _ = completions.complete(token, Ok(()));
    }
}

impl Backend for Threaded {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        let mut state = self.queue.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.len() >= 6 {
            return Answer::Again;
        }
        state.0.push_back((
            token,
            request.kind,
            request.range.offset(),
            request.range.end(),
            request.iov.to_vec(),
        ));
        self.queue.1.notify_one();
        Answer::Pending
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        self.queue.0.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.queue.1.notify_all();
    }
}

/// Writes blocks of its own, each with a number, and now and then looks whether they are still there.
fn guest(filter: &Filter, number: u64, stop: &AtomicBool, writes: &AtomicU64) {
    let mut last = vec![0u64; BLOCKS as usize];
    let mut count = 0u64;
    let mut bytes = vec![0u8; BLOCK as usize];
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let block = (count.wrapping_mul(7919) % (BLOCKS / GUESTS)) * GUESTS + number;
        let stamp = number << 56 | count;
        bytes.copy_from_slice(&stamp.to_le_bytes().repeat(BLOCK as usize / 8));
        filter.write_at(block * BLOCK, &bytes).expect("the guest never sees an error");
        last[block as usize] = stamp;
        writes.fetch_add(1, Ordering::Relaxed);
        let look = (count.wrapping_mul(31) % (BLOCKS / GUESTS)) * GUESTS + number;
        filter.read_at(look * BLOCK, &mut bytes).expect("the guest never sees an error");
        let found = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        assert_eq!(found, last[look as usize], "block {look} of guest {number}: a write is lost");
    }
    for (block, stamp) in last.iter().enumerate().filter(|(_, stamp)| **stamp != 0) {
        filter.read_at(block as u64 * BLOCK, &mut bytes).expect("reads");
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")), *stamp, "block {block}");
    }
}

/// Polls until the job is over, or until `until`; a job that should sleep and never wakes is found by its time.
fn drive(job: &Job, woken: &(Mutex<bool>, Condvar), until: impl Fn(&Job) -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let poll = job.poll(monotonic()).expect("nobody else polls, whoever drives");
        if until(job) {
            return true;
        }
        assert!(Instant::now() < end, "a job does not come to its end: {:?}", job.query());
        match poll.state {
            PollState::Concluded => return false,
            PollState::Idle => {
                let left = Duration::from_nanos(poll.wake_at.since(monotonic())).min(Duration::from_secs(20));
                let raised = woken.0.lock().expect("no panic");
                let (mut raised, wait) =
                    woken.1.wait_timeout_while(raised, left, |raised| !*raised).expect("no panic");
                assert!(
                    !wait.timed_out() || left < Duration::from_secs(20),
                    "nobody wakes the host: {:?}",
                    job.query()
                );
                *raised = false;
            }
            PollState::Busy => std::thread::yield_now(),
        }
    }
}

/// Tells guests to stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn guests_lose_nothing_while_jobs_come_and_go() {
    // SPEC G-2, G-9, F-2, L-5
    let seconds = std::env::var("SECONDS_TO_RUN").ok().and_then(|n| n.parse().ok()).unwrap_or(6u64);
    let filter = Filter::new(&Threaded::device()).expect("a seat");
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut pivots, mut round) = (0, 0u64);
    std::thread::scope(|scope| {
        // Also after a failure: else the guests would go on for ever, and hide it.
        let _stopped = Stop(&stop);
        for number in 0..GUESTS {
            let (filter, stop, writes) = (&filter, &stop, &writes);
            scope.spawn(move || guest(filter, number, stop, writes));
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            round += 1;
            let woken = Arc::new((Mutex::new(false), Condvar::new()));
            let wake = Arc::clone(&woken);
            let copy_mode = if round % 2 == 0 { CopyMode::Background } else { CopyMode::WriteBlocking };
            let options =
                Options { copy_mode, max_io: 4 * BLOCK, pass_interval_ns: 1_000_000, ..Options::default() };
            let job_options = JobOptions {
                options,
                inline: round / 2 % 2 == 0,
                wake: Some(Box::new(move || {
                    *wake.0.lock().expect("no panic") = true;
                    wake.1.notify_one();
                })),
                ..JobOptions::default()
            };
            let job = Job::new(&filter, &Threaded::device(), job_options)
                .expect("the filter is free: the last job is");
            job.start().expect("starts");
            if round % 5 == 0 {
                // Freed in the middle of its work.
                let some = round % 40;
                drive(&job, &woken, |job| job.query().reads.ops > some);
                drop(job);
                let mut tries = 0;
                while let Err(error) = Job::new(&filter, &Threaded::device(), JobOptions::default()).map(drop)
                {
                    tries += 1;
                    assert!(tries < 10_000, "the filter is never free again: {error}");
                    std::thread::sleep(Duration::from_millis(1));
                }
                continue;
            }
            assert!(drive(&job, &woken, |job| job.query().ready), "{:?}", job.query());
            if round % 7 == 0 {
                job.cancel(false).expect("ready");
            } else {
                job.complete().expect("ready");
                pivots += 1;
            }
            drive(&job, &woken, |job| job.query().status.is_over());
            assert!(job.query().error.is_none(), "{:?}", job.query());
        }
    });
    let writes = writes.load(Ordering::Relaxed);
    eprintln!("{round} jobs, {pivots} pivots, {writes} writes");
    assert!(pivots > 5 && writes > 1000, "{round} jobs, {pivots} pivots, {writes} writes are too few");
}
