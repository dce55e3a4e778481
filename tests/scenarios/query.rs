//! SPEC section 10: progress and query.

use super::script::*;
