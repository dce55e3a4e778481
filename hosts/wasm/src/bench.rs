//! What the module costs: the same work in Wasmtime and in the library that this program links, and what a mirror of a
//! terabyte takes of linear memory.

use crate::constants::POLL_CONCLUDED;
use crate::disks::{Callbacks, Host};
use crate::layout::{IOVEC, JOB_OPTIONS, Record};
use crate::module::{Module, Program, Result};
use blkmirror::capi::{
    mirror_device_free, mirror_device_new_null, mirror_filter_free, mirror_filter_new, mirror_filter_write,
    mirror_iovec,
};
use blkmirror::device::{Limits, Null, NullOptions};
use blkmirror::engine::Options;
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions, PollState};
use std::error::Error;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr;
use std::time::Instant;

const CHUNK: u64 = 64 << 10;
const COPIES: u64 = 100_000;
const WRITES: u32 = 1_000_000;

/// Measures and prints.
pub fn run(path: &Path) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let program = Program::load(path, false)?;
    println!("the module is compiled in {} ms", began.elapsed().as_millis());
    println!("{:32} {:>8} {:>8}", "", "native", "module");
    let (native, module) = (least(copy_natively)?, least(|| copy_in_module(&program))?);
    println!("{:32} {native:5.0} ns {module:5.0} ns", "a copy of 64 KiB, null to null");
    let (native, module) = (least(write_natively)?, least(|| write_in_module(&program))?);
    println!("{:32} {native:5.0} ns {module:5.0} ns", "a guest's write, no job");
    println!("\na mirror of 1 TiB, of linear memory, buffers of 1 MiB among it:");
    // All that there are.
    for granularity in (9..=26).map(|bits| 1 << bits) {
        match memory_of_job(&program, 1 << 40, granularity) {
            Ok(bytes) => println!("granularity {granularity:>9}: {:8} KiB", bytes >> 10),
            Err(error) => println!("granularity {granularity:>9}: {error}"),
        }
    }
    Ok(())
}

/// The least of several measurements: the machine does other things too.
fn least(measure: impl Fn() -> Result<f64, Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    (0..10).map(|_| measure()).try_fold(f64::INFINITY, |least, measured| Ok(least.min(measured?)))
}

fn per(began: Instant, count: u64) -> f64 {
    began.elapsed().as_nanos() as f64 / count as f64
}

fn options() -> Options {
    Options {
        granularity: CHUNK,
        max_io: CHUNK,
        auto_complete: true,
        detect_zeroes: false,
        ..Options::default()
    }
}

fn copy_natively() -> Result<f64, Box<dyn Error>> {
    let device = || Null::device(CHUNK * COPIES, Limits::default(), NullOptions::default());
    let filter = Filter::new(&device()?)?;
    let job = Job::new(&filter, &device()?, JobOptions { options: options(), ..JobOptions::default() })?;
    job.start()?;
    let began = Instant::now();
    while job.poll(blkmirror::clock::monotonic())?.state != PollState::Concluded {}
    Ok(per(began, COPIES))
}

/// By the C API, as the module is used.
fn write_natively() -> Result<f64, Box<dyn Error>> {
    unsafe extern "C" fn done(_: *mut c_void, _: c_int) {}
    let (mut device, mut filter) = (ptr::null_mut(), ptr::null_mut());
    let mut data = [1_u8; 4096];
    let iov = mirror_iovec { base: data.as_mut_ptr().cast(), len: data.len() };
    // SAFETY: the outputs are there to be written; the device goes with the filter, which is freed last.
    let made = unsafe {
        mirror_device_new_null(1 << 30, 0, &raw mut device) | mirror_filter_new(device, &raw mut filter)
    };
    let began = Instant::now();
    let mut failed = made;
    for request in 0..WRITES {
        let offset = u64::from(request) * 4096 % (1 << 30);
        // SAFETY: the list and the data outlive the request, which a null device finishes at once.
        failed |=
            unsafe { mirror_filter_write(filter, offset, &raw const iov, 1, 0, Some(done), ptr::null_mut()) };
    }
    let spent = per(began, WRITES.into());
    // SAFETY: handles that were made above, not used again.
    unsafe {
        mirror_device_free(device);
        mirror_filter_free(filter);
    }
    if failed == 0 { Ok(spent) } else { Err("a native call failed".into()) }
}

fn bare(program: &Program) -> Result<Module, Box<dyn Error>> {
    let nothing = || std::fs::File::open("/dev/null");
    Ok(Module::new(program, Host::new(nothing()?, nothing()?, None))?)
}

fn null(module: &mut Module, length: u64) -> Result<u32> {
    module.make(|module, out| module.try_call("mirror_device_new_null", (length, 0u32, out)))
}

/// A job between two devices that keep nothing.
fn job(module: &mut Module, length: u64, granularity: u64, buf_size: u64) -> Result<u32> {
    let source = null(module, length)?;
    let target = null(module, length)?;
    let filter = module.make(|module, out| module.try_call("mirror_filter_new", (source, out)))?;
    let (_, mut options) = module.fill(&JOB_OPTIONS, |module, options| {
        module.try_call("mirror_job_options_init", (options, JOB_OPTIONS.size() as u32))
    })?;
    options.set("granularity", granularity);
    options.set("buf_size", buf_size);
    options.set("max_io", if buf_size == 0 { CHUNK } else { 0 });
    // As above: complete by itself, look for no zeroes.
    options.set("flags", (options.number("flags") | 32) & !4);
    let made = module.with(&options, |module, options| {
        module.make(|module, out| module.try_call("mirror_job_new", (filter, target, options, out)))
    });
    Ok(made?.0)
}

fn copy_in_module(program: &Program) -> Result<f64, Box<dyn Error>> {
    let mut module = bare(program)?;
    let job = job(&mut module, CHUNK * COPIES, CHUNK, 0)?;
    module.try_call("mirror_job_start", (job,))?;
    let wake = module.alloc(8, 8)?;
    let began = Instant::now();
    let now = || began.elapsed().as_nanos() as u64 + 1;
    while module.try_call("mirror_job_poll", (job, now(), wake))? != POLL_CONCLUDED {}
    Ok(per(began, COPIES))
}

fn write_in_module(program: &Program) -> Result<f64, Box<dyn Error>> {
    let mut module = bare(program)?;
    let callbacks = Callbacks::add(&mut module)?;
    let device = null(&mut module, 1 << 30)?;
    let filter = module.make(|module, out| module.try_call("mirror_filter_new", (device, out)))?;
    let list = module.alloc(8 + 4096, 8)?;
    let mut iov = Record::new(&IOVEC);
    iov.set("base", (list + 8).into());
    iov.set("len", 4096);
    module.bytes(list, 8)?.copy_from_slice(&iov.bytes);
    let write = module.function::<(u32, u64, u32, u32, u32, u32, u32), i32>("mirror_filter_write")?;
    let began = Instant::now();
    for request in 0..WRITES {
        let offset = u64::from(request) * 4096 % (1 << 30);
        let answer =
            module.call_function(&write, (filter, offset, list, 1_u32, 0_u32, callbacks.done, request))?;
        if answer != 0 {
            return Err(module.last_error()?.into());
        }

        module.host().finished.clear();
    }
    Ok(per(began, WRITES.into()))
}

fn memory_of_job(program: &Program, length: u64, granularity: u64) -> Result<usize, Box<dyn Error>> {
    let mut module = bare(program)?;
    let buf_size = (1 << 20).max(granularity);
    job(&mut module, length, granularity, buf_size)?;
    Ok(module.memory_size())
}
