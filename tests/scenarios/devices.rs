//! SPEC section 1: devices.

use super::script::*;
use blkmirror::device::Callback;

#[test]
fn a_guest_request_that_makes_no_sense_is_refused_and_the_rest_goes_on() {
    // SPEC D-5
    let source = disk(|with| with.limits.request_alignment = 512);
    let script = Script::with(source, disk(|_| {}));
    let mut memory = [0u8; 1024];
    // SAFETY: the memory outlives the requests, none of which is accepted.
    let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), 1024) }];
    let cases = [
        (Kind::Read, 0, 512, Errno::EINVAL),
        (Kind::Write, 100, 1024, Errno::EINVAL),
        (Kind::Write, LENGTH - 512, 1024, Errno::ERANGE),
        (Kind::Read, LENGTH, 1024, Errno::ERANGE),
        (Kind::Truncate, 0, 1024, Errno::EOPNOTSUPP),
        (Kind::Extents, 0, 1024, Errno::EOPNOTSUPP),
    ];
    for (kind, offset, length, errno) in cases {
        let range = ByteRange::new(offset, length).expect("no overflow");
        let io = GuestIo { kind, range, flags: GuestFlags::default(), iov: &iov };
        let done = Callback::from_closure(|_| panic!("told of a refused request"));
        assert_eq!(script.filter.submit(&io, done).expect_err("refused").errno(), errno, "{kind:?} {offset}");
    }
    let told = script.write(0, 1, 512);
    script.source.complete_one(1);
    assert_eq!(told.get(), Some(Ok(())));
}

#[test]
fn a_device_without_room_is_asked_again_in_order_and_nothing_is_lost() {
    // SPEC D-2
    let mut script = Script::with(disk(|with| with.depth = 1), disk(|with| with.depth = 1));
    let told: Vec<_> = (0..20).map(|index| script.write(0, index, 512)).collect();
    for each in &told {
        assert_eq!(each.get(), None, "in order");
        assert!(script.source.complete_one(1));
        assert_eq!(each.get(), Some(Ok(())));
    }
    assert_eq!(script.source.bytes()[0], 19);
    script.begin(options());
    script.until_ready();
    assert!(script.equal());
}
