//! What each option of `mirror` does to real files: to their content, and to the blocks that they take.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use support::{MIB, Scratch, allocated, assert_equal, complaint, ends_with, json, mirror};

const LENGTH: u64 = 16 * MIB;

/// 2 MiB of data, 4 MiB of zeroes that were written, and holes.
fn thin(scratch: &Scratch) -> PathBuf {
    let source = scratch.file("src", LENGTH, &[(MIB, 3 * MIB)]);
    let mut file = fs::File::options().write(true).open(&source).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(8 * MIB)).unwrap();
    std::io::Write::write_all(&mut file, &vec![0; 4 << 20]).unwrap();
    source
}

/// A target that holds something else everywhere.
fn stale(scratch: &Scratch, name: &str) -> PathBuf {
    scratch.file(name, LENGTH, &[(0, LENGTH)])
}

#[track_caller]
fn assert_takes(path: &Path, mebibytes: u64) {
    // File systems round, and keep some blocks of their own for a file.
    let (takes, most) = (allocated(path), mebibytes * MIB + MIB / 4);
    assert!((mebibytes * MIB..=most).contains(&takes), "{path:?} takes {takes} bytes, not {mebibytes} MiB");
}

#[test]
fn a_thin_source_stays_thin_however_the_target_was() {
    let scratch = Scratch::new();
    let source = thin(&scratch);
    assert_takes(&source, 6);
    let rows: [(&str, &[&str], bool, u64); 9] = [
        ("new", &[], false, 2),
        ("new-off", &["--detect-zeroes", "off"], false, 6),
        ("new-kept", &["--no-unmap"], false, 2),
        ("new-zero", &["--target-is-zero"], false, 2),
        ("old", &[], true, 2),
        ("old-off", &["--detect-zeroes", "off"], true, 6),
        // Its blocks are kept, and hold zeroes.
        ("old-kept", &["--no-unmap"], true, 16),
        ("old-kept-off", &["--no-unmap", "--detect-zeroes", "off"], true, 16),
        ("old-blocking", &["--copy-mode", "write-blocking"], true, 2),
    ];
    for (name, more, was_full, takes) in rows {
        let target = if was_full { stale(&scratch, name) } else { scratch.path(name) };
        ends_with(mirror(&source, &target, &[more, &["--create"]].concat()), 0);
        assert_equal(&source, &target);
        assert_takes(&target, takes);
    }
}

#[test]
fn with_target_is_zero_zeroes_are_left_out_on_trust() {
    let scratch = Scratch::new();
    let source = thin(&scratch);
    let target = stale(&scratch, "true");
    let summary = json(&ends_with(mirror(&source, &target, &["--json"]), 0));
    assert!(summary["operations"]["zeroes"]["ops"].as_u64().unwrap() > 0, "{summary}");

    // Blocks that read as zero are not touched.
    let target = scratch.path("zero");
    fs::write(&target, vec![0; LENGTH as usize]).unwrap();
    let summary = json(&ends_with(mirror(&source, &target, &["--json", "--target-is-zero"]), 0));
    assert_equal(&source, &target);
    assert_takes(&target, 16);
    assert_eq!(summary["operations"]["zeroes"]["ops"], 0);
    assert_eq!(summary["operations"]["writes"]["bytes"], 2 * MIB);

    // Trust that is not deserved is found out by who looks.
    let target = stale(&scratch, "wrong");
    ends_with(mirror(&source, &target, &["--target-is-zero"]), 0);
    let message = complaint(&ends_with(
        mirror(&source, &stale(&scratch, "seen"), &["--target-is-zero", "--verify"]),
        1,
    ));
    assert!(message.contains("at offset 0: it did not read as zero, as --target-is-zero says"), "{message}");
}

#[test]
fn what_is_not_all_copied_is_compared() {
    let scratch = Scratch::new();
    let source = scratch.file("src", LENGTH, &[(9 * MIB + 5, 10 * MIB)]);
    let copy = scratch.path("copy");
    ends_with(mirror(&source, &copy, &["--create"]), 0);

    // Nothing is copied: well, if both are equal already.
    let output = ends_with(mirror(&source, &copy, &["--sync", "none", "--json"]), 0);
    let summary = json(&output);
    assert_eq!((&summary["verified"], &summary["bytes"]), (&true.into(), &0.into()));
    let new = scratch.path("none");
    let output = ends_with(mirror(&source, &new, &["--create", "--sync", "none", "--json"]), 1);
    let message = complaint(&output);
    let place = format!("differs from {} at offset {}", source.display(), 9 * MIB + 5);
    assert!(message.contains(&place), "{message}");
    assert!(message.contains("with --sync none nothing is copied"), "{message}");
    let summary = json(&output);
    assert_eq!(summary["result"], "failed");
    assert_eq!(summary["verified"], false);
    assert_eq!(summary["first_difference"], 9 * MIB + 5);
    assert_eq!(summary["error"], message);
    assert_eq!(allocated(&new), 0);

    // What is allocated: the rest is as it was.
    let output = ends_with(mirror(&source, &scratch.path("top"), &["--create", "--sync", "top"]), 0);
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("verified\n"));
    assert_equal(&source, &scratch.path("top"));
    let old = stale(&scratch, "old");
    let message = complaint(&ends_with(mirror(&source, &old, &["--sync", "top"]), 1));
    assert!(message.contains("at offset 0: with --sync top it keeps what it had"), "{message}");
    let (now, source) = (fs::read(&old).unwrap(), fs::read(&source).unwrap());
    let data = 9 * MIB as usize + 5..10 * MIB as usize;
    assert!(now[data.clone()] == source[data], "what is allocated was copied");
}

#[test]
fn copies_are_as_large_as_their_buffers() {
    let scratch = Scratch::new();
    let source = scratch.file("src", 8 * MIB, &[(0, 8 * MIB)]);
    let writes = |more: &[&str]| {
        let target = scratch.path("dst");
        let summary =
            json(&ends_with(mirror(&source, &target, &[more, &["--create", "--json"]].concat()), 0));
        assert_equal(&source, &target);
        fs::remove_file(target).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        (number(&summary["operations"]["writes"]["ops"]), number(&summary["granularity"]))
    };
    // Left to itself the library takes smaller ones until it knows how much the link takes.
    assert!(writes(&[]).0 >= 8);
    assert_eq!(writes(&["--in-flight", "16"]), (8, 4096));
    assert_eq!(writes(&["--granularity", "64K", "--in-flight", "16"]), (8, 65536));
    // No copy is larger than all buffers.
    assert!(writes(&["--granularity", "64K", "--buf-size", "64K", "--in-flight", "1"]).0 >= 128);
}
