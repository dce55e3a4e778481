//! Devices that let one wait, and checks that can't be made.

use super::*;
use blkmirror::device::{Answer, Backend, Completions, Request, Token, scatter};
use blkmirror::error::Errno;
use blkmirror::filter::Filter;
use std::sync::{Arc, Mutex};

/// Takes every request and completes none, until it is told to.
#[derive(Default)]
struct Held {
    tokens: Vec<(Token, Vec<blkmirror::device::IoVec>)>,
    completions: Option<Completions>,
}

struct Holding(Arc<Mutex<Held>>);

impl Backend for Holding {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        self.0.lock().expect("not poisoned").tokens.push((token, request.iov.to_vec()));
        Answer::Pending
    }
}

fn holding() -> (Device, Arc<Mutex<Held>>) {
    let held = Arc::new(Mutex::new(Held::default()));
    let shared = Arc::clone(&held);
    let device = Device::new(MIB, Limits::default(), |completions| {
        shared.lock().expect("not poisoned").completions = Some(completions);
        Ok(Holding(shared.clone()))
    });
    (device.expect("a device"), held)
}

fn refusal(device: &Device, options: &Options) -> (Errno, String) {
    let error = check(device, options, &mut |_| ()).expect_err("refused");
    (error.errno(), error.message().to_owned())
}

#[test]
fn a_device_that_never_completes_is_left_alone_and_keeps_the_memory() {
    let (device, held) = holding();
    let report = judge(&device, &impatient());
    assert!(report.findings.iter().all(|finding| finding.rule == Rule::Answers), "{}", lines(&report));
    assert_eq!(report.findings.len(), 3, "it is not asked again and again");
    assert!(report.stages.iter().all(|(_, progress)| *progress == Progress::GivenUp));

    // It still writes to what it was given, and completes it: nothing of that is gone.
    let (errno, message) = refusal(&device, &impatient());
    assert_eq!(errno, Errno::EBUSY);
    assert!(message.contains("an earlier check has requests out"), "{message}");
    let (completions, tokens) = {
        let mut held = held.lock().expect("not poisoned");
        (held.completions.clone().expect("set"), std::mem::take(&mut held.tokens))
    };
    assert_eq!(tokens.len(), 3);
    for (token, iov) in tokens {
        scatter(&iov, 0, &[9; 4096]);
        assert_eq!(completions.complete(token, Ok(())), Ok(()));
        assert!(completions.complete(token, Ok(())).is_err());
    }
    // With the last of them the seat is free.
    assert_eq!(judge(&device, &impatient()).findings.len(), 3);
}

#[test]
fn a_device_that_is_dropped_with_requests_out_takes_the_memory_along() {
    let (device, held) = holding();
    judge(&device, &impatient());
    let token = held.lock().expect("not poisoned").tokens[0].0;
    drop(device);
    let completions = held.lock().expect("not poisoned").completions.clone().expect("set");
    assert!(completions.complete(token, Ok(())).is_err());
}

/// Panics when another thread than the first calls it.
struct Panicking(std::thread::ThreadId);

impl Backend for Panicking {
    fn submit(&self, _: Token, request: &Request<'_>) -> Answer {
        assert_eq!(std::thread::current().id(), self.0, "a defect in a device");
        scatter(request.iov, 0, &vec![0; request.range.len() as usize]);
        Answer::Done(Ok(()))
    }
}

#[test]
fn a_panic_of_a_device_reaches_the_caller() {
    let this = std::thread::current().id();
    let device = Device::new(MIB, Limits::default(), |_| Ok(Panicking(this))).expect("a device");
    let checked = std::panic::AssertUnwindSafe(|| check(&device, &options(), &mut |_| ()));
    let panic = std::panic::catch_unwind(checked).expect_err("the device panics");
    let text = panic.downcast_ref::<String>().expect("a text");
    assert!(text.contains("a defect in a device"), "{text}");
    // What it was given when it panicked it may still have.
    assert_eq!(refusal(&device, &options()).0, Errno::EBUSY);
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_destroyed() {
    let device = Device::memory(MIB).expect("memory");
    let filter = Filter::new(&device).expect("a filter");
    filter.write_at(0, b"precious").expect("is written");
    for (options, errno, reason) in [
        (Options::default(), Errno::EINVAL, "destroy: must be set"),
        (
            Options { max_bytes: 1000, ..options() },
            Errno::EINVAL,
            "max_bytes 1000: must be 0 or at least 1048576",
        ),
        (options(), Errno::EBUSY, "the device is used by a filter or a job"),
    ] {
        let (seen, message) = refusal(&device, &options);
        assert_eq!(seen, errno);
        assert!(message.contains(reason), "{message}");
    }
    let mut bytes = [0; 8];
    filter.read_at(0, &mut bytes).expect("is read");
    assert_eq!(&bytes, b"precious");
    drop(filter);
    // What it promised at first has ended with the first write, so that it can be judged more than once.
    for _ in 0..2 {
        conforms(&device, "memory that was in use");
    }
}
