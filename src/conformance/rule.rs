//! The rules that a device is held to, each with a name that a program can look for.

use std::fmt;

macro_rules! rules {
    ($($(#[$doc:meta])* $rule:ident = $spec:literal, $name:literal, $text:literal;)*) => {
        /// A rule that a device can break.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Rule {
            $(#[doc = $text] $rule,)*
        }

        impl Rule {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$rule),*];

            /// Its name, such as `write-stores`. Names stay what they are.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$rule => $name,)* }
            }

            /// The rule of the specification that it is part of, `D-1` to `D-6`.
            #[must_use]
            pub fn spec(self) -> &'static str {
                match self { $(Self::$rule => $spec,)* }
            }

            /// What it says.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Self::$rule => $text,)* }
            }
        }
    };
}

rules! {
    Succeeds = "D-1", "succeeds", "a request that keeps to the device's limits succeeds";
    ReadFills = "D-1", "read-fills", "a read that succeeds has filled all of its buffers";
    ReadKeepsToBuffers = "D-1", "read-keeps-to-buffers", "a read changes no memory beside its buffers";
    ReadsSame = "D-1", "reads-same", "what nobody has changed reads the same again";
    WriteStores = "D-1", "write-stores", "what was written is read back, from the first byte to the last";
    WriteKeepsToRange = "D-1", "write-keeps-to-range", "a write changes nothing outside of its range";
    WriteKeepsBuffers = "D-1", "write-keeps-buffers", "a write doesn't change its buffers or the memory beside them";
    BufferLists = "D-1", "buffer-lists", "a list of buffers of any lengths is filled and written in order, up to max_iov of them";
    Overlaps = "D-1", "overlaps", "of overlapping writes the later one stays, and of two at a time each byte is from one of them";
    Parallel = "D-1", "parallel", "requests that are out at the same time, from several threads too, don't disturb each other";
    ZeroReadsZero = "D-1", "zero-reads-zero", "what was zeroed reads as zero, from the first byte to the last";
    ZeroKeepsToRange = "D-1", "zero-keeps-to-range", "a zero changes nothing outside of its range";
    DiscardKeepsToRange = "D-1", "discard-keeps-to-range", "a discard changes nothing outside of its range";
    FlushKeeps = "D-1", "flush-keeps", "a flush is taken at any time and changes nothing";
    Fua = "D-1", "fua", "a request with FUA does what it does without";
    Truncate = "D-1", "truncate", "a device that can change its length grows, keeps what it held and takes what is written beyond";
    Cancel = "D-1", "cancel", "after the cancel hook each request is still completed, and the device goes on working";
    Answers = "D-2", "answers", "a request that was taken is completed, and in time";
    AgainIsTaken = "D-2", "again-is-taken", "what was answered with AGAIN is taken after a completion or a kick, one of which comes";
    InlineOrLater = "D-2", "inline-or-later", "a request is answered inline or completed, not both";
    CompletesOnce = "D-3", "completes-once", "a request is completed once";
    KnownToken = "D-3", "known-token", "only tokens of requests that are out are completed or told extents of";
    ReadOnly = "D-4", "read-only", "a device that says it is read-only refuses every change";
    ReadsZero = "D-4", "reads-zero", "a device that says it reads as zero does";
    DiscardZeroes = "D-4", "discard-zeroes", "where the device promises it, what was discarded reads as zero";
    MaxTransfer = "D-4", "max-transfer", "a read or write as long as max_transfer works as any other";
    MaxZero = "D-4", "max-zero", "a zero as long as max_zero works as any other";
    MaxDiscard = "D-4", "max-discard", "a discard as long as max_discard works as any other";
    MemoryAlignment = "D-4", "memory-alignment", "buffers on any multiple of memory_alignment are taken";
    ExtentsCover = "D-6", "extents-cover", "the extents that are told cover the range, unless the device was told that it is enough";
    ExtentsLength = "D-6", "extents-length", "an extent has at least one byte";
    ExtentsInRange = "D-6", "extents-in-range", "the extents that are told don't reach beyond the range";
    ExtentsTruthful = "D-6", "extents-truthful", "what is told to be zero reads as zero, and what was written is not told to be unallocated";
    ExtentsStop = "D-6", "extents-stop", "no extent is told after the device was told that it is enough";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.spec(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_rule_has_a_name_of_its_own_and_a_rule_of_the_specification() {
        let names: BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        assert_eq!(names.len(), Rule::ALL.len());
        for rule in Rule::ALL {
            assert!(["D-1", "D-2", "D-3", "D-4", "D-6"].contains(&rule.spec()), "{rule}");
            assert!(!rule.text().is_empty() && !rule.text().ends_with('.'), "{rule}");
        }
    }
}
