//! The command as a script sees it.

use serde_json::Value;
use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blkmirror-sim")).args(arguments).output().expect("it runs")
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[test]
fn seeds_that_end_well_are_counted() {
    let output = sim(&["--seeds", "30", "--from", "5", "--steps", "400", "--json", "--threads", "2"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&result["seeds"], &result["from"], &result["found"]), (&30.into(), &5.into(), &Value::Null));
    assert!(
        result["guest_requests"].as_u64() > Some(1000) && result["faults"]["inline"].as_u64() > Some(100)
    );
    let text = text(&sim(&["--seeds", "3", "--steps", "100"]));
    for part in [
        "3 seeds from 0, 100 steps each",
        "seeds/s",
        "never in waiting, as it must be",
        "accepted/refused",
        "no-space",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn what_is_found_is_made_small_and_the_command_repeats_it() {
    let output = sim(&["--seeds", "200", "--steps", "500", "--json", "--find", "pause in ready"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = &result["found"];
    assert_eq!(found["rule"], "pause in ready");
    let (seed, only) = (found["seed"].to_string(), found["only"].as_str().expect("steps"));
    assert!(only.split(',').count() < 30, "{only} is not small");
    assert!(
        found["command"].as_str().expect("a command").ends_with(&format!("--replay {seed} --only '{only}'"))
    );
    let told = found["history"].as_array().expect("lines");
    assert!(told.iter().any(|line| line.as_str().is_some_and(|line| line.contains("Plain(Pause) in ready"))));
    let again = text(&sim(&["--replay", &seed, "--only", only]));
    let lines: Vec<_> = again.lines().collect();
    assert_eq!(lines[..lines.len() - 1], told.iter().filter_map(Value::as_str).collect::<Vec<_>>());
    assert_eq!(*lines.last().expect("a verdict"), format!("seed {seed}: no rule is broken"));
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for arguments in
        [&["--replay", "1", "--only", "5-3"][..], &["--only", "5"], &["--threads", "0"], &["--seeds", "x"]]
    {
        assert_eq!(sim(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
