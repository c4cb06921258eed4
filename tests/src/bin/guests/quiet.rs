// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a function does nothing: what it is left as by a guest that is gone.

use vfio::config_space::command;
use vhost_device_vfio_tests::guest::Passthrough;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::server_process::wait_until;

const COMMAND: usize = 4;
const CAPABILITIES: usize = 0x34;
const MSI: u8 = 0x05;
const MSI_X: u8 = 0x11;
/// The high byte of MSI-X's message control.
const MSI_X_ENABLE: u8 = 0x80;
/// The low byte of MSI's.
const MSI_ENABLE: u8 = 1;

/// Waits until none of the functions can do DMA or interrupt, and nothing is mapped for them.
pub(crate) fn expect_quiet(passthrough: &Passthrough) {
    let is_quiet = wait_until(|| noise(passthrough).is_empty());
    assert!(is_quiet, "the functions are not quiet: {}", noise(passthrough).join(", "));
}

/// What the functions can still do, as this machine's kernel sees it.
fn noise(passthrough: &Passthrough) -> Vec<String> {
    let mut noise = Vec::new();
    let interrupts = std::fs::read_to_string("/proc/interrupts").expect("the interrupts");
    for function in passthrough.functions() {
        let config =
            std::fs::read(format!("/sys/bus/pci/devices/{function}/config")).expect("the config space");
        let command = u16::from_le_bytes([config[COMMAND], config[COMMAND + 1]]);
        let is_set = |id, place, mask| {
            capability(&config, id).is_some_and(|capability: usize| config[capability + place] & mask != 0)
        };
        let found = [
            ("bus mastering is on", command & command::BUS_MASTER != 0),
            ("MSI is on", is_set(MSI, 2, MSI_ENABLE)),
            ("MSI-X is on", is_set(MSI_X, 3, MSI_X_ENABLE)),
            (
                "an interrupt is taken",
                interrupts.lines().any(|line| line.contains("vfio") && line.contains(function)),
            ),
        ];
        let found = found.into_iter().filter(|(_, is_so)| *is_so);
        noise.extend(found.map(|(what, _)| format!("{function}: {what}")));
    }
    if let Some(servers) = passthrough.servers() {
        let pinned =
            servers.processes().map(|process| Host::current().pinned_memory_of(process)).sum::<u64>();
        noise.extend((pinned != 0).then(|| format!("{pinned} bytes are pinned")));
    }
    noise
}

/// Where the capability of this id is.
fn capability(config: &[u8], id: u8) -> Option<usize> {
    let mut place = usize::from(config[CAPABILITIES]);
    while place != 0 && config[place] != id {
        place = config[place + 1].into();
    }
    (place != 0).then_some(place)
}
