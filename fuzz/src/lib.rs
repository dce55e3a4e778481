//! What the fuzz targets share.
#![allow(clippy::missing_panics_doc, missing_docs)]

pub mod api;

use blkmirror::capi::mirror_last_error;
use std::ffi::{CStr, c_char};

/// The text of this thread's last failure.
#[must_use]
pub fn last_error() -> String {
    // SAFETY: the text is good until this thread's next failing call, and copied at once.
    unsafe { CStr::from_ptr(mirror_last_error()) }.to_string_lossy().into_owned()
}

/// A structure in more memory than it needs, for one that says that it is longer or shorter than it is.
pub struct Raw<T> {
    words: Vec<u64>,
    of: std::marker::PhantomData<T>,
}

impl<T: Copy> Raw<T> {
    /// `value`, whose `struct_size` will be read as `size`: so much memory is there, as far as the library may look at
    /// it. What is beyond the structure is zero, but for `tail` at its end.
    #[must_use]
    pub fn of(value: &T, size: usize, tail: u8) -> Self {
        let known = size_of::<T>();
        let bytes = if size > 4096 { known } else { size.max(known) };
        let mut words = vec![0u64; bytes.div_ceil(8)];
        let to = words.as_mut_ptr().cast::<u8>();
        // SAFETY: there is room for the structure, for its size at its beginning, and for the tail if it is longer.
        unsafe {
            to.copy_from_nonoverlapping(std::ptr::from_ref(value).cast(), known);
            to.cast::<usize>().write(size);
            if bytes > known {
                to.add(bytes - 1).write(tail);
            }
        }
        Self { words, of: std::marker::PhantomData }
    }

    #[must_use]
    pub fn pointer(&self) -> *const T {
        self.words.as_ptr().cast()
    }
}

/// Memory that can't be had is an errno here, not the end of the process.
#[unsafe(no_mangle)]
pub extern "C" fn __asan_default_options() -> *const c_char {
    c"allocator_may_return_null=1:max_allocation_size_mb=300:detect_stack_use_after_return=1".as_ptr()
}
