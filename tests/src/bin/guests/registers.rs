// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest uses QEMU's edu device, for which Linux has no driver: by its registers (docs/specs/edu.rst).

use serde_json::json;
use vhost_device_vfio_tests::guest::{Guest, Passthrough, Settings};
use vhost_device_vfio_tests::server_process::wait_until;

use super::FIRST;
use super::quiet::expect_quiet;
use super::stage::Stage;

const FACTORIAL: u32 = 0x08;
const STATUS: u32 = 0x20;
const DMA_SOURCE: u32 = 0x80;
const DMA_DESTINATION: u32 = 0x88;
const DMA_COUNT: u32 = 0x90;
const DMA_COMMAND: u32 = 0x98;
/// The engine's buffer in the device's own address space.
const BUFFER: u64 = 0x4_0000;
/// Short of the buffer's whole size, which some QEMU versions do not survive.
const LENGTH: u64 = 2048;
const TO_DEVICE: u64 = 0;
const TO_MEMORY: u64 = 2;
/// Guest memory with the firmware.
const SOURCE: u64 = 0xf_f000;
/// Guest memory that the kernel keeps off, as [`RESERVED`] tells it.
const DESTINATION: u64 = 0x800_0000;
/// What keeps the kernel off the destination.
const RESERVED: &str = "memmap=1M$0x8000000";

/// The registers of an edu in a guest.
struct Edu<'a> {
    guest: &'a mut Guest,
}

impl<'a> Edu<'a> {
    /// Memory decoding and bus mastering on. Busybox's tool for device memory then works on the function's.
    fn enable(guest: &'a mut Guest, number: usize) -> Self {
        let function = format!("/sys/bus/pci/devices/{}", Guest::address(number));
        guest.run(&format!("echo 1 >{function}/enable; ln -sf {function}/resource0 /dev/mem"));
        // The command register: memory and bus master.
        guest.run(&format!("printf '\\x06\\x00' | dd of={function}/config bs=1 seek=4 conv=notrunc"));
        Self { guest }
    }

    fn read(&mut self, register: u32) -> u64 {
        let value = self.guest.run(&format!("devmem {register:#x} 32"));
        u64::from_str_radix(value.trim_start_matches("0x"), 16).unwrap()
    }

    fn write(&mut self, register: u32, value: u64) {
        let width = if register < DMA_SOURCE { 32 } else { 64 };
        self.guest.run(&format!("devmem {register:#x} {width} {value:#x}"));
    }

    fn factorial(&mut self, number: u64) -> u64 {
        self.write(FACTORIAL, number);
        while self.read(STATUS) & 1 != 0 {}
        self.read(FACTORIAL)
    }

    fn transfer(&mut self, source: u64, destination: u64, direction: u64) {
        self.write(DMA_SOURCE, source);
        self.write(DMA_DESTINATION, destination);
        self.write(DMA_COUNT, LENGTH);
        self.write(DMA_COMMAND, direction | 1);
        while self.read(DMA_COMMAND) & 1 != 0 {}
    }

    fn memory(&mut self, address: u64) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let arguments = json!({ "val": address, "size": LENGTH, "filename": file.path() });
        self.guest.qmp.execute("pmemsave", &arguments);
        std::fs::read(file.path()).unwrap()
    }
}

/// That the function with this number computes, and moves memory of the guest. Each time the memory is another `page`.
pub(crate) fn expect_works(guest: &mut Guest, number: usize, page: u64) {
    let destination = DESTINATION + (page << 12);
    let mut edu = Edu::enable(guest, number);
    assert_eq!([edu.factorial(5), edu.factorial(10)], [120, 3_628_800]);
    let source = edu.memory(SOURCE);
    assert_ne!(source, edu.memory(destination), "nothing was there yet");
    edu.transfer(SOURCE, BUFFER, TO_DEVICE);
    edu.transfer(BUFFER, destination, TO_MEMORY);
    assert_eq!(edu.memory(destination), source);
}

/// A device without MSI-X: QEMU 11.1.3 does not survive that its vfio-user client with such a device is unplugged.
pub(crate) fn a_device_is_quiet_once_unplugged_and_works_once_plugged_in_again(stage: &Stage) {
    stage.clear();
    // Alone, as a sibling that is in use keeps it from being reset when it comes back.
    stage.with_functions(&[FIRST]).with_passthrough(|passthrough, _| {
        let mut guest = boot(passthrough);
        expect_works(&mut guest, 0, 0);
        guest.unplug(0);
        expect_quiet(passthrough);
        let function = format!("/sys/bus/pci/devices/{}", Guest::address(0));
        assert_ne!(guest.console.try_run(&format!("ls {function}")).status, 0);
        guest.plug(0);
        assert!(wait_until(|| guest.console.try_run(&format!("ls {function}/resource0")).status == 0));
        expect_works(&mut guest, 0, 1);
        assert_eq!(guest.quit(), "");
        None
    });
}

/// A guest whose kernel keeps off the memory that the tests need.
pub(crate) fn boot(passthrough: &Passthrough) -> Guest {
    Guest::boot_with(passthrough, &Settings { append: RESERVED, ..Settings::default() })
}
