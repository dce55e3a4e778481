//! The structures lie in linear memory as this host has it, by the word of a compiler for WebAssembly.

use blkmirror_wasm::layout::{ALL, Layout, table};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What Clang says of a source that includes the header.
fn compile(source: &str) -> Result<(), String> {
    let mut clang = Command::new("clang")
        .args(["--target=wasm32", "-ffreestanding", "-fsyntax-only", "-std=c11", "-Werror", "-xc", "-I"])
        .arg(root().join("include"))
        .arg("-")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("clang is what knows how WebAssembly lays C out: apt-get install clang");
    clang.stdin.take().expect("a pipe").write_all(source.as_bytes()).expect("it reads");
    let output = clang.wait_with_output().expect("it ends");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn asserted(layouts: &[&Layout]) -> String {
    let mut source = String::from("#include <blkmirror.h>\n");
    for layout in layouts {
        let name = layout.name;
        writeln!(source, "_Static_assert(sizeof({name}) == {}, \"{name}\");", layout.size()).expect("memory");
        for (field, kind, offset) in layout.offsets() {
            let (size, _) = kind.size_and_alignment();
            writeln!(
                source,
                "_Static_assert(offsetof({name}, {field}) == {offset} && sizeof((({name} *)0)->{field}) == {size}, \
                 \"{name}.{field}\");"
            )
            .expect("memory");
        }
    }
    source
}

#[test]
fn structures_lie_as_a_compiler_lays_them_out() {
    compile(&asserted(&ALL)).unwrap_or_else(|said| panic!("{said}"));
    // A number that is off by one is seen.
    compile(&asserted(&ALL).replacen("== 8", "== 9", 1)).expect_err("a wrong number");
}

#[test]
fn no_structure_and_no_field_is_missing() {
    let header = std::fs::read_to_string(root().join("include/blkmirror.h")).expect("the header");
    let mut found = Vec::new();
    for part in header.split("typedef struct {\n").skip(1) {
        let (body, rest) = part.split_once("\n} ").expect("a structure ends");
        let name = rest.split(';').next().expect("and has a name").to_owned();
        // Each field has a line that begins it, at one indent.
        let fields = body
            .lines()
            .filter(|line| line.starts_with("    ") && !line.starts_with("     ") && !line.contains("//"))
            .count();
        found.push((name, fields));
    }
    let ours: Vec<_> = ALL.iter().map(|layout| (layout.name.to_owned(), layout.fields.len())).collect();
    assert_eq!(found, ours);
}

#[test]
fn the_documentation_has_them_as_they_are() {
    let page = std::fs::read_to_string(root().join("docs/WEBASSEMBLY.md")).expect("docs/WEBASSEMBLY.md");
    assert!(page.contains(&table()), "replace the tables with what `blkmirror-wasm layout` prints");
}
