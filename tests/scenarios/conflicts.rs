//! SPEC section 6: conflicts.

use super::script::*;
