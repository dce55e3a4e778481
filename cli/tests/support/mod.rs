//! What the tests of the command line share: a directory, files in it, and the program.

#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;

/// A directory that is gone after the test. It lies below the target directory, which is on a disk: where temporary
/// files are there may be no direct I/O.
pub(crate) struct Scratch {
    directory: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file of this length with data in these ranges and holes elsewhere.
    pub(crate) fn file(&self, name: &str, length: u64, data: &[(u64, u64)]) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(length).unwrap();
        for &(begin, end) in data {
            let bytes: Vec<u8> = (begin..end).map(|at| (at / 7 % 255 + 1) as u8).collect();
            file.write_all_at(&bytes, begin).unwrap();
        }
        path
    }
}

/// The program with these arguments, and with nothing to read.
pub(crate) fn blkmirror<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blkmirror"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `blkmirror mirror SRC DST` and more.
pub(crate) fn mirror(source: &Path, target: &Path, more: &[&str]) -> Command {
    let mut command = blkmirror([OsStr::new("mirror"), source.as_os_str(), target.as_os_str()]);
    command.args(more);
    command
}

/// Runs it to its end, which must be this exit code.
#[track_caller]
pub(crate) fn ends_with(mut command: Command, code: i32) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
    output
}

/// The one line that standard error must be, without the program's name.
#[track_caller]
pub(crate) fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().strip_prefix("blkmirror: ").unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[track_caller]
pub(crate) fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[track_caller]
pub(crate) fn assert_equal(one: &Path, other: &Path) {
    // Not `assert_eq`, which would print them.
    assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{one:?} and {other:?} differ");
}

/// What the file takes on the disk.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}
