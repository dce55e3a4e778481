//! Numbers, structures and pointers of C, checked and turned into the library's types, and back.

use super::constants::*;
use crate::engine::{
    Action, BackingMode, CopyMode, ErrorPolicy, IoStatus, JobKind, Kind, Side, Status, Sync,
};
use crate::error::{Errno, Error, IoResult, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::{MaybeUninit, size_of};

/// A host's pointer, and the hook that is told, once, that it isn't used any more.
pub(super) struct Opaque {
    pointer: *mut c_void,
    closed: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
}

// SAFETY: the pointer is only handed to the host's functions, which `new` demands to be callable from any thread.
unsafe impl Send for Opaque {}
// SAFETY: as above.
unsafe impl std::marker::Sync for Opaque {}

impl Opaque {
    /// # Safety
    /// `closed` may be called with `pointer`, once, from any thread.
    pub(super) unsafe fn new(
        pointer: *mut c_void,
        closed: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    ) -> Self {
        Self { pointer, closed }
    }

    pub(super) fn pointer(&self) -> *mut c_void {
        self.pointer
    }
}

impl Drop for Opaque {
    fn drop(&mut self) {
        if let Some(closed) = self.closed {
            // SAFETY: `new` vouches for one call, and an `Opaque` is dropped once.
            unsafe { closed(self.pointer) }
        }
    }
}

/// A structure that begins with `size_t struct_size`.
///
/// # Safety
/// It is `repr(C)`, its first field is that `usize`, and all zero bytes are a value of it.
pub(super) unsafe trait Versioned: Copy {
    /// Its name in C.
    const NAME: &'static str;
    /// Its size in the first release; what was added since is zero where a host doesn't know it.
    const FIRST: usize;
}

/// Larger than any version of any structure will ever be: what claims more was never initialised.
const MAX_STRUCT: usize = 4096;

/// What a host passed, and whether it asks for more than this library knows. The two are apart because hooks in the
/// structure are taken even where it is refused.
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) unknown: Result<()>,
}

/// Reads a structure that a host filled in.
///
/// # Safety
/// `pointer` is NULL or points to a `struct_size` and as many readable bytes as that says.
pub(super) unsafe fn read_struct<T: Versioned>(pointer: *const T) -> Result<Given<T>> {
    // SAFETY: passed on.
    let size = unsafe { checked_size(pointer) }?;
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `size` bytes are readable, and no more than fit are copied; the two don't overlap.
    unsafe { copy_bytes(pointer.cast(), value.as_mut_ptr().cast(), size.min(size_of::<T>())) };
    // SAFETY: all zero is a value of `T`, and so is what the host filled in: integers and pointers.
    let value = unsafe { value.assume_init() };
    let tail = size.saturating_sub(size_of::<T>());
    // SAFETY: these are the host's bytes beyond what this library knows.
    let tail = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(size - tail), tail) };
    let unknown = match tail.iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(at) => Err(Error::invalid(format!(
            "{} byte {}: a newer field that this library doesn't know must be zero",
            T::NAME,
            size_of::<T>() + at
        ))),
    };
    Ok(Given { value, unknown })
}

/// A structure of the host's that is to be filled in.
pub(super) struct Output<T> {
    pointer: *mut T,
    size: usize,
}

impl<T: Versioned> Output<T> {
    /// # Safety
    /// `pointer` is NULL or points to a `struct_size` and as many writable bytes as that says, until `write`.
    pub(super) unsafe fn new(pointer: *mut T) -> Result<Self> {
        // SAFETY: passed on.
        Ok(Self { pointer, size: unsafe { checked_size(pointer) }? })
    }

    /// Fills in what the host has room for; `struct_size` stays, and fields that this library doesn't know are zeroed.
    pub(super) fn write(self, value: &T) {
        const SKIP: usize = size_of::<usize>();
        let known = self.size.min(size_of::<T>());
        let from = std::ptr::from_ref(value).cast::<u8>();
        let to = self.pointer.cast::<u8>();
        // SAFETY: `new` vouches for `size` writable bytes, and `value` has at least `known`.
        unsafe {
            copy_bytes(from.add(SKIP), to.add(SKIP), known - SKIP);
            to.add(known).write_bytes(0, self.size - known);
        }
    }
}

/// # Safety
/// Both ends have `count` bytes that don't overlap. They can be uninitialised padding.
unsafe fn copy_bytes(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: passed on.
    unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<MaybeUninit<u8>>(), to.cast::<MaybeUninit<u8>>(), count);
    }
}

/// # Safety
/// `pointer` is NULL or points to a `struct_size`.
unsafe fn checked_size<T: Versioned>(pointer: *const T) -> Result<usize> {
    check_pointer(pointer, T::NAME)?;
    // SAFETY: not NULL, so it points to a `struct_size`, which is aligned.
    let size = unsafe { pointer.cast::<usize>().read() };
    check_size::<T>(size)?;
    Ok(size)
}

/// `EINVAL` unless a structure of this type can have this size.
pub(super) fn check_size<T: Versioned>(size: usize) -> Result<()> {
    if (T::FIRST..=MAX_STRUCT).contains(&size) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name}.struct_size {size}: must be sizeof({name}), from {} to {MAX_STRUCT}",
        T::FIRST,
        name = T::NAME
    )))
}

/// What a host's callback answered, 0 or `-errno`; what is neither is told, and is an `EIO` (SPEC D-6).
pub(super) fn outcome(answer: c_int, callback: &str) -> IoResult {
    if !(-Errno::MAX..=0).contains(&answer) {
        log::warn!("blkmirror: a host's {callback} callback answered {answer}, which means nothing: EIO");
    }
    Errno::check(answer)
}

/// `EINVAL` if the pointer is NULL or misaligned.
pub(super) fn check_pointer<T>(pointer: *const T, name: &str) -> Result<()> {
    if pointer.is_null() {
        return Err(Error::invalid(format!("{name} is NULL")));
    }
    if !pointer.is_aligned() {
        return Err(Error::invalid(format!("{name} is not aligned to {} bytes", align_of::<T>())));
    }
    Ok(())
}

/// A host's text; `None` for NULL.
///
/// # Safety
/// `pointer` is NULL or a string that ends with a NUL and lives as long as the result is used.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller vouches for the string.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map(Some).map_err(|_| Error::invalid(format!("{name} is not UTF-8")))
}

/// Copies text into an array of C, cut at a character's end where it doesn't fit, with its NUL.
pub(super) fn fill_text<const N: usize>(text: &str) -> [c_char; N] {
    let mut filled = [0; N];
    let end = text.floor_char_boundary(N - 1);
    for (to, from) in filled.iter_mut().zip(text[..end].bytes()) {
        *to = from as c_char;
    }
    filled
}

/// `EINVAL` if a bit is set that none of `known` is.
pub(super) fn check_flags(name: &str, value: u32, known: u32) -> Result<()> {
    match value & !known {
        0 => Ok(()),
        unknown => Err(Error::invalid(format!(
            "{name} {value:#x}: the bits {unknown:#x} are unknown here, only {known:#x} may be set"
        ))),
    }
}

/// An enum as C carries it: in a `uint32_t`, by a named constant.
pub(super) trait Numbered: Copy + PartialEq + 'static {
    /// Number, name of the constant, value.
    const TABLE: &'static [(u32, &'static str, Self)];
}

/// The value with this number; `EINVAL` names the field and what it may be.
pub(super) fn from_c<T: Numbered>(field: &str, number: u32) -> Result<T> {
    if let Some((_, _, value)) = T::TABLE.iter().find(|(known, _, _)| *known == number) {
        return Ok(*value);
    }
    let known: Vec<_> = T::TABLE.iter().map(|(known, name, _)| format!("{name} ({known})")).collect();
    Err(Error::invalid(format!("{field} {number}: must be {}", known.join(", "))))
}

/// The number of this value.
pub(super) fn to_c<T: Numbered>(value: T) -> u32 {
    // Each table is complete, which a test holds.
    T::TABLE.iter().find(|(_, _, known)| *known == value).map_or(u32::MAX, |(number, _, _)| *number)
}

macro_rules! numbered {
    ($($type:ident { $($constant:ident = $variant:ident,)* })*) => {
        $(impl Numbered for $type {
            const TABLE: &'static [(u32, &'static str, Self)] =
                &[$(($constant, stringify!($constant), Self::$variant)),*];
        })*

        #[cfg(test)]
        mod completeness {
            use super::*;
            $(
                // A variant that is missing from its table fails to compile here.
                #[allow(non_snake_case, dead_code)]
                fn $type(value: $type) {
                    match value { $($type::$variant => (),)* }
                }
            )*
        }
    };
}

numbered! {
    Sync {
        MIRROR_SYNC_FULL = Full,
        MIRROR_SYNC_TOP = Top,
        MIRROR_SYNC_NONE = None,
    }
    JobKind {
        MIRROR_KIND_MIRROR = Mirror,
        MIRROR_KIND_COMMIT_ACTIVE = CommitActive,
    }
    CopyMode {
        MIRROR_COPY_BACKGROUND = Background,
        MIRROR_COPY_WRITE_BLOCKING = WriteBlocking,
    }
    BackingMode {
        MIRROR_BACKING_SOURCE_CHAIN = SourceChain,
        MIRROR_BACKING_OPEN = Open,
        MIRROR_BACKING_LEAVE = Leave,
    }
    ErrorPolicy {
        MIRROR_ON_ERROR_REPORT = Report,
        MIRROR_ON_ERROR_IGNORE = Ignore,
        MIRROR_ON_ERROR_STOP = Stop,
        MIRROR_ON_ERROR_ENOSPC = Enospc,
        MIRROR_ON_ERROR_AUTO = Auto,
    }
    Status {
        MIRROR_STATUS_CREATED = Created,
        MIRROR_STATUS_RUNNING = Running,
        MIRROR_STATUS_PAUSED = Paused,
        MIRROR_STATUS_READY = Ready,
        MIRROR_STATUS_STANDBY = Standby,
        MIRROR_STATUS_WAITING = Waiting,
        MIRROR_STATUS_PENDING = Pending,
        MIRROR_STATUS_ABORTING = Aborting,
        MIRROR_STATUS_CONCLUDED = Concluded,
        MIRROR_STATUS_NULL = Null,
    }
    IoStatus {
        MIRROR_IO_OK = Ok,
        MIRROR_IO_FAILED = Failed,
        MIRROR_IO_NOSPACE = NoSpace,
    }
    Kind {
        MIRROR_OP_READ = Read,
        MIRROR_OP_WRITE = Write,
        MIRROR_OP_ZERO = Zero,
        MIRROR_OP_DISCARD = Discard,
        MIRROR_OP_FLUSH = Flush,
        MIRROR_OP_EXTENTS = Extents,
        MIRROR_OP_TRUNCATE = Truncate,
        MIRROR_OP_COPY = Copy,
    }
    Side {
        MIRROR_SIDE_SOURCE = Source,
        MIRROR_SIDE_TARGET = Target,
    }
    Action {
        MIRROR_ACTION_REPORT = Report,
        MIRROR_ACTION_IGNORE = Ignore,
        MIRROR_ACTION_STOP = Stop,
    }
}

/// A log level from its number.
pub(super) fn level_from_c(level: u32) -> Result<log::LevelFilter> {
    log::LevelFilter::iter().find(|known| *known as u32 == level).ok_or_else(|| {
        Error::invalid(format!(
            "level {level}: must be from MIRROR_LOG_OFF ({MIRROR_LOG_OFF}) to MIRROR_LOG_TRACE ({MIRROR_LOG_TRACE})"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a second version would be: `late` was added after the first.
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct Sample {
        struct_size: usize,
        early: u64,
        late: u64,
    }

    // SAFETY: integers only.
    unsafe impl Versioned for Sample {
        const NAME: &'static str = "sample";
        const FIRST: usize = 16;
    }

    fn read(words: &[u64]) -> Result<Sample> {
        // SAFETY: each test says no more than it has.
        let given = unsafe { read_struct::<Sample>(words.as_ptr().cast()) }?;
        given.unknown.map(|()| given.value)
    }

    fn size(size: usize) -> u64 {
        size as u64
    }

    #[test]
    fn older_and_newer_structures_are_read() {
        assert_eq!(read(&[size(16), 1, 9]).expect("older").late, 0, "a new field is zero for an old host");
        assert_eq!(read(&[size(24), 1, 2]).expect("the same").late, 2);
        assert_eq!(read(&[size(32), 1, 2, 0]).expect("newer, unused").late, 2);
        assert_eq!(
            read(&[size(32), 1, 2, 1 << 8]).expect_err("newer, used").message(),
            "sample byte 25: a newer field that this library doesn't know must be zero"
        );
        for wrong in [0, 15, 4097] {
            assert_eq!(
                read(&[size(wrong), 0, 0]).expect_err("no size").message(),
                format!("sample.struct_size {wrong}: must be sizeof(sample), from 16 to 4096")
            );
        }
        // SAFETY: NULL is allowed.
        assert!(unsafe { read_struct::<Sample>(std::ptr::null()) }.is_err());
    }

    #[test]
    fn no_more_is_filled_in_than_there_is_room_for() {
        let value = Sample { struct_size: 0, early: 1, late: 2 };
        for (given, expected) in
            [([16, 7, 7, 7], [16, 1, 7, 7]), ([24, 7, 7, 7], [24, 1, 2, 7]), ([32, 7, 7, 7], [32, 1, 2, 0])]
        {
            let mut words: [u64; 4] = given;
            // SAFETY: 32 bytes are there.
            unsafe { Output::new(words.as_mut_ptr().cast::<Sample>()) }.expect("valid").write(&value);
            assert_eq!(words, expected);
        }
    }

    #[test]
    fn an_unknown_number_or_bit_is_named_with_the_rule() {
        assert_eq!(
            from_c::<Sync>("sync", 9).expect_err("unknown").message(),
            "sync 9: must be MIRROR_SYNC_FULL (0), MIRROR_SYNC_TOP (1), MIRROR_SYNC_NONE (2)"
        );
        assert_eq!(
            check_flags("flags", 0x18, 0x0f).expect_err("unknown").message(),
            "flags 0x18: the bits 0x10 are unknown here, only 0xf may be set"
        );
        assert_eq!(to_c(from_c::<Kind>("kind", MIRROR_OP_FLUSH).expect("known")), MIRROR_OP_FLUSH);
    }

    #[test]
    fn text_is_cut_where_a_character_ends() {
        let filled: [c_char; 4] = fill_text("ab\u{20ac}");
        assert_eq!(filled.map(|c| c as u8), *b"ab\0\0");
        let filled: [c_char; 4] = fill_text("abcd");
        assert_eq!(filled.map(|c| c as u8), *b"abc\0");
    }
}
