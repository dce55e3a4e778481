//! `blkmirror ctl`: tells a server that serves a disk what to do, through its control socket.
//!
//! The server takes a line of words and answers with a line of JSON; `hosts/nbdkit/README.md` has the protocol. What is
//! done here for a person is to write the line (a path with spaces, or one that is relative to this folder), to read the
//! answer, and to show a job as it goes (`watch`).

mod connection;
mod state;
mod watch;

use crate::failure::Failure;
use crate::output;
use clap::Args;
use connection::Connection;
use std::path::PathBuf;

/// Control a live disk that nbdkit serves with the blkmirror plugin
///
/// Prints the server's answer, one line of JSON. `watch` shows the job until it is over: a bar on a terminal, lines
/// elsewhere; then the exit code is the job's. `events` prints a line for whatever happens.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The socket that the server was given with control=
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,

    /// watch, query, start target=FILE [NAME=VALUE ...], pause, resume, set-speed SIZE, change MODE, complete,
    /// cancel [force], or events
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    words: Vec<String>,
}

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut server = Connection::open(&arguments.socket)?;
    match arguments.words[0].as_str() {
        "watch" if arguments.words.len() == 1 => watch::watch(&mut server),
        "watch" => Err(Failure::Usage("watch: takes no arguments".to_owned())),
        "events" => {
            output::say(server.ask(&line_of(&arguments.words)?)?.text)?;
            loop {
                output::say(server.event()?)?;
            }
        }
        _ => output::say(server.ask(&line_of(&arguments.words)?)?.text),
    }
}

/// The words as the server reads them, whose folder is another.
fn line_of(words: &[String]) -> Result<String, Failure> {
    let words = words.iter().map(|word| Ok(escape(&absolute(word)?))).collect::<Result<Vec<_>, Failure>>()?;
    Ok(words.join(" "))
}

fn absolute(word: &str) -> Result<String, Failure> {
    match word.strip_prefix("target=") {
        Some(path) if !path.is_empty() => {
            let path = std::path::absolute(path).map_err(Failure::with(word))?;
            Ok(format!("target={}", path.display()))
        }
        _ => Ok(word.to_owned()),
    }
}

fn escape(word: &str) -> String {
    let mut escaped = String::new();
    for letter in word.chars() {
        match letter {
            '\n' => escaped.push_str("\\n"),
            ' ' | '\\' => escaped.extend(['\\', letter]),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_apart_whatever_is_in_them() {
        for (words, line) in [
            (&["query"][..], "query"),
            (&["start", "target=/a b\\c\nd", "speed=1M"], "start target=/a\\ b\\\\c\\nd speed=1M"),
            (&["start", "target="], "start target="),
        ] {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(line_of(&words).ok().as_deref(), Some(line));
        }
    }

    #[test]
    fn a_relative_target_is_of_this_folder() {
        let line = line_of(&["start".to_owned(), "target=new.img".to_owned()]).ok();
        let here = std::env::current_dir().expect("there is one");
        assert_eq!(
            line,
            Some(format!("start target={}", escape(&here.join("new.img").display().to_string())))
        );
    }
}
