//! Copies that succeed, and what they report.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use support::{MIB, Scratch, allocated, assert_equal, blkmirror, complaint, ends_with, json, mirror};

/// An odd end, data across chunks, data in the last bytes.
const LENGTH: u64 = 20 * MIB + 777;
const DATA: &[(u64, u64)] = &[(0, 5000), (3 * MIB + 100, 5 * MIB), (20 * MIB + 770, LENGTH)];

#[test]
fn a_file_with_holes_is_copied_with_its_holes() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.file("src", LENGTH, DATA), scratch.path("dst"));
    let output = ends_with(mirror(&source, &target, &["--create", "--verify"]), 0);
    assert_equal(&source, &target);
    assert!(allocated(&target) <= 3 * MIB, "{} bytes are allocated", allocated(&target));
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.ends_with("verified\n") && line.lines().count() == 1, "{line}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "there is no bar without a terminal");
}

#[test]
fn what_the_target_held_is_gone_afterwards() {
    let scratch = Scratch::new();
    let source = scratch.file("src", LENGTH, DATA);
    for (name, more) in [
        ("plain", &[][..]),
        ("no-unmap", &["--no-unmap"]),
        ("coarse", &["--granularity", "1M", "--in-flight", "2", "--buf-size", "2M"]),
        ("blocking", &["--copy-mode", "write-blocking", "--detect-zeroes", "off"]),
    ] {
        let target = scratch.file(name, LENGTH, &[(1000, LENGTH)]);
        ends_with(mirror(&source, &target, more), 0);
        assert_equal(&source, &target);
    }
}

#[test]
fn direct_copies_are_whole_too() {
    let scratch = Scratch::new();
    for (name, length) in [("whole", 8 * MIB), ("odd", 8 * MIB + 777), ("small", 100)] {
        let source = scratch.file("src", length, &[(0, length / 3), (length / 2, length)]);
        let target = scratch.path(name);
        let mut command = mirror(&source, &target, &["--create", "--direct", "--verify", "--json"]);
        let output = command.output().unwrap();
        if output.status.code() == Some(1) && complaint(&output).contains("does not do direct I/O") {
            return;
        }
        assert_eq!(json(&output)["verified"], true, "{name}: {output:?}");
        assert_equal(&source, &target);
    }
}

#[test]
fn zeroes_that_were_written_become_holes_unless_unwanted() {
    let scratch = Scratch::new();
    let source = scratch.path("src");
    fs::write(&source, vec![0; 4 << 20]).unwrap();
    for (name, more, most, least) in
        [("on", &["--create"][..], 0, 0), ("off", &["--create", "--detect-zeroes", "off"], 5 * MIB, 4 * MIB)]
    {
        let target = scratch.path(name);
        ends_with(mirror(&source, &target, more), 0);
        assert_equal(&source, &target);
        assert!((least..=most).contains(&allocated(&target)), "{name}: {} allocated", allocated(&target));
    }
}

#[test]
fn an_empty_file_is_copied_and_an_empty_target_gets_its_length() {
    let scratch = Scratch::new();
    let (empty, full) = (scratch.file("empty", 0, &[]), scratch.file("full", MIB, &[(0, MIB)]));
    for (source, name) in [(&empty, "missing"), (&empty, "there"), (&full, "there")] {
        let target = scratch.path(name);
        ends_with(mirror(source, &target, &["--create", "--verify"]), 0);
        assert_equal(source, &target);
    }
}

#[test]
fn the_summary_has_the_numbers() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.file("src", LENGTH, DATA), scratch.path("dst"));
    let output = ends_with(mirror(&source, &target, &["--create", "--verify", "--json"]), 0);
    let summary = json(&output);
    assert_eq!(summary["source"], source.to_str().unwrap());
    assert_eq!(summary["target"], target.to_str().unwrap());
    assert_eq!(summary["result"], "ok");
    assert_eq!(summary["error"], serde_json::Value::Null);
    assert_eq!(summary["length"], LENGTH);
    assert_eq!(summary["errors"], 0);
    assert_eq!(summary["verified"], true);
    assert_eq!(summary["first_difference"], serde_json::Value::Null);
    assert_eq!(summary["granularity"], 4096);
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let data: u64 = DATA.iter().map(|(begin, end)| end - begin).sum();
    assert!((data..=data + 4 * 4096).contains(&number(&summary["bytes"])), "{summary}");
    assert!(summary["seconds"].as_f64().unwrap() > 0.0);
    assert!(number(&summary["rate"]) > 0);
    for operation in ["reads", "writes"] {
        let counter = &summary["operations"][operation];
        assert!(number(&counter["ops"]) > 0, "{summary}");
        assert!(number(&counter["bytes"]) >= data, "{summary}");
        assert_eq!(counter["errors"], 0);
    }
    assert!(number(&summary["operations"]["flushes"]["ops"]) > 0);
}

#[test]
fn the_speed_is_kept_to() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.file("src", 6 * MIB, &[(0, 6 * MIB)]), scratch.path("dst"));
    let output = ends_with(mirror(&source, &target, &["--create", "--speed", "4M", "--json"]), 0);
    let seconds = json(&output)["seconds"].as_f64().unwrap();
    assert!(seconds > 1.0, "6 MiB at 4 MiB/s took {seconds} s");
}

#[test]
fn help_and_version_are_no_errors() {
    for argument in ["--help", "--version", "help"] {
        let output = ends_with(blkmirror([argument]), 0);
        assert!(String::from_utf8(output.stdout).unwrap().contains("blkmirror"));
    }
}
