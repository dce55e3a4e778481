//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Written as a number, alone or with K, M, G, T or P (powers of 1024), which may be followed by
/// `iB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

const UNITS: [char; 5] = ['K', 'M', 'G', 'T', 'P'];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let shift = shift_of(unit);
        let (Ok(number), Some(shift)) = (number.parse::<u64>(), shift) else {
            return Err(
                "a size is a whole number, alone or with K, M, G, T or P, such as 64K, 1M or 2GiB".to_owned()
            );
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| "does not fit in 64 bits".to_owned())
    }
}

/// The power of two that the unit stands for. `KB` is refused: to some it is 1000 bytes.
fn shift_of(unit: &str) -> Option<u32> {
    let letter = match unit {
        "" | "B" => return Some(0),
        _ => unit.strip_suffix("iB").unwrap_or(unit),
    };
    let mut letters = letter.chars();
    let first = letters.next()?.to_ascii_uppercase();
    if letters.next().is_some() {
        return None;
    }
    let power = UNITS.iter().position(|known| *known == first)?;
    Some(10 * (power as u32 + 1))
}

impl fmt::Display for Size {
    /// With the largest unit that leaves a whole part, as in `1.5 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = (self.0.max(1).ilog2() / 10).min(UNITS.len() as u32);
        if power == 0 {
            return write!(f, "{} bytes", self.0);
        }
        let unit = UNITS[power as usize - 1];
        let value = self.0 as f64 / (1u64 << (10 * power)) as f64;
        let text = format!("{value:.1}");
        write!(f, "{} {unit}iB", text.strip_suffix(".0").unwrap_or(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("1M", 1 << 20),
            ("2GiB", 2 << 30),
            ("3T", 3 << 40),
            ("1PiB", 1 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "K", "-1", "1.5G", "64KB", "1 M", "10x", "1KKiB", "iB", "16384P", "99999999999999999999"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_a_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (256 << 20, "256 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
