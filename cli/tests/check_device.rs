//! `blkmirror check-device`: the verdict, for people and for scripts.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::{MIB, Scratch, blkmirror, complaint, ends_with, json};

fn check(file: &Path, more: &[&str]) -> Command {
    let mut command = blkmirror([OsStr::new("check-device"), file.as_os_str()]);
    command.args(more);
    command
}

#[test]
fn a_file_conforms_cached_and_direct() {
    let scratch = Scratch::new();
    for (name, more) in [("cached", &[][..]), ("direct", &["--direct"])] {
        let file = scratch.path(name);
        let mut arguments = vec!["--destroy", "--create", "--size", "2M"];
        arguments.extend(more);
        let output = ends_with(check(&file, &arguments), 0);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(&format!("{}: conforms, after ", file.display())), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(output.stderr, b"");
        assert_eq!(fs::metadata(&file).unwrap().len(), 2 * MIB);
    }
}

#[test]
fn a_script_gets_json() {
    let scratch = Scratch::new();
    let file = scratch.file("disk", MIB + 1, &[(0, 5000)]);
    let verdict = json(&ends_with(check(&file, &["--destroy", "--json", "--seed", "9"]), 0));
    assert_eq!(verdict["conforms"], true);
    assert_eq!(verdict["findings"].as_array().unwrap().len(), 0);
    assert_eq!(verdict["length"], MIB + 1);
    assert_eq!(verdict["bytes"], MIB + 1);
    assert!(verdict["requests"].as_u64().unwrap() > 100);
    let stages = verdict["stages"].as_array().unwrap();
    assert!(stages.iter().any(|stage| stage["name"] == "extents" && stage["progress"] == "done"));
    assert!(stages.iter().any(|stage| stage["name"] == "refusals" && stage["progress"] == "skipped"));
}

#[test]
fn a_file_that_can_not_be_written_any_more_is_told_to_fail() {
    let scratch = Scratch::new();
    let file = scratch.file("disk", 8 * MIB, &[]);
    // A limit on the size of files is a disk that is full from there on.
    let limited = |json: &str| {
        let mut command = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_blkmirror");
        let file = file.display();
        command.arg("-c").arg(format!(
            "trap '' XFSZ; ulimit -f 4096; exec '{program}' check-device '{file}' --destroy {json}"
        ));
        command
    };
    let output = ends_with(limited(""), 1);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.lines().all(|line| line.starts_with("D-1 succeeds: ")), "{said}");
    assert!(said.contains("it failed: file too large (EFBIG)"), "{said}");
    let message = complaint(&output);
    assert!(
        message.ends_with(&format!("disk: does not conform: {} findings", said.lines().count())),
        "{message}"
    );

    let verdict = json(&ends_with(limited("--json"), 1));
    assert_eq!(verdict["conforms"], false);
    let finding = &verdict["findings"][0];
    assert_eq!((&finding["rule"], &finding["spec"]), (&"succeeds".into(), &"D-1".into()));
    assert_eq!(finding["operation"], "write");
    assert!(finding["offset"].as_u64().unwrap() + finding["length"].as_u64().unwrap() > 2 * MIB);
}

#[test]
fn nothing_is_destroyed_unasked() {
    let scratch = Scratch::new();
    let file = scratch.file("disk", MIB, &[(0, MIB)]);
    let before = fs::read(&file).unwrap();
    let missing = scratch.path("missing");
    for (path, more, code, reason) in [
        (&file, &[][..], 2, "whatever it holds would be destroyed; pass --destroy"),
        (&file, &["--destroy", "--max-bytes", "4K"], 1, "max_bytes 4096: must be 0 or at least 1048576"),
        (&file, &["--destroy", "--create"], 2, "--size <SIZE>"),
        (&file, &["--destroy", "--timeout", "0"], 2, "0 is not in 1..=3600"),
        (&missing, &["--destroy"], 1, "no such file"),
        (&missing, &["--create", "--size", "1M"], 2, "pass --destroy"),
    ] {
        let message = complaint(&ends_with(check(path, more), code));
        assert!(message.contains(reason), "{more:?}: {message}");
    }
    assert!(fs::read(&file).unwrap() == before, "it is what it was");
    assert!(!missing.exists());
}
