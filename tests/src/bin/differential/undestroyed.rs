// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why an object of an iommufd could not be destroyed. What is dropped has no result, so the `vfio` crate logs it.

use std::sync::{Mutex, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};
use vfio::Errno;

/// The errno of the last one.
static LAST: Mutex<Option<Errno>> = Mutex::new(None);

struct Listener;

impl Log for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        let errno = line.split_once("-not-destroyed errno=").and_then(|(_, errno)| errno.parse().ok());
        let errno = errno.unwrap_or_else(|| panic!("the log says `{line}`"));
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Errno::from_raw_os_error(errno));
    }

    fn flush(&self) {}
}

/// Listens from now on.
pub(crate) fn listen() {
    log::set_logger(&Listener).expect("there is no other logger");
    log::set_max_level(LevelFilter::Warn);
}

/// Whether what was dropped just now is destroyed.
pub(crate) fn take() -> Result<(), Errno> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
}
