//! The engine of a file device: a few threads that carry out one blocking operation each.
//!
//! A worker holds on to the device while it carries out one of its requests. So the device isn't dropped, and
//! the request isn't cancelled, as long as the kernel may be touching the request's buffers; and the last
//! handle may be the worker's own. Once the device is being dropped, what is still queued has been cancelled
//! by it, and is forgotten here.

use super::storage::{Operation, Storage};
use crate::device::{Answer, Completions, IoVec, Request, Token};
use crate::error::{Errno, IoResult};
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Workers of a device unless its options say otherwise: enough to keep a disk busy while some of them wait
/// for it, few enough for a host with two cores and many disks.
pub(super) const DEFAULT_WORKERS: usize = 4;
/// Most workers of a device: beyond this, more threads only wait for each other.
pub(super) const MAX_WORKERS: usize = 64;
/// Lists of buffers that are kept for reuse. More requests than this in flight are rare, and cost an
/// allocation each.
const MAX_SPARE_LISTS: usize = 64;

/// Whether this is a thread of a file device, which must not wait for others of them: they may be waiting for it. A
/// thread that is ending can't tell: as if it were one.
pub(super) fn is_worker() -> bool {
    IS_WORKER.try_with(Cell::get).unwrap_or(true)
}

/// Starts a thread for a file device.
pub(super) fn start_thread(run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let _blocked = SignalsBlocked::begin();
    thread::Builder::new().name("blkmirror-file".to_owned()).spawn(move || {
        IS_WORKER.with(|is_worker| is_worker.set(true));
        run();
    })
}

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// The threads that work for one device. They are started when there is work that nobody is free for.
pub(super) struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    storage: Arc<Storage>,
    completions: Completions,
    /// Most threads.
    most: usize,
    queue: Mutex<Queue>,
    /// There is something in the queue, or it is closed.
    news: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Bounded by what the device's clients have slots for.
    waiting: VecDeque<(Token, Operation)>,
    spare_lists: Vec<Vec<IoVec>>,
    threads: Vec<JoinHandle<()>>,
    /// How many of the threads wait for news.
    idle: usize,
    closed: bool,
}

impl Workers {
    /// At most `most` threads that work on `storage`; 0 is the default.
    pub(super) fn new(storage: Arc<Storage>, completions: Completions, most: usize) -> Self {
        let most = if most == 0 { DEFAULT_WORKERS } else { most };
        Self {
            shared: Arc::new(Shared {
                storage,
                completions,
                most: most.min(MAX_WORKERS),
                queue: Mutex::default(),
                news: Condvar::new(),
            }),
        }
    }

    /// Queues a request. `ENOMEM` if there is no thread and none can be started.
    pub(super) fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        let list = self.shared.lock().spare_lists.pop().unwrap_or_default();
        match self.take(token, Operation::new(request, list)) {
            Ok(()) => Answer::Pending,
            Err(errno) => Answer::Done(Err(errno)),
        }
    }

    /// Queues an operation.
    pub(super) fn take(&self, token: Token, operation: Operation) -> IoResult {
        let mut queue = self.shared.lock();
        if queue.waiting.len() >= queue.idle && queue.threads.len() < self.shared.most {
            match start(&self.shared) {
                Ok(thread) => queue.threads.push(thread),
                Err(error) if queue.threads.is_empty() => {
                    drop(queue);
                    log::error!("blkmirror: no thread for a file device can be started: {error}");
                    return Err(Errno::ENOMEM);
                }
                // Those that there are will do.
                Err(_) => {}
            }
        }
        queue.waiting.push_back((token, operation));
        drop(queue);
        self.shared.news.notify_one();
        Ok(())
    }
}

impl Drop for Workers {
    /// Waits until the threads are gone and the file is closed, so that a host can unmount what it lies on. A
    /// worker doesn't wait for others, since they may be waiting for it; the last to leave closes the file
    /// then.
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        queue.waiting.clear();
        let threads = mem::take(&mut queue.threads);
        drop(queue);
        self.shared.news.notify_all();
        if is_worker() {
            return;
        }
        for thread in threads {
            // If it panicked, the panic has been told, and there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back a list of buffers and waits for the next request; `None` when there will be none.
    fn next(&self, list: Option<Vec<IoVec>>) -> Option<(Token, Operation)> {
        let mut queue = self.lock();
        if let Some(list) = list
            && queue.spare_lists.len() < MAX_SPARE_LISTS
        {
            queue.spare_lists.push(list);
        }
        loop {
            if queue.closed {
                return None;
            }
            if let Some(next) = queue.waiting.pop_front() {
                return Some(next);
            }
            queue.idle += 1;
            queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

fn start(shared: &Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    start_thread(move || run(&shared))
}

fn run(shared: &Shared) {
    let mut list = None;
    while let Some((token, mut operation)) = shared.next(list.take()) {
        work(shared, token, &mut operation);
        list = Some(operation.into_list());
    }
}

fn work(shared: &Shared, token: Token, operation: &mut Operation) {
    // Without a device there is nobody to tell, and the buffers may be gone.
    let Some(device) = shared.completions.device() else {
        return;
    };
    let result =
        shared.storage.carry_out(operation, &mut |extent| device.extent(token, extent).unwrap_or(false));
    // A request that was given up meanwhile needs no answer.
    let _ = device.complete(token, result);
}

/// Keeps all signals from the thread, and from those that it starts, until dropped: a library's threads must
/// not run the host's signal handlers, nor die of `SIGXFSZ` where a write can fail with `EFBIG`.
struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    fn begin() -> Self {
        // SAFETY: a signal set is numbers, for which zero is a value; the sets are live and initialised
        // before use.
        unsafe {
            let mut all: libc::sigset_t = mem::zeroed();
            let mut before: libc::sigset_t = mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self { before }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `before` is what this thread's mask was.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::file::storage::FileKind;
    use crate::device::testing::TestClient;
    use crate::device::{Backend, Device, Flags, Kind, Limits};
    use crate::range::ByteRange;
    use std::sync::mpsc;

    impl Backend for Arc<Workers> {
        fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
            Workers::submit(self, token, request)
        }
    }

    #[test]
    fn a_thread_is_started_when_nobody_is_free() {
        let file = tempfile::tempfile().expect("a temporary file");
        let storage = Storage::new(file, None, FileKind::Regular, false).expect("memory");
        let mut workers = None;
        let device = Device::new(4096, Limits::default(), |completions| {
            let made = Arc::new(Workers::new(Arc::new(storage), completions, 2));
            workers = Some(Arc::clone(&made));
            Ok(made)
        })
        .expect("a device");
        let workers = workers.expect("made");
        let threads = || workers.shared.lock().threads.len();
        assert_eq!(threads(), 0, "nothing to do yet");

        let client = TestClient::new(&device);
        let (go_on, wait) = mpsc::channel();
        let wait = Arc::new(Mutex::new(wait));
        let mut sent = Vec::new();
        for expected in [1, 2, 2, 2] {
            let wait = Arc::clone(&wait);
            let block = move || wait.lock().expect("not poisoned").recv().expect("told to go on");
            let range = ByteRange::between(0, 512);
            sent.push(client.send_then(
                Kind::Write,
                range,
                Flags::default(),
                &[7; 512],
                Some(Box::new(block)),
            ));
            assert_eq!(threads(), expected);
        }
        (0..4).for_each(|_| go_on.send(()).expect("somebody waits"));
        assert!(sent.iter().all(|sent| client.wait(sent).result.is_ok()));
        assert_eq!(threads(), 2);
    }

    #[test]
    fn lists_of_buffers_are_used_again() {
        let file = tempfile::tempfile().expect("a temporary file");
        let storage = Storage::new(file, None, FileKind::Regular, false).expect("memory");
        let mut workers = None;
        let device = Device::new(4096, Limits::default(), |completions| {
            let made = Arc::new(Workers::new(Arc::new(storage), completions, 1));
            workers = Some(Arc::clone(&made));
            Ok(made)
        })
        .expect("a device");
        let client = TestClient::new(&device).with_segments(64);
        for _ in 0..10 {
            assert_eq!(client.write(0, &[1; 4096]), Ok(()));
        }
        drop((client, device));
        let workers = workers.expect("made");
        // The worker gives back the last one when it has told of the request.
        while workers.shared.lock().idle == 0 {
            std::thread::yield_now();
        }
        // One may be with the worker while the next request takes another.
        let spare = &workers.shared.lock().spare_lists;
        assert!((1..=2).contains(&spare.len()), "{} lists", spare.len());
        assert!(spare.iter().all(|list| list.is_empty() && list.capacity() >= 64));
    }
}
