//! A C program that lives through a panic inside the library, which has to be built for tests; and the library that
//! ships has nothing of that.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the static library with the feature `testing`, in a place of its own.
fn library() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("testing");
    let status = Command::new(env!("CARGO"))
        .args(["rustc", "-q", "-p", "blkmirror", "--locked", "--features", "testing", "--lib"])
        .args(["--crate-type", "staticlib", "--target-dir"])
        .arg(&target)
        .current_dir(capi_tests::root())
        .status()
        .expect("cargo runs");
    assert!(status.success(), "{status}");
    target.join("debug/libblkmirror.a")
}

#[test]
fn a_panic_inside_ends_the_job_and_nothing_else() {
    // SPEC E-3
    let host = capi_tests::host().expect("cargo runs");
    let scratch = tempfile::tempdir().expect("a folder");
    let program = scratch.path().join("panic");
    let compiler = cc::Build::new()
        .cargo_metadata(false)
        .target(&host)
        .host(&host)
        .opt_level(1)
        .debug(true)
        .try_get_compiler()
        .expect("a C compiler");
    let output = compiler
        .to_command()
        .args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
        .arg(capi_tests::root().join("include"))
        .arg(capi_tests::root().join("capi-tests/c/testing/panic.c"))
        .arg(library())
        .args(["-ldl", "-lm", "-o"])
        .arg(&program)
        .output()
        .expect("the compiler runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = Command::new(&program).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    // It panicked, in all its variants.
    assert!(said.matches("a defect in the library").count() >= 18, "{said}");
}

#[test]
fn the_library_that_ships_has_no_defects_to_order() {
    let shared = std::fs::read(capi_tests::libraries().expect("it builds").shared).expect("readable");
    let contains = |name: &[u8]| shared.windows(name.len()).any(|window| window == name);
    assert!(contains(b"mirror_device_new_null") && !contains(b"mirror_testing_"));
}
