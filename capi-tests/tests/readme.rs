//! The README's C example compiles without a warning and mirrors a file.

use std::path::Path;
use std::process::Command;

#[test]
fn the_example_of_the_readme_mirrors_a_file() {
    let readme = std::fs::read_to_string(capi_tests::root().join("README.md")).expect("the README is there");
    let example =
        readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a C example");
    let host = capi_tests::host().expect("cargo runs");
    let scratch = tempfile::tempdir().expect("a folder");
    let place = |name: &str| scratch.path().join(name);
    std::fs::write(place("example.c"), example).expect("writes");
    let shared = capi_tests::libraries().expect("the library builds").shared;
    let libraries = shared.parent().expect("in a folder");
    let compiler = cc::Build::new()
        .cargo_metadata(false)
        .target(&host)
        .host(&host)
        .opt_level(1)
        .try_get_compiler()
        .expect("a C compiler");
    let output = compiler
        .to_command()
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(capi_tests::root().join("include"))
        .arg(place("example.c"))
        .arg("-o")
        .arg(place("example"))
        .arg("-L")
        .arg(libraries)
        .args(["-lblkmirror", &format!("-Wl,-rpath,{}", libraries.display())])
        .output()
        .expect("the compiler runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let content: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(place("old"), &content).expect("writes");
    let run = |old: &Path| Command::new(place("example")).arg(old).arg(place("new")).output().expect("runs");
    let output = run(&place("old"));
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("result 0, 1000000 bytes"), "{output:?}");
    assert_eq!(std::fs::read(place("new")).expect("reads"), content);
    let missing = run(&place("missing"));
    assert!(
        !missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("missing"),
        "{missing:?}"
    );
}
