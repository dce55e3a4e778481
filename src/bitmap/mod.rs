//! Which chunks are dirty, in flight, written or known to be zero.
