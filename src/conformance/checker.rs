//! Sends steps to the device, judges what becomes of each, and keeps the model of what the device must hold.
//!
//! A step that goes wrong is told once: what was read instead is taken for what the device holds from then on, so that one
//! defect does not show up as a hundred.

use super::finding::Findings;
use super::line::{Ask, Fate, Line};
use super::memory::{Lent, Placement};
use super::model::Model;
use super::room;
use super::seat::{Odd, Reply};
use super::{Asked, Options, Rule};
use crate::device::{Device, Extent, Flags, Kind, Limits};
use crate::error::{Errno, Error, IoResult, Result};
use crate::random::Random;
use crate::range::ByteRange;
use crate::reserve::{self, Need};

/// After so many times that the device let us wait in vain, it is not asked any more.
const STRIKES: u32 = 3;
/// Most bytes beside a change that are looked at for damage.
const MARGIN: u64 = 4096;
/// Bytes of a plain read or write.
pub(super) const PLAIN: u64 = 256 << 10;

/// Why the check, or a part of it, does not go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// The device does not answer.
    GaveUp,
    /// It can't be checked.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What a read is compared for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge {
    /// Broken by a difference in `changed`.
    pub(super) inside: Rule,
    /// Broken by a difference elsewhere.
    pub(super) outside: Rule,
    pub(super) changed: ByteRange,
    /// The change that is looked into; else it is the read itself.
    pub(super) cause: Option<Asked>,
}

impl Judge {
    /// Of a read that follows no change in particular.
    pub(super) fn plain(rule: Rule) -> Self {
        Self { inside: rule, outside: rule, changed: ByteRange::default(), cause: None }
    }
}

/// One request, and what is to be made of it.
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) range: ByteRange,
    pub(super) flags: Flags,
    /// How many bytes there are in each of its buffers; empty for all in one.
    pub(super) cut: Vec<usize>,
    pub(super) placement: Placement,
    /// Of extents, how many are enough.
    pub(super) enough: usize,
    /// Broken if it fails. `None`: it may.
    pub(super) fails: Option<Rule>,
    /// Broken if it is never completed.
    pub(super) lost: Rule,
    /// How a read is compared with what is known. `None`: not at all.
    pub(super) judge: Option<Judge>,
}

impl Step {
    pub(super) fn new(kind: Kind, range: ByteRange) -> Self {
        Self {
            kind,
            range,
            flags: Flags::default(),
            cut: Vec::new(),
            placement: Placement::Pages,
            enough: usize::MAX,
            fails: Some(Rule::Succeeds),
            lost: Rule::Answers,
            judge: (kind == Kind::Read).then_some(Judge::plain(Rule::ReadsSame)),
        }
    }
}

/// What a step came to.
pub(super) struct Seen {
    pub(super) asked: Asked,
    /// `None` if it was never answered, or not taken.
    pub(super) result: Option<IoResult>,
    /// What was written, or read.
    pub(super) bytes: Vec<u8>,
    pub(super) reply: Reply,
}

impl Seen {
    pub(super) fn is_well(&self) -> bool {
        self.result == Some(Ok(()))
    }
}

/// With what a step was out.
#[derive(Clone, Copy)]
struct Company {
    alone: bool,
    /// With some that were never answered.
    unanswered: bool,
}

pub(super) struct Checker<'a> {
    pub(super) device: Device,
    pub(super) limits: Limits,
    pub(super) line: Line,
    pub(super) model: Model,
    pub(super) findings: Findings<'a>,
    pub(super) random: Random,
    pub(super) requests: u64,
    strikes: u32,
    /// Completions of tokens of nobody that were told.
    strangers: u64,
}

impl<'a> Checker<'a> {
    pub(super) fn new(device: &Device, options: &Options, findings: Findings<'a>) -> Result<Self> {
        let limits = *device.limits();
        let unit = u64::from(limits.request_alignment);
        Ok(Self {
            device: device.clone(),
            limits,
            line: Line::new(device, options.timeout_ns())?,
            model: Model::new(device.length(), unit, options.max_bytes())?,
            findings,
            random: Random::new(options.seed),
            requests: 0,
            strikes: 0,
            strangers: 0,
        })
    }

    /// What offsets and lengths are multiples of.
    pub(super) fn unit(&self) -> u64 {
        u64::from(self.limits.request_alignment)
    }

    /// Sends steps, all before the first is waited for, and judges each.
    pub(super) fn run(&mut self, steps: &[Step]) -> Result<Vec<Seen>, Stop> {
        self.run_between(steps, &|| ())
    }

    /// As `run`, with a hook that is called while they are out.
    pub(super) fn run_between(&mut self, steps: &[Step], between: &dyn Fn()) -> Result<Vec<Seen>, Stop> {
        reserve::demand(Need::Drive)?;
        let mut asks = Vec::with_capacity(steps.len());
        let mut sent = Vec::with_capacity(steps.len());
        for step in steps {
            let (ask, bytes) = self.ask(step)?;
            sent.push((ask.asked, bytes));
            asks.push(ask);
        }
        self.requests += asks.len() as u64;
        let fates = self.send(asks, between)?;
        let mut seen = Vec::with_capacity(steps.len());
        let company = Company {
            alone: fates.len() == 1,
            unanswered: fates.iter().any(|fate| matches!(fate, Fate::Unanswered)),
        };
        let mut waited_in_vain = false;
        for ((step, (asked, bytes)), fate) in steps.iter().zip(sent).zip(fates) {
            waited_in_vain |= !matches!(fate, Fate::Ended { .. });
            seen.push(self.settle(step, asked, bytes, fate, company)?);
        }
        self.tell_odd();
        if waited_in_vain {
            self.strike()?;
        }
        Ok(seen)
    }

    /// Sends requests and waits for them. `ENOMEM` if there was no memory for what they came to: of that the device, which
    /// may have its own from the same place, is innocent.
    fn send(&self, asks: Vec<Ask>, between: &dyn Fn()) -> Result<Vec<Fate>> {
        let before = reserve::refusals();
        let fates = self.line.run(asks, between);
        let refused = reserve::refusals() != before;
        let is_short = |fate: &Fate| match fate {
            Fate::Ended { result, reply, .. } => reply.is_cut || (refused && *result == Err(Errno::ENOMEM)),
            Fate::Unanswered | Fate::NotTaken => false,
        };
        if fates.iter().any(is_short) { Err(room::no_memory()) } else { Ok(fates) }
    }

    /// Sends one step.
    pub(super) fn one(&mut self, step: Step) -> Result<Seen, Stop> {
        let mut seen = self.run(&[step])?;
        Ok(seen.pop().expect("one step has one outcome"))
    }

    /// Takes note that the device let us wait in vain.
    pub(super) fn strike(&mut self) -> Result<(), Stop> {
        self.strikes += 1;
        if self.strikes >= STRIKES { Err(Stop::GaveUp) } else { Ok(()) }
    }

    /// Tells the completions that should not have come.
    pub(super) fn tell_odd(&mut self) {
        let (odd, strangers) = self.line.take_odd();
        for odd in odd {
            match odd {
                Odd::Twice(asked) => {
                    self.findings.of(Rule::CompletesOnce, &asked, "one completion", "it was completed twice");
                }
                Odd::InlineToo(asked) => self.findings.of(
                    Rule::InlineOrLater,
                    &asked,
                    "an answer or a completion",
                    "it was answered inline and completed as well",
                ),
                Odd::AgainToo(asked) => self.findings.of(
                    Rule::InlineOrLater,
                    &asked,
                    "no completion of what was not taken",
                    "it was answered with AGAIN and completed as well",
                ),
                Odd::Unknown => self.tell_stranger("completion", 1),
                Odd::UnknownExtent => self.tell_stranger("extent", 1),
            }
        }
        let new = strangers.saturating_sub(self.strangers);
        if new > 0 {
            self.strangers = strangers;
            self.tell_stranger("completion or extent", new);
        }
    }

    fn tell_stranger(&mut self, what: &str, count: u64) {
        self.findings.general(
            Rule::KnownToken,
            "tokens",
            "completions and extents of requests that are out only",
            format_args!("{count} {what} of a token that is not out"),
        );
    }

    /// The request of a step, and the bytes that it writes or that its buffers hold before it reads.
    fn ask(&mut self, step: &Step) -> Result<(Ask, Vec<u8>)> {
        let mut bytes = Vec::new();
        let mut lent = None;
        if matches!(step.kind, Kind::Read | Kind::Write) {
            bytes = match step.kind {
                Kind::Write => self.fresh(step.range.len())?,
                _ => self.poison(step.range, 0xa5)?,
            };
            let whole = [bytes.len()];
            let cut = if step.cut.is_empty() { &whole[..] } else { &step.cut };
            let buffers = Lent::new(cut, self.limits.memory_alignment as usize, step.placement)?;
            buffers.fill(&bytes);
            lent = Some(buffers);
        }
        let asked = Asked::new(step.kind, step.range, step.flags, lent.as_ref());
        Ok((Ask::new(asked, lent, step.enough)?, bytes))
    }

    /// Bytes that were not there before, none of them zero.
    fn fresh(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = room::with_capacity(length as usize + 8)?;
        while (bytes.len() as u64) < length {
            let eight = self.random.draw().to_le_bytes();
            bytes.extend(eight.map(|byte| byte | u8::from(byte == 0)));
        }
        bytes.truncate(length as usize);
        Ok(bytes)
    }

    /// Bytes each of which differs from what is to be read in its place.
    fn poison(&self, range: ByteRange, with: u8) -> Result<Vec<u8>> {
        let mut bytes = room::copied(self.model.expected(range))?;
        bytes.iter_mut().for_each(|byte| *byte ^= with);
        Ok(bytes)
    }

    fn settle(
        &mut self,
        step: &Step,
        asked: Asked,
        bytes: Vec<u8>,
        fate: Fate,
        Company { alone, unanswered }: Company,
    ) -> Result<Seen, Stop> {
        let mut seen = Seen { asked, result: None, bytes, reply: Reply::default() };
        match fate {
            Fate::Ended { result, lent, reply } => {
                seen.result = Some(result);
                seen.reply = reply;
                self.take_result(step, &asked, &seen.bytes, result)?;
                if let Some(lent) = lent {
                    self.check_buffers(&asked, &lent, &seen.bytes);
                    if step.kind == Kind::Read && result.is_ok() {
                        let after = lent.contents()?;
                        let plain = alone && step.cut.is_empty() && step.placement == Placement::Pages;
                        if let Some(judge) = step.judge {
                            self.compare(&asked, &after, &judge, plain)?;
                        }
                        seen.bytes = after;
                    }
                }
            }
            Fate::Unanswered => {
                self.findings.of(
                    step.lost,
                    &asked,
                    "a completion",
                    "it was taken and not completed within the timeout",
                );
                if step.kind.changes_data() {
                    self.model.haunt(step.range)?;
                }
            }
            // Without what is out there may well be no room.
            Fate::NotTaken if unanswered => {}
            Fate::NotTaken => self.findings.of(
                Rule::AgainIsTaken,
                &asked,
                "to be taken after a completion or a kick",
                "it was answered with AGAIN for as long as the timeout",
            ),
        }
        Ok(seen)
    }

    /// What a request has changed, and whether it was allowed to fail.
    fn take_result(&mut self, step: &Step, asked: &Asked, bytes: &[u8], result: IoResult) -> Result<()> {
        match (step.kind, result) {
            // What a read-only device holds stays what it is, whatever it says.
            (Kind::Write | Kind::Zero, Ok(())) if self.limits.read_only => {
                self.findings.of(Rule::ReadOnly, asked, "to be refused", "it succeeded");
            }
            (kind, _) if kind.changes_data() && self.limits.read_only => {}
            (kind, Err(errno)) => {
                if kind.changes_data() {
                    self.model.forget(step.range)?;
                }
                if let Some(rule) = step.fails {
                    // A device that fails what it pleases breaks this, not the limit that is being tried.
                    let rule = if self.findings.has(Rule::Succeeds) { Rule::Succeeds } else { rule };
                    self.findings.of(rule, asked, "success", failed(errno));
                }
            }
            (Kind::Write, Ok(())) => self.model.set(step.range, bytes)?,
            (Kind::Zero, Ok(())) => self.model.set_zero(step.range)?,
            (Kind::Discard, Ok(())) if !self.device.supports(Kind::Discard) => {}
            (Kind::Discard, Ok(())) if self.limits.discard_zeroes => self.model.set_zero(step.range)?,
            (Kind::Discard, Ok(())) => self.model.forget(step.range)?,
            _ => {}
        }
        Ok(())
    }

    fn check_buffers(&mut self, asked: &Asked, lent: &Lent, before: &[u8]) {
        let (rule, changed) = match asked.kind {
            Kind::Read => (Rule::ReadKeepsToBuffers, false),
            _ => (Rule::WriteKeepsBuffers, !lent.holds(before)),
        };
        if !lent.guards_are_whole() {
            self.findings.of(
                rule,
                asked,
                "nothing else to be changed",
                "memory beside its buffers was changed",
            );
        } else if changed {
            self.findings.of(rule, asked, "its buffers to stay as they are", "the buffers were changed");
        }
    }

    /// Compares what was read with what is known; what differs is known from now on.
    fn compare(&mut self, asked: &Asked, read: &[u8], judge: &Judge, plain: bool) -> Result<(), Stop> {
        let start = asked.range.offset();
        let expected = self.model.expected(asked.range);
        let known = self.model.known(asked.range)?;
        let Some(at) = differing(asked.range, &known, read, expected).next() else { return Ok(()) };
        let count = differing(asked.range, &known, read, expected).count();
        let first = start + at as u64;
        let came = format!(
            "the byte at offset {first} reads {:#04x}, not {:#04x}; {} in all",
            read[at],
            expected[at],
            differ(count)
        );
        let untouched =
            differing(asked.range, &known, read, expected).all(|at| read[at] == expected[at] ^ 0xa5);
        if untouched && plain && self.leaves_buffers(asked, &known, read)? {
            let expected = "all of its buffers to be filled";
            let came = format!("from offset {first} on it left them as they were; {} in all", differ(count));
            self.findings.of(Rule::ReadFills, asked, expected, came);
            return Ok(());
        }
        let inside = judge.changed.offset() <= first && first < judge.changed.end();
        let rule = self.root(if inside { judge.inside } else { judge.outside });
        let cause = judge.cause.as_ref().unwrap_or(asked);
        let expected = match (judge.cause.is_some(), inside) {
            (true, true) => "its range to hold what it must",
            (true, false) => "nothing outside of its range to change",
            (false, _) => "what must be there",
        };
        self.findings.of(rule, cause, expected, came);
        // What an unusual request reads says little about what the device holds.
        if plain {
            for part in known {
                self.model.set(part, &read[within(asked.range, part)])?;
            }
        }
        Ok(())
    }

    /// The rule to put a difference down to: on a device that doesn't read and write what it should, nothing else can be
    /// told apart.
    pub(super) fn root(&self, rule: Rule) -> Rule {
        let basics = [Rule::ReadFills, Rule::WriteStores, Rule::WriteKeepsToRange, Rule::ReadsSame];
        basics.into_iter().find(|basic| self.findings.has(*basic)).unwrap_or(rule)
    }

    /// Whether the device takes requests of this kind, and does what it should with them as far as is known: what is tried
    /// later builds on nothing else.
    pub(super) fn trusts(&self, kind: Kind) -> bool {
        let broken: &[Rule] = match kind {
            Kind::Zero => &[Rule::ZeroReadsZero, Rule::ZeroKeepsToRange, Rule::MaxZero, Rule::Fua],
            Kind::Discard => &[Rule::DiscardZeroes, Rule::DiscardKeepsToRange, Rule::MaxDiscard],
            Kind::Flush => &[Rule::FlushKeeps],
            Kind::Read => &[Rule::ReadFills, Rule::ReadsSame],
            _ => &[],
        };
        self.device.supports(kind) && !broken.iter().any(|rule| self.findings.has(*rule))
    }

    /// Whether the bytes that were read wrong, when they are read again into other bytes, are left as they are once more.
    fn leaves_buffers(&self, asked: &Asked, known: &[ByteRange], before: &[u8]) -> Result<bool, Stop> {
        let poison = self.poison(asked.range, 0x5a)?;
        let lent = Lent::new(&[poison.len()], self.limits.memory_alignment as usize, Placement::Pages)?;
        lent.fill(&poison);
        let again = Asked::new(Kind::Read, asked.range, Flags::default(), Some(&lent));
        let ask = Ask::new(again, Some(lent), 0)?;
        let fate = self.send(vec![ask], &|| ())?.pop();
        let Some(Fate::Ended { result: Ok(()), lent: Some(lent), .. }) = fate else { return Ok(false) };
        let read = lent.contents()?;
        let expected = self.model.expected(asked.range);
        Ok(differing(asked.range, known, before, expected).all(|at| read[at] == poison[at]))
    }

    /// Reads a range in pieces and compares it with what is known.
    pub(super) fn verify(&mut self, range: ByteRange, judge: Judge) -> Result<(), Stop> {
        for piece in pieces(range, self.plain()) {
            self.one(Step { judge: Some(judge), ..Step::new(Kind::Read, piece) })?;
        }
        Ok(())
    }

    /// Sends a change and looks at what it has done, in its range and beside it.
    pub(super) fn change(&mut self, step: Step, inside: Rule, outside: Rule) -> Result<bool, Stop> {
        let range = step.range;
        let seen = self.one(step)?;
        self.inspect(&seen.asked, range, inside, outside)?;
        Ok(seen.is_well())
    }

    /// Looks at what a change has done, in its range and beside it.
    pub(super) fn inspect(
        &mut self,
        asked: &Asked,
        range: ByteRange,
        inside: Rule,
        outside: Rule,
    ) -> Result<(), Stop> {
        let margin = self.unit().max(MARGIN);
        let judge = Judge { inside, outside, changed: range, cause: Some(*asked) };
        self.verify(self.model.around(range, margin), judge)
    }

    /// Asks for the extents of a range.
    pub(super) fn extents(
        &mut self,
        range: ByteRange,
        enough: usize,
    ) -> Result<Option<(Asked, Vec<Extent>)>, Stop> {
        let seen = self.one(Step { enough, ..Step::new(Kind::Extents, range) })?;
        let well = seen.is_well();
        Ok(well.then(|| self.check_reply(seen)))
    }

    /// Holds an answer about extents to the form that it must have; the extents that make sense.
    fn check_reply(&mut self, seen: Seen) -> (Asked, Vec<Extent>) {
        let Seen { asked, reply, .. } = seen;
        let Reply { extents, empty, enough, too_many, is_cut: _ } = reply;
        let is_enough = extents.len() >= enough.min(super::seat::MOST_EXTENTS);
        if empty > 0 {
            let came = format_args!("{empty} of length 0");
            self.findings.of(Rule::ExtentsLength, &asked, "extents of one byte at least", came);
        }
        if too_many > 0 {
            self.findings.of(
                Rule::ExtentsStop,
                &asked,
                format_args!("no more extents than {enough}, which the device was told"),
                format_args!("{too_many} more"),
            );
        }
        let told = extents.iter().fold(0u64, |sum, extent| sum.saturating_add(extent.length));
        let length = asked.range.len();
        if told > length {
            self.findings.of(
                Rule::ExtentsInRange,
                &asked,
                format_args!("extents of {length} bytes in all"),
                format_args!("{told} bytes"),
            );
        } else if told < length && !is_enough {
            self.findings.of(
                Rule::ExtentsCover,
                &asked,
                format_args!("extents of {length} bytes in all"),
                format_args!("{told} bytes, and the device was not told that it is enough"),
            );
        }
        (asked, extents)
    }

    /// Bytes of a plain read or write: fewer than the most that the device takes, if it takes fewer.
    pub(super) fn plain(&self) -> u64 {
        let most = self.limits.max_transfer;
        if most > PLAIN { PLAIN } else { (most / 2 / self.unit() * self.unit()).max(self.unit()) }
    }
}

/// A range in pieces of at most `size` bytes.
pub(super) fn pieces(range: ByteRange, size: u64) -> impl Iterator<Item = ByteRange> {
    let count = range.len().div_ceil(size);
    (0..count).map(move |index| {
        let start = range.offset() + index * size;
        ByteRange::between(start, range.end().min(start + size))
    })
}

/// Where a part of a range lies in what was read of it.
fn within(range: ByteRange, part: ByteRange) -> std::ops::Range<usize> {
    (part.offset() - range.offset()) as usize..(part.end() - range.offset()) as usize
}

/// The bytes of a range that are not what is expected, of those that are known, in order.
fn differing(
    range: ByteRange,
    known: &[ByteRange],
    read: &[u8],
    expected: &[u8],
) -> impl Iterator<Item = usize> {
    known
        .iter()
        .map(move |part| within(range, *part))
        .filter(move |part| read[part.clone()] != expected[part.clone()])
        .flatten()
        .filter(move |at| read[*at] != expected[*at])
}

fn differ(count: usize) -> String {
    if count == 1 { "1 byte differs".to_owned() } else { format!("{count} bytes differ") }
}

/// How a request that failed is told.
pub(super) fn failed(errno: Errno) -> String {
    format!("it failed: {errno}")
}
