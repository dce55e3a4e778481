//! `docs/RULES.md` says of each rule of the specification which test holds it. Here that table is held against the
//! sources: a rule without a test, or a test that is gone or speaks of something else, fails.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rules of sections 1 to 10: a letter, and the number of its last rule.
const RULES: &[(char, u32)] =
    &[('D', 6), ('O', 6), ('L', 5), ('I', 6), ('C', 14), ('X', 3), ('G', 9), ('E', 3), ('F', 7), ('P', 3)];

/// A row of the table.
#[derive(Debug)]
struct Row {
    rule: String,
    lives_in: Vec<String>,
    held_by: Vec<String>,
}

/// The names in back-quotes.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn rows(table: &str) -> Vec<Row> {
    let cells = table.lines().filter_map(|line| line.strip_prefix("| ")).skip(1);
    cells
        .map(|line| {
            let cells: Vec<_> = line.split(" | ").collect();
            assert_eq!(cells.len(), 4, "a row has four cells: {line}");
            Row { rule: cells[0].to_owned(), lives_in: quoted(cells[2]), held_by: quoted(cells[3]) }
        })
        .collect()
}

/// The rules that a text names: `SPEC C-4`, or several, `SPEC C-4, X-1`.
fn rules_named(text: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for after in text.split("SPEC ").skip(1) {
        for word in after.split(", ") {
            let rule: String = word.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            let is_rule = rule
                .split_once('-')
                .is_some_and(|(letter, number)| letter.len() == 1 && number.parse::<u32>().is_ok());
            if !is_rule {
                break;
            }
            let last = rule.len() < word.len();
            named.insert(rule);
            if last {
                break;
            }
        }
    }
    named
}

/// The text of a test function with its comments and attributes, `None` if there is no such test.
fn test_function<'a>(source: &'a str, name: &str) -> Option<&'a str> {
    let found = source.find(&format!("fn {name}("))?;
    let line = source[..found].rfind('\n').map_or(0, |at| at + 1);
    let indent = &source[line..found];
    let end = source[found..].find(&format!("\n{indent}}}\n")).map_or(source.len(), |at| found + at);
    if is_run_on_both_engines(source, name) {
        return Some(&source[line..end]);
    }
    let attributes = source[..line].rfind("#[test]")?;
    // Nothing but attributes and comments may stand between.
    let between = source[attributes..line].lines();
    if !between.map(str::trim).all(|line| line.is_empty() || line.starts_with("#[") || line.starts_with("//"))
    {
        return None;
    }
    (!source[attributes..line].contains("#[ignore")).then(|| &source[attributes..end])
}

/// Whether the function is in the list of those that a macro makes tests of, one for each engine of files.
fn is_run_on_both_engines(source: &str, name: &str) -> bool {
    let Some((_, list)) = source.split_once("\non_both_engines! {\n") else { return false };
    let mut lines = list.lines().take_while(|line| *line != "}").map(str::trim);
    let mut before = "";
    lines.any(|line| {
        let listed = line.strip_suffix(',') == Some(name) && !before.starts_with("#[ignore");
        before = line;
        listed
    })
}

/// What is wrong with one of the tests of a row.
fn check_test(rule: &str, test: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let (file, function) = test.split_once("::").map_or((test, None), |(file, name)| (file, Some(name)));
    let Some(source) = read(file) else {
        return Some(format!("{rule}: there is no file {file}"));
    };
    let text = match function {
        Some(name) => match test_function(&source, name) {
            Some(text) => text,
            None => return Some(format!("{rule}: {file} has no test {name}, or it is not run")),
        },
        None if Path::new(file).extension().is_some_and(|extension| extension == "c") => &source,
        None => {
            return Some(format!("{rule}: {file} is no test program; name the function, {file}::function"));
        }
    };
    (!rules_named(text).contains(rule))
        .then(|| format!("{rule}: {test} doesn't say that it holds SPEC {rule}"))
}

/// Everything that is wrong with a table.
fn problems(table: &str, read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows(table) {
        *found.entry(row.rule.clone()).or_default() += row.held_by.len();
        for file in row.lives_in.iter().filter(|file| read(file).is_none()) {
            problems.push(format!("{}: there is no file {file}", row.rule));
        }
        if row.lives_in.is_empty() {
            problems.push(format!("{}: lives nowhere", row.rule));
        }
        problems.extend(row.held_by.iter().filter_map(|test| check_test(&row.rule, test, read)));
    }
    for (letter, last) in RULES {
        for rule in (1..=*last).map(|number| format!("{letter}-{number}")) {
            if found.remove(&rule).is_none_or(|tests| tests == 0) {
                problems.push(format!("{rule}: no test holds it"));
            }
        }
    }
    problems.extend(found.keys().map(|rule| format!("{rule}: is no rule of sections 1 to 10")));
    problems
}

fn read(file: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).ok()
}

#[test]
fn each_rule_has_a_test_that_names_it() {
    let table = read("docs/RULES.md").expect("the table is there");
    let problems = problems(&table, &read);
    assert!(problems.is_empty(), "docs/RULES.md:\n{}", problems.join("\n"));
}

#[test]
fn a_table_that_is_wrong_is_found_out() {
    let table = read("docs/RULES.md").expect("the table is there");
    let row = table.lines().find(|line| line.starts_with("| X-3 |")).expect("a rule with one row");
    let test = "src/engine/conflict.rs::who_finishes_wakes_those_that_overlap_and_looks_at_no_others";
    assert!(row.contains(test));
    let changed = |from: &str, to: &str| problems(&table.replace(row, &row.replace(from, to)), &read);
    assert_eq!(changed("", ""), [""; 0]);
    assert_eq!(problems(&table.replace(row, ""), &read), ["X-3: no test holds it"]);
    assert_eq!(changed(test, "tests/none.rs::x"), ["X-3: there is no file tests/none.rs"]);
    assert_eq!(
        changed("`src/engine/conflict.rs` |", "`src/none.rs` |"),
        ["X-3: there is no file src/none.rs"]
    );
    let gone = "src/engine/conflict.rs::gone";
    assert_eq!(changed(test, gone), ["X-3: src/engine/conflict.rs has no test gone, or it is not run"]);
    let no_test = "src/engine/conflict.rs::wake_dependents";
    assert_eq!(
        changed(test, no_test),
        ["X-3: src/engine/conflict.rs has no test wake_dependents, or it is not run"]
    );
    for not_run in ["a_block_device_is_a_device", "open_at"] {
        let named = format!("src/device/file/tests.rs::{not_run}");
        let found = format!("X-3: src/device/file/tests.rs has no test {not_run}, or it is not run");
        assert_eq!(changed(test, &named), [found]);
    }
    let other = "src/engine/options.rs::defaults_are_those_of_the_specification";
    assert_eq!(changed(test, other), [format!("X-3: {other} doesn't say that it holds SPEC X-3")]);
    let whole = "src/engine/conflict.rs";
    assert!(changed(test, whole)[0].contains("is no test program"));
    assert_eq!(
        changed("X-3", "X-4"),
        [
            "X-4: src/engine/conflict.rs::who_finishes_wakes_those_that_overlap_and_looks_at_no_others doesn't say that it holds SPEC X-4",
            "X-3: no test holds it",
            "X-4: is no rule of sections 1 to 10",
        ]
    );
}

#[test]
fn rules_are_read_as_people_write_them() {
    let named = |text: &str| rules_named(text).into_iter().collect::<Vec<_>>();
    assert_eq!(named("// SPEC C-4: and so on, X-9"), ["C-4"]);
    assert_eq!(named("// SPEC C-4, X-1, C-12: and so on"), ["C-12", "C-4", "X-1"]);
    assert_eq!(named("// SPEC C-4\n// SPEC X-1"), ["C-4", "X-1"]);
    assert_eq!(named("// C-4 (SPEC section 9)"), [""; 0]);
}
