//! Rows of figures: a table for a person, one JSON object a line for a script.

use crate::failure::Failure;
use crate::output;
use serde_json::{Map, Value};

/// One measurement: names and figures, in the order in which they are shown.
pub(super) struct Row(Vec<(&'static str, Value)>);

impl Row {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// What was measured, or under which conditions.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.push((name, value.into()));
        self
    }

    /// A figure, to three digits after the point.
    pub(super) fn figure(self, name: &'static str, value: f64) -> Self {
        self.with(name, (value * 1000.0).round() / 1000.0)
    }

    fn has_columns_of(&self, other: &Self) -> bool {
        self.0.iter().map(|(name, _)| name).eq(other.0.iter().map(|(name, _)| name))
    }
}

/// A table for each stretch of rows that have the same columns.
pub(super) fn print(rows: &[Row], json: bool) -> Result<(), Failure> {
    if json {
        for Row(row) in rows {
            let object: Map<String, Value> =
                row.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            output::say(Value::Object(object))?;
        }
        return Ok(());
    }
    for (index, rows) in rows.chunk_by(Row::has_columns_of).enumerate() {
        if index > 0 {
            output::say("")?;
        }
        for line in table(rows) {
            output::say(line)?;
        }
    }
    Ok(())
}

fn table(rows: &[Row]) -> Vec<String> {
    let Some(Row(first)) = rows.first() else { return Vec::new() };
    let mut lines = vec![first.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|Row(row)| row.iter().map(|(_, value)| cell(value)).collect()));
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..first.len()).map(width).collect();
    let pad = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        cells.collect::<Vec<_>>().join("  ")
    };
    lines.iter().map(pad).collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(figure) if number.is_f64() && figure.abs() >= 100.0 => format!("{figure:.0}"),
            Some(figure) if number.is_f64() => format!("{figure:.3}"),
            _ => number.to_string(),
        },
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let row = |name: &str, figure| Row::new().with("case", name).figure("ns", figure);
        assert_eq!(
            table(&[row("a", 1.23456), row("longer", 12345.6)]),
            ["  case     ns", "     a  1.235", "longer  12346"]
        );
    }
}
