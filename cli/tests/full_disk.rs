//! A target that has no room for all of the source: the copy ends with an error, and the source is as it was.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::process::{Command, Stdio};
use support::{MIB, Scratch, complaint, json, mirror};

/// Runs a script of the shell in which `"$@"` is the program with its arguments.
fn within(script: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// The limit on a file's size stands in for a full disk: the same write fails, with `EFBIG` for `ENOSPC`.
#[test]
fn a_write_that_fails_ends_the_copy() {
    let scratch = Scratch::new();
    let source = scratch.file("src", 16 * MIB, &[(0, 16 * MIB)]);
    let target = scratch.file("dst", 16 * MIB, &[]);
    let before = fs::read(&source).unwrap();
    // In units of 512 bytes: 2 MiB.
    let output = within("ulimit -f 4096 && exec \"$@\"", &mirror(&source, &target, &["--json", "--verify"]))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let message = complaint(&output);
    assert!(message.contains("write of the target at offset"), "{message}");
    assert!(message.contains("file too large (EFBIG)"), "{message}");
    assert!(message.ends_with(&format!("{} is incomplete", target.display())), "{message}");
    let summary = json(&output);
    assert_eq!(summary["result"], "failed");
    assert_eq!(summary["verified"], serde_json::Value::Null);
    assert!(summary["errors"].as_u64().unwrap() >= 1);
    assert!(fs::read(&source).unwrap() == before, "the source is untouched");
}

/// A disk that is really full. It takes a mount, in a name space of its own, so that nothing is left of it.
#[test]
#[ignore = "mounts a file system: needs root, or user name spaces"]
fn a_full_disk_ends_the_copy() {
    let scratch = Scratch::new();
    let source = scratch.file("src", 16 * MIB, &[(0, 16 * MIB)]);
    let before = fs::read(&source).unwrap();
    let disk = scratch.path("disk");
    fs::create_dir(&disk).unwrap();
    let copy = mirror(&source, &disk.join("dst"), &["--create"]);
    let script = format!(
        "exec unshare --map-root-user --mount sh -c 'mount -t tmpfs -o size=4m tmpfs \"{}\" && exec \"$@\"' sh \"$@\"",
        disk.display()
    );
    let output = within(&script, &copy).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let message = complaint(&output);
    assert!(message.contains("write of the target at offset"), "{message}");
    assert!(message.contains("no space left on device (ENOSPC)"), "{message}");
    assert!(message.ends_with("is incomplete"), "{message}");
    assert!(fs::read(&source).unwrap() == before, "the source is untouched");
}

/// With the policies that don't give up, a full disk is waited for, and not without a word.
#[test]
#[ignore = "mounts a file system: needs root, or user name spaces; waits for five seconds, twice"]
fn a_copy_that_waits_for_room_goes_on_when_there_is_some() {
    for (policy, words) in [("enospc", "; waiting"), ("stop", "; waiting"), ("ignore", "; trying again")] {
        let scratch = Scratch::new();
        let source = scratch.file("src", 4 * MIB, &[(0, 4 * MIB)]);
        let disk = scratch.path("disk");
        fs::create_dir(&disk).unwrap();
        let copy = mirror(&source, &disk.join("dst"), &["--create", "--verify", "--on-target-error", policy]);
        let script = format!(
            "exec unshare --map-root-user --mount sh -c '
                mount -t tmpfs -o size=6m tmpfs \"{0}\" && head -c 4M /dev/zero > \"{0}/ballast\" || exit 9
                (while ! test -s \"{0}/../said\"; do sleep 0.1; done; rm \"{0}/ballast\") &
                \"$@\" 2> \"{0}/../said\"' sh \"$@\"",
            disk.display()
        );
        let output = within(&script, &copy).output().unwrap();
        let said = fs::read_to_string(scratch.path("said")).unwrap();
        assert_eq!(output.status.code(), Some(0), "{policy}: {output:?} {said}");
        assert!(said.contains(&format!("no space left on device (ENOSPC){words}")), "{policy}: {said}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("verified"), "{policy}");
    }
}
