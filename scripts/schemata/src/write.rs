//! The text of a file with its edits.
//!
//! Only one mutant is switched on at a time. So what a mutant changes is written out as it was in the source, without the
//! other mutants in it, and what no mutant changes holds them: the text grows with the depth, not with the number.

use crate::{Edit, Mutant};
use std::cmp::Reverse;
use std::ops::Range;

pub(crate) fn write(text: &str, mut edits: Vec<Edit>) -> String {
    // What holds others comes before them, and what is inserted at its start comes before it.
    edits.sort_by_key(|edit| match edit {
        Edit::Insert { at, .. } => (*at, Reverse(usize::MAX)),
        Edit::Choice { span, .. } | Edit::Iterator { span, .. } | Edit::Replace { span, .. } => {
            (span.start, Reverse(span.end))
        }
    });
    let mut writer = Writer { text, edits: &edits, next: 0, out: String::new() };
    writer.part(0..text.len());
    writer.out
}

struct Writer<'a> {
    text: &'a str,
    edits: &'a [Edit],
    next: usize,
    out: String,
}

impl Writer<'_> {
    /// What stands there, with the edits that begin in it.
    fn part(&mut self, span: Range<usize>) {
        let mut at = span.start;
        while let Some(edit) = self.edits.get(self.next) {
            match edit {
                // What is inserted at the end of the part belongs to the part around it.
                Edit::Insert { at: place, text } if *place < span.end => {
                    self.out += &self.text[at..*place];
                    self.out += text;
                    at = *place;
                    self.next += 1;
                }
                Edit::Replace { span: inner, text } if inner.start < span.end => {
                    self.out += &self.text[at..inner.start];
                    self.out += text;
                    at = inner.end;
                    self.next += 1;
                }
                Edit::Choice { span: inner, mutants } if inner.start < span.end => {
                    self.out += &self.text[at..inner.start];
                    at = inner.end;
                    self.next += 1;
                    self.choice(inner.clone(), mutants);
                }
                Edit::Iterator { span: inner, mutants } if inner.start < span.end => {
                    self.out += &self.text[at..inner.start];
                    at = inner.end;
                    self.next += 1;
                    self.iterator(inner.clone(), mutants);
                }
                _ => break,
            }
        }
        self.out += &self.text[at..span.end];
    }

    fn choice(&mut self, span: Range<usize>, mutants: &[Mutant]) {
        self.out += &head(mutants);
        self.part(span.clone());
        self.out += &arms(self.text, span, mutants);
    }

    fn iterator(&mut self, span: Range<usize>, mutants: &[Mutant]) {
        for mutant in mutants {
            let value = format!(
                "return crate::mutant::Or::Instead(crate::mutant::collected({}));",
                mutant.replacement
            );
            self.out +=
                &format!(" if crate::mutant::on({}) {{ {} }}", mutant.number, marked(mutant.number, &value));
        }
        self.out += " crate::mutant::Or::Itself({";
        self.part(span);
        self.out += "})";
    }
}

/// The beginning of a choice, up to where what is not changed stands.
pub(crate) fn head(mutants: &[Mutant]) -> String {
    let others: Vec<String> = mutants.iter().map(|mutant| format!("__mutant != {}", mutant.number)).collect();
    format!("(match crate::mutant::at({}) {{ __mutant if {} => ", mutants[0].number, others.join(" && "))
}

/// The rest of it: the text of `span` with each of the mutants.
pub(crate) fn arms(text: &str, span: Range<usize>, mutants: &[Mutant]) -> String {
    let mut arms = String::new();
    for (place, mutant) in mutants.iter().enumerate() {
        let before = &text[span.start..mutant.span.start];
        let behind = &text[mutant.span.end..span.end];
        // The last needs no number: no other is left.
        let pattern = if place + 1 == mutants.len() { "_".into() } else { mutant.number.to_string() };
        let changed = marked(mutant.number, &format!("{before} {} {behind}", mutant.replacement));
        arms += &format!(", {pattern} => {changed}");
    }
    arms + " })"
}

/// Between the comments that say whose it is.
pub(crate) fn marked(number: usize, text: &str) -> String {
    format!("/*<{number}*/{text}/*{number}>*/")
}
