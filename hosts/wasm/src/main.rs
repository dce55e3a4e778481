//! `blkmirror-wasm SOURCE TARGET` mirrors a disk in a file to another, with the library in Wasmtime, and switches over.

use blkmirror_wasm::constants::{COPY_WRITE_BLOCKING, EVENT_COMPLETED, EVENT_READY, EVENT_STATUS};
use blkmirror_wasm::disks::{Host, Live};
use blkmirror_wasm::guest::Guest;
use blkmirror_wasm::mirror::{Event, Mirror, Progress, Settings};
use blkmirror_wasm::module::Program;
use blkmirror_wasm::{bench, layout};
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "\
blkmirror-wasm [OPTIONS] SOURCE TARGET   mirrors SOURCE to TARGET, which is made, and switches over
blkmirror-wasm [OPTIONS] bench           what the module costs in time and memory, next to the native library
blkmirror-wasm layout                    the structures in linear memory, as a table

  --module FILE         the module; default: $BLKMIRROR_WASM, or target/wasm/blkmirror.wasm
  --writes NUMBER       a guest writes and reads so often meanwhile, and checks what it reads
  --seed NUMBER         what it does
  --active              its writes are carried to both disks before it sees them done
  --memory BYTES        most linear memory that the module may have
  --fuel NUMBER         most that the module may do, after which it is stopped and the guest goes on without
  --buffers BYTES       copy buffers
  --granularity BYTES   in which changes are tracked
  --speed BYTES         a second";

struct Arguments {
    module: PathBuf,
    writes: u64,
    seed: u64,
    fuel: Option<u64>,
    settings: Settings,
    names: Vec<String>,
}

fn arguments() -> Result<Arguments, String> {
    let module =
        std::env::var_os("BLKMIRROR_WASM").map_or_else(|| "target/wasm/blkmirror.wasm".into(), PathBuf::from);
    let mut parsed = Arguments {
        module,
        writes: 0,
        seed: 1,
        fuel: None,
        settings: Settings::default(),
        names: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        let number = |text: String| text.parse::<u64>().map_err(|error| format!("{word} {text}: {error}"));
        match word.as_str() {
            "--module" => parsed.module = value()?.into(),
            "--writes" => parsed.writes = number(value()?)?,
            "--seed" => parsed.seed = number(value()?)?,
            "--active" => parsed.settings.copy_mode = COPY_WRITE_BLOCKING,
            "--memory" => parsed.settings.memory_limit = Some(number(value()?)? as usize),
            "--fuel" => parsed.fuel = Some(number(value()?)?),
            "--buffers" => parsed.settings.buf_size = number(value()?)?,
            "--granularity" => parsed.settings.granularity = number(value()?)?,
            "--speed" => parsed.settings.speed = number(value()?)?,
            option if option.starts_with('-') => return Err(format!("{option}: no such option\n\n{USAGE}")),
            _ => parsed.names.push(word),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let result = arguments().map_err(Into::into).and_then(|arguments| match &arguments.names[..] {
        [word] if word == "bench" => bench::run(&arguments.module),
        [word] if word == "layout" => {
            print!("{}", layout::table());
            Ok(())
        }
        [source, target] => mirror(&arguments, Path::new(source), Path::new(target)),
        _ => Err(USAGE.into()),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blkmirror-wasm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(path: &Path) -> Result<File, String> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(|error| format!("{}: {error}", path.display()))
}

fn mirror(arguments: &Arguments, source: &Path, target: &Path) -> Result<(), Box<dyn Error>> {
    if !source.exists() {
        return Err(format!("{}: no such file", source.display()).into());
    }
    let files = [open(source)?, open(target)?];
    files[1].set_len(files[0].metadata()?.len())?;
    let program = Program::load(&arguments.module, arguments.fuel.is_some())?;
    let [source_file, target_file] = files;
    let host = Host::new(source_file, target_file, arguments.settings.memory_limit);
    let mut mirror = Mirror::new(&program, host, &arguments.settings)?;
    if let (Some(fuel), Some(module)) = (arguments.fuel, mirror.module()) {
        module.set_fuel(fuel)?;
    }
    let content = if arguments.writes > 0 { std::fs::read(source)? } else { Vec::new() };
    let mut guest = Guest::new(arguments.seed, content);
    let ended = drive(&mut mirror, &mut guest, arguments.writes)?;
    finish(&mut mirror, ended, source, target)
}

/// Polls until the mirror is over; the guest is busy all the time. How the job ended, if it said so.
fn drive(mirror: &mut Mirror, guest: &mut Guest, writes: u64) -> Result<Option<i32>, Box<dyn Error>> {
    // The module has no clock: it goes by what it is told.
    let began = Instant::now();
    let (mut left, mut ready, mut ended) = (writes, false, None);
    loop {
        let now = began.elapsed().as_nanos() as u64 + 1;
        let progress = mirror.poll(now, |event| {
            tell(began.elapsed(), event);
            ready |= event.record.number("type") == EVENT_READY;
            if event.record.number("type") == EVENT_COMPLETED {
                ended = Some(event.record.int("result"));
            }
        });
        if left > 0 {
            guest.ask(mirror);
            left -= 1;
        }
        guest.settle(mirror)?;
        if ready && left == 0 {
            ready = false;
            mirror.complete()?;
        }
        match progress {
            Progress::Over if left == 0 && guest.waits_for() == 0 => return Ok(ended),
            Progress::Idle { wake_at } if left == 0 => {
                let pause = wake_at.saturating_sub(began.elapsed().as_nanos() as u64);
                std::thread::sleep(Duration::from_nanos(pause).min(Duration::from_millis(1)));
            }
            _ => {}
        }
    }
}

fn tell(at: Duration, event: &Event) {
    let record = &event.record;
    let more = match record.number("type") {
        EVENT_STATUS => format!(" {}", event.status),
        EVENT_COMPLETED => format!(", result {}", record.int("result")),
        _ => String::new(),
    };
    println!("{:9.3} ms  {}{more}", at.as_secs_f64() * 1e3, event.word);
}

fn finish(
    mirror: &mut Mirror,
    ended: Option<i32>,
    source: &Path,
    target: &Path,
) -> Result<(), Box<dyn Error>> {
    if let Some(reason) = &mirror.lost {
        println!("there is no mirror any more: {reason}");
    }
    if let Some(info) = mirror.query() {
        println!("{} of {} bytes copied", info.number("done"), info.number("total"));
    }
    if let Some(module) = mirror.module() {
        println!("{} KiB of linear memory", module.memory_size() >> 10);
    }
    let live = if mirror.live() == Live::Source { source } else { target };
    println!("the guest's disk is {}", live.display());
    match ended {
        Some(0) => Ok(()),
        Some(result) => Err(format!("the job ended with {result}").into()),
        None => Err("the mirror was not finished".into()),
    }
}
