// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's own drivers use network cards.

use vhost_device_vfio_tests::guest::Guest;
use vhost_device_vfio_tests::server_process::wait_until;

use super::stage::Stage;

const MEBIBYTES: u32 = 8;

/// The network interface of the guest's function with this number.
pub(crate) fn interface(guest: &mut Guest, number: usize) -> String {
    let function = Guest::address(number);
    // That of a virtio function is one level further down.
    let list =
        format!("cd /sys/bus/pci/devices/{function} && ls -d net/* virtio*/net/* 2>/dev/null | grep .");
    let is_there = wait_until(|| guest.console.try_run(&list).status == 0);
    assert!(is_there, "{function} has no network interface: {}", guest.run("dmesg | tail"));
    guest.run(&format!("basename $({list})"))
}

/// Switches an interface on, and waits for its link.
pub(crate) fn bring_up(guest: &mut Guest, prefix: &str, interface: &str) {
    guest.run(&format!("{prefix} ip link set {interface} up"));
    let carrier = format!("{prefix} ip link show {interface} | grep LOWER_UP");
    let is_up = wait_until(|| guest.console.try_run(&carrier).status == 0);
    assert!(is_up, "{interface} has no link: {}", guest.run("dmesg | tail"));
}

/// Puts the second card into a network namespace of its own, so that the two cards can only reach each other by the network
/// between them, and has one send to the other.
fn expect_traffic(guest: &mut Guest) {
    let [near, far] = [0, 1].map(|number| interface(guest, number));
    guest.run("unshare -n sleep 100000 >/dev/null 2>&1 & echo $! >far; sleep 0.5");
    let beyond = "nsenter -t $(cat far) -n";
    guest.run(&format!("ip link set {far} netns $(cat far)"));
    guest.run(&format!("ip addr add 10.0.0.1/24 dev {near}"));
    guest.run(&format!("{beyond} ip addr add 10.0.0.2/24 dev {far}"));
    bring_up(guest, "", &near);
    bring_up(guest, beyond, &far);
    guest.run("ping -c 3 -W 10 10.0.0.2");
    guest.run(&format!("dd if=/dev/urandom of=data bs=1M count={MEBIBYTES}"));
    guest.run(&format!("{beyond} httpd -p 80 -h /tmp"));
    guest.run("wget -q -O received http://10.0.0.2/data");
    assert_eq!(guest.run("md5sum <received"), guest.run("md5sum <data"));
    // Whoever is in the namespace is all that keeps it.
    guest.run(&format!(
        "killall httpd; kill $(cat far); rm data received; until ls /sys/class/net/{far}; do sleep 0.1; done"
    ));
}

pub(crate) fn two_cards_of_a_guest_reach_each_other(stage: &Stage) {
    stage.with_guest(|guest, _| {
        expect_traffic(guest);
        // The card that is up: its link, and a queue each way.
        let interrupts = guest.run("grep eth /proc/interrupts");
        assert!(interrupts.lines().count() == 3 && interrupts.contains("PCI-MSIX"), "{interrupts}");
    });
}

pub(crate) fn two_cards_of_a_guest_reach_each_other_after_its_reset(stage: &Stage) {
    stage.with_guest(|guest, _| {
        guest.reset();
        expect_traffic(guest);
    });
}

/// That the card with this number is at its network. The VM's virtio card does not get rid of a packet that nobody hears.
pub(crate) fn expect_link(guest: &mut Guest, number: usize) {
    let card = interface(guest, number);
    bring_up(guest, "", &card);
}

/// That a card sends, also if nobody hears it.
fn expect_sending(guest: &mut Guest) {
    let card = interface(guest, 0);
    guest.run(&format!("ip addr add 10.0.0.1/24 dev {card}"));
    bring_up(guest, "", &card);
    let sent = |guest: &mut Guest| -> u64 {
        guest.run(&format!("cat /sys/class/net/{card}/statistics/tx_packets")).parse().unwrap()
    };
    let before = sent(guest);
    guest.console.try_run("ping -c 3 -W 1 10.0.0.2");
    assert!(wait_until(|| sent(guest) > before), "nothing is sent: {}", guest.run("dmesg | tail"));
}

pub(crate) fn a_card_sends_also_after_a_reset_of_its_guest(stage: &Stage) {
    stage.with_guest(|guest, _| {
        expect_sending(guest);
        guest.reset();
        expect_sending(guest);
    });
}
