// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Vhost-user frontends of a virtio device on a modelled machine.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_device_vfio_fuzz::frontend::{Session, play};

fuzz_target!(|session: Session| play(&session));
