//! Builds each program in `c/` against the shared and the static library, runs both, and prints what came of it.
//!
//! `cargo test -p capi-tests --test run -- NAME` runs those whose name contains NAME. A program passes if it exits with 0
//! within the time limit; it checks with `c/harness.h` and says how many checks it made.

use std::ffi::OsString;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// No program takes seconds; one that does hangs.
const TIME_LIMIT: Duration = Duration::from_secs(120);
const THREADS: usize = 2;

type Result<T> = std::result::Result<T, String>;

struct Outcome {
    name: String,
    linkage: &'static str,
    result: Result<String>,
    took: Duration,
}

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--ignored") {
        // None of the programs is.
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    match run(&filter) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("{failed} failed");
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("run: {message}");
            ExitCode::FAILURE
        }
    }
}

/// How many programs failed.
fn run(filter: &str) -> Result<usize> {
    let programs = programs(filter)?;
    let libraries = capi_tests::libraries()?;
    let compiler = compiler()?;
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let work = Mutex::new(programs.iter());
    let outcomes = Mutex::new(Vec::new());
    let next = || work.lock().ok()?.next();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(program) = next() {
                    let tried = try_program(program, &libraries, &compiler, scratch.path());
                    tried.iter().for_each(print);
                    outcomes.lock().expect("no thread panics with it").extend(tried);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().map_err(|error| error.to_string())?;
    let failed = outcomes.iter().filter(|outcome| outcome.result.is_err()).count();
    println!("{} programs, {} runs, {failed} failed", programs.len(), outcomes.len());
    Ok(failed)
}

fn print(outcome: &Outcome) {
    let Outcome { name, linkage, result, took } = outcome;
    let took = took.as_millis();
    match result {
        Ok(said) => println!("ok    {name:<20} {linkage:<7} {took:>6} ms  {said}"),
        Err(why) => println!("FAILS {name:<20} {linkage:<7} {took:>6} ms\n{}\n", why.trim_end()),
    }
}

fn programs(filter: &str) -> Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("c");
    let entries = folder.read_dir().map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut programs: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .filter(|path| path.file_stem().is_some_and(|stem| stem.to_string_lossy().contains(filter)))
        .collect();
    programs.sort();
    if programs.is_empty() {
        return Err(format!("no program in {} is named like '{filter}'", folder.display()));
    }
    Ok(programs)
}

/// The C compiler that `cc` finds for this machine.
fn compiler() -> Result<cc::Tool> {
    let host = capi_tests::host()?;
    cc::Build::new()
        .cargo_metadata(false)
        .target(&host)
        .host(&host)
        .opt_level(1)
        .debug(true)
        .warnings(true)
        .extra_warnings(true)
        .flag("-std=c11")
        .flag("-D_GNU_SOURCE")
        .flag("-Werror")
        .flag("-pthread")
        .try_get_compiler()
        .map_err(|error| error.to_string())
}

/// Builds and runs a program with each of the libraries.
fn try_program(
    program: &Path,
    libraries: &capi_tests::Libraries,
    compiler: &cc::Tool,
    scratch: &Path,
) -> Vec<Outcome> {
    let name = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let object = scratch.join(format!("{name}.o"));
    let mut compile = compiler.to_command();
    compile.arg("-I").arg(capi_tests::root().join("include")).arg("-c").arg(program).arg("-o").arg(&object);
    let compiled = finish(&mut compile, "compile");
    let folder = libraries.shared.parent().unwrap_or(Path::new("."));
    let rpath = format!("-Wl,-rpath,{}", folder.display());
    let linkages: [(&'static str, Vec<OsString>); 2] = [
        ("shared", vec![libraries.shared.clone().into(), rpath.into()]),
        ("static", vec![libraries.r#static.clone().into(), "-ldl".into(), "-lm".into()]),
    ];
    let try_one = |(linkage, arguments): (&'static str, Vec<OsString>)| {
        let begin = Instant::now();
        let executable = scratch.join(format!("{name}-{linkage}"));
        let result = compiled.clone().and_then(|_| {
            let mut link = Command::new(compiler.path());
            finish(link.arg(&object).args(arguments).arg("-pthread").arg("-o").arg(&executable), "link")?;
            finish(Command::new(&executable).current_dir(scratch), "run")
        });
        Outcome { name: name.clone(), linkage, result, took: begin.elapsed() }
    };
    linkages.map(try_one).into()
}

/// Runs a command to its end; what it said, or why it failed with what it said.
fn finish(command: &mut Command, step: &str) -> Result<String> {
    let run = || -> std::io::Result<_> {
        let mut said = tempfile::tempfile()?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?);
        let how = wait(&mut command.spawn()?)?;
        let mut text = Vec::new();
        said.seek(SeekFrom::Start(0))?;
        said.read_to_end(&mut text)?;
        Ok((how, String::from_utf8_lossy(&text).trim_end().to_owned()))
    };
    match { run }() {
        Ok((None, said)) => Ok(said),
        Ok((Some(how), said)) => Err(format!("{step}: {how}\n{said}")),
        Err(error) => Err(format!("{step}: {error}")),
    }
}

/// Waits for a child, and ends it at the time limit. How it failed, if it did.
fn wait(child: &mut Child) -> std::io::Result<Option<String>> {
    let limit = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((!status.success()).then(|| status.to_string()));
        }
        if Instant::now() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(Some(format!("hangs for {TIME_LIMIT:?}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
