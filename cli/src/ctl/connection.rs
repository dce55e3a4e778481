//! A connection to the control socket: lines out, lines in, and Ctrl-C heard meanwhile.

use crate::failure::Failure;
use crate::interrupt;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long Ctrl-C may go unheard.
const TICK: Duration = Duration::from_millis(100);
/// The server answers at once, unless it opens a target on a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);
/// The server's lines are far shorter.
const LONGEST_LINE: usize = 1 << 20;

/// A server that answers.
pub(super) struct Connection {
    stream: UnixStream,
    name: String,
    received: Vec<u8>,
}

/// An answer that says that it went well.
#[derive(Debug)]
pub(super) struct Answer {
    /// As it came.
    pub(super) text: String,
    /// What it says.
    pub(super) value: Value,
}

impl Connection {
    pub(super) fn open(socket: &Path) -> Result<Self, Failure> {
        let name = socket.display().to_string();
        let stream = UnixStream::connect(socket).map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::ConnectionRefused => " (no server answers there)",
                ErrorKind::NotFound => " (is it what the server was given with control=?)",
                _ => "",
            };
            Failure::Failed(format!("{name}: {error}{hint}"))
        })?;
        stream.set_read_timeout(Some(TICK)).map_err(Failure::with(&name))?;
        Ok(Self { stream, name, received: Vec::new() })
    }

    /// Sends a line and waits for its answer. One that refuses is the failure that it names.
    pub(super) fn ask(&mut self, line: &str) -> Result<Answer, Failure> {
        // It fails if the server has hung up, which may have said why; otherwise what is read says that it is gone.
        let _ = self.stream.write_all(format!("{line}\n").as_bytes());
        let text = self.line(Some(Instant::now() + PATIENCE))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::Failed(format!("{}: no answer of a server: {error}", self.name)))?;
        if value["ok"] == true {
            return Ok(Answer { text, value });
        }
        Err(Failure::Failed(value["error"].as_str().unwrap_or(&text).to_owned()))
    }

    /// Waits for the next line that nobody asked for.
    pub(super) fn event(&mut self) -> Result<String, Failure> {
        self.line(None)
    }

    fn line(&mut self, until: Option<Instant>) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.received.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.received.len() > LONGEST_LINE {
                return Err(self.failure("a line without end"));
            }
            if interrupt::requested() {
                return Err(Failure::Interrupted("interrupted".to_owned()));
            }
            if until.is_some_and(|until| Instant::now() > until) {
                return Err(self.failure("no answer"));
            }
            self.receive()?;
        }
    }

    fn receive(&mut self) -> Result<(), Failure> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(self.failure("the server has gone")),
            Ok(length) => {
                self.received.extend_from_slice(&bytes[..length]);
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(self.failure(error)),
        }
    }

    fn failure(&self, why: impl std::fmt::Display) -> Failure {
        Failure::Failed(format!("{}: {why}", self.name))
    }
}
