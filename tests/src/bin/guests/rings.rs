// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of QEMU's vhost-user devices, whose rings the hardware runs.

use serde_json::json;
use vhost_device_vfio_tests::grown_disk::GrownDisk;
use vhost_device_vfio_tests::guest::{Guest, Passthrough, Settings, Way};
use vhost_device_vfio_tests::launched_vm::LaunchedVm;
use vhost_device_vfio_tests::server_process::wait_until;

use super::disk::{
    LITTLE, MUCH, VIRTIO, expect_boots_from, expect_quiet_between_guests, expect_survives_pauses, fill,
    reading,
};
use super::network::{bring_up, interface};
use super::stage::Stage;
use super::{FIRST, SECOND};

fn expect_keeps(guest: &mut Guest, mebibytes: u32, between: impl FnOnce(&mut Guest)) {
    let sum = fill(guest, VIRTIO, mebibytes);
    between(guest);
    assert_eq!(guest.run(&reading(VIRTIO, mebibytes)), sum);
}

fn boot_with_two_processors(passthrough: &Passthrough) -> Guest {
    Guest::boot_with(passthrough, &Settings { more_processors: 1, ..Settings::default() })
}

fn expect_nothing_refused_or_lost(passthrough: &Passthrough) {
    let log = passthrough.servers().map(LaunchedVm::log).unwrap_or_default();
    assert!(!log.contains("event=refused") && !log.contains("event=rings-lost"), "{log}");
}

/// That there are two rings of a kind, and that each has interrupted one of two processors.
fn expect_two_interrupting(guest: &mut Guest, rings: &str) {
    let interrupts = guest.run(&format!("grep 'virtio.*-{rings}\\.' /proc/interrupts"));
    assert_eq!(interrupts.lines().count(), 2, "{interrupts}");
    let has_come = |line: &str| line.split_whitespace().skip(1).take(2).any(|count| count != "0");
    assert!(interrupts.lines().all(has_come), "{interrupts}");
}

pub(crate) fn a_guest_reads_back_what_hardware_rings_wrote(stage: &Stage) {
    stage.with_guest(|guest, _| expect_keeps(guest, MUCH, |_| {}));
}

pub(crate) fn hardware_rings_work_after_every_reset_of_their_guest(stage: &Stage) {
    stage.with_guest(|guest, _| {
        expect_keeps(guest, LITTLE, Guest::reset);
        expect_keeps(guest, LITTLE, Guest::reboot);
        let driver = "/sys/bus/virtio/drivers/virtio_blk";
        expect_keeps(guest, LITTLE, |guest| {
            guest.run(&format!(
                "cd {driver} && device=$(basename virtio*) && echo $device >unbind && echo $device >bind"
            ));
        });
    });
}

pub(crate) fn hardware_rings_go_on_after_pauses(stage: &Stage) {
    stage.with_guest(|guest, passthrough| {
        expect_survives_pauses(guest, VIRTIO);
        expect_nothing_refused_or_lost(passthrough);
    });
}

pub(crate) fn each_processor_has_a_hardware_ring(stage: &Stage) {
    stage.with_passthrough(|passthrough, guest| {
        drop(guest);
        let mut guest = boot_with_two_processors(passthrough);
        expect_keeps(&mut guest, LITTLE, |_| {});
        for processor in 0..2 {
            let read = format!("dd if={VIRTIO} of=/dev/null bs=4k count=8 iflag=direct");
            guest.run(&format!("taskset -c {processor} {read}"));
        }
        expect_two_interrupting(&mut guest, "req");
        None
    });
}

pub(crate) fn a_guest_sees_what_hardware_and_frontend_have_in_common(stage: &Stage) {
    stage.with_guest(|guest, _| {
        let features = guest.run("cat /sys/bus/virtio/drivers/virtio_blk/virtio*/features");
        let has = |bit: usize| features.as_bytes().get(bit) == Some(&b'1');
        // VERSION_1 and flushing; that addresses are translated is no affair of the guest.
        assert!(has(32) && has(9) && !has(33), "{features}");
        assert_eq!(guest.run("cat /sys/block/vda/size"), "131072");
    });
}

/// The disk grows in the QEMU that emulates this machine, and with it the hardware that runs the rings.
pub(crate) fn a_guest_uses_the_room_that_its_disk_has_grown_by(stage: &Stage) {
    stage.with_guest(|guest, _| {
        let wait_for_size = |guest: &mut Guest, sectors: u32| {
            guest.run(&format!(
                "timeout 30 sh -c 'until grep -qx {sectors} /sys/block/vda/size; do sleep 0.1; done'"
            ));
        };
        wait_for_size(guest, 0x2_0000);
        let grown = GrownDisk::new("disk", 64 << 20, 96 << 20);
        wait_for_size(guest, 0x3_0000);
        guest.run("dd if=/dev/urandom of=data bs=4k count=256");
        // Across the end that was, and up to the one that is.
        for place in ["65532k", "97280k"] {
            guest.run(&format!("dd if=data of={VIRTIO} bs=4k seek={place} oflag=direct,seek_bytes"));
            guest.run(&format!(
                "dd if={VIRTIO} bs=4k skip={place} count=256 iflag=direct,skip_bytes | cmp - data"
            ));
        }
        drop(grown);
        wait_for_size(guest, 0x2_0000);
    });
}

pub(crate) fn hardware_rings_are_quiet_after_their_guest(stage: &Stage) {
    expect_quiet_between_guests(stage, VIRTIO);
}

pub(crate) fn the_firmware_boots_by_hardware_rings(stage: &Stage) {
    expect_boots_from(stage, VIRTIO);
}

/// What a server has lost cannot go on: it is refused, and the guest's reset is the way out.
pub(crate) fn a_guest_gets_its_disk_back_when_its_server_was_started_again(stage: &Stage) {
    stage.clear();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("disk");
    let mut passthrough = Passthrough::at_socket(Way::Rings, FIRST, &socket);
    let mut guest = Guest::boot(&passthrough);
    let sum = fill(&mut guest, VIRTIO, LITTLE);
    passthrough.start_again();
    let is_connected = |passthrough: &Passthrough| {
        passthrough.servers().is_some_and(|servers| servers.log().contains("event=vhost-user-connected"))
    };
    assert!(wait_until(|| is_connected(&passthrough)), "QEMU does not come back");
    guest.reset();
    assert_eq!(guest.run(&reading(VIRTIO, LITTLE)), sum);
    assert_eq!(guest.qmp.execute("query-status", &json!({}))["status"], "running");
}

/// The network's other end is in the host of this machine: its address, and a program of its that the guest has as well.
pub(crate) fn packets_arrive_by_hardware_rings(stage: &Stage) {
    stage.with_guest(|guest, _| {
        expect_packets(guest, 1);
        guest.reset();
        expect_packets(guest, 1);
    });
}

fn expect_packets(guest: &mut Guest, number: usize) {
    let card = interface(guest, number);
    guest.run(&format!("ip addr add 10.0.2.15/24 dev {card}"));
    bring_up(guest, "", &card);
    guest.run("ping -c 3 -W 10 -s 1400 10.0.2.2");
    guest.run("tftp -g -r busybox -l fetched 10.0.2.2");
    assert_eq!(guest.run("md5sum <fetched"), guest.run("md5sum </bin/busybox"));
    guest.run("rm fetched");
}

/// A guest's driver uses as many pairs as there are processors, each of which sends by its own.
pub(crate) fn each_processor_has_a_queue_pair_of_the_hardware(stage: &Stage) {
    stage.clear();
    let passthrough = Passthrough::new(Way::Rings, &[FIRST]).with_queue_pairs(2);
    let mut guest = boot_with_two_processors(&passthrough);
    expect_both_pairs(&mut guest);
    guest.reset();
    expect_both_pairs(&mut guest);
    expect_nothing_refused_or_lost(&passthrough);
}

pub(crate) fn packed_rings_carry_packets(stage: &Stage) {
    stage.clear();
    let passthrough = Passthrough::new(Way::Rings, &[FIRST]).with_queue_pairs(2).with_packed_rings();
    let mut guest = boot_with_two_processors(&passthrough);
    let features = guest.run("cat /sys/bus/virtio/drivers/virtio_net/virtio*/features");
    assert_eq!(features.as_bytes().get(34), Some(&b'1'), "they are not packed: {features}");
    expect_both_pairs(&mut guest);
    guest.qmp.execute("stop", &json!({}));
    guest.qmp.execute("cont", &json!({}));
    guest.run("ping -c 3 -W 10 10.0.2.2");
    expect_nothing_refused_or_lost(&passthrough);
}

fn expect_both_pairs(guest: &mut Guest) {
    let card = interface(guest, 0);
    guest.run(&format!("ip addr add 10.0.2.15/24 dev {card}"));
    bring_up(guest, "", &card);
    for processor in 0..2 {
        guest.run(&format!("taskset -c {processor} ping -c 3 -W 10 10.0.2.2"));
    }
    expect_two_interrupting(guest, "input");
}

/// QEMU maps a doorbell that it was given over where the guest's driver rings.
pub(crate) fn a_guest_rings_the_hardware_by_itself(stage: &Stage) {
    stage.clear();
    let lending = ["--server-argument=--doorbell=mmap"];
    let passthrough = Passthrough::with_arguments(Way::Rings, &[FIRST, SECOND], &lending);
    let mut guest = Guest::boot(&passthrough);
    expect_keeps(&mut guest, LITTLE, |_| {});
    assert!(has_doorbell(&mut guest), "QEMU has mapped none");
    expect_keeps(&mut guest, LITTLE, Guest::reset);
    assert!(has_doorbell(&mut guest), "QEMU has mapped none");
    let log = passthrough.servers().map(LaunchedVm::log).unwrap_or_default();
    assert!(!log.contains("event=doorbell-not-mapped") && !log.contains("event=refused"), "{log}");
}

fn has_doorbell(guest: &mut Guest) -> bool {
    let command = json!({ "command-line": "info mtree" });
    let tree = guest.qmp.execute("human-monitor-command", &command);
    tree.as_str().is_some_and(|tree| tree.contains("vhost-user/host-notifier"))
}

pub(crate) fn a_device_of_any_kind_runs_its_rings(stage: &Stage) {
    stage.clear();
    let passthrough = Passthrough::new(Way::GenericRings, &[FIRST, SECOND]);
    let mut guest = Guest::boot(&passthrough);
    expect_keeps(&mut guest, LITTLE, |_| {});
    expect_packets(&mut guest, 1);
}

pub(crate) fn random_bytes_come_by_qemus_device_for_any_kind(stage: &Stage) {
    expect_random_bytes_also_after_a_reset(stage, Way::GenericRings);
}

pub(crate) fn random_bytes_come_by_qemus_entropy_device(stage: &Stage) {
    expect_random_bytes_also_after_a_reset(stage, Way::Rings);
}

fn expect_random_bytes_also_after_a_reset(stage: &Stage, way: Way) {
    stage.clear();
    let passthrough = stage.passthrough(way);
    let mut guest = Guest::boot(&passthrough);
    expect_random_bytes(&mut guest);
    guest.reset();
    expect_random_bytes(&mut guest);
}

fn expect_random_bytes(guest: &mut Guest) {
    assert_eq!(guest.run("cat /sys/class/misc/hw_random/rng_current"), "virtio_rng.0");
    let mut draw = || guest.run("dd if=/dev/hwrng bs=64 count=64 iflag=fullblock | md5sum");
    assert_ne!(draw(), draw());
}
