//! Ctrl-C: the first asks the command to stop, the second stops it.

use crate::failure::Failure;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Listens from now on. Whoever calls this is woken by the first Ctrl-C: the thread that polls the job.
pub(crate) fn install() -> Result<(), Failure> {
    let poller = thread::current();
    ctrlc::set_handler(move || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            process::exit(130);
        }
        poller.unpark();
    })
    .map_err(Failure::with("can't listen for Ctrl-C"))
}

/// Whether Ctrl-C was pressed.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
