//! SPEC section 7: guest I/O.

use super::script::*;

#[test]
fn write_blocking_carries_each_write_before_the_guest_is_told() {
    // SPEC G-3
    let mut script = Script::new();
    script.begin(Options { copy_mode: CopyMode::WriteBlocking, ..options() });
    script.until("synced", |info| info.actively_synced && info.ready);
    let told = script.write(5 * CHUNK + 512, 0x99, 512);
    script.settle();
    assert_eq!((script.source.pending(), script.target.pending()), (1, 1), "both at the same time");
    script.source.complete_one(script.now);
    script.settle();
    assert_eq!(told.get(), None);
    script.target.complete_one(script.now);
    script.settle();
    assert_eq!(told.get(), Some(Ok(())));
    assert!(script.equal());
    assert!(script.info().actively_synced);
    assert_eq!((script.info().active.ops, script.info().dirty), (1, 0));
}
