//! What the process tells the C library's allocator.
//!
//! openraft sets aside queues of some 1.5 MB per replica, of which an idle one touches a few pages.
//! What comes from the kernel is not there until it is touched; what the allocator takes from memory
//! that was used before is. glibc begins with the former for large pieces, but learns from every large
//! piece that is freed to do the latter, up to 32 MB: 1,000 idle tablets over three nodes then took
//! 1,088 MiB instead of 768. Fixing the threshold turns the learning off.

#![expect(unsafe_code, reason = "one call of the C library")]

/// Pieces of at least this size come from the kernel and go back to it.
#[cfg(target_env = "gnu")]
const FROM_KERNEL: libc::c_int = 256 * 1024;

/// To be called before the first thread is started.
#[cfg(target_env = "gnu")]
pub fn configure_allocator() {
    // SAFETY: mallopt may be called at any time; it only changes what later allocations do. Where it
    // fails, they stay as they were.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, FROM_KERNEL) };
}

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub fn configure_allocator() {}
