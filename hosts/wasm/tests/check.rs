//! The check of a device, which waits elsewhere, works where there is neither a clock nor a thread.

mod common;

use blkmirror_wasm::layout::{CHECK_OPTIONS, Record};
use common::{bare, program};

#[test]
fn a_device_is_checked_without_a_clock_and_without_threads() {
    let program = program(false);
    let mut module = bare(&program, None);
    let device = module
        .make(|module, out| module.try_call("mirror_device_new_memory", (8_u64 << 20, out)))
        .expect("a device");
    let mut options = Record::new(&CHECK_OPTIONS);
    options.set("flags", 1);
    let findings = module.with(&options, |module, options| {
        module.try_call("mirror_device_check", (device, options, 0_u32, 0_u32))
    });
    assert_eq!(findings.expect("it is checked").0, 0);
}
