//! The header is what the sources make of it, compiles everywhere, and lays structures out as the library does.

use blkmirror::capi::*;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};

/// Compiles a source that includes the header; what the compiler says if it refuses.
fn compile(standard: &str, source: &str) -> Result<(), String> {
    let host = capi_tests::host()?;
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let cpp = standard.starts_with("c++");
    let file = scratch.path().join(if cpp { "source.cpp" } else { "source.c" });
    std::fs::write(&file, source).map_err(|error| error.to_string())?;
    let compiler = cc::Build::new()
        .cargo_metadata(false)
        .target(&host)
        .host(&host)
        .opt_level(0)
        .cpp(cpp)
        .flag(format!("-std={standard}"))
        .try_get_compiler()
        .map_err(|error| error.to_string())?;
    let output = compiler
        .to_command()
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"])
        .arg(capi_tests::root().join("include"))
        .arg(&file)
        .output()
        .map_err(|error| format!("{}: {error}", compiler.path().display()))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn committed() -> String {
    std::fs::read_to_string(capi_tests::header_path()).expect("the header is committed")
}

#[test]
fn the_committed_header_is_what_the_sources_make_of_it() {
    let made = capi_tests::generate_header().expect("cbindgen");
    assert!(committed() == made, "run `cargo run -p capi-tests --bin gen-header`");
}

#[test]
fn it_compiles_alone_and_twice_as_c99_c11_and_cpp17() {
    for standard in ["c99", "c11", "c++17"] {
        for times in [1, 2] {
            let source = format!("{}int used;\n", "#include <blkmirror.h>\n".repeat(times));
            compile(standard, &source).unwrap_or_else(|said| panic!("{standard}, {times} times: {said}"));
        }
    }
    // The check can fail.
    compile("c11", "#include <blkmirror.h>\nmirror_nonsense used;\n").expect_err("no such type");
    compile("c99", "#include <blkmirror.h>\nint f(void) { return mirror_version(1); }\n")
        .expect_err("a bad call");
}

#[test]
fn each_function_is_declared_once() {
    let header = committed();
    let mut seen = std::collections::BTreeSet::new();
    for line in header.lines().filter(|line| !line.starts_with([' ', '/', '#', '}', 't', 'e', '*'])) {
        if let Some(at) = line.find("mirror_")
            && let Some(name) = line[at..].split_once('(').map(|(name, _)| name)
            && !name.contains(' ')
        {
            assert!(seen.insert(name.to_owned()), "{name} is declared twice");
        }
    }
    assert!(seen.len() > 40, "only {} functions were found", seen.len());
}

#[test]
fn each_function_and_field_is_documented() {
    let header = committed();
    let lines: Vec<_> = header.lines().collect();
    let mut declared = 0;
    for (at, line) in lines.iter().enumerate() {
        let is_function = !line.starts_with([' ', '/', '#', '}', 't', 'e'])
            && line.contains("mirror_")
            && line.contains('(');
        let is_field = line.starts_with("    ")
            && !line.starts_with("     ")
            && line.contains(' ')
            && !line.contains("//");
        let is_constant = line.starts_with("#define MIRROR_");
        if is_function || is_field || is_constant {
            declared += 1;
            assert!(lines[at - 1].trim_start().starts_with("//"), "not documented: {line}");
        }
    }
    assert!(declared > 150, "only {declared} declarations were looked at");
}

/// One row for each field of each structure: its name, offset and size. A field that is missing here does not compile.
macro_rules! layout {
    ($($name:ident { $($field:ident),* $(,)? })*) => {
        fn layout() -> Vec<(&'static str, usize, Vec<(&'static str, usize, usize)>)> {
            fn size<S, F>(_: fn(&S) -> &F) -> usize { size_of::<F>() }
            $({
                #[allow(unused)]
                fn complete(value: $name) { let $name { $($field: _),* } = value; }
            })*
            vec![$((
                stringify!($name),
                size_of::<$name>(),
                vec![$((
                    stringify!($field).trim_start_matches("r#"),
                    offset_of!($name, $field),
                    size(|value: &$name| &value.$field),
                )),*],
            )),*]
        }
    };
}

layout! {
    mirror_iovec { base, len }
    mirror_device_ops { struct_size, read, write, zero, discard, flush, extents, truncate, cancel, poll, close, copy }
    mirror_device_limits {
        struct_size, length, request_alignment, memory_alignment, max_iov, flags, max_transfer, max_zero, max_discard,
        zero_alignment, discard_alignment, cluster_size,
    }
    mirror_check_options { struct_size, flags, reserved, seed, max_bytes, timeout_ns }
    mirror_check_finding {
        struct_size, rule, spec, text, asked, expected, came, line, operation, flags, offset, length,
    }
    mirror_prepare_info { struct_size, sync, backing_mode }
    mirror_job_options {
        struct_size, id, kind, sync, copy_mode, backing_mode, on_source_error, on_target_error, flags, max_in_flight,
        granularity, buf_size, max_io, speed, pass_interval_ns, guest_first_io, guest_first_in_flight, reserved, replaces,
        wake, prepare, clock, opaque, closed,
    }
    mirror_counter { ops, bytes, errors }
    mirror_job_info {
        struct_size, id, message, kind, status, copy_mode, io_status, busy, paused, ready, actively_synced, result, speed,
        done, total, dirty, prepared, in_flight_bytes, in_flight_ops, guests, passes, reads, writes, zeroes, discards,
        flushes, active, skipped_zeroes, guest_writes, errors, events_dropped, dirty_rate, copy_rate, eta_ns, granularity,
        bounce_copies, copies,
    }
    mirror_event { struct_size, r#type, status, result, operation, side, action, offset, length }
}

#[test]
fn structures_are_laid_out_in_c_as_in_rust() {
    let mut source = String::from("#include <blkmirror.h>\n");
    for (name, total, fields) in layout() {
        writeln!(source, "_Static_assert(sizeof({name}) == {total}, \"{name}\");").expect("memory");
        for (field, offset, size) in fields {
            writeln!(
                source,
                "_Static_assert(offsetof({name}, {field}) == {offset} && sizeof((({name} *)0)->{field}) == {size}, \
                 \"{name}.{field}\");"
            )
            .expect("memory");
        }
    }
    assert!(source.lines().count() > 90, "{source}");
    compile("c11", &source).unwrap_or_else(|said| panic!("{said}"));
    // A number that is off by one is seen.
    compile("c11", &source.replace("type) == 8", "type) == 9")).expect_err("a wrong offset");
}

#[test]
fn there_is_no_padding_that_a_later_version_could_not_tell_from_a_field() {
    for (name, total, fields) in layout() {
        let mut end = 0;
        for (field, offset, size) in fields {
            assert_eq!(offset, end, "a gap before {name}.{field}");
            end = offset + size;
        }
        assert_eq!(end, total, "a gap at the end of {name}");
    }
}
