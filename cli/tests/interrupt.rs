//! Ctrl-C, as a signal.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};
use support::{MIB, Scratch, allocated, blkmirror, complaint, json, mirror};

/// More than any machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn wait_until(child: &mut Child, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(child.try_wait().unwrap().is_none(), "it ended too soon");
        assert!(begin.elapsed() < PATIENCE, "it does not begin");
        thread::sleep(Duration::from_millis(5));
    }
}

fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

#[test]
fn a_copy_is_cancelled_and_says_that_it_is_incomplete() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.file("src", 64 * MIB, &[(0, 64 * MIB)]), scratch.path("dst"));
    // It would take a minute.
    let mut child = mirror(&source, &target, &["--create", "--speed", "1M", "--json"]).spawn().unwrap();
    wait_until(&mut child, || target.exists() && allocated(&target) > 0);
    let begin = Instant::now();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(20), "it goes on as if nothing had happened");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(complaint(&output), format!("interrupted: {} is incomplete", target.display()));
    let summary = json(&output);
    assert_eq!(summary["result"], "cancelled");
    assert!(summary["bytes"].as_u64().unwrap() < 64 * MIB);
}

#[test]
fn a_demo_is_cancelled_and_cleans_up() {
    let scratch = Scratch::new();
    let directory = scratch.path("demo");
    fs::create_dir(&directory).unwrap();
    let mut child =
        blkmirror(["demo", "--size", "16M", "--seconds", "600", "--dir", directory.to_str().unwrap()])
            .spawn()
            .unwrap();
    let runs =
        || fs::read_dir(&directory).unwrap().any(|entry| entry.unwrap().path().join("new.img").exists());
    wait_until(&mut child, runs);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(complaint(&output).starts_with("interrupted"));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "its files are gone");
}
