//! Tests that are wrong in the way that their names say, so that a sanitizer that sees nothing is seen to.

#[test]
fn race() {
    static mut SHARED: u64 = 0;
    let thread = std::thread::spawn(|| unsafe { SHARED += 1 });
    unsafe { SHARED += 1 };
    thread.join().expect("no panic");
}

#[test]
fn use_after_free() {
    let freed = std::ptr::from_ref(Box::leak(Box::new(7u64)));
    drop(unsafe { Box::from_raw(freed.cast_mut()) });
    assert_ne!(unsafe { freed.read_volatile() }, 8);
}
