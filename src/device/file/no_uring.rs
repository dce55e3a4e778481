//! Stands in for the ring where there is none: it can't be made.

use super::storage::Storage;
use super::workers::Workers;
use crate::device::{Answer, Completions, IoVec, Lane, Request, Token};
use std::io;
use std::sync::Arc;

/// What a ring would be made of.
pub(super) struct Parts {
    pub(super) storage: Arc<Storage>,
    pub(super) workers: Arc<Workers>,
    pub(super) completions: Completions,
    pub(super) read_only: bool,
}

/// A ring, of which there is none.
#[derive(Debug)]
pub(super) enum Uring {}

impl Uring {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let Parts { storage, workers, completions, read_only } = parts;
        drop((storage, workers, completions, read_only));
        Err(io::Error::new(io::ErrorKind::Unsupported, "this library was built without it"))
    }

    pub(super) fn lane(&self, _: IoVec) -> io::Result<Self> {
        match *self {}
    }

    pub(super) fn submit(&self, _: Token, _: &Request<'_>) -> Answer {
        match *self {}
    }
}

impl Lane for Uring {
    fn submit(&self, _: Token, _: &Request<'_>) -> Answer {
        match *self {}
    }

    fn send(&self) {
        match *self {}
    }

    fn reap(&self) {
        match *self {}
    }
}
