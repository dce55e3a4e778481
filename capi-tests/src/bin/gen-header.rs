//! Writes `include/blkmirror.h`, or with `--check` says whether it is what the sources make of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let check = std::env::args().nth(1).as_deref() == Some("--check");
    match run(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("gen-header: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool) -> Result<(), String> {
    let path = capi_tests::header_path();
    let header = capi_tests::generate_header()?;
    let shown = path.display();
    if !check {
        return std::fs::write(&path, header).map_err(|error| format!("{shown}: {error}"));
    }
    let committed = std::fs::read_to_string(&path).map_err(|error| format!("{shown}: {error}"))?;
    if committed == header {
        return Ok(());
    }
    let line = committed.lines().zip(header.lines()).take_while(|(old, new)| old == new).count() + 1;
    Err(format!(
        "{shown} differs from the sources from line {line} on: run `cargo run -p capi-tests --bin gen-header`"
    ))
}
