//! Steps of a run as people write them: numbers and stretches of numbers.

use std::fmt;
use std::str::FromStr;

/// Numbers of steps, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Steps(Vec<u32>);

/// No run is so long; a stretch that is was not meant.
const MOST: u32 = 10_000_000;

impl Steps {
    pub(crate) fn new(mut steps: Vec<u32>) -> Self {
        steps.sort_unstable();
        steps.dedup();
        Self(steps)
    }

    pub(crate) fn first(count: u32) -> Self {
        Self((0..count).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let number = text.trim().parse().ok().filter(|number| *number < MOST);
            number.ok_or_else(|| format!("{text:?}: steps are numbers below {MOST}, such as 12,57,60-80"))
        };
        let mut steps = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u32, u32) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{part:?}: the end comes before the beginning"));
            }
            steps.extend(first..=last);
        }
        Ok(Self::new(steps))
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for stretch in self.0.chunk_by(|this, next| this + 1 == *next) {
            let (first, last) = (stretch[0], stretch[stretch.len() - 1]);
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_and_written_alike() {
        for (text, steps, again) in [
            ("12,57,60-63", vec![12, 57, 60, 61, 62, 63], "12,57,60-63"),
            ("3, 2,1,1", vec![1, 2, 3], "1-3"),
            ("7", vec![7], "7"),
            ("", vec![], ""),
        ] {
            let read: Steps = text.parse().expect("steps");
            assert_eq!(read, Steps(steps), "{text}");
            assert_eq!(read.to_string(), again);
        }
        for text in ["x", "3-1", "1-", "-1", "99999999999", "10000000"] {
            assert!(text.parse::<Steps>().is_err(), "{text}");
        }
    }
}
