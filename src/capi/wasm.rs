//! What only the WebAssembly module has: room in its linear memory for a host that has no other way to get any.
//!
//! A host outside can't pass pointers into its own memory. It asks for room here, writes its structures, strings and the
//! guest's data there, and passes the addresses. docs/WEBASSEMBLY.md tells the whole of it.

use super::guard;
use crate::error::{Errno, Error, Result};
use crate::reserve::{self, Need};
use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr;

/// Gives `size` bytes of linear memory at a multiple of `align`, a power of two. What is in them is anything.
///
/// NULL if there is no room, or if `size` is 0 or `align` no power of two; `mirror_last_error` says which. To be given
/// back with `mirror_wasm_free`.
#[unsafe(no_mangle)]
pub extern "C" fn mirror_wasm_alloc(size: usize, align: usize) -> *mut c_void {
    let mut block = ptr::null_mut();
    guard::unit("mirror_wasm_alloc", || {
        // Whoever takes memory before anything else leaves the reserve, without which there would be no words for the end.
        let _ = reserve::demand(Need::Make);
        let layout = layout(size, align)?;
        // SAFETY: the layout has a size.
        block = reserve::may_fail(|| unsafe { std::alloc::alloc(layout) }).cast::<c_void>();
        if block.is_null() {
            return Err(Error::new(Errno::ENOMEM, format!("no room for {size} bytes")));
        }
        Ok(())
    });
    block
}

/// Gives back what `mirror_wasm_alloc` gave, with the same `size` and `align`. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_wasm_free(block: *mut c_void, size: usize, align: usize) {
    guard::unit("mirror_wasm_free", || {
        if !block.is_null() {
            let layout = layout(size, align)?;
            // SAFETY: the host vouches that the block is of this layout and was not given back before.
            unsafe { std::alloc::dealloc(block.cast::<u8>(), layout) }
        }
        Ok(())
    });
}

fn layout(size: usize, align: usize) -> Result<Layout> {
    if size == 0 {
        return Err(Error::invalid("size 0: must be at least 1"));
    }
    if !align.is_power_of_two() {
        return Err(Error::invalid(format!("align {align}: must be a power of two")));
    }
    Layout::from_size_align(size, align)
        .map_err(|_| Error::new(Errno::ENOMEM, format!("no room for {size} bytes")))
}

#[cfg(test)]
mod tests {
    use super::super::error::mirror_last_error;
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn room_is_aligned_and_given_back() {
        for align in [1, 8, 4096, 65536] {
            let block = mirror_wasm_alloc(100, align);
            assert!(!block.is_null());
            assert_eq!(block.addr() % align, 0);
            // SAFETY: the block has 100 bytes, and is given back once, as it was asked for.
            unsafe {
                block.cast::<u8>().write_bytes(7, 100);
                mirror_wasm_free(block, 100, align);
            }
        }
        // SAFETY: NULL is allowed.
        unsafe { mirror_wasm_free(ptr::null_mut(), 100, 8) }
    }

    #[test]
    fn what_cannot_be_given_is_refused_in_words() {
        for (size, align, says) in [
            (0, 8, "size 0: must be at least 1"),
            (8, 0, "align 0: must be a power of two"),
            (8, 24, "align 24: must be a power of two"),
            (usize::MAX, 8, "no room for 18446744073709551615 bytes"),
        ] {
            assert!(mirror_wasm_alloc(size, align).is_null());
            // SAFETY: the pointer is good until this thread's next failing call.
            let said = unsafe { CStr::from_ptr(mirror_last_error()) };
            assert_eq!(said.to_str(), Ok(&*format!("mirror_wasm_alloc: {says}")));
        }
    }
}
