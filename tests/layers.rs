//! The layers of the library, held by reading its sources: who may use whom, and where `unsafe` may stand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each module and those that it may use. Every arrow goes down this list; there are none back.
const LAYERS: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("error", &[]),
    ("clock", &[]),
    ("random", &[]),
    ("range", &["error"]),
    ("reserve", &["error", "random"]),
    ("bitmap", &["error", "range", "sync"]),
    ("device", &["error", "range", "reserve", "sync"]),
    // A client of devices, as the filter and the job are.
    ("conformance", &["error", "range", "clock", "random", "reserve", "device"]),
    // Of the devices the engine knows kinds, flags, extents and limits: data, no behaviour.
    ("engine", &["error", "range", "clock", "reserve", "bitmap", "device"]),
    ("filter", &["error", "range", "reserve", "sync", "bitmap", "device"]),
    ("job", &["error", "range", "clock", "reserve", "sync", "bitmap", "device", "engine", "filter"]),
    (
        "capi",
        &[
            "error",
            "range",
            "reserve",
            "clock",
            "device",
            "conformance",
            "engine",
            "filter",
            "job",
            "testing",
        ],
    ),
    ("testing", &["error", "range", "clock", "random", "device", "engine", "filter", "job"]),
];

/// Where `unsafe` may stand: foreign pointers, memory that is lent to devices, lock-free slots, system calls.
const UNSAFE: &[&str] = &[
    "capi/",
    "device/",
    "bitmap/",
    "conformance/memory.rs",
    "filter/",
    "job/buffers.rs",
    "job/driver.rs",
    "job/signal.rs",
    // An allocator.
    "reserve.rs",
    "testing/",
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    assert!(found.len() > 30, "the sources are somewhere else: {}", root.display());
    found
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("readable");
            (path.strip_prefix(&root).expect("below the root").to_owned(), text)
        })
        .collect()
}

/// The code without comments, so that prose may name what code may not.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Modules that are named after `crate::`, also in a list such as `crate::{error, range}`.
fn used(code: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    code.split("crate::")
        .skip(1)
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(list) => {
                list.split('}').next().unwrap_or_default().split(',').map(|item| name(item.trim())).collect()
            }
            None => vec![name(rest)],
        })
        .collect()
}

#[test]
fn no_module_uses_one_above_it() {
    for (path, text) in sources() {
        let module =
            path.components().next().expect("a name").as_os_str().to_string_lossy().replace(".rs", "");
        if module == "lib" {
            continue;
        }
        let (_, may) = LAYERS
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{module} has no layer"));
        for other in used(&code(&text)) {
            let known = LAYERS.iter().any(|(name, _)| *name == other);
            assert!(
                !known || other == module || may.contains(&other.as_str()),
                "{} uses {other}",
                path.display()
            );
        }
    }
}

#[test]
fn the_list_itself_has_no_arrow_back() {
    for (index, (name, may)) in LAYERS.iter().enumerate() {
        for used in *may {
            let below = LAYERS[..index].iter().any(|(other, _)| other == used)
                || (*name, *used) == ("capi", "testing");
            assert!(below, "{name} uses {used}, which stands above it");
        }
    }
}

#[test]
fn unsafe_stands_only_where_it_is_needed() {
    let mut seen = 0;
    for (path, text) in sources() {
        let path = path.to_string_lossy().into_owned();
        let has = code(&text).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        seen += u32::from(has);
        assert!(!has || UNSAFE.iter().any(|place| path.starts_with(place)), "unsafe in {path}");
    }
    assert!(seen > 5, "the search finds nothing");
}

#[test]
fn the_engine_touches_nothing_of_the_operating_system() {
    for (path, text) in sources() {
        if path.starts_with("engine") {
            for word in
                ["std::fs", "std::io", "std::net", "std::thread", "std::time", "Instant", "libc::", "Mutex"]
            {
                assert!(!code(&text).contains(word), "{} uses {word}", path.display());
            }
        }
    }
}
