//! What a program of calls is made of.

use arbitrary::{Arbitrary, Unstructured};

/// Which handle: of the right kind and live as a rule, now and then of another, freed, NULL or foreign.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Pick(pub u8);

/// Offsets and lengths: sectors of a small disk as a rule, now and then anything.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl<'a> Arbitrary<'a> for Bytes {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let byte = u.arbitrary::<u8>()?;
        Ok(Self(match byte {
            0..=191 => u64::from(byte % 48) * 512,
            192..=223 => u64::from(byte) * 100,
            224..=239 => u64::from(u.arbitrary::<u16>()?),
            240..=247 => u64::MAX - u64::from(byte),
            _ => u.arbitrary()?,
        }))
    }
}

/// What a device's callback does with a request, besides what it answers.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Answer {
    Done,
    Pending,
    Again,
    Fails(u8),
    /// Completes the token and answers PENDING.
    Early,
    /// Calls the library, as the program's step says, and then is done.
    Calls(u8),
    /// The same, and it is pending.
    CallsPending(u8),
    /// Any number: nonsense, if it isn't one of the others.
    Absurd(i32),
    /// Completes the token and answers something else.
    DoneTwice(i32),
}

/// How a device behaves.
#[derive(Arbitrary, Clone, Debug)]
pub struct Manners {
    /// It does what it says, so what is read can be checked. Else anything goes.
    pub honest: bool,
    /// One after the other, and again from the beginning.
    pub answers: Vec<Answer>,
    /// Which of the optional callbacks there are.
    pub optional: u8,
    /// What its content is at the beginning.
    pub pattern: bool,
    pub flags: u8,
    pub alignment: u8,
    pub limits: [u8; 4],
    /// For one that isn't honest.
    pub length: Bytes,
    pub extents: Vec<(Bytes, u8)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Io {
    pub filter: Pick,
    pub kind: u8,
    pub offset: Bytes,
    pub length: Bytes,
    pub flags: u8,
    /// How the buffers are cut.
    pub pieces: u8,
    /// What the outcome's callback calls.
    pub then: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct JobOptions {
    pub flags: u8,
    pub kind: u8,
    pub sync: u8,
    pub copy_mode: u8,
    pub policies: u8,
    pub granularity: u8,
    pub buf_size: u8,
    pub max_in_flight: u8,
    pub max_io: u8,
    pub pass_interval: u8,
    pub replaces: Option<Pick>,
    pub prepare: Answer,
    pub wake: u8,
}

#[derive(Arbitrary, Clone, Debug)]
pub enum Step {
    Device(Manners),
    Memory(Bytes),
    Null(Bytes, u8),
    /// A structure of another size than it has.
    Misfit {
        which: u8,
        size: u16,
        tail: u8,
    },
    Complete {
        device: Pick,
        which: u8,
        result: Answer,
    },
    /// A token of any value.
    CompleteAny {
        device: Pick,
        token: u64,
        result: i32,
    },
    Extent {
        device: Pick,
        which: u8,
        length: Bytes,
        flags: u8,
    },
    Kick(Pick),
    QueryDevice(Pick),
    Same(Pick, Pick),
    FreeDevice(Pick),
    Filter {
        device: Pick,
        alignment: u8,
    },
    Io(Io),
    Begin {
        filter: Pick,
        kind: u8,
        offset: Bytes,
        length: Bytes,
    },
    End {
        filter: Pick,
        which: u8,
        result: i32,
    },
    MarkDirty {
        filter: Pick,
        offset: Bytes,
        length: Bytes,
    },
    DeviceOf(Pick),
    Opened {
        filter: Pick,
        calls: u8,
    },
    FreeFilter(Pick),
    Job {
        filter: Pick,
        target: Pick,
        options: JobOptions,
    },
    Start(Pick),
    Poll {
        job: Pick,
        times: u8,
        later: u8,
    },
    Verb {
        job: Pick,
        verb: u8,
        argument: u8,
    },
    Query(Pick),
    Events(Pick),
    FreeJob(Pick),
}

/// A disk that is being mirrored, because chance alone hardly ever gets that far.
#[derive(Arbitrary, Clone, Debug)]
pub struct Setup {
    pub options: JobOptions,
    pub polls: u8,
    pub source: Manners,
    pub target: Manners,
}

impl Setup {
    /// The steps that make it. Every other is an honest host's, who copies everything: of what it wrote is known what
    /// it must read.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let Self { mut options, polls, mut source, mut target } = self.clone();
        if polls.is_multiple_of(2) {
            options = JobOptions { kind: 0, sync: 0, replaces: None, prepare: Answer::Done, ..options };
            (source.honest, target.honest) = (true, true);
            (source.alignment, target.alignment) = (0, 0);
            // Neither ends within a sector, where the other doesn't.
            target.limits[0] = source.limits[0];
        }
        let alignment = target.alignment / 64;
        vec![
            Step::Device(source),
            Step::Device(target),
            Step::Filter { device: Pick(0), alignment },
            Step::Job { filter: Pick(0), target: Pick(1), options },
            Step::Start(Pick(0)),
            Step::Poll { job: Pick(0), times: polls, later: polls / 8 },
        ]
    }
}

/// Steps that run one after the other, and those that callbacks run.
#[derive(Arbitrary, Clone, Debug)]
pub struct Program {
    pub setup: Option<Setup>,
    pub steps: Vec<Step>,
    pub inner: Vec<Step>,
}
