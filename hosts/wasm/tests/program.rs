//! The program itself, as its usage says.

mod common;

use common::{content, module_path};
use std::process::Command;

/// What it prints; the source and the target afterwards.
fn mirror(options: &[&str]) -> (bool, String, Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let [source, target] = ["source", "target"].map(|name| folder.path().join(name));
    std::fs::write(&source, content(4 << 20)).expect("room for it");
    let output = Command::new(env!("CARGO_BIN_EXE_blkmirror-wasm"))
        .arg("--module")
        .arg(module_path())
        .args(options)
        .args([&source, &target])
        .output()
        .expect("it runs");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let [source, target] = [source, target].map(|path| std::fs::read(path).expect("it is there"));
    (output.status.success(), said, source, target)
}

#[test]
fn it_mirrors_a_file_and_says_so() {
    let (well, said, source, target) = mirror(&[]);
    assert!(well, "{said}");
    assert!(source == content(4 << 20) && target == source);
    for words in ["status running", "ready", "completed, result 0", "the guest's disk is", "/target"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
}

#[test]
fn a_guest_that_writes_meanwhile_ends_on_the_target() {
    let (well, said, source, target) = mirror(&["--writes", "300", "--active", "--buffers", "65536"]);
    assert!(well, "{said}");
    assert!(target != content(4 << 20) && source.len() == target.len());
}

#[test]
fn without_fuel_the_guest_keeps_its_source() {
    let (well, said, ..) = mirror(&["--writes", "300", "--fuel", "2000000", "--speed", "4194304"]);
    assert!(!well);
    assert!(said.contains("there is no mirror any more") && said.contains("fuel"), "{said}");
    assert!(said.contains("/source\n"), "{said}");
}
