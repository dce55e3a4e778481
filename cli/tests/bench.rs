//! `blkmirror bench` measures what it says: small runs, of which the figures that don't depend on the machine are checked.

mod support;

use serde_json::Value;
use support::blkmirror;

fn rows(arguments: &[&str]) -> Vec<Value> {
    let output = blkmirror(["bench"]).args(arguments).arg("--json").output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("JSON");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn figure(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no figure {key} in {row}"))
}

#[test]
fn the_copy_loop_copies_each_piece_once_and_allocates_nothing() {
    let rows = rows(&["copy-loop", "--size", "2G", "--rounds", "1"]);
    assert_eq!(rows.len(), 2, "both patterns");
    for (row, pieces) in rows.iter().zip([32768.0, 16384.0]) {
        let ops = figure(row, "ops");
        assert!(ops <= pieces && ops > pieces * 0.9, "all but the first round's: {row}");
        assert_eq!(figure(row, "bytes"), ops * 65536.0);
        assert!(figure(row, "allocs_per_op") < 0.05, "{row}");
        assert!(figure(row, "cpu_ns_per_op") > 0.0 && figure(row, "ops_per_s") > 0.0);
    }
    let one = rows_of_pattern("every-second");
    assert_eq!((one.len(), one[0]["pattern"].as_str()), (1, Some("every-second")));
}

fn rows_of_pattern(pattern: &str) -> Vec<Value> {
    rows(&["copy-loop", "--pattern", pattern, "--size", "64M", "--granularity", "4K", "--rounds", "1"])
}

#[test]
fn a_slow_target_is_kept_busy_by_what_is_in_flight() {
    // In virtual time: 16 requests of 64 KiB each millisecond are 1049 MB/s, and 64 are four times that.
    for (in_flight, least) in [("16", 1000.0), ("64", 4000.0)] {
        let row = &rows(&["latency", "--latency", "1", "--in-flight", in_flight])[0];
        let fragmented = figure(row, "fragmented_mb_per_s");
        assert!(fragmented > least && fragmented < least * 1.06, "{row}");
    }
}

#[test]
fn a_slow_target_is_used_the_better_the_longer_it_is_known() {
    let rate = |data: &str| {
        let row = &rows(&["latency", "--latency", "1", "--in-flight", "0", "--data", data])[0];
        figure(row, "fragmented_mb_per_s")
    };
    // Beginning and end take as long, whatever there is to copy.
    let (little, much) = (rate("4M"), rate("1G"));
    assert!(little * 1.5 < much, "{little} and {much}");
}

#[test]
fn a_guest_and_a_job_that_is_ready_share_a_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_str().expect("a name");
    let rows = rows(&[
        "guest-ready",
        "--dir",
        path,
        "--size",
        "4M",
        "--depth",
        "4",
        "--seconds",
        "0.2",
        "--rounds",
        "2",
    ]);
    let [without, beside] = &rows[..] else { panic!("without a job and beside one: {rows:?}") };
    for row in [without, beside] {
        assert!(figure(row, "iops") > 0.0 && figure(row, "p50_us") <= figure(row, "p99_us"), "{row}");
    }
    assert_eq!(
        (figure(without, "iops_share"), figure(without, "p99_x"), figure(without, "copied_mb_per_s")),
        (1.0, 1.0, 0.0)
    );
    // What the guest writes is copied while it writes.
    assert!(figure(beside, "copied_mb_per_s") > 0.0 && figure(beside, "job_cpu") > 0.0, "{beside}");
    assert!(figure(beside, "iops_share") > 0.0, "{beside}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "nothing is left behind");
}

#[test]
fn a_write_that_is_copied_takes_as_long_as_the_slower_device() {
    for (source, target) in [("4", "5"), ("5", "4")] {
        let row = &rows(&["guest-latency", "--source", source, "--target", target, "--writes", "9"])[0];
        let (took, of_slower) = (figure(row, "write_ms"), figure(row, "of_slower"));
        // Others may keep the test from running; one device after the other would be 1.8.
        assert!((1.0..1.5).contains(&of_slower), "{row}");
        assert!((took / 5.0 - of_slower).abs() < 0.01, "{row}");
    }
}

#[test]
fn a_slow_guest_delays_a_mirror_by_what_it_writes() {
    let rows = rows(&["converge", "--size", "64M", "--guest", "0.1"]);
    assert_eq!(rows.len(), 2, "both modes");
    for row in &rows {
        let (ready, copied) = (figure(row, "ready_s"), figure(row, "copied_x"));
        // 64 MiB at 105 MB/s take 0.64 s.
        assert!((0.64..1.0).contains(&ready), "{row}");
        assert!((1.0..1.2).contains(&copied), "{row}");
        assert!((0.95..=1.01).contains(&figure(row, "guest_share")), "{row}");
    }
}

#[test]
fn what_is_done_and_kept_goes_with_what_is_dirty() {
    let arguments =
        ["scale", "--size", "1P", "--dirty-ppm", "0.01", "--jobs", "8", "--polls", "8000", "--rounds", "1"];
    let rows = rows(&arguments);
    let [disk, idle] = &rows[..] else { panic!("a disk and the idle jobs: {rows:?}") };
    // Of 2^34 chunks.
    assert_eq!(figure(disk, "dirty_chunks"), 171.0);
    // All chunks' bits would be 2 GiB; each dirty one costs a few pages.
    assert!(figure(disk, "memory_mib") < 64.0, "{disk}");
    assert!(["start_ms", "ready_ms", "finish_ms"].iter().all(|key| figure(disk, key) < 5000.0), "{disk}");
    assert_eq!(figure(idle, "idle_jobs"), 8.0);
    assert!(figure(idle, "ns_per_poll") > 0.0, "{idle}");
}

#[test]
fn the_others_say_something() {
    let guest = rows(&["guest-write", "--writes", "100", "--rounds", "1"]);
    assert_eq!(guest.len(), 8, "four ways, one and two threads");
    assert!(guest.iter().all(|row| figure(row, "ns") > 0.0));
    assert_eq!(rows(&["bitmap", "--rounds", "1"]).len(), 5);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_str().expect("a name");
    let file = &rows(&["file", "--dir", path, "--size", "4M", "--length", "64M", "--rounds", "1"])[0];
    let allocated = figure(file, "allocated_mib");
    assert!((4.0..4.5).contains(&allocated), "a thin source stays thin: {file}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "nothing is left behind");
}

#[test]
fn bad_options_are_refused_with_a_reason() {
    for (arguments, message) in [
        (&["file", "--size", "1K"][..], "size must be at least 64K"),
        (&["converge", "--link", "0"], "must not be 0"),
        (&["guest-ready", "--write", "1K"], "write must be a multiple of 4K"),
        (&["guest-ready", "--seconds", "0"], "seconds must be from 0.01 to 3600"),
        (&["guest-latency", "--target", "0"], "a latency must be from 0.001 to 10000"),
        (&["scale", "--dirty-ppm", "2000000"], "dirty-ppm must be from 0 to a million"),
        (&["copy-loop", "--granularity", "3000"], "granularity 3000: must be a power of two"),
        (&["file", "--dir", "/nonexistent-folder"], "nonexistent-folder"),
    ] {
        let output = blkmirror(["bench"]).args(arguments).output().expect("it runs");
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(message), "{text}");
    }
}
