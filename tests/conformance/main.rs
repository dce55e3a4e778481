//! The conformance check of devices: honest ones conform, and each planted defect is found under its own rule.

mod honest;
mod patience;
mod scratch;

use blkmirror::conformance::{Finding, Options, Progress, Report, Rule, check};
use blkmirror::device::{Device, Limits};
use scratch::{Defect, Manner, device, limits, promises};
use std::collections::BTreeSet;

const MIB: u64 = 1 << 20;

fn options() -> Options {
    Options { destroy: true, seed: 7, max_bytes: 2 * MIB, timeout_ns: 0 }
}

/// For devices that let one wait in vain.
fn impatient() -> Options {
    Options { timeout_ns: 150_000_000, ..options() }
}

fn judge(device: &Device, options: &Options) -> Report {
    let mut told = Vec::new();
    let report = check(device, options, &mut |finding| told.push(finding.clone())).expect("can be checked");
    assert_eq!(told, report.findings, "each finding is told when it is made");
    report
}

fn lines(report: &Report) -> String {
    report.findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn conforms(device: &Device, what: &str) -> Report {
    let report = judge(device, &options());
    assert!(report.conforms(), "{what}: {}", lines(&report));
    assert!(report.stages.iter().all(|(_, progress)| *progress != Progress::GivenUp), "{what}: {report:?}");
    report
}

/// A device that has everything, of an odd length.
fn everything() -> (u64, Limits) {
    (MIB + 777, promises())
}

fn long() -> (u64, Limits) {
    ((1 << 32) + 5 * MIB, promises())
}

fn short_requests() -> (u64, Limits) {
    let most = |limits: &mut Limits| {
        [limits.max_transfer, limits.max_zero, limits.max_discard] = [64 << 10, 128 << 10, 256 << 10];
    };
    (MIB, limits(most))
}

fn aligned_memory() -> (u64, Limits) {
    (MIB, limits(|limits| limits.memory_alignment = 512))
}

fn read_only() -> (u64, Limits) {
    (MIB, limits(|limits| limits.read_only = true))
}

/// A defect, and the rules under which it is found, and under no other.
type Row = (Defect, Manner, fn() -> (u64, Limits), &'static [Rule]);

const ROWS: &[Row] = &[
    (Defect::WriteMissesItsLastByte, Manner::Inline, everything, &[Rule::WriteStores]),
    (Defect::WriteIsOneByteTooLong, Manner::Inline, everything, &[Rule::WriteKeepsToRange]),
    (Defect::DevicesLastByteIsLost, Manner::Polled, everything, &[Rule::WriteStores]),
    (Defect::OffsetsAreCutTo32Bits, Manner::Polled, long, &[Rule::WriteStores]),
    (Defect::ReadsChangeByThemselves, Manner::Inline, read_only, &[Rule::ReadsSame]),
    (Defect::ShortReadSucceeds, Manner::Polled, everything, &[Rule::ReadFills]),
    (Defect::ReadOverrunsItsBuffer, Manner::Polled, everything, &[Rule::ReadKeepsToBuffers]),
    (Defect::WriteChangesItsBuffer, Manner::Inline, everything, &[Rule::WriteKeepsBuffers]),
    (Defect::PiecesAreReversed, Manner::Polled, everything, &[Rule::BufferLists]),
    (Defect::AnEmptyPieceEndsTheList, Manner::Polled, everything, &[Rule::BufferLists]),
    (Defect::LongestWriteIsTorn, Manner::Polled, short_requests, &[Rule::MaxTransfer]),
    (Defect::LongestZeroIsTorn, Manner::Polled, short_requests, &[Rule::MaxZero]),
    (Defect::LongestDiscardFails, Manner::Polled, short_requests, &[Rule::MaxDiscard]),
    (Defect::BuffersMustBePages, Manner::Polled, aligned_memory, &[Rule::MemoryAlignment]),
    (Defect::OddLengthsFail, Manner::Polled, everything, &[Rule::Succeeds]),
    (Defect::ZeroMissesItsTail, Manner::Polled, everything, &[Rule::ZeroReadsZero]),
    (Defect::ZeroIsRoundedOut, Manner::Polled, everything, &[Rule::ZeroKeepsToRange]),
    (Defect::UnmapDoesNothing, Manner::Polled, everything, &[Rule::ZeroReadsZero]),
    (Defect::DiscardZeroesNeighbours, Manner::Polled, everything, &[Rule::DiscardKeepsToRange]),
    (Defect::DiscardedIsNotZero, Manner::Polled, everything, &[Rule::DiscardZeroes]),
    (Defect::IsNotZeroAtFirst, Manner::Polled, everything, &[Rule::ReadsZero]),
    (Defect::ExtentsCallDataAHole, Manner::Polled, everything, &[Rule::ExtentsTruthful]),
    (Defect::ExtentsCallDataUnallocated, Manner::Polled, everything, &[Rule::ExtentsTruthful]),
    (Defect::ExtentsHaveNoLength, Manner::Polled, everything, &[Rule::ExtentsLength]),
    (Defect::ExtentsDoNotCover, Manner::Polled, everything, &[Rule::ExtentsCover]),
    (Defect::ExtentsReachBeyond, Manner::Polled, everything, &[Rule::ExtentsInRange]),
    (Defect::ExtentsGoOn, Manner::Polled, everything, &[Rule::ExtentsStop]),
    (Defect::ExtentsAfterCompletion, Manner::Polled, everything, &[Rule::KnownToken]),
    (Defect::CompletesTwice, Manner::Polled, everything, &[Rule::CompletesOnce]),
    (Defect::CompletesAndAnswersInline, Manner::Inline, everything, &[Rule::InlineOrLater]),
    (Defect::CompletesAndAnswersAgain, Manner::Early, everything, &[Rule::InlineOrLater]),
    (Defect::AnswersInlineAndCompletes, Manner::Inline, everything, &[Rule::InlineOrLater]),
    (Defect::LosesACompletion, Manner::Polled, everything, &[Rule::Answers]),
    (Defect::CompletesAnotherToken, Manner::Polled, everything, &[Rule::Answers, Rule::KnownToken]),
    (Defect::AgainForEver, Manner::Polled, everything, &[Rule::AgainIsTaken]),
    (Defect::FlushNeverCompletes, Manner::Polled, everything, &[Rule::Answers]),
    (Defect::FlushFails, Manner::Polled, everything, &[Rule::FlushKeeps]),
    (Defect::FlushDropsTheLastWrite, Manner::Polled, everything, &[Rule::FlushKeeps]),
    (Defect::FuaWriteIsDropped, Manner::Polled, everything, &[Rule::Fua]),
    (Defect::ReadOnlyIsWritten, Manner::Polled, read_only, &[Rule::ReadOnly]),
    (Defect::OverlappingWritesMix, Manner::Polled, everything, &[Rule::Overlaps]),
    (Defect::SecondThreadIsLost, Manner::Inline, everything, &[Rule::Parallel]),
    (Defect::CompanyIsMixedUp, Manner::Polled, everything, &[Rule::Parallel]),
    (Defect::CancelDropsTheQueue, Manner::Polled, everything, &[Rule::Cancel]),
    (Defect::TruncateLosesTheTail, Manner::Polled, everything, &[Rule::Truncate]),
];

#[test]
fn each_defect_is_found_under_its_own_rule() {
    for (defect, manner, of, expected) in ROWS {
        let (length, limits) = of();
        let report = judge(&device(length, limits, *manner, *defect), &impatient());
        let found: BTreeSet<_> = report.findings.iter().map(|finding| finding.rule).collect();
        let lines = lines(&report);
        assert_eq!(found, expected.iter().copied().collect(), "{defect:?}: {lines}");
        assert_eq!(report.findings[0].rule, expected[0], "{defect:?}: {lines}");
    }
}

#[test]
fn there_is_a_defect_for_each_rule() {
    for rule in Rule::ALL {
        assert!(ROWS.iter().any(|(.., rules)| rules.contains(rule)), "{rule}");
    }
}
