//! What the module is, read from its file: it asks for nothing, and offers what the header declares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use wasmparser::{ExternalKind, Parser, Payload, TypeRef};

/// What a host without C's memory needs besides.
const OWN: [&str; 2] = ["mirror_wasm_alloc", "mirror_wasm_free"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn module() -> Vec<u8> {
    let path = std::env::var_os("BLKMIRROR_WASM")
        .map_or_else(|| root().join("target/wasm/blkmirror.wasm"), PathBuf::from);
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; `make test-wasm` builds it", path.display()))
}

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = std::fs::read_to_string(root().join("include/blkmirror.h")).expect("the header");
    let code: String = header
        .split("/*")
        .map(|part| part.split_once("*/").map_or(part, |(_, rest)| rest))
        .flat_map(str::lines)
        .filter(|line| !line.starts_with("//") && !line.starts_with([' ', '#', 't', 'e', '}']))
        .collect::<Vec<_>>()
        .join("\n");
    let names: BTreeSet<_> = code
        .lines()
        .filter_map(|line| line.split_once('('))
        .filter_map(|(before, _)| before.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("mirror_"))
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 50, "only {} functions were found", names.len());
    names
}

#[derive(Default)]
struct Contents {
    imports: Vec<String>,
    exports: BTreeMap<String, ExternalKind>,
    tables: Vec<wasmparser::TableType>,
    memories: Vec<wasmparser::MemoryType>,
    start: bool,
}

fn contents() -> Contents {
    let mut found = Contents::default();
    let bytes = module();
    for payload in Parser::new(0).parse_all(&bytes) {
        match payload.expect("well formed") {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.expect("well formed");
                    let what = if matches!(import.ty, TypeRef::Func(_)) { "function" } else { "other" };
                    found.imports.push(format!("{what} {}.{}", import.module, import.name));
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export.expect("well formed");
                    found.exports.insert(export.name.to_owned(), export.kind);
                }
            }
            Payload::TableSection(tables) => {
                found.tables.extend(tables.into_iter().map(|table| table.expect("well formed").ty));
            }
            Payload::MemorySection(memories) => {
                found.memories.extend(memories.into_iter().map(|memory| memory.expect("well formed")));
            }
            Payload::StartSection { .. } => found.start = true,
            _ => {}
        }
    }
    found
}

#[test]
fn the_module_imports_nothing_and_runs_nothing_by_itself() {
    let contents = contents();
    assert_eq!(contents.imports, Vec::<String>::new());
    assert!(!contents.start);
}

#[test]
fn it_exports_the_functions_of_the_header() {
    let exported: BTreeSet<_> = contents()
        .exports
        .into_iter()
        .filter(|(_, kind)| *kind == ExternalKind::Func)
        .map(|(name, _)| name)
        .collect();
    let mut wanted = declared();
    wanted.extend(OWN.map(str::to_owned));
    assert_eq!(exported, wanted);
}

#[test]
fn its_memory_and_its_table_are_a_host_s_to_use() {
    let contents = contents();
    assert_eq!(contents.exports.get("memory"), Some(&ExternalKind::Memory));
    assert_eq!(contents.exports.get("__indirect_function_table"), Some(&ExternalKind::Table));
    let [table] = contents.tables[..] else { panic!("{} tables", contents.tables.len()) };
    assert_eq!(table.maximum, None, "the table can't grow without end");
    assert_eq!(table.element_type, wasmparser::RefType::FUNCREF);
    let [memory] = contents.memories[..] else { panic!("{} memories", contents.memories.len()) };
    assert_eq!((memory.memory64, memory.shared, memory.maximum), (false, false, None));
    // So that a limit of 1 MiB leaves room to work in.
    assert!(memory.initial <= 8, "{} pages at the start", memory.initial);
}

#[test]
fn this_host_is_held_to_the_lints_of_the_library() {
    // A workspace of its own can't inherit them.
    let lints = |path: &str, from: &str| -> Vec<String> {
        let text = std::fs::read_to_string(root().join(path)).expect("a manifest");
        let rest = text.split_once(from).unwrap_or_else(|| panic!("{path} has no {from}")).1;
        let lines =
            rest.lines().map(str::trim).take_while(|line| *line != "[package]" && !line.starts_with("# The"));
        let tables = lines.filter(|line| line.contains(" = "));
        tables.map(str::to_owned).collect()
    };
    let library = lints("Cargo.toml", "[workspace.lints.rust]");
    assert!(library.len() > 15, "{library:?}");
    assert_eq!(lints("hosts/wasm/Cargo.toml", "\n[lints.rust]"), library);
}
