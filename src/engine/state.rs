//! The states of a job, the moves between them and the verbs that each accepts (SPEC L-1, L-2).

use crate::error::{Errno, Error, Result};

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Made, not started.
    Created = 1,
    /// Copying.
    Running,
    /// Paused before it was ready.
    Paused,
    /// Source and target are equal but for what is written now.
    Ready,
    /// Paused after it was ready.
    Standby,
    /// Done with its work; about to be pending.
    Waiting,
    /// Waits for `finalize`.
    Pending,
    /// Ending without success.
    Aborting,
    /// Over; its result can be read.
    Concluded,
    /// Over and dismissed.
    Null,
}

/// What a host can ask of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// End without switching.
    Cancel,
    /// Stop copying for a while.
    Pause,
    /// Go on copying.
    Resume,
    /// Change the rate limit.
    SetSpeed,
    /// Change the copy mode.
    Change,
    /// Finish and switch.
    Complete,
    /// Leave the pending state.
    Finalize,
    /// Leave the concluded state.
    Dismiss,
}

impl Status {
    /// Every status, in the order of life.
    pub const ALL: [Self; 10] = [
        Self::Created,
        Self::Running,
        Self::Paused,
        Self::Ready,
        Self::Standby,
        Self::Waiting,
        Self::Pending,
        Self::Aborting,
        Self::Concluded,
        Self::Null,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ready => "ready",
            Self::Standby => "standby",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Aborting => "aborting",
            Self::Concluded => "concluded",
            Self::Null => "null",
        }
    }

    /// Whether SPEC L-1 allows this move.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use Status::{Aborting, Concluded, Created, Null, Paused, Pending, Ready, Running, Standby, Waiting};
        match self {
            Created => matches!(next, Running | Aborting | Null),
            Running => matches!(next, Paused | Ready | Waiting | Aborting),
            Paused => matches!(next, Running),
            Ready => matches!(next, Standby | Waiting | Aborting),
            Standby => matches!(next, Ready),
            Waiting => matches!(next, Pending | Aborting),
            Pending | Aborting => matches!(next, Aborting | Concluded),
            Concluded => matches!(next, Null),
            Null => false,
        }
    }

    /// Whether SPEC L-2 allows this verb.
    #[must_use]
    pub fn accepts(self, verb: Verb) -> bool {
        use Status::{Concluded, Created, Paused, Pending, Ready, Running, Standby, Waiting};
        match verb {
            Verb::Cancel => matches!(self, Created | Running | Paused | Ready | Standby | Waiting | Pending),
            Verb::Pause | Verb::Resume | Verb::SetSpeed | Verb::Change => {
                matches!(self, Created | Running | Paused | Ready | Standby)
            }
            Verb::Complete => matches!(self, Ready | Standby),
            Verb::Finalize => self == Pending,
            Verb::Dismiss => self == Concluded,
        }
    }

    /// Whether the job is over.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Concluded | Self::Null)
    }
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 8] = [
        Self::Cancel,
        Self::Pause,
        Self::Resume,
        Self::SetSpeed,
        Self::Change,
        Self::Complete,
        Self::Finalize,
        Self::Dismiss,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SetSpeed => "set-speed",
            Self::Change => "change",
            Self::Complete => "complete",
            Self::Finalize => "finalize",
            Self::Dismiss => "dismiss",
        }
    }
}

/// `EPERM`, in the words of SPEC L-2, unless the verb is legal in this state.
pub(crate) fn check_verb(id: &str, status: Status, verb: Verb) -> Result<()> {
    if status.accepts(verb) {
        return Ok(());
    }
    Err(Error::new(
        Errno::EPERM,
        format!("Job '{id}' in state '{}' cannot accept command verb '{}'", status.name(), verb.name()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_moves_is_the_specification_s() {
        // SPEC L-1, written out the other way round: the legal moves as text.
        let legal = "created→running,aborting,null; running→paused,ready,waiting,aborting; paused→running; \
             ready→standby,waiting,aborting; standby→ready; waiting→pending,aborting; pending→aborting,concluded; \
             aborting→aborting,concluded; concluded→null; null→";
        for from in Status::ALL {
            let row = legal
                .split(';')
                .find_map(|row| row.trim().strip_prefix(from.name())?.strip_prefix('→'))
                .expect("each state has a row");
            for to in Status::ALL {
                let expected = row.split(',').any(|name| name == to.name());
                assert_eq!(from.may_become(to), expected, "{} to {}", from.name(), to.name());
            }
        }
    }

    #[test]
    fn each_verb_is_legal_in_exactly_its_states() {
        // SPEC L-2
        let early = "created running paused ready standby";
        let rows = [
            (Verb::Cancel, "created running paused ready standby waiting pending"),
            (Verb::Pause, early),
            (Verb::Resume, early),
            (Verb::SetSpeed, early),
            (Verb::Change, early),
            (Verb::Complete, "ready standby"),
            (Verb::Finalize, "pending"),
            (Verb::Dismiss, "concluded"),
        ];
        let names = "cancel pause resume set-speed change complete finalize dismiss";
        assert_eq!(Verb::ALL.map(Verb::name).join(" "), names);
        for (verb, states) in rows {
            for status in Status::ALL {
                let legal = states.split(' ').any(|name| name == status.name());
                match check_verb("j0", status, verb) {
                    Ok(()) => assert!(legal, "{verb:?} in {status:?}"),
                    Err(error) => {
                        assert!(!legal, "{verb:?} in {status:?}");
                        assert_eq!(error.errno(), Errno::EPERM);
                        assert_eq!(
                            error.message(),
                            format!(
                                "Job 'j0' in state '{}' cannot accept command verb '{}'",
                                status.name(),
                                verb.name()
                            )
                        );
                    }
                }
            }
        }
    }
}
