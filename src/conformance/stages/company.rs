//! Requests in company: that overlap, that are out at the same time, and that come from several threads.

use super::super::checker::{Checker, Judge, Seen, Step, Stop, failed, pieces};
use super::super::line::{Ask, Fate, Line};
use super::super::memory::{Lent, Placement};
use super::super::room;
use super::super::{Asked, Rule};
use super::{Skip, judge, read};
use crate::device::{Flags, Kind};
use crate::random::Random;
use crate::range::ByteRange;
use std::panic::resume_unwind;
use std::thread::ScopedJoinHandle;

/// Requests that are out at the same time.
const DEPTH: u64 = 32;
/// How often so many are sent.
const ROUNDS: u64 = 4;
/// Threads that send requests.
const THREADS: u64 = 4;
/// Requests of each thread, half of them reads.
const TURNS: u64 = 16;

/// Writes that overlap, one after the other and two at a time.
pub(super) fn overlaps(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    let half = checker.unit().max(4096).min(checker.longest() / 4 / checker.unit() * checker.unit());
    if half == 0 || 2 * half > checker.limits.max_transfer {
        return Ok(Some("the device is too small"));
    }
    for _ in 0..4 {
        let Some(all) = checker.spot(3 * half).filter(|all| all.len() == 3 * half) else { continue };
        let one = ByteRange::between(all.offset(), all.offset() + 2 * half);
        let other = ByteRange::between(all.offset() + half, all.end());
        for range in [one, other] {
            checker.change(Step::new(Kind::Write, range), Rule::Overlaps, Rule::Overlaps)?;
        }
        two_at_a_time(checker, one, other)?;
        read_while_written(checker, one)?;
    }
    Ok(None)
}

fn two_at_a_time(checker: &mut Checker<'_>, one: ByteRange, other: ByteRange) -> Result<(), Stop> {
    let seen = checker.run(&[Step::new(Kind::Write, one), Step::new(Kind::Write, other)])?;
    if !seen.iter().all(Seen::is_well) {
        return Ok(());
    }
    let both = one.intersection(other);
    checker.model.forget(both)?;
    let after = checker.one(read(both, Rule::Overlaps))?;
    if !after.is_well() || !checker.trusts(Kind::Read) {
        return Ok(());
    }
    let from_one = &seen[0].bytes[(both.offset() - one.offset()) as usize..];
    let from_other = &seen[1].bytes[(both.offset() - other.offset()) as usize..];
    let strange = after
        .bytes
        .iter()
        .zip(from_one.iter().zip(from_other))
        .position(|(byte, (a, b))| byte != a && byte != b);
    if let Some(at) = strange {
        let place = both.offset() + at as u64;
        let came = format!("the byte at offset {place} is from neither");
        let expected = format!("bytes of this write or of the {} at the same time", seen[1].asked);
        checker.findings.of(Rule::Overlaps, &seen[0].asked, expected, came);
    }
    checker.model.set(both, &after.bytes)?;
    let all = ByteRange::between(one.offset(), other.end());
    checker.verify(all, judge(all, Rule::Overlaps, Rule::Overlaps, Some(seen[1].asked)))
}

fn read_while_written(checker: &mut Checker<'_>, range: ByteRange) -> Result<(), Stop> {
    let before = room::copied(checker.model.expected(range))?;
    let known = checker.model.known(range)? == [range];
    let loose = Step { judge: None, ..Step::new(Kind::Read, range) };
    let seen = checker.run(&[Step::new(Kind::Write, range), loose])?;
    if known && checker.trusts(Kind::Read) && seen.iter().all(Seen::is_well) {
        let strange = seen[1]
            .bytes
            .iter()
            .zip(before.iter().zip(&seen[0].bytes))
            .position(|(byte, (a, b))| byte != a && byte != b);
        if let Some(at) = strange {
            let place = range.offset() + at as u64;
            let came = format!("the byte at offset {place} is neither");
            let expected = "bytes from before or after the write of the same range at the same time";
            checker.findings.of(Rule::Overlaps, &seen[1].asked, expected, came);
        }
    }
    checker.verify(range, judge(range, Rule::Overlaps, Rule::Overlaps, Some(seen[0].asked)))
}

/// Requests of every kind, each in a block of its own, out at the same time.
pub(super) fn parallel(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    for _ in 0..ROUNDS {
        let Some(blocks) = blocks(checker, DEPTH) else { return Ok(Some("the device is too small")) };
        let steps: Vec<_> = blocks.iter().map(|block| any_step(checker, *block)).collect();
        checker.run(&steps)?;
        let all = ByteRange::between(blocks[0].offset(), blocks[blocks.len() - 1].end());
        for piece in pieces(all, checker.plain()) {
            checker
                .one(Step { judge: Some(Judge::plain(Rule::Parallel)), ..Step::new(Kind::Read, piece) })?;
        }
    }
    Ok(None)
}

/// Neighbouring blocks somewhere, as many as there is room for up to `count`; `None` if it is not two.
fn blocks(checker: &mut Checker<'_>, count: u64) -> Option<Vec<ByteRange>> {
    let unit = checker.unit();
    let most = checker
        .limits
        .max_transfer
        .min(checker.limits.max_zero)
        .min(checker.limits.max_discard)
        .min(16 << 10);
    let block = (checker.longest() / count).clamp(unit, most.max(unit)) / unit * unit;
    let place = checker.spot(block * count)?;
    let blocks: Vec<_> = pieces(place, block).collect();
    (blocks.len() > 1).then_some(blocks)
}

fn any_step(checker: &mut Checker<'_>, block: ByteRange) -> Step {
    let kind = checker.random.pick(&[
        Kind::Write,
        Kind::Write,
        Kind::Read,
        Kind::Read,
        Kind::Zero,
        Kind::Discard,
        Kind::Flush,
        Kind::Extents,
    ]);
    match kind {
        Kind::Read => read(block, Rule::Parallel),
        Kind::Flush if checker.trusts(kind) => Step::new(kind, ByteRange::default()),
        kind if kind != Kind::Flush && checker.trusts(kind) => Step::new(kind, block),
        _ => Step::new(Kind::Write, block),
    }
}

/// What a thread has found: the request and what came of it.
struct Trouble {
    rule: Rule,
    asked: Asked,
    came: String,
}

/// Several threads, each in a block of its own, write and read.
pub(super) fn threads(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    let Some(blocks) = blocks(checker, THREADS) else { return Ok(Some("the device is too small")) };
    let alignment = checker.limits.memory_alignment as usize;
    let seeds: Vec<_> = blocks.iter().map(|block| (*block, checker.random.draw())).collect();
    let line = &checker.line;
    let troubles: Vec<Option<Trouble>> = std::thread::scope(|scope| {
        let work = |block, seed| move || take_turns(line, block, seed, alignment);
        let started: Vec<_> = seeds
            .iter()
            .map(|(block, seed)| std::thread::Builder::new().spawn_scoped(scope, work(*block, *seed)).ok())
            .collect();
        // Where there are no threads there are none to be called from. A panic of the device is passed on.
        let end =
            |thread: ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        started.into_iter().map(|thread| thread.and_then(end)).collect()
    });
    checker.requests += THREADS * TURNS;
    let mut in_vain = false;
    for (block, trouble) in blocks.iter().zip(troubles) {
        checker.model.forget(*block)?;
        let Some(Trouble { rule, asked, came }) = trouble else { continue };
        let rule = if rule == Rule::Parallel { checker.root(rule) } else { rule };
        in_vain |= rule == Rule::Answers;
        if rule == Rule::Answers && asked.kind.changes_data() {
            checker.model.haunt(asked.range)?;
        }
        checker.findings.of(
            rule,
            &asked,
            "what it comes to when it is alone, while other threads send others",
            came,
        );
    }
    checker.tell_odd();
    if in_vain {
        checker.strike()?;
    }
    Ok(None)
}

/// One thread's writes and reads of its own block.
fn take_turns(line: &Line, block: ByteRange, seed: u64, alignment: usize) -> Option<Trouble> {
    let mut random = Random::new(seed);
    let mut bytes = room::zeroed(block.len() as usize).ok()?;
    for turn in 0..TURNS {
        let kind = if turn % 2 == 0 { Kind::Write } else { Kind::Read };
        if kind == Kind::Write {
            bytes.fill_with(|| random.draw() as u8);
        }
        let lent = Lent::new(&[bytes.len()], alignment, Placement::Pages).ok()?;
        if kind == Kind::Write {
            lent.fill(&bytes);
        }
        let asked = Asked::new(kind, block, Flags::default(), Some(&lent));
        let ask = Ask::new(asked, Some(lent), 0).ok()?;
        let trouble = |rule, came| Some(Trouble { rule, asked, came });
        match line.run(vec![ask], &|| ()).pop() {
            Some(Fate::Ended { result: Err(errno), .. }) => return trouble(Rule::Succeeds, failed(errno)),
            Some(Fate::Ended { lent: Some(lent), .. }) if kind == Kind::Write || lent.holds(&bytes) => {}
            Some(Fate::Ended { .. }) => {
                return trouble(Rule::Parallel, "it read other bytes than it wrote".to_owned());
            }
            _ => return trouble(Rule::Answers, "it was not completed within the timeout".to_owned()),
        }
    }
    None
}
