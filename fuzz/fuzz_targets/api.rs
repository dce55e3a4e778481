//! Programs of C API calls. See `blkmirror_fuzz::api`.
#![no_main]

use blkmirror_fuzz::api::{Program, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|program: Program| run(program));
