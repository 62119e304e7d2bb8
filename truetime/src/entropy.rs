//! The process's source of chance.
//!
//! `HashMap`'s seeds, the rand crates, tokio's `select!` and uuids all ask the C library's
//! `getrandom` or `getentropy`. This module *is* those two functions: until a simulation sets a
//! seed they pass the request to the kernel; from then on they count, through splitmix64. One seed
//! per process: what was drawn before (a thread's first `HashMap`) is not drawn again, so a
//! simulation that must be repeated byte for byte runs in a process of its own.

#![expect(unsafe_code, reason = "replaces two functions of the C library")]

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static SEEDED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on every request for entropy in this process is answered from `seed`.
pub fn set_seed(seed: u64) {
    STATE.store(seed, Ordering::Relaxed);
    SEEDED.store(true, Ordering::Relaxed);
}

fn next() -> u64 {
    let z = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// # Safety
/// `buffer` points to `length` writable bytes, as for the C library's function.
unsafe fn fill(buffer: *mut c_void, length: usize) {
    let mut done = 0;
    while done < length {
        let word = next().to_ne_bytes();
        let n = (length - done).min(word.len());
        // SAFETY: `done + n <= length`, and the caller vouches for the buffer.
        unsafe {
            std::ptr::copy_nonoverlapping(word.as_ptr(), buffer.cast::<u8>().add(done), n);
        }
        done += n;
    }
}

/// The C library's `getrandom(2)`.
///
/// # Safety
/// As for the C library's function.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if SEEDED.load(Ordering::Relaxed) {
        // SAFETY: the caller's contract.
        unsafe { fill(buffer, length) };
        return isize::try_from(length).unwrap_or(isize::MAX);
    }
    // SAFETY: the same arguments, passed on to the kernel.
    let result = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
    isize::try_from(result).unwrap_or(-1)
}

/// The C library's `getentropy(3)`.
///
/// # Safety
/// As for the C library's function.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getentropy(buffer: *mut c_void, length: usize) -> c_int {
    // SAFETY: the caller's contract.
    let result = unsafe { getrandom(buffer, length, 0) };
    if result >= 0 && result.unsigned_abs() == length { 0 } else { -1 }
}
