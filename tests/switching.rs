//! Filters that are switched: by whom, when, and what of it others notice.

use blkmirror::clock::Nanos;
use blkmirror::device::{Answer, Backend, Callback, Device, IoVec, Kind, Limits, Request, Token};
use blkmirror::engine::{Options, Status};
use blkmirror::error::{Errno, IoResult};
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{Job, JobOptions, PollState};
use blkmirror::range::ByteRange;
use blkmirror::testing::{Disk, DiskOptions};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const LENGTH: u64 = 64 << 10;

fn disk_with(change: impl FnOnce(&mut Limits)) -> Disk {
    let mut limits = Limits::default();
    change(&mut limits);
    let options = DiskOptions {
        length: LENGTH,
        limits,
        supports: vec![],
        inline_one_in: 0,
        early_one_in: 0,
        latency_ns: (0, 1),
        depth: 0,
    };
    Disk::new(1, options).expect("sensible limits")
}

fn disk() -> Disk {
    disk_with(|_| {})
}

fn filter(disk: &Disk) -> Filter {
    Filter::new(disk.device()).expect("a seat")
}

fn job(filter: &Filter, target: &Device, options: JobOptions) -> Job {
    let job = Job::new(filter, target, options).expect("legal");
    job.start().expect("created");
    job
}

/// Polls and completes until the job is in this state; time passes as it needs.
fn drive(job: &Job, disks: &[&Disk], until: Status) {
    let mut now = 1;
    for _ in 0..10_000 {
        let poll = job.poll(Nanos(now)).expect("nobody else polls");
        if job.query().status == until {
            return;
        }
        let moved = disks.iter().filter(|disk| disk.complete_one(now)).count() > 0;
        if !moved && poll.state == PollState::Idle && poll.wake_at != Nanos::NEVER {
            now = now.max(poll.wake_at.0);
        }
    }
    panic!("never {until:?}: {:?}", job.query());
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Option<IoResult>>>);

impl Told {
    fn get(&self) -> Option<IoResult> {
        *self.0.lock().expect("no panic")
    }
}

fn write_then(filter: &Filter, byte: u8, then: impl FnOnce() + Send + 'static) -> Told {
    let memory = vec![byte; 512].leak();
    // SAFETY: leaked, so it lives for ever.
    let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), 512) }];
    let range = ByteRange::new(0, 512).expect("in range");
    let told = Told::default();
    let tell = told.clone();
    let done = Callback::from_closure(move |result| {
        *tell.0.lock().expect("no panic") = Some(result);
        then();
    });
    let io = GuestIo { kind: Kind::Write, range, flags: GuestFlags::default(), iov: &iov };
    filter.submit(&io, done).expect("accepted");
    told
}

fn write(filter: &Filter, byte: u8) -> Told {
    write_then(filter, byte, || {})
}

type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// Takes whatever it gets, and lets a test act while somebody looks at it.
struct Watched {
    looked_at: Hook,
}

impl Backend for Watched {
    fn submit(&self, _: Token, _: &Request<'_>) -> Answer {
        Answer::Done(Ok(()))
    }

    fn supports(&self, _: Kind) -> bool {
        let hook = self.looked_at.lock().expect("no panic").take();
        if let Some(hook) = hook {
            hook();
        }
        false
    }
}

#[test]
fn a_job_made_while_another_switches_the_filter_does_not_copy_from_the_old_disk() {
    // SPEC O-6. The worst moment: the new job has asked which device the filter is on, and has not claimed it yet; the
    // old one switches it, ends and is freed. Writes that the guest makes on the new disk would never be copied.
    let looked_at = Hook::default();
    let hook = Arc::clone(&looked_at);
    let old = Device::new(LENGTH, Limits::default(), |_| Ok(Watched { looked_at })).expect("a device");
    let (new, elsewhere) = (disk(), disk());
    let filter = Filter::new(&old).expect("a seat");
    let options = Options { auto_finalize: false, auto_complete: true, ..Options::default() };
    let first = job(&filter, new.device(), JobOptions { options, ..JobOptions::default() });
    drive(&first, &[&new], Status::Pending);
    let during = (new.clone(), filter.clone());
    *hook.lock().expect("no panic") = Some(Box::new(move || {
        first.finalize().expect("pending");
        drive(&first, &[&during.0], Status::Null);
        drop(first);
        assert!(during.1.device().is_same_storage(during.0.device()));
    }));
    let second = Job::new(&filter, elsewhere.device(), JobOptions::default());
    assert_eq!(second.expect_err("the first job has the filter").errno(), Errno::EBUSY);
}

fn replacing(filter: &Filter) -> JobOptions {
    JobOptions { replaces: Some(filter.clone()), ..JobOptions::default() }
}

#[test]
fn a_sleeping_job_hears_that_the_filter_to_be_replaced_has_drained() {
    // SPEC F-3. Its last request is what the job waits for; nothing else would wake the host.
    let (source, target, other) = (disk(), disk(), disk());
    let (own, replaced) = (filter(&source), filter(&other));
    let woken = Arc::new(AtomicBool::new(false));
    let wake = Arc::clone(&woken);
    let options = JobOptions {
        wake: Some(Box::new(move || wake.store(true, Ordering::SeqCst))),
        ..replacing(&replaced)
    };
    let job = job(&own, target.device(), options);
    drive(&job, &[&source, &target], Status::Ready);
    let last = write(&replaced, 1);
    job.complete().expect("ready");
    while job.poll(Nanos(1 << 40)).expect("nobody else polls").state == PollState::Busy {}
    woken.store(false, Ordering::SeqCst);
    let waiting = write(&replaced, 2);
    assert!(!woken.load(Ordering::SeqCst), "there is nothing to do yet");
    assert!(other.complete_one(1));
    assert_eq!(last.get(), Some(Ok(())));
    assert!(woken.load(Ordering::SeqCst), "the job sleeps for ever");
    drive(&job, &[&source, &target], Status::Null);
    while target.complete_one(1) {}
    assert_eq!(waiting.get(), Some(Ok(())));
    assert!(replaced.device().is_same_storage(target.device()));
    assert!(own.device().is_same_storage(source.device()), "the job's own filter stays where it is");
    assert_eq!((other.bytes()[0], target.bytes()[0]), (1, 2), "what waited went to the new disk");
}

#[test]
fn a_filter_is_one_jobs_at_a_time_also_as_the_one_to_be_replaced() {
    // SPEC O-6, F-3
    let disks: Vec<_> = (0..6).map(|_| disk()).collect();
    let (a, b, c) = (filter(&disks[0]), filter(&disks[1]), filter(&disks[2]));
    let first = Job::new(&a, disks[3].device(), replacing(&c)).expect("legal");
    let refused = |filter: &Filter, options, message: &str| {
        let error = Job::new(filter, disks[4].device(), options).expect_err(message);
        assert_eq!(error.errno(), Errno::EBUSY);
        assert!(error.message().starts_with(message), "{error}");
    };
    refused(&b, replacing(&c), "replaces: that filter has a job already");
    refused(&b, replacing(&a), "replaces: that filter has a job already");
    refused(&c, JobOptions::default(), "the filter has a job already");
    drop(first);
    drop(Job::new(&c, disks[5].device(), JobOptions::default()).expect("free again"));
    drop(Job::new(&a, disks[5].device(), replacing(&c)).expect("free again, all of them"));
}

#[test]
fn a_filter_that_can_not_be_replaced_is_refused_before_anything_is_copied() {
    // SPEC O-6
    let strict = disk_with(|limits| limits.request_alignment = 4096);
    let (source, other) = (disk(), disk());
    let own = Filter::with_alignment(source.device(), 4096).expect("a seat");
    let loose = filter(&other);
    let cases = [
        (strict.device(), replacing(&loose), "replaces: target: takes requests in multiples of 4096"),
        (strict.device(), replacing(&own), "replaces: is the job's own filter"),
        (other.device(), replacing(&loose), "replaces: that filter is on the target already"),
    ];
    for (target, options, message) in cases {
        let error = Job::new(&own, target, options).expect_err(message);
        assert_eq!(error.errno(), Errno::EINVAL);
        assert!(error.message().starts_with(message), "{error}");
    }
    drop(Job::new(&own, strict.device(), JobOptions::default()).expect("a refusal keeps no claim"));
    drop(Job::new(&loose, source.device(), JobOptions::default()).expect("neither of the two"));
}

#[test]
fn a_device_that_is_given_up_takes_no_request_of_another_with_it() {
    // SPEC D-3, G-9. The device's users are told one after the other. What the first is told switches the second to
    // another disk and writes there; that write belongs to a device that lives.
    let (shared, new) = (disk(), disk());
    let (first, second) = (filter(&shared), filter(&shared));
    let options = Options { auto_finalize: false, auto_complete: true, ..Options::default() };
    let job = job(&second, new.device(), JobOptions { options, ..JobOptions::default() });
    drive(&job, &[&shared, &new], Status::Pending);
    let written = Arc::new(Mutex::new(None));
    let (later, during) = (Arc::clone(&written), (second.clone(), new.clone()));
    let cancelled = write_then(&first, 1, move || {
        job.finalize().expect("pending");
        drive(&job, &[&during.1], Status::Null);
        *later.lock().expect("no panic") = Some(write(&during.0, 2));
    });
    shared.device().abandon();
    assert_eq!(cancelled.get(), Some(Err(Errno::ECANCELED)));
    let written = written.lock().expect("no panic").take().expect("the second filter was switched");
    assert_eq!(written.get(), None, "told, and its device is still at work on it");
    assert!(new.complete_one(1));
    assert_eq!(written.get(), Some(Ok(())));
}
