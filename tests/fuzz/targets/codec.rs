// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any bytes in any pieces, with and without descriptors, for whoever receives them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_device_vfio_fuzz::codec::{Input, receive};

fuzz_target!(|input: Input<'_>| receive(&input));
