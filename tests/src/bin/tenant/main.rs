// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client of a data face in a process of its own, as another VM's: turns bus mastering on, says so, and stays until its
//! input ends. Then it says whether the error interrupt has come, and what is in the command register.

#![allow(clippy::expect_used)]

use std::io::Read;
use std::os::unix::net::UnixStream;

use vfio::IrqIndex;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::pci_function::PciFunction;

fn main() {
    let path = std::env::args_os().nth(1).expect("the path of a data face");
    let mut function = PciFunction::negotiated(UnixStream::connect(path).expect("the face listens"));
    let (error, eventfd) = Interrupt::new();
    function.arm(IrqIndex::Err, 0, vec![eventfd]).expect("the error interrupt is armed");
    function.enable();
    println!("active");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("the end of the input");
    let told = if error.has_fired() { "told" } else { "not told" };
    println!("{told}, command {:#x}", function.command());
}
