// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client of a data face in a process of its own, as another VM's: turns bus mastering on, says so, and stays until its
//! input ends.

#![allow(clippy::expect_used)]

use std::io::Read;
use std::os::unix::net::UnixStream;

use vhost_device_vfio_tests::pci_function::PciFunction;

fn main() {
    let path = std::env::args_os().nth(1).expect("the path of a data face");
    let mut function = PciFunction::negotiated(UnixStream::connect(path).expect("the face listens"));
    function.enable();
    println!("active");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("the end of the input");
}
