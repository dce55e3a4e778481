//! `blkmirror`: mirrors disk images and block devices, and shows that a live one can be.

mod bench;
mod check_device;
mod ctl;
mod demo;
mod drive;
mod failure;
mod interrupt;
mod mirror;
mod output;
mod size;

use clap::{Parser, Subcommand};
use failure::Failure;
use std::process::ExitCode;

/// Mirror disk images and block devices.
///
/// Sizes are bytes, or a number with K, M, G, T or P for powers of 1024, such as 64K, 1M or 2GiB.
/// The exit code is 0 if all went well, 1 if something failed, 2 for options that make no sense, and 130 after Ctrl-C.
#[derive(Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = false)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Mirror(mirror::Arguments),
    Demo(demo::Arguments),
    Bench(bench::Arguments),
    CheckDevice(check_device::Arguments),
    Ctl(ctl::Arguments),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure);
            failure.exit_code()
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // What was asked for is no error.
        Err(help) if !help.use_stderr() => return output::say(help.render()),
        Err(error) => return Err(Failure::usage(&error)),
    };
    interrupt::install()?;
    match &arguments.command {
        Command::Mirror(arguments) => mirror::run(arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::CheckDevice(arguments) => check_device::run(arguments),
        Command::Ctl(arguments) => ctl::run(arguments),
    }
}
