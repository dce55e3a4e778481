//! C programs that hold the C API to its word: `tests/run.rs` builds and runs those in `c/`, and this library makes the
//! header.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of the C API, in the order in which the header has them.
const SOURCES: [&str; 9] =
    ["constants", "version", "error", "device", "filter", "options", "info", "event", "job"];

/// Where the library's sources are.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// The committed header.
#[must_use]
pub fn header_path() -> PathBuf {
    root().join("include/blkmirror.h")
}

/// The header as the sources have it now.
pub fn generate_header() -> Result<String, String> {
    let root = root();
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml"))?;
    let builder = SOURCES.iter().fold(cbindgen::Builder::new().with_config(config), |builder, name| {
        builder.with_src(root.join(format!("src/capi/{name}.rs")))
    });
    let mut header = Vec::new();
    builder.generate().map_err(|error| error.to_string())?.write(&mut header);
    let header = String::from_utf8(header).map_err(|error| error.to_string())?;
    // cbindgen turns the alias of a nullable callback into a type of its own, which C can't use.
    if header.contains("Option_") {
        return Err("the header names an Option_ type: spell the callback out where it is used".into());
    }
    Ok(header)
}

/// This machine, as Cargo names it.
pub fn host() -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let said = Command::new(cargo).arg("-vV").output().map_err(|error| format!("cargo -vV: {error}"))?;
    let said = String::from_utf8_lossy(&said.stdout);
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "cargo -vV names no host".into())
}
