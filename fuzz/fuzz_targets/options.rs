//! Options and limits of any value: refused with an errno and a text that names what is wrong, or accepted and then as
//! documented.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use blkmirror::capi::*;
use blkmirror_fuzz::{Raw, last_error};
use libfuzzer_sys::fuzz_target;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// A number that is likely to be near a limit.
#[derive(Clone, Copy, Debug)]
struct Odd(u64);

impl<'a> Arbitrary<'a> for Odd {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let byte = u.arbitrary::<u8>()?;
        let power = 1u64 << (byte & 63);
        Ok(Self(match byte >> 6 {
            0 => power,
            1 => power.wrapping_sub(1),
            2 => u64::from(byte & 63),
            _ => u.arbitrary()?,
        }))
    }
}

#[derive(Arbitrary, Debug)]
struct Limits {
    length: Odd,
    alignments: [Odd; 2],
    max_iov: Odd,
    flags: Odd,
    sizes: [Odd; 6],
}

impl Limits {
    fn to_c(&self) -> mirror_device_limits {
        let [max_transfer, max_zero, max_discard, zero_alignment, discard_alignment, cluster_size] =
            self.sizes.each_ref().map(|size| size.0);
        mirror_device_limits {
            struct_size: size_of::<mirror_device_limits>(),
            // A length whose bitmap would need more memory than there is proves nothing.
            length: self.length.0 % (1 << 36),
            request_alignment: self.alignments[0].0 as u32,
            memory_alignment: self.alignments[1].0 as u32,
            max_iov: self.max_iov.0 as u32,
            flags: self.flags.0 as u32,
            max_transfer,
            max_zero,
            max_discard,
            zero_alignment,
            discard_alignment,
            cluster_size,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    limits: [Limits; 2],
    plain: [bool; 2],
    alignment: Odd,
    id: Option<Vec<u8>>,
    enums: [Odd; 6],
    flags: Odd,
    numbers: [Odd; 9],
    reserved: Odd,
    set: u32,
    size: Odd,
    tail: u8,
}

thread_local! {
    static CLOSED: Cell<[u32; 3]> = const { Cell::new([0; 3]) };
}

unsafe extern "C" fn closed(which: *mut c_void) {
    CLOSED.with(|closed| {
        let mut counts = closed.get();
        counts[which as usize] += 1;
        closed.set(counts);
    });
}

fn closed_times(which: usize) -> u32 {
    CLOSED.with(|closed| closed.get()[which])
}

unsafe extern "C" fn read(_: *mut c_void, _: u64, _: u64, _: u64, _: *const mirror_iovec, _: usize) -> c_int {
    unreachable!("nothing is started")
}

unsafe extern "C" fn write(
    _: *mut c_void,
    _: u64,
    _: u64,
    _: u64,
    _: *const mirror_iovec,
    _: usize,
    _: u32,
) -> c_int {
    unreachable!("nothing is started")
}

/// A refusal has an errno and a text.
fn refused(result: c_int, errnos: &[c_int]) -> bool {
    if result == 0 {
        return false;
    }
    let text = last_error();
    assert!(errnos.contains(&-result), "{result}: {text}");
    assert!(text.len() > 12 && text.contains(": "), "a text that says nothing: {text}");
    true
}

const EBUSY: c_int = 16;
const EINVAL: c_int = 22;
const EROFS: c_int = 30;
const ENOMEM: c_int = 12;
const ENAMETOOLONG: c_int = 36;
const E2: &[c_int] = &[EINVAL];

fn device(limits: &mirror_device_limits, which: usize) -> Option<*mut mirror_device> {
    let ops = mirror_device_ops {
        struct_size: size_of::<mirror_device_ops>(),
        read: Some(read),
        write: Some(write),
        zero: None,
        discard: None,
        flush: None,
        extents: None,
        truncate: None,
        cancel: None,
        poll: None,
        close: Some(closed),
        copy: None,
    };
    let mut device = null_mut();
    let result = unsafe { mirror_device_new(&raw const ops, limits, which as *mut c_void, &raw mut device) };
    let refused = refused(result, E2);
    assert_eq!((device.is_null(), closed_times(which)), (refused, u32::from(refused)));
    (!refused).then_some(device)
}

fn check_device(asked: &mirror_device_limits, device: *mut mirror_device) -> mirror_device_limits {
    let mut used = *asked;
    assert_eq!(unsafe { mirror_device_query(device, &raw mut used) }, 0);
    assert_eq!(used.length, asked.length);
    for (asked, used) in
        [(asked.request_alignment, used.request_alignment), (asked.memory_alignment, used.memory_alignment)]
    {
        assert_eq!(used, asked.max(1));
        assert!(used.is_power_of_two() && used <= 65536);
    }
    assert_eq!(used.max_iov, if asked.max_iov == 0 { 1024 } else { asked.max_iov.min(1024) });
    let unit = u64::from(used.request_alignment.max(used.memory_alignment));
    for (asked, used, cap) in [
        (asked.max_transfer, used.max_transfer, 64 << 20),
        (asked.max_zero, used.max_zero, 2 << 30),
        (asked.max_discard, used.max_discard, 2 << 30),
    ] {
        assert!(used >= 512.max(unit) && used <= cap && used.is_multiple_of(unit));
        assert!(asked == 0 || used <= asked, "more than the device takes");
    }
    for size in [used.zero_alignment, used.discard_alignment, used.cluster_size] {
        assert!(size == 0 || (size.is_power_of_two() && size <= 1 << 30));
    }
    used
}

fn options(input: &Input, id: &[u8]) -> mirror_job_options {
    let mut options = mirror_job_options::default();
    let numbers = input.numbers.each_ref().map(|number| number.0);
    // Each field by itself is random or as it was, so that most inputs get past most checks.
    let set = |bit: u32| input.set & 1 << bit != 0;
    let fields: [(&mut u32, u64); 8] = [
        (&mut options.kind, input.enums[0].0),
        (&mut options.sync, input.enums[1].0),
        (&mut options.copy_mode, input.enums[2].0),
        (&mut options.backing_mode, input.enums[3].0),
        (&mut options.on_source_error, input.enums[4].0),
        (&mut options.on_target_error, input.enums[5].0),
        (&mut options.flags, input.flags.0),
        (&mut options.max_in_flight, numbers[0]),
    ];
    for (bit, (field, value)) in (0..).zip(fields) {
        if set(bit) {
            *field = value as u32;
        }
    }
    let fields: [(&mut u64, u64); 6] = [
        (&mut options.granularity, numbers[1]),
        (&mut options.buf_size, numbers[2]),
        (&mut options.max_io, numbers[3]),
        (&mut options.speed, numbers[4]),
        (&mut options.pass_interval_ns, numbers[5]),
        (&mut options.guest_first_io, numbers[6]),
    ];
    for (bit, (field, value)) in (8..).zip(fields) {
        if set(bit) {
            *field = value;
        }
    }
    if set(14) {
        options.guest_first_in_flight = numbers[7] as u32;
    }
    if set(15) && set(16) {
        options.reserved = input.reserved.0 as u32;
    }
    if input.id.is_some() {
        options.id = id.as_ptr().cast();
    }
    if set(17) && set(18) && set(19) {
        options.struct_size = input.size.0 as usize;
    } else if set(20) {
        options.struct_size += usize::from(input.tail);
    }
    options.opaque = 2 as *mut c_void;
    options.closed = Some(closed);
    options
}

/// What is said of options in the header, for those that were accepted.
fn check_job(
    options: &mirror_job_options,
    id: &[u8],
    sides: [&mirror_device_limits; 2],
    job: *mut mirror_job,
) {
    let mut info: mirror_job_info = unsafe { std::mem::zeroed() };
    info.struct_size = size_of::<mirror_job_info>();
    assert_eq!(unsafe { mirror_job_query(job, &raw mut info) }, 0);
    let alignment = u64::from(sides[0].request_alignment.max(sides[1].request_alignment));
    assert!(info.granularity.is_power_of_two() && info.granularity >= alignment);
    if options.granularity == 0 {
        assert!((4096..=65536).contains(&info.granularity));
    } else {
        assert!((512..=64 << 20).contains(&options.granularity));
        assert_eq!(info.granularity, options.granularity);
    }
    assert!(options.kind <= 1 && options.sync <= 2 && options.copy_mode <= 1 && options.backing_mode <= 2);
    assert!(options.on_source_error <= 4 && options.on_target_error <= 4 && options.reserved == 0);
    assert!(options.flags < 256 && options.max_in_flight <= 1024 && options.buf_size <= 4 << 30);
    assert!(options.max_io == 0 || options.max_io >= 512);
    assert!(options.guest_first_io == 0 || options.guest_first_io >= 512);
    assert!(options.guest_first_in_flight <= 1024);
    assert_eq!((info.kind, info.copy_mode, info.speed), (options.kind, options.copy_mode, options.speed));
    assert_eq!(info.status, MIRROR_STATUS_CREATED);
    assert_eq!(sides[1].flags & MIRROR_LIMIT_READ_ONLY, 0);
    if !options.id.is_null() {
        let id = &id[..id.iter().position(|byte| *byte == 0).expect("it ends")];
        assert!(id.len() <= 127 && id[0].is_ascii_alphabetic());
        assert!(id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte)));
        let told = info.id.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect::<Vec<_>>();
        assert_eq!(told, id);
    }
}

fn run(input: &Input) {
    CLOSED.with(|closed| closed.set([0; 3]));
    let plain = mirror_device_limits {
        struct_size: size_of::<mirror_device_limits>(),
        ..Limits {
            length: Odd(1 << 20),
            alignments: [Odd(0); 2],
            max_iov: Odd(0),
            flags: Odd(0),
            sizes: [Odd(0); 6],
        }
        .to_c()
    };
    let asked = [0, 1].map(|side| if input.plain[side] { plain } else { input.limits[side].to_c() });
    let devices = [0, 1].map(|side| device(&asked[side], side));
    let [Some(source), Some(target)] = devices else {
        devices.into_iter().flatten().for_each(|device| unsafe { mirror_device_free(device) });
        return;
    };
    let used = [check_device(&asked[0], source), check_device(&asked[1], target)];
    let mut filter = null_mut();
    let alignment = if input.plain[0] { used[1].request_alignment } else { input.alignment.0 as u32 };
    if !refused(unsafe { mirror_filter_new_aligned(source, alignment, &raw mut filter) }, E2) {
        assert!(alignment.is_power_of_two() && alignment <= 65536);
        let mut id = input.id.clone().unwrap_or_default();
        id.push(0);
        let options = options(input, &id);
        let raw = Raw::of(&options, options.struct_size, input.tail);
        let mut job = null_mut();
        let result = unsafe { mirror_job_new(filter, target, raw.pointer(), &raw mut job) };
        let readable = (size_of::<mirror_job_options>()..=4096).contains(&options.struct_size);
        if refused(result, &[EINVAL, EROFS, ENOMEM, EBUSY, ENAMETOOLONG]) {
            assert!(job.is_null());
            assert_eq!(closed_times(2), u32::from(readable), "{}", last_error());
        } else {
            assert!(readable && closed_times(2) == 0);
            check_job(&options, &id, [&used[0], &used[1]], job);
            assert_eq!(unsafe { mirror_job_free(job) }, 0);
            assert_eq!(closed_times(2), 1);
        }
        unsafe { mirror_filter_free(filter) };
    }
    unsafe { mirror_device_free(source) };
    unsafe { mirror_device_free(target) };
    assert_eq!([closed_times(0), closed_times(1)], [1, 1], "closed once");
}

fuzz_target!(|input: Input| run(&input));
