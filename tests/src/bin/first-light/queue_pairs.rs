// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several queue pairs of a network device, for frontends that keep the control queue for themselves: the server drives the
//! hardware's.

use std::os::fd::AsFd;

use protocol::features::VirtioFeatures;
use protocol::vhost_user::{FrontendError, Vring};
use rustix::io::Errno;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::network::{Network, ONE_PAIR, TWO_PAIRS};
use vhost_device_vfio_tests::server_process::wait_until;

use super::disk::{Machine, errno};

const CONTROL: u8 = 4;
const BEGINNING: [u32; 4] = [0; 4];

/// A frontend, once nobody else has the device.
fn connect(machine: &mut Machine) -> Network<'_> {
    machine.wait_until_free();
    let socket = machine.socket();
    Network::connect(socket, &machine.memory)
}

pub(crate) fn frames_of_a_pair_arrive_while_it_is_enabled() {
    let mut machine = Machine::new();
    let mut network = connect(&mut machine);
    network.start(TWO_PAIRS, 1, BEGINNING).unwrap();
    network.find_other();
    network.expect_works(0, b"pair-0-a");
    for marks in [[b"pair-1-a", b"pair-1-b", b"pair-0-b"], [b"pair-1-c", b"pair-1-d", b"pair-0-c"]] {
        let [early, late, other] = marks;
        network.ask(1, early);
        network.expect_works(0, other);
        assert!(!network.has_received(1, early), "the second pair is not enabled");
        network.enable(1, true).unwrap();
        // What waited is sent, or lost, when the pair comes into use.
        assert!(wait_until(|| network.is_sent(1)));
        network.expect_works(1, late);
        network.enable(1, false).unwrap();
    }
    network.expect_works(0, b"pair-0-d");
}

pub(crate) fn pairs_go_on_after_a_pause() {
    let mut machine = Machine::new();
    let mut network = connect(&mut machine);
    network.start(TWO_PAIRS, 2, BEGINNING).unwrap();
    network.find_other();
    for mark in [b"pause--0", b"pause--1", b"pause--2"] {
        network.expect_works(1, mark);
        let bases = network.stop();
        network.start(TWO_PAIRS, 2, bases).unwrap();
    }
    network.expect_works(0, b"the-last");
}

pub(crate) fn pairs_begin_anew_after_a_reset() {
    let mut machine = Machine::new();
    let mut network = connect(&mut machine);
    network.start(TWO_PAIRS, 2, BEGINNING).unwrap();
    network.find_other();
    network.expect_works(1, b"before--");
    network.stop();
    network.frontend.reset_device().unwrap();
    network.begin_anew();
    network.start(TWO_PAIRS, 2, BEGINNING).unwrap();
    network.find_other();
    network.expect_works(1, b"behind--");
}

pub(crate) fn a_frontend_that_wants_one_pair_gets_it() {
    let mut machine = Machine::new();
    let mut network = connect(&mut machine);
    network.start(ONE_PAIR, 1, BEGINNING).unwrap();
    network.find_other();
    network.expect_works(0, b"one-pair");
}

/// QEMU's devices keep the queues that were agreed on last through a reset.
pub(crate) fn a_frontend_after_one_with_one_pair_has_two() {
    let mut machine = Machine::new();
    let mut network = connect(&mut machine);
    network.start(ONE_PAIR, 1, BEGINNING).unwrap();
    drop(network);
    let mut network = connect(&mut machine);
    assert_eq!(network.frontend.queue_number().unwrap(), 5);
    network.start(TWO_PAIRS, 2, BEGINNING).unwrap();
    network.find_other();
    network.expect_works(1, b"two-more");
}

pub(crate) fn the_control_ring_is_refused_to_who_has_left_it() {
    let mut machine = Machine::new();
    let mut network = connect(&mut machine);
    network.start(TWO_PAIRS, 2, BEGINNING).unwrap();
    let ((_kick, kick), (_call, call)) = (Interrupt::new(), Interrupt::new());
    let (kick, call) = (kick.as_fd(), call.as_fd());
    let vring = Vring { size: 16, base: 0, descriptors: 0x8000, available: 0x8400, used: 0x8800, kick, call };
    assert_eq!(errno(network.frontend.start_vring(CONTROL, &vring)), Errno::PERM);
    assert_eq!(errno(network.frontend.set_vring_enable(CONTROL, true)), Errno::PERM);
    network.find_other();
    network.expect_works(1, b"goes-on-");
    drop(network);
    // Who acknowledges it may have it.
    let mut network = connect(&mut machine);
    network.start(VirtioFeatures(TWO_PAIRS.0 | 1 << 17), 1, BEGINNING).unwrap();
    network.frontend.start_vring(CONTROL, &vring).unwrap();
    network.frontend.set_vring_enable(CONTROL, true).unwrap();
}

/// Where the page of the control ring is: at the top of what the IOMMU translates, which differs between machines. The region that
/// cannot be there because something is tells.
fn taken(network: &mut Network<'_>) -> Option<u64> {
    let page = rustix::param::page_size() as u64;
    [39, 48, 52, 57, 63, 64].into_iter().map(|bits| (1_u128 << bits) - u128::from(page)).find_map(|top| {
        let top = u64::try_from(top).unwrap().min(u64::MAX - 2 * page + 1);
        let memory = GuestMemory::new(top, page);
        match network.frontend.add_memory_region(memory.region(), memory.as_fd()) {
            Ok(()) => {
                network.frontend.remove_memory_region(memory.region()).unwrap();
                None
            }
            Err(FrontendError::Refused { errno, .. }) => (errno == Some(Errno::EXIST)).then_some(top),
            Err(other) => panic!("{other}"),
        }
    })
}

pub(crate) fn the_control_rings_memory_is_no_guest_memory() {
    let mut machine = Machine::new();
    let mut network = connect(&mut machine);
    assert_eq!(taken(&mut network), None, "nothing is mapped before the device is started");
    network.start(TWO_PAIRS, 2, BEGINNING).unwrap();
    let place = taken(&mut network).expect("the page is somewhere");
    network.stop();
    network.frontend.reset_device().unwrap();
    assert_eq!(taken(&mut network), None, "it goes with the rings");
    network.start(TWO_PAIRS, 2, BEGINNING).unwrap();
    assert_eq!(taken(&mut network), Some(place));
    network.stop();
    let ((_kick, kick), (_call, call)) = (Interrupt::new(), Interrupt::new());
    let (kick, call) = (kick.as_fd(), call.as_fd());
    let [descriptors, available, used] = [place, place + 0x400, place + 0x800];
    let vring = Vring { size: 16, base: 0, descriptors, available, used, kick, call };
    let started = network.frontend.start_vring(0, &vring);
    let refused = started.and_then(|()| network.frontend.set_status(0xf));
    assert_eq!(errno(refused), Errno::FAULT);
    drop(network);
    assert_eq!(taken(&mut connect(&mut machine)), None, "it goes with its client");
}
