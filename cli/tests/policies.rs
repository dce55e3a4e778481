//! What `--on-source-error` does with a source that fails: one that was cut short and comes back.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{MIB, Scratch, allocated, assert_equal, json, mirror};

/// More than any machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Copies a file that is cut while it is copied. It comes back when `restore` says so of what was said until then.
fn copy_what_is_cut(
    scratch: &Scratch,
    policy: &str,
    target: &Path,
    restore: impl Fn(&str) -> bool,
) -> (Output, String) {
    let whole = scratch.file("whole", 8 * MIB, &[(0, 8 * MIB)]);
    let (source, said) = (scratch.path("src"), scratch.path("said"));
    fs::copy(&whole, &source).unwrap();
    let more = ["--create", "--json", "--speed", "8M", "--on-source-error", policy];
    let mut command = mirror(&source, target, &more);
    let mut child = command.stderr(fs::File::create(&said).unwrap()).stdout(Stdio::piped()).spawn().unwrap();
    let wait_for = |child: &mut std::process::Child, condition: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !condition() && child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < PATIENCE, "it does not come to that");
            thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for(&mut child, &|| target.exists() && allocated(target) > 0);
    let cut = fs::File::options().write(true).open(&source).unwrap();
    cut.set_len(MIB).unwrap();
    wait_for(&mut child, &|| restore(&fs::read_to_string(&said).unwrap()));
    let bytes = fs::read(&whole).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&cut, &bytes, 0).unwrap();
    let output = child.wait_with_output().unwrap();
    (output, fs::read_to_string(&said).unwrap())
}

#[test]
fn a_source_that_fails_ends_the_copy_unless_it_is_to_be_waited_for() {
    for policy in ["report", "enospc", "auto"] {
        let scratch = Scratch::new();
        let target = scratch.path("dst");
        let (output, said) = copy_what_is_cut(&scratch, policy, &target, |_| false);
        assert_eq!(output.status.code(), Some(1), "{policy}: {said}");
        assert_eq!(said.lines().count(), 1, "{policy}: {said}");
        assert!(said.starts_with("blkmirror: read of the source at offset "), "{policy}: {said}");
        assert!(said.contains("(EIO)"), "{policy}: {said}");
        assert!(
            said.trim_end().ends_with(&format!("{} is incomplete", target.display())),
            "{policy}: {said}"
        );
        let summary = json(&output);
        assert_eq!(summary["result"], "failed");
        assert!(summary["operations"]["reads"]["errors"].as_u64().unwrap() >= 1, "{summary}");
    }
}

#[test]
fn a_source_that_comes_back_is_copied_whole() {
    for (policy, words) in
        [("ignore", "; trying again"), ("stop", "; waiting: trying again every 5 seconds, Ctrl-C gives up")]
    {
        let scratch = Scratch::new();
        let target = scratch.path("dst");
        let (output, said) =
            copy_what_is_cut(&scratch, policy, &target, |said| said.contains("read of the source"));
        assert_eq!(output.status.code(), Some(0), "{policy}: {said}");
        assert!(said.lines().next().unwrap().ends_with(words), "{policy}: {said}");
        assert_equal(&scratch.path("whole"), &target);
        let summary = json(&output);
        assert_eq!(summary["result"], "ok");
        assert!(summary["errors"].as_u64().unwrap() >= 1, "{summary}");
    }
}

#[test]
fn a_source_that_stays_away_is_not_told_of_for_ever() {
    let scratch = Scratch::new();
    let target = scratch.path("dst");
    // It comes back when no more is said.
    let notice = "there are more errors; they are only counted from here on";
    let (output, said) = copy_what_is_cut(&scratch, "ignore", &target, |said| said.contains(notice));
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.lines().count(), 11, "{said}");
    assert!(said.trim_end().ends_with(notice), "{said}");
    assert_equal(&scratch.path("whole"), &target);
    assert!(json(&output)["errors"].as_u64().unwrap() > 10);
}
