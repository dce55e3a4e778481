//! The two ends of a copy: opened, and seen to fit each other.

use super::options::Arguments;
use crate::failure::Failure;
use blkmirror::device::{Device, Limits, file};
use std::fs;
use std::io;
use std::path::Path;

/// Source and target, of one length.
pub(super) struct Endpoints {
    pub(super) source: Device,
    pub(super) target: Device,
}

impl Endpoints {
    /// Opens both. The options are checked in between, so that none that makes no sense leaves a new file behind.
    pub(super) fn open(arguments: &Arguments) -> Result<Self, Failure> {
        must_exist(&arguments.source, "there is nothing to copy")?;
        let open = file::OpenOptions {
            direct: arguments.direct,
            // What goes through the page cache is copied by a processor in any case; the kernel's own helpers sometimes
            // contend for the file so that they burn many times what it takes.
            threads: arguments.threads || !arguments.direct,
            workers: workers(arguments.in_flight),
            ..file::OpenOptions::default()
        };
        let source = file::open(&arguments.source, &file::OpenOptions { read_only: true, ..open })?;
        arguments
            .options()
            .check(source.length(), source.limits(), &Limits::default())
            .map_err(|error| Failure::Usage(as_typed(error.message())))?;
        if !arguments.create {
            must_exist(&arguments.target, "pass --create to make it")?;
        }
        let create = arguments.create.then(|| source.length());
        let target = file::open(&arguments.target, &file::OpenOptions { create, ..open })?;
        check_length(arguments, &source, &target)?;
        Ok(Self { source, target })
    }

    /// What both can be addressed in.
    pub(super) fn request_alignment(&self) -> u32 {
        self.source.limits().request_alignment.max(self.target.limits().request_alignment)
    }
}

/// What the library says of an option, with the option's name as it is typed.
fn as_typed(message: &str) -> String {
    [("granularity", "--granularity"), ("buf_size", "--buf-size")]
        .iter()
        .find_map(|(name, typed)| Some(format!("{typed}{}", message.strip_prefix(name)?)))
        .unwrap_or_else(|| message.to_owned())
}

fn must_exist(path: &Path, advice: &str) -> Result<(), Failure> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Failure::failed(format_args!("{}: no such file; {advice}", path.display())))
        }
        // Whatever else is wrong is said by who opens it.
        _ => Ok(()),
    }
}

/// As many threads as there can be requests, within what a device allows.
fn workers(in_flight: Option<u32>) -> usize {
    const MOST: u32 = 64;
    in_flight.map_or(0, |in_flight| in_flight.min(MOST) as usize)
}

/// A job would refuse it too, later and without the numbers.
fn check_length(arguments: &Arguments, source: &Device, target: &Device) -> Result<(), Failure> {
    let (has, wants) = (target.length(), source.length());
    if has == wants || source.is_same_storage(target) {
        return Ok(());
    }
    let how = if has < wants { "too short" } else { "too long" };
    let advice = if arguments.create {
        "its content is kept: remove it first, or give another name"
    } else if has == 0 {
        "pass --create to make it as long as the source"
    } else {
        "both must have the same length"
    };
    Err(Failure::failed(format_args!(
        "{}: {how}, it has {has} bytes and {} has {wants}; {advice}",
        arguments.target.display(),
        arguments.source.display(),
    )))
}
