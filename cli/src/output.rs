//! What is said, and where: results on standard output, complaints on standard error.

use crate::failure::Failure;
use std::fmt::Display;
use std::io::{self, Write};

/// One line of a result.
pub(crate) fn say(line: impl Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(Failure::with("standard output"))
}

/// One line about what is wrong. If it can't be written there is nobody left to tell.
pub(crate) fn complain(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "blkmirror: {line}");
}
