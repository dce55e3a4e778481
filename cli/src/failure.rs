//! Why a command did not succeed, and the exit code that says so.

use blkmirror::error::Error;
use std::fmt::{self, Display};
use std::process::ExitCode;

/// One line for a person, of one of three kinds for a script.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The options make no sense; nothing was done.
    Usage(String),
    /// It was tried and failed.
    Failed(String),
    /// Somebody pressed Ctrl-C.
    Interrupted(String),
}

impl Failure {
    pub(crate) fn failed(message: impl Display) -> Self {
        Self::Failed(message.to_string())
    }

    /// What the parser says, on one line and without the usage that follows it.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
        let message: Vec<_> =
            lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
        let message = message.join(" ");
        Self::Usage(format!("{}; try --help", message.strip_prefix("error: ").unwrap_or(&message)))
    }

    /// For `map_err`: what went wrong, preceded by what it happened to.
    pub(crate) fn with<E: Display>(what: impl Display) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed(format!("{what}: {error}"))
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            // What a shell reports of a program that SIGINT has ended.
            Self::Interrupted(_) => 130,
        })
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(message) | Self::Failed(message) | Self::Interrupted(message)) = self;
        f.write_str(message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error.message().to_owned())
    }
}
