//! Lanes: a device's own way in for one user, who sends many requests at a time and looks for completions itself.

use super::{Answer, Request, Token};

/// A way to a device that one client has for itself.
///
/// What goes this way is queued until [`Lane::send`], so that a burst of requests costs one call of the operating
/// system; and while the lane is *attended* its completions wait for [`Lane::reap`], so that they cost no other thread.
/// Everybody else's requests go to [`Backend::submit`](super::Backend::submit) and need nobody's attention.
///
/// Threads: every method from any thread.
pub trait Lane: Send + Sync {
    /// Takes a request as [`Backend::submit`](super::Backend::submit) does, but need not begin with it before
    /// [`Lane::send`]. It lies with the user that nothing is left unsent.
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer;

    /// Begins with all that was taken.
    fn send(&self);

    /// Completes what is finished. Never waits.
    fn reap(&self);

    /// Hurries what is in flight: it may fail with `ECANCELED`.
    fn cancel(&self) {}

    /// A descriptor that is readable while there is something to reap. Without one the lane is never attended.
    fn descriptor(&self) -> Option<i32> {
        None
    }

    /// Whether the user watches the descriptor from now on. While it doesn't, as in the beginning, what is finished is
    /// completed by itself, from any thread.
    fn set_attended(&self, attended: bool) {
        let _ = attended;
    }
}
