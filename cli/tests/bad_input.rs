//! What can't be copied: each has an exit code and a line that says what to do.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use support::{MIB, Scratch, blkmirror, complaint, ends_with, mirror};

#[test]
fn each_bad_file_is_refused_with_a_reason() {
    let scratch = Scratch::new();
    let source = scratch.file("src", MIB, &[(0, MIB)]);
    let before = fs::read(&source).unwrap();
    scratch.file("good", MIB, &[]);
    scratch.file("short", MIB - 1, &[]);
    scratch.file("long", MIB + 1, &[]);
    scratch.file("empty", 0, &[]);
    fs::create_dir(scratch.path("dir")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        scratch.path("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    fs::hard_link(&source, scratch.path("hard")).unwrap();
    symlink("src", scratch.path("soft")).unwrap();
    symlink("nowhere", scratch.path("dangling")).unwrap();

    let rows: [(&str, &str, &[&str], &str); 15] = [
        ("none", "good", &[], "none: no such file"),
        ("dir", "good", &[], "dir: a directory, not a regular file or block device"),
        ("pipe", "good", &[], "pipe: a pipe, not a regular file or block device"),
        ("src", "none", &[], "none: no such file; pass --create to make it"),
        ("src", "dangling", &[], "dangling: no such file; pass --create"),
        ("src", "dir", &[], "dir: a directory"),
        ("src", "dir", &["--create"], "dir: a directory"),
        ("src", "pipe", &[], "pipe: a pipe"),
        ("src", "no/where", &["--create"], "no such directory"),
        ("src", "short", &[], "short: too short, it has 1048575 bytes and"),
        ("src", "long", &["--create"], "long: too long, it has 1048577 bytes and"),
        ("src", "empty", &[], "pass --create to make it as long as the source"),
        ("src", "src", &[], "target: is the source itself"),
        ("src", "hard", &["--create"], "target: is the source itself"),
        ("src", "soft", &[], "target: is the source itself"),
    ];
    for (from, to, more, reason) in rows {
        let output = ends_with(mirror(&scratch.path(from), &scratch.path(to), more), 1);
        let message = complaint(&output);
        assert!(message.contains(reason), "{from} to {to}: {message}");
        assert_eq!(output.stdout, b"", "{from} to {to}");
    }
    assert!(fs::read(&source).unwrap() == before, "the source is untouched");
    assert!(!scratch.path("none").exists());
}

#[test]
fn a_target_that_cannot_be_written_is_refused() {
    let scratch = Scratch::new();
    let source = scratch.file("src", MIB, &[(0, MIB)]);
    // A program that runs can't be written by anybody, root included.
    let running = Path::new(env!("CARGO_BIN_EXE_blkmirror"));
    let message = complaint(&ends_with(mirror(&source, running, &[]), 1));
    assert!(message.contains("Text file busy"), "{message}");

    let target = scratch.file("locked", MIB, &[]);
    let mut permissions = fs::metadata(&target).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&target, permissions).unwrap();
    // Root may write to it all the same.
    if fs::File::options().write(true).open(&target).is_err() {
        let message = complaint(&ends_with(mirror(&source, &target, &[]), 1));
        assert!(message.contains("permission denied; make it writable"), "{message}");
    }
}

#[test]
#[ignore = "sets up a loop device: needs root"]
fn a_write_protected_disk_is_refused() {
    let scratch = Scratch::new();
    let (source, image) = (scratch.file("src", MIB, &[(0, MIB)]), scratch.file("image", MIB, &[]));
    let set_up =
        Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(&image).output().unwrap();
    assert!(set_up.status.success(), "{set_up:?}");
    let disk = String::from_utf8(set_up.stdout).unwrap();
    let disk = Path::new(disk.trim_end());
    let refused = mirror(&source, disk, &[]).output();
    let copied = mirror(disk, &image, &["--verify"]).output();
    assert!(Command::new("losetup").arg("--detach").arg(disk).status().unwrap().success());
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(complaint(&refused).ends_with("the disk is write-protected; open it read-only"), "{refused:?}");
    let copied = copied.unwrap();
    assert!(copied.status.success(), "as a source it is as good as any: {copied:?}");
}

#[test]
fn each_bad_option_is_refused_with_the_rule() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.file("src", MIB, &[(0, MIB)]), scratch.path("dst"));
    for (more, reason) in [
        (&["--granularity", "3000"][..], "--granularity 3000: must be a power of two from 512 to 67108864"),
        (&["--granularity", "128M"], "--granularity 134217728: must be a power of two"),
        (&["--granularity", "1"], "--granularity 1: must be a power of two"),
        (&["--granularity", ""], "invalid value '' for '--granularity <SIZE>'"),
        (&["--in-flight", "1025"], "invalid value '1025' for '--in-flight <N>': 1025 is not in 1..=1024"),
        (&["--in-flight", "0"], "invalid value '0' for '--in-flight <N>': 0 is not in 1..=1024"),
        (&["--buf-size", "1T"], "--buf-size 1099511627776: must be at most"),
        (&["--buf-size", "16 M"], "invalid value '16 M' for '--buf-size <SIZE>': a size is"),
        (&["--speed", "64KB"], "invalid value '64KB' for '--speed <SIZE>': a size is a whole number"),
        (&["--speed", "20000P"], "does not fit in 64 bits"),
        (&["--in-flight", "-1"], "unexpected argument '-1'"),
        (&["--in-flight", "many"], "invalid value 'many' for '--in-flight <N>'"),
        (&["--sync", "some"], "possible values: full, top, none"),
        (&["--copy-mode", "fast"], "possible values: background, write-blocking"),
        (&["--on-source-error", "retry"], "invalid value 'retry' for '--on-source-error <POLICY>'"),
        (&["--target-is-zero=yes"], "unexpected value 'yes' for '--target-is-zero'"),
        (&["--no-unmap=1"], "unexpected value '1' for '--no-unmap'"),
        (&["--verify", "--verify"], "'--verify' cannot be used multiple times"),
        (&["--on-target-error", "panic"], "possible values: report, ignore, stop, enospc, auto"),
        (&["--detect-zeroes", "maybe"], "possible values: on, off"),
        (&["--fast"], "unexpected argument '--fast'"),
        (&["third"], "unexpected argument 'third'"),
    ] {
        let mut arguments = vec!["--create"];
        arguments.extend(more);
        let message = complaint(&ends_with(mirror(&source, &target, &arguments), 2));
        assert!(message.contains(reason), "{more:?}: {message}");
        assert!(!target.exists(), "{more:?}: nothing was done");
    }
    for (arguments, reason) in [
        (&[][..], "requires a subcommand"),
        (&["copy"], "unrecognized subcommand 'copy'"),
        (&["mirror", "one"], "required arguments were not provided: <DST>"),
        (&["demo", "--size", "100K"], "size 102400: must be from 512 KiB for 4 writers"),
        (&["demo", "--writers", "0"], "0 is not in 1..=64"),
    ] {
        let message = complaint(&ends_with(blkmirror(arguments), 2));
        assert!(message.contains(reason), "{arguments:?}: {message}");
    }
}

#[test]
fn a_demo_without_a_place_is_refused() {
    let scratch = Scratch::new();
    let nowhere = scratch.path("nowhere");
    let message = complaint(&ends_with(blkmirror(["demo", "--dir", nowhere.to_str().unwrap()]), 1));
    assert!(message.contains("no directory for the demo can be made"), "{message}");
}
