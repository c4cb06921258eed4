// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this process has, of which nothing may be left behind.

use std::fs;

/// How many descriptors.
pub(crate) fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").expect("the process's files").count()
}

/// How many threads.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("the process's threads").count()
}

/// How often guest memory is mapped, which it is where the kernel can pin memory in no other way.
pub(crate) fn mappings_of_guest_memory() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("the process's mappings");
    maps.lines().filter(|line| line.contains("/memfd:guest")).count()
}
