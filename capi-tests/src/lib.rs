//! C programs that hold the C API to its word: `tests/run.rs` builds and runs those in `c/`, and this library makes the
//! header.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The files of the C API, in the order in which the header has them.
const SOURCES: [&str; 10] =
    ["constants", "version", "error", "device", "check", "filter", "options", "info", "event", "job"];

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
    let said = Command::new(cargo()).arg("-vV").output().map_err(|error| format!("cargo -vV: {error}"))?;
    let said = String::from_utf8_lossy(&said.stdout);
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "cargo -vV names no host".into())
}

/// The library as programs link it.
#[derive(Clone, Debug)]
pub struct Libraries {
    /// `libblkmirror.so`, or what it is called here.
    pub shared: PathBuf,
    /// `libblkmirror.a`.
    pub r#static: PathBuf,
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Builds the library in the profile that this runner was built in, and asks Cargo where it is.
pub fn libraries() -> Result<Libraries, String> {
    let me = std::env::current_exe().map_err(|error| error.to_string())?;
    // target/PROFILE/deps/run-HASH
    let profile = me.ancestors().nth(2).and_then(Path::file_name).ok_or("no profile in the runner's path")?;
    let profile = if profile == "debug" { "dev".into() } else { profile.to_os_string() };
    let output = Command::new(cargo())
        .args(["build", "-q", "-p", "blkmirror", "--locked", "--message-format=json-render-diagnostics"])
        .arg("--profile")
        .arg(profile)
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo build: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo build: {}", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = |suffix: &str| {
        let mut strings = messages.split('"').map(Path::new);
        let name = format!("libblkmirror{suffix}");
        strings
            .rfind(|path| path.file_name().is_some_and(|file| file == name.as_str()))
            .map(Path::to_path_buf)
            .ok_or(format!("cargo built no {name}"))
    };
    let shared = named(std::env::consts::DLL_SUFFIX)?;
    Ok(Libraries { shared, r#static: named(".a")? })
}
