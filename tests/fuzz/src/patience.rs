// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long to wait for what should happen at once.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Much longer than it can take, also on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something; false when it does not happen. It asks often: there are thousands of sessions.
pub(crate) fn wait_until(condition: impl Fn() -> bool) -> bool {
    const INTERVAL: Duration = Duration::from_micros(50);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        sleep(INTERVAL);
    }
    condition()
}
