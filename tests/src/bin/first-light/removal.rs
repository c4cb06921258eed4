// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device is pulled out while a guest uses it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use protocol::extension::Cookie;
use protocol::vfio_user::ClientError;
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::server_process::wait_until;
use vhost_device_vfio_tests::vmm::Vmm;

use super::FIRST;
use super::dma::copy_arrives;

/// A slot of its own.
const OTHER: &str = "0000:02:00.0";
/// The port with the first function's slot.
const PORT: &str = "/sys/bus/pci/devices/0000:00:04.0/config";
const MEMORY: u64 = 3 << 20;

/// Takes the slot's power away behind the back of its driver, on which the emulator takes the function out.
fn pull_out() {
    const CAPABILITIES: u64 = 0x34;
    const EXPRESS: u8 = 0x10;
    const SLOT_CONTROL: u64 = 0x18;
    const INDICATOR_AND_POWER_OFF: u16 = 0x0700;
    const INTERRUPT: u16 = 0x0020;
    let config = OpenOptions::new().read(true).write(true).open(PORT).unwrap();
    let byte = |offset| {
        let mut byte = [0];
        config.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    };
    let mut capability = byte(CAPABILITIES);
    while byte(capability.into()) != EXPRESS {
        capability = byte(u64::from(capability) + 1);
        assert_ne!(capability, 0, "the port is an express port");
    }
    let mut control = [0; 2];
    let register = u64::from(capability) + SLOT_CONTROL;
    config.read_exact_at(&mut control, register).unwrap();
    // The driver hears of it only when the power is on again: otherwise it believes that it has done it itself.
    let off = (u16::from_le_bytes(control) | INDICATOR_AND_POWER_OFF) & !INTERRUPT;
    config.write_all_at(&off.to_le_bytes(), register).unwrap();
    config.write_all_at(&control, register).unwrap();
}

fn is_there(address: &str) -> bool {
    Path::new("/sys/bus/pci/devices").join(address).exists()
}

fn is_answered<T: std::fmt::Debug>(outcome: &Result<T, ClientError>) {
    assert!(matches!(outcome, Ok(_) | Err(ClientError::Refused { .. })), "{outcome:?}");
}

pub(crate) fn a_device_that_is_pulled_out_harms_no_other() {
    let memory = GuestMemory::new(0, MEMORY);
    let mut vmm = Vmm::start();
    vmm.add(2, OTHER).unwrap();
    let files = vmm.server.open_files();
    vmm.add(1, FIRST).unwrap();
    let (mut gone, mut other) = (vmm.open(1), vmm.open(2));
    for function in [&mut gone, &mut other] {
        function.map(&memory, 0..MEMORY).unwrap();
        function.enable();
    }
    assert!(copy_arrives(&mut Edu::new(&mut gone), &memory));
    pull_out();
    // The kernel waits for the device's release, and says so.
    vmm.server.wait_for_log("event=unplug-requested device=0000:01:00.0");
    // Whatever the client asks is answered, be it with an error, or with what is read where nothing is.
    is_answered(&gone.try_read(0, 0));
    is_answered(&gone.try_read(7, 4));
    is_answered(&gone.client.region_write(0, 4, &[0; 4]));
    is_answered(&gone.client.device_reset());
    is_answered(&gone.unmap(0..MEMORY));
    assert!(copy_arrives(&mut Edu::new(&mut other), &memory), "the other works");
    drop(gone);
    vmm.control.remove_device(Cookie(1)).unwrap();
    assert!(wait_until(|| !is_there(FIRST)), "the kernel is done with it: {}", vmm.server.log());
    assert!(copy_arrives(&mut Edu::new(&mut other), &memory), "the other still works");
    assert!(!vmm.server.log().contains("panicked"), "{}", vmm.server.log());
    drop(other);
    vmm.server.wait_for_open_files(files);
}
