//! The conformance check of devices.

use super::constants::*;
use super::convert::{Given, Versioned, check_flags, read_struct, to_c};
use super::device::{Handle, flags_to_c, mirror_device};
use super::error::c_text;
use super::{guard, handle};
use crate::conformance::{self, Finding, Options};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::reserve::{self, Need};
use std::ffi::{c_char, c_int, c_void};

/// What `mirror_device_check` may do. Fill it with zeroes, set `struct_size`, `flags` and whatever is to be different.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_check_options {
    /// `sizeof(mirror_check_options)`.
    pub struct_size: usize,
    /// `MIRROR_CHECK_DESTROY`, which must be set.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Another seed tries other places and lengths; the same one the same.
    pub seed: u64,
    /// Most bytes of the device that are touched, at least 1 MiB. 0: 64 MiB. A longer device is sampled: its ends, its
    /// middle, and around the offsets 2^31, 2^32 and 2^41.
    pub max_bytes: u64,
    /// Nanoseconds without any completion after which what is out counts as lost. 0: five seconds.
    pub timeout_ns: u64,
}

// SAFETY: repr(C), begins with the size; integers only.
unsafe impl Versioned for mirror_check_options {
    const NAME: &'static str = "mirror_check_options";
    const FIRST: usize = size_of::<Self>();
}

/// A rule that a device has broken. The texts are good during the call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_check_finding {
    /// How much of this structure the library has filled in.
    pub struct_size: usize,
    /// The rule's name, such as "write-stores"; names stay what they are.
    pub rule: *const c_char,
    /// The rule of the specification that it is part of: "D-1" to "D-6".
    pub spec: *const c_char,
    /// What the rule says.
    pub text: *const c_char,
    /// What was asked for.
    pub asked: *const c_char,
    /// What was to be expected.
    pub expected: *const c_char,
    /// What came.
    pub came: *const c_char,
    /// All of it in one line.
    pub line: *const c_char,
    /// The request's `MIRROR_OP_`; 0 if the finding is of no request in particular, and what follows is 0 then too.
    pub operation: u32,
    /// The request's flags: `MIRROR_FUA`, `MIRROR_MAY_UNMAP`.
    pub flags: u32,
    /// Where it begins.
    pub offset: u64,
    /// Its length; of a truncate, the length that the device was to have.
    pub length: u64,
}

/// Judges a host's device: sends it requests as filters and jobs do, at and within its limits, and tells each rule that it
/// breaks. **What the device holds is lost.**
///
/// Tried are reads and writes of every length, at the ends and from odd lists of buffers; overlapping requests, many at a
/// time and from several threads; zeroes, discards, flushes and FUA; extents against what is read; completions, AGAIN, the
/// `cancel` and the `poll` hook; and what the limits promise: that it reads as zero, only if nothing was written through it
/// before. The device must be a scratch device that no filter or job uses. If it has `truncate` it is grown by a few
/// kilobytes and asked to shrink again; if it is read-only it must refuse a write. Callbacks are called from this thread
/// and for a moment from four others; `ops->poll` is called while this waits.
///
/// `finding`, if it isn't NULL, is called for each finding when it is made, with `opaque`, from this thread; of each rule a
/// few at most. What comes first matters most: what comes later may be damage from it.
///
/// A device that lets this wait for `timeout_ns` is told so; at the third time the check gives up. The memory of a request
/// that is never completed stays with the device until that is gone: such a device must have let go of it when its handle
/// is freed.
///
/// The number of findings, 0 for a device that conforms. `-EINVAL` without `MIRROR_CHECK_DESTROY` and for options that make
/// no sense; `-EBUSY` if a filter or a job uses the device, or an earlier check has requests out; `-ENOMEM`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_device_check(
    device: *mut mirror_device,
    options: *const mirror_check_options,
    finding: Option<unsafe extern "C" fn(opaque: *mut c_void, finding: *const mirror_check_finding)>,
    opaque: *mut c_void,
) -> c_int {
    guard::call("mirror_device_check", || {
        reserve::demand(Need::Make)?;
        // SAFETY: the host passes NULL or a handle, which it may free while this runs.
        let device: Device = unsafe { handle::get::<Handle>(device) }?.device.clone();
        // SAFETY: the host passes NULL or such a structure.
        let Given { value: options, unknown } = unsafe { read_struct(options) }?;
        unknown?;
        let options = options.to_options()?;
        let report = conformance::check(&device, &options, &mut |found| {
            if let Some(finding) = finding {
                // SAFETY: the host vouches for its callback, with its pointer.
                tell(found, |found| unsafe { finding(opaque, found) });
            }
        })?;
        Ok(c_int::try_from(report.findings.len()).unwrap_or(c_int::MAX))
    })
}

impl mirror_check_options {
    fn to_options(self) -> Result<Options> {
        check_flags("mirror_check_options.flags", self.flags, MIRROR_CHECK_DESTROY)?;
        if self.flags & MIRROR_CHECK_DESTROY == 0 {
            return Err(Error::invalid(
                "mirror_check_options.flags: MIRROR_CHECK_DESTROY must be set, because what the device holds is lost",
            ));
        }
        if self.reserved != 0 {
            return Err(Error::invalid(format!("reserved {}: must be 0", self.reserved)));
        }
        Ok(Options { destroy: true, seed: self.seed, max_bytes: self.max_bytes, timeout_ns: self.timeout_ns })
    }
}

/// Shows a finding as C sees it.
fn tell(found: &Finding, show: impl FnOnce(*const mirror_check_finding)) {
    let texts = [
        found.rule.name(),
        found.rule.spec(),
        found.rule.text(),
        &found.asked,
        &found.expected,
        &found.came,
        &found.to_string(),
    ]
    .map(c_text);
    let [rule, spec, text, asked, expected, came, line] = texts.each_ref().map(|text| text.as_ptr());
    let request = found.request.as_ref();
    let shown = mirror_check_finding {
        struct_size: size_of::<mirror_check_finding>(),
        rule,
        spec,
        text,
        asked,
        expected,
        came,
        line,
        operation: request.map_or(0, |request| to_c(request.kind)),
        flags: request.map_or(0, |request| flags_to_c(request.flags)),
        offset: request.map_or(0, |request| request.range.offset()),
        length: request.map_or(0, |request| request.range.len()),
    };
    show(&raw const shown);
}
