//! The memory that requests have lent to disks: none may be written into while another request uses it (SPEC C-8).
//!
//! A copy buffer that is given back too early is lent again at once, and then two requests have it. A job's buffers
//! are one block, so that as long as none is lent twice no more than that block is in use (SPEC C-6, C-7).

use crate::device::{IoVec, Kind};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
struct Loan {
    number: u64,
    memory: Range<usize>,
    /// A read writes into it.
    written: bool,
}

#[derive(Debug, Default)]
struct State {
    loans: Vec<Loan>,
    last: u64,
}

/// What is lent to the disks that share this. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub(super) struct Lent(Arc<Mutex<State>>);

impl Lent {
    /// Takes down what a request lends; the number is for [`Lent::give_back`]. The error names the clash.
    pub(super) fn lend(&self, kind: Kind, iov: &[IoVec]) -> (u64, Result<(), String>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.last += 1;
        let (number, written) = (state.last, kind == Kind::Read);
        let mut result = Ok(());
        for buffer in iov.iter().filter(|buffer| !buffer.is_empty()) {
            let start = buffer.base() as usize;
            let memory = start..start + buffer.len();
            let clashes = state.loans.iter().any(|other| {
                let overlap = other.memory.start < memory.end && memory.start < other.memory.end;
                other.number != number && overlap && (written || other.written)
            });
            if clashes {
                result = Err(format!("a {} uses memory that another request has", kind.name()));
            }
            state.loans.push(Loan { number, memory, written });
        }
        (number, result)
    }

    /// The request doesn't need it any more.
    pub(super) fn give_back(&self, number: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.loans.retain(|loan| loan.number != number);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn memory_is_written_into_by_one_request_at_a_time() {
        let mut bytes = [0u8; 64];
        // SAFETY: nobody follows these pointers.
        let mut iov =
            |from: usize, length| [unsafe { IoVec::new(bytes.as_mut_ptr().add(from).cast(), length) }];
        let (first, second, apart) = (iov(0, 32), iov(31, 2), iov(40, 8));
        let lent = Lent::default();
        assert_eq!(lent.lend(Kind::Write, &first).1, Ok(()));
        assert_eq!(lent.lend(Kind::Write, &second).1, Ok(()), "two may look at it");
        assert!(lent.lend(Kind::Read, &first).1.is_err());
        let lent = Lent::default();
        let (read, _) = lent.lend(Kind::Read, &first);
        assert!(lent.lend(Kind::Write, &second).1.is_err());
        assert_eq!(lent.lend(Kind::Read, &apart).1, Ok(()));
        lent.give_back(read);
        assert_eq!(lent.lend(Kind::Write, &first).1, Ok(()), "it was given back");
    }
}
