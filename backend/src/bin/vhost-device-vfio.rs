// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device server.

use std::process::ExitCode;

fn main() -> ExitCode {
    vhost_device_vfio::program::main()
}
