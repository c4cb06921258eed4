// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's own driver uses a disk.

use std::thread;
use std::time::Duration;

use serde_json::json;
use vhost_device_vfio_tests::guest::{Guest, Settings};
use vhost_device_vfio_tests::server_process::wait_until;

use super::network::expect_link;
use super::quiet::expect_quiet;
use super::stage::Stage;

/// How much is written and read, in MiB.
pub(crate) const MUCH: u32 = 64;
pub(crate) const LITTLE: u32 = 8;
const NVME: &str = "/dev/nvme0n1";
pub(crate) const VIRTIO: &str = "/dev/vda";

/// Writes to the disk, past the page cache, and gives the checksum.
pub(crate) fn fill(guest: &mut Guest, disk: &str, mebibytes: u32) -> String {
    guest.run(&format!("dd if=/dev/urandom of=data bs=1M count={mebibytes}"));
    guest.run(&format!("dd if=data of={disk} bs=1M oflag=direct"));
    let sum = guest.run("md5sum <data");
    guest.run("rm data");
    sum
}

/// A command for the checksum of what the disk then has.
pub(crate) fn reading(disk: &str, mebibytes: u32) -> String {
    format!("dd if={disk} bs=64k count={} iflag=direct 2>/dev/null | md5sum", mebibytes * 16)
}

/// How often each queue of the disk has interrupted, by the number of its vector.
fn interrupts(guest: &mut Guest) -> Vec<(u32, u64)> {
    let lines = guest.run("grep nvme0q /proc/interrupts");
    let parse = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        // The number, a count for each of two processors, the controller, the vector, the trigger, the name.
        let [_, first, second, controller, vector, ..] = words[..] else { panic!("{line}") };
        assert!(controller.starts_with("PCI-MSIX"), "{line}");
        let vector = vector.trim_end_matches("-edge").parse().unwrap();
        (vector, first.parse::<u64>().unwrap() + second.parse::<u64>().unwrap())
    };
    lines.lines().map(parse).collect()
}

pub(crate) fn a_guest_reads_back_what_it_wrote(stage: &Stage) {
    stage.with_guest(|guest, _| {
        let sum = fill(guest, NVME, MUCH);
        assert_eq!(guest.run(&reading(NVME, MUCH)), sum);
    });
}

pub(crate) fn each_queue_has_its_interrupt(stage: &Stage) {
    stage.with_passthrough(|passthrough, guest| {
        drop(guest);
        let two_processors = Settings { more_processors: 1, ..Settings::default() };
        let mut guest = Guest::boot_with(passthrough, &two_processors);
        for processor in 0..2 {
            let read = "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=8 iflag=direct";
            guest.run(&format!("taskset -c {processor} {read}"));
        }
        // One for the commands to the controller, and one for each processor.
        let interrupts = interrupts(&mut guest);
        let vectors: Vec<_> = interrupts.iter().map(|(vector, _)| *vector).collect();
        assert_eq!(vectors, [0, 1, 2]);
        assert!(interrupts.iter().all(|(_, count)| *count > 0), "{interrupts:?}");
        None
    });
}

/// That the disk has what was written before `reset`, and takes something new after it.
fn expect_survives(guest: &mut Guest, reset: impl FnOnce(&mut Guest)) {
    let sum = fill(guest, NVME, LITTLE);
    reset(guest);
    assert_eq!(guest.run(&reading(NVME, LITTLE)), sum);
    let sum = fill(guest, NVME, LITTLE);
    assert_eq!(guest.run(&reading(NVME, LITTLE)), sum);
    assert_eq!(guest.run("dmesg | grep -c -E 'nvme.*(timeout|abort|error)' || true"), "0");
}

pub(crate) fn a_disk_works_after_the_guest_reset_its_controller(stage: &Stage) {
    stage.with_guest(|guest, _| {
        expect_survives(guest, |guest| {
            guest.run("echo 1 >/sys/class/nvme/nvme0/reset_controller");
        });
    });
}

pub(crate) fn a_disk_works_after_the_guest_reset_its_function(stage: &Stage) {
    stage.with_guest(|guest, _| {
        expect_survives(guest, |guest| {
            let function = Guest::address(0);
            guest.run(&format!(
                "cd /sys/bus/pci/devices/{function} && echo flr >reset_method && echo 1 >reset"
            ));
        });
    });
}

pub(crate) fn a_disk_works_after_its_guest_booted_again(stage: &Stage) {
    stage.with_guest(|guest, _| {
        expect_survives(guest, Guest::reboot);
    });
}

pub(crate) fn a_disk_works_after_its_guest_was_reset(stage: &Stage) {
    stage.with_guest(|guest, _| expect_survives(guest, Guest::reset));
}

pub(crate) fn a_guest_that_was_stopped_goes_on_with_its_transfers(stage: &Stage) {
    stage.with_guest(|guest, _| expect_survives_pauses(guest, NVME));
}

/// That transfers go on that were under way when the guest was stopped.
pub(crate) fn expect_survives_pauses(guest: &mut Guest, disk: &str) {
    let sum = fill(guest, disk, MUCH);
    let reading = reading(disk, MUCH);
    guest.console.begin(&reading);
    for _ in 0..3 {
        // Long enough for something to be under way; nothing depends on it.
        thread::sleep(Duration::from_millis(200));
        guest.qmp.execute("stop", &json!({}));
        assert_eq!(guest.qmp.execute("query-status", &json!({}))["status"], "paused");
        guest.qmp.execute("cont", &json!({}));
    }
    assert_eq!(guest.console.finish(&reading), sum);
}

pub(crate) fn a_disk_works_after_the_guest_removed_it_and_found_it_again(stage: &Stage) {
    stage.with_guest(|guest, _| {
        expect_survives(guest, |guest| {
            let function = Guest::address(0);
            guest.run(&format!("echo 1 >/sys/bus/pci/devices/{function}/remove"));
            assert_ne!(guest.console.try_run(&format!("ls {NVME}")).status, 0);
            guest.run("echo 1 >/sys/bus/pci/rescan");
            assert!(wait_until(|| guest.console.try_run(&format!("ls {NVME}")).status == 0));
        });
    });
}

pub(crate) fn a_disk_is_quiet_after_its_guest_and_works_for_the_next(stage: &Stage) {
    expect_quiet_between_guests(stage, NVME);
}

/// That a guest which ends in the middle of transfers leaves a quiet device, and the next one finds what it wrote.
pub(crate) fn expect_quiet_between_guests(stage: &Stage, disk: &str) {
    stage.with_passthrough(|passthrough, guest| {
        let mut guest = guest.unwrap_or_else(|| Guest::boot(passthrough));
        let sum = fill(&mut guest, disk, LITTLE);
        let busy = &format!("while dd if={disk} of=/dev/null bs=64k iflag=direct; do :; done");
        guest.console.begin(busy);
        assert_eq!(guest.quit(), "");
        expect_quiet(passthrough);
        let mut next = Guest::boot(passthrough);
        assert_eq!(next.run(&reading(disk, LITTLE)), sum);
        next.console.begin(busy);
        next.kill();
        expect_quiet(passthrough);
        let next = Guest::boot(passthrough);
        next.kill();
        // At once.
        let mut last = Guest::boot(passthrough);
        assert_eq!(last.run(&reading(disk, LITTLE)), sum);
        Some(last)
    });
}

pub(crate) fn a_guest_without_msi_gets_along_with_intx(stage: &Stage) {
    stage.with_passthrough(|passthrough, guest| {
        drop(guest);
        let settings = Settings { append: "pci=nomsi", ..Settings::default() };
        let mut guest = Guest::boot_with(passthrough, &settings);
        let sum = fill(&mut guest, NVME, LITTLE);
        assert_eq!(guest.run(&reading(NVME, LITTLE)), sum);
        let interrupts = guest.run("grep nvme0q /proc/interrupts");
        assert!(interrupts.lines().count() == 1 && interrupts.contains("IO-APIC"), "{interrupts}");
        None
    });
}

pub(crate) fn virtio_functions_work_also_after_a_reset_of_their_guest(stage: &Stage) {
    stage.with_guest(|guest, _| {
        for _ in 0..2 {
            let sum = fill(guest, VIRTIO, LITTLE);
            guest.reset();
            assert_eq!(guest.run(&reading(VIRTIO, LITTLE)), sum);
            expect_link(guest, 1);
        }
    });
}

/// What a boot sector says on the first serial line.
const WORD: &str = "booted from the disk";

/// Code for the firmware to load at 0x7c00 and run in real mode: writes [`WORD`] to port 0x3f8, and halts.
fn boot_sector() -> Vec<u8> {
    let mut code = vec![
        0xbe, 0x11, 0x7c, // mov si, word
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0x2e, 0xac, // next: lodsb from the code segment
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz end
        0xee, // out dx, al
        0xeb, 0xf7, // jmp next
        0xf4, // end: hlt
        0xf4, // hlt
    ];
    code.extend(WORD.as_bytes());
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code
}

pub(crate) fn the_firmware_boots_from_the_disk(stage: &Stage) {
    expect_boots_from(stage, NVME);
}

/// That the firmware boots from the disk, which is the first function.
pub(crate) fn expect_boots_from(stage: &Stage, disk: &str) {
    stage.with_passthrough(|passthrough, guest| {
        let mut guest = guest.unwrap_or_else(|| Guest::boot(passthrough));
        let sector = boot_sector().iter().map(|byte| format!("\\x{byte:02x}")).collect::<Vec<_>>().concat();
        guest.run(&format!("printf '{sector}' >sector && dd if=sector of={disk} bs=512 oflag=direct"));
        assert_eq!(guest.quit(), "");
        let settings = Settings { boots_from_function: true, ..Settings::default() };
        let guest = Guest::start(passthrough, &settings);
        assert!(wait_until(|| guest.serial().contains(WORD)), "the firmware does not boot from it");
        None
    });
}
