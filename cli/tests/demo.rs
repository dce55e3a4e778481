//! The demo, small.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use support::{MIB, Scratch, allocated, blkmirror, ends_with};

#[test]
fn nothing_is_lost_in_either_copy_mode() {
    let scratch = Scratch::new();
    let directory = scratch.path("");
    for mode in ["background", "write-blocking"] {
        let directory = directory.to_str().unwrap();
        let arguments = ["demo", "--size", "16M", "--seconds", "1", "--copy-mode", mode, "--dir", directory];
        let output = ends_with(blkmirror(arguments), 0);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("4096 of 4096 blocks verified"), "{mode}: {text}");
        assert!(text.ends_with("lost: 0\n"), "{mode}: {text}");
        assert!((8..=12).contains(&text.lines().count()), "{text}");
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "its files are gone");
}

#[test]
fn its_files_are_kept_if_that_is_wanted() {
    let scratch = Scratch::new();
    let directory = scratch.path("");
    let arguments =
        ["demo", "--size", "1M", "--seconds", "0", "--writers", "1", "--seed", "7", "--keep", "--dir"];
    let mut command = blkmirror(arguments);
    command.arg(&directory);
    let output = ends_with(command, 0);
    let kept = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with(&format!("The files are in {}.\n", kept.display())), "{text}");
    for name in ["old.img", "new.img"] {
        let path = kept.join(name);
        assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
        assert!(allocated(&path) < MIB, "{name} has holes");
    }
}
