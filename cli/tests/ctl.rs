//! `blkmirror ctl` against servers that say what a test wants them to. `hosts/nbdkit/tests` has real ones.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Output;
use std::thread::{self, JoinHandle};
use support::{blkmirror, complaint, ends_with};
use tempfile::TempDir;

/// A server for one client: it answers each line with the next of its own, and then hangs up.
struct Server {
    /// In the system's folder for such, because the path of a socket has to be short.
    folder: TempDir,
    heard: JoinHandle<Vec<String>>,
}

impl Server {
    fn new(answers: &'static [&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control")).unwrap();
        let heard = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(&stream).lines();
            let mut heard = Vec::new();
            for answer in answers {
                match lines.next() {
                    Some(Ok(line)) => heard.push(line),
                    _ => break,
                }
                (&stream).write_all(answer.as_bytes()).unwrap();
            }
            heard
        });
        Self { folder, heard }
    }

    /// Runs the command, and tells how it ended and what the server heard.
    fn run(self, words: &[&str], code: i32) -> (Output, Vec<String>) {
        let mut command = blkmirror(["ctl"]);
        command.arg(self.folder.path().join("control")).args(words).current_dir(self.folder.path());
        let output = ends_with(command, code);
        (output, self.heard.join().unwrap())
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_answer_is_printed_as_it_came() {
    let server = Server::new(&["{\"ok\":true,\"more\":\"\u{fc}\\n\"}\n"]);
    let (output, heard) = server.run(&["set-speed", "64M"], 0);
    assert_eq!(
        (said(&output).as_str(), heard),
        ("{\"ok\":true,\"more\":\"\u{fc}\\n\"}\n", vec!["set-speed 64M".into()])
    );
    assert_eq!(output.stderr, b"");
}

#[test]
fn a_path_is_made_absolute_and_kept_in_one_word() {
    let server = Server::new(&["{\"ok\":true}\n"]);
    let here = server.folder.path().canonicalize().unwrap().display().to_string();
    let (_, heard) = server.run(&["start", "target=a b\\c", "speed=1M"], 0);
    assert_eq!(heard, [format!("start target={here}/a\\ b\\\\c speed=1M")]);
}

#[test]
fn a_refusal_is_a_failure_in_its_own_words() {
    let server = Server::new(&["{\"ok\":false,\"errno\":\"EBUSY\",\"error\":\"job-1 runs\"}\n"]);
    let (output, _) = server.run(&["start", "target=/x"], 1);
    assert_eq!((complaint(&output).as_str(), said(&output).as_str()), ("job-1 runs", ""));
}

#[test]
fn what_is_no_server_is_named() {
    for (answers, wanted) in [
        (&["hello\n"][..], "no answer of a server"),
        (&[""], "the server has gone"),
        (&["{\"ok\":true"], "the server has gone"),
        (&["{\"ok\":1}\n"], "{\"ok\":1}"),
    ] {
        let (output, _) = Server::new(answers).run(&["query"], 1);
        let message = complaint(&output);
        assert!(message.contains(wanted), "{message}");
    }
    let folder = tempfile::tempdir().unwrap();
    let stale: PathBuf = folder.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    for (socket, wanted) in [(stale, "no server answers there"), (folder.path().join("missing"), "control=")]
    {
        let mut command = blkmirror(["ctl"]);
        command.arg(socket).arg("query");
        let message = complaint(&ends_with(command, 1));
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn watch_tells_of_each_state_and_fails_as_the_job_does() {
    const RUNNING: &str = "{\"ok\":true,\"disk\":{\"file\":\"/s\"},\"job\":{\"id\":\"job-7\",\"target\":\"/t\",\"status\":\
        \"running\",\"result\":0,\"message\":\"\",\"done\":1048576,\"total\":4194304,\"copy_rate\":0,\"eta_ns\":null}}\n";
    const READY: &str = "{\"ok\":true,\"disk\":{\"file\":\"/s\"},\"job\":{\"id\":\"job-7\",\"target\":\"/t\",\"status\":\
        \"ready\",\"result\":0,\"message\":\"\",\"done\":4194304,\"total\":4194304,\"copy_rate\":9,\"eta_ns\":0}}\n";
    const COMPLETED: &str = "{\"ok\":true,\"disk\":{\"file\":\"/t\"},\"job\":{\"id\":\"job-7\",\"target\":\"/t\",\"status\":\
        \"concluded\",\"result\":0,\"message\":\"\",\"done\":4194304,\"total\":4194304,\"copy_rate\":9,\"eta_ns\":0}}\n";
    const FAILED: &str = "{\"ok\":true,\"disk\":{\"file\":\"/s\"},\"job\":{\"id\":\"job-7\",\"target\":\"/t\",\"status\":\
        \"concluded\",\"result\":-28,\"message\":\"it is full\",\"done\":4,\"total\":8,\"copy_rate\":9,\"eta_ns\":0}}\n";
    const COPIED: &str = "{\"ok\":true,\"disk\":{\"file\":\"/s\"},\"job\":{\"id\":\"job-7\",\"target\":\"/t\",\"status\":\
        \"concluded\",\"result\":0,\"message\":\"\",\"done\":8,\"total\":8,\"copy_rate\":9,\"eta_ns\":0}}\n";
    let (output, heard) = Server::new(&[RUNNING, READY, COMPLETED]).run(&["watch"], 0);
    let lines =
        "job-7 running: 1 MiB of 4 MiB\njob-7 ready: 4 MiB of 4 MiB\njob-7 completed: the disk is /t now\n";
    assert_eq!((said(&output).as_str(), heard.len()), (lines, 3));
    assert_eq!(output.stderr, b"");
    let (output, _) = Server::new(&[COPIED]).run(&["watch"], 0);
    assert_eq!(said(&output), "job-7 ended: /t is a copy, and the disk is /s\n");
    let (output, _) = Server::new(&[RUNNING, FAILED]).run(&["watch"], 1);
    assert_eq!(
        (said(&output).as_str(), complaint(&output).as_str()),
        ("job-7 running: 1 MiB of 4 MiB\n", "it is full")
    );
    let (output, _) =
        Server::new(&["{\"ok\":true,\"disk\":{\"file\":\"/s\"},\"job\":null}\n"]).run(&["watch"], 1);
    assert_eq!(complaint(&output), "no job runs, and none did");
    let (output, _) = Server::new(&[RUNNING]).run(&["watch"], 1);
    assert!(complaint(&output).ends_with("the server has gone"));
    let (output, _) = Server::new(&["{\"ok\":true}\n"]).run(&["watch"], 1);
    assert!(complaint(&output).contains("not what this program knows"));
}

#[test]
fn events_are_told_until_the_server_goes() {
    let server =
        Server::new(&["{\"ok\":true}\n{\"event\":\"ready\",\"job\":\"job-1\"}\n{\"event\":\"completed\"}\n"]);
    let (output, heard) = server.run(&["events"], 1);
    assert_eq!(
        said(&output),
        "{\"ok\":true}\n{\"event\":\"ready\",\"job\":\"job-1\"}\n{\"event\":\"completed\"}\n"
    );
    assert_eq!(heard, ["events"]);
    assert!(complaint(&output).ends_with("the server has gone"));
}

#[test]
fn words_are_needed() {
    for words in [&["ctl"][..], &["ctl", "socket"]] {
        assert!(complaint(&ends_with(blkmirror(words), 2)).contains("required"));
    }
    let folder = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(folder.path().join("control")).unwrap();
    let mut command = blkmirror(["ctl"]);
    command.arg(folder.path().join("control")).args(["watch", "it"]);
    assert_eq!(complaint(&ends_with(command, 2)), "watch: takes no arguments");
}
