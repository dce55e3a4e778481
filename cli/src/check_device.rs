//! `blkmirror check-device`: is this file, or disk, what a mirror takes a device for?
//!
//! It shows what the library's own file device makes of a file system or a disk, and what a report looks like; devices of
//! a host are judged from its own program, with `mirror_device_check`.

use crate::failure::Failure;
use crate::output::say;
use crate::size::Size;
use blkmirror::conformance::{self, Finding, Options, Progress, Report};
use blkmirror::device::{Device, file};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Judge a scratch file or disk: whatever it holds is destroyed
#[derive(Args)]
pub(crate) struct Arguments {
    /// The file or block device
    file: PathBuf,

    /// It holds nothing that anybody needs: without this nothing is done
    #[arg(long)]
    destroy: bool,

    /// Make the file if it is missing
    #[arg(long, requires = "size")]
    create: bool,

    /// How long a file that is made, or is empty, becomes
    #[arg(long, requires = "create")]
    size: Option<Size>,

    /// Bypass the page cache
    #[arg(long)]
    direct: bool,

    /// Another number tries other places and lengths
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Most bytes that are touched; of what is longer samples are
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    max_bytes: Size,

    /// Seconds without an answer after which a request counts as lost
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: u32,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// The report. Its fields are the keys of the JSON object.
#[derive(Serialize)]
struct Summary {
    file: String,
    length: u64,
    conforms: bool,
    findings: Vec<Found>,
    /// More of the same rules.
    untold: u64,
    requests: u64,
    /// Of the device, touched.
    bytes: u64,
    stages: Vec<Stage>,
}

#[derive(Serialize)]
struct Found {
    rule: &'static str,
    spec: &'static str,
    text: &'static str,
    asked: String,
    expected: String,
    came: String,
    /// `null` if it is no request in particular.
    operation: Option<&'static str>,
    offset: Option<u64>,
    length: Option<u64>,
}

#[derive(Serialize)]
struct Stage {
    name: &'static str,
    /// `done`, `skipped` or `given up`.
    progress: &'static str,
    reason: Option<&'static str>,
}

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if !arguments.destroy {
        return Err(Failure::Usage(format!(
            "{}: whatever it holds would be destroyed; pass --destroy if nobody needs it",
            arguments.file.display()
        )));
    }
    let device = file::open(
        &arguments.file,
        &file::OpenOptions {
            direct: arguments.direct,
            create: arguments.size.map(|size| size.0),
            ..file::OpenOptions::default()
        },
    )?;
    let options = Options {
        destroy: true,
        seed: arguments.seed,
        max_bytes: arguments.max_bytes.0,
        timeout_ns: u64::from(arguments.timeout) * 1_000_000_000,
    };
    let mut said = Ok(());
    let report = conformance::check(&device, &options, &mut |finding| {
        if !arguments.json && said.is_ok() {
            said = say(finding);
        }
    })
    .map_err(|error| Failure::failed(format_args!("{}: {}", arguments.file.display(), error.message())))?;
    said?;
    tell(arguments, &device, &report)
}

fn tell(arguments: &Arguments, device: &Device, report: &Report) -> Result<(), Failure> {
    let file = arguments.file.display();
    if arguments.json {
        let summary = Summary::new(arguments, device, report);
        say(serde_json::to_string_pretty(&summary).expect("it is made of strings and numbers"))?;
    } else if report.conforms() {
        let (requests, bytes) = (report.requests, Size(report.bytes));
        say(format_args!("{file}: conforms, after {requests} requests to {bytes} of it"))?;
    }
    match report.findings.len() {
        0 => Ok(()),
        1 => Err(Failure::failed(format_args!("{file}: does not conform: 1 finding"))),
        count => Err(Failure::failed(format_args!("{file}: does not conform: {count} findings"))),
    }
}

impl Summary {
    fn new(arguments: &Arguments, device: &Device, report: &Report) -> Self {
        Self {
            file: arguments.file.display().to_string(),
            length: device.length(),
            conforms: report.conforms(),
            findings: report.findings.iter().map(Found::from).collect(),
            untold: report.untold,
            requests: report.requests,
            bytes: report.bytes,
            stages: report.stages.iter().map(|(name, progress)| Stage::new(name, *progress)).collect(),
        }
    }
}

impl From<&Finding> for Found {
    fn from(finding: &Finding) -> Self {
        let request = finding.request;
        Self {
            rule: finding.rule.name(),
            spec: finding.rule.spec(),
            text: finding.rule.text(),
            asked: finding.asked.clone(),
            expected: finding.expected.clone(),
            came: finding.came.clone(),
            operation: request.map(|request| request.kind.name()),
            offset: request.map(|request| request.range.offset()),
            length: request.map(|request| request.range.len()),
        }
    }
}

impl Stage {
    fn new(name: &'static str, progress: Progress) -> Self {
        let (progress, reason) = match progress {
            Progress::Done => ("done", None),
            Progress::Skipped(why) => ("skipped", Some(why)),
            Progress::GivenUp => ("given up", None),
        };
        Self { name, progress, reason }
    }
}
