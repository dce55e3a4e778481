//! Puts every mutant of a list into the source at once, switched by a number that is read when the program starts (mutant
//! schemata: Untch, Offutt, Harrold 1993). What would take two thousand builds takes one.
//!
//! `schemata LIST TREE DROPPED` reads what `cargo mutants --list --json` printed, changes the files of the tree that it
//! names, and prints for each mutant, in the order of the list, how it was put in, or why it wasn't. Mutants are numbered
//! by their places in the list, from 1; those whose numbers are in the file DROPPED are left out.
//!
//! Each stands between the comments `/*<n*/` and `/*n>*/`, so that an error of the compiler can be told to be its fault.

mod find;
mod write;

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

#[derive(Clone, Deserialize)]
struct Listed {
    file: String,
    genre: String,
    replacement: String,
    span: Lines,
}

#[derive(Clone, Deserialize)]
struct Lines {
    start: Place,
    end: Place,
}

/// Lines and columns count from 1, columns in characters.
#[derive(Clone, Deserialize)]
struct Place {
    line: usize,
    column: usize,
}

/// One change of the text of a file.
#[derive(Clone, Debug)]
struct Mutant {
    number: usize,
    genre: String,
    /// In bytes.
    span: Range<usize>,
    replacement: String,
}

/// What became of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Fate {
    Switched,
    /// In a module of tests, or in what only models compile: not what ships.
    Test,
    /// In what has to be known when it is compiled: no switch can be asked there.
    Constant,
    /// `||` beside `let`, which is no Rust.
    LetChain,
    /// Its place in the source was not found, or knows no switch.
    Unplaced,
    Dropped,
}

/// A change of the source that holds mutants.
#[derive(Debug)]
enum Edit {
    /// The expression becomes a `match` over the number: itself with what is changed in it, or its text with one mutant.
    Choice { span: Range<usize>, mutants: Vec<Mutant> },
    /// Text that is inserted.
    Insert { at: usize, text: String },
    /// Text that stands for what was there.
    Replace { span: Range<usize>, text: String },
    /// The body of a function that returns some iterator: the mutants' values, else the body.
    Iterator { span: Range<usize>, mutants: Vec<Mutant> },
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [list, tree, dropped] = arguments.as_slice() else {
        eprintln!("usage: schemata LIST TREE DROPPED");
        std::process::exit(2);
    };
    if let Err(why) = run(Path::new(list), Path::new(tree), Path::new(dropped)) {
        eprintln!("schemata: {why}");
        std::process::exit(1);
    }
}

fn run(list: &Path, tree: &Path, dropped: &Path) -> Result<(), String> {
    let listed: Vec<Listed> =
        serde_json::from_str(&read(list)?).map_err(|why| format!("{}: {why}", list.display()))?;
    let dropped: BTreeSet<usize> =
        read(dropped)?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let mut fates = vec![Fate::Unplaced; listed.len() + 1];
    let mut files: BTreeMap<&str, Vec<(usize, &Listed)>> = BTreeMap::new();
    for (number, mutant) in (1..).zip(&listed) {
        if dropped.contains(&number) {
            fates[number] = Fate::Dropped;
        } else {
            files.entry(&mutant.file).or_default().push((number, mutant));
        }
    }
    for (file, listed) in files {
        let path = tree.join(file);
        let text = read(&path)?;
        let mutants = listed.into_iter().map(|(number, mutant)| place(number, mutant, &text)).collect();
        let found = find::find(&text, mutants).map_err(|why| format!("{file}: {why}"))?;
        for (number, fate) in found.fates {
            fates[number] = fate;
        }
        let changed = write::write(&text, found.edits);
        std::fs::write(&path, changed).map_err(|why| format!("{}: {why}", path.display()))?;
    }
    println!("{}", serde_json::to_string(&fates[1..]).expect("plain data"));
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|why| format!("{}: {why}", path.display()))
}

fn place(number: usize, listed: &Listed, text: &str) -> Mutant {
    let byte = |place: &Place| {
        let line: usize = text.split_inclusive('\n').take(place.line - 1).map(str::len).sum();
        let rest = &text[line..];
        line + rest.char_indices().nth(place.column - 1).map_or(rest.len(), |(at, _)| at)
    };
    Mutant {
        number,
        genre: listed.genre.clone(),
        span: byte(&listed.span.start)..byte(&listed.span.end),
        replacement: listed.replacement.clone(),
    }
}
