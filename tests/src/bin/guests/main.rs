// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of a stock QEMU use the devices that the server serves over vfio-user and vhost-user. Runs in the test VM, as L1, for the topology
//! that `TESTVM_TOPOLOGY` names. With `GUESTS_WAY=in-process` QEMU has the devices itself, which shows whether something
//! that fails is the server's fault.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

mod comparison;
mod disk;
mod network;
mod quiet;
mod registers;
mod resets;
mod rings;
mod stage;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use vhost_device_vfio_tests::guest::{Way, has_stood_still};

use self::stage::Stage;

/// The two functions of every topology with a pair.
const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";

/// What tells whoever runs this to try again, as [`has_stood_still`] has it; also that of `timeout`.
const STOOD_STILL: u8 = 124;

/// Names each test by its function. All have the same stage.
macro_rules! trials {
    ($stage:expr, $($module:ident: $($test:ident),+;)*) => {{
        let stage = Arc::new($stage);
        vec![$($({
            let stage = Arc::clone(&stage);
            Trial::test(stringify!($test), move || { $module::$test(&stage); Ok(()) })
        },)+)*]
    }};
}

fn trials_of(topology: &str, way: Way) -> Vec<Trial> {
    let stage = |functions: &[&'static str]| Stage::new(way, functions, &[]);
    match topology {
        "nvme" => trials! { stage(&[FIRST]),
            disk: a_guest_reads_back_what_it_wrote, each_queue_has_its_interrupt,
                a_disk_works_after_the_guest_reset_its_controller,
                a_disk_works_after_the_guest_reset_its_function,
                a_disk_works_after_the_guest_removed_it_and_found_it_again,
                a_disk_works_after_its_guest_booted_again, a_disk_works_after_its_guest_was_reset,
                a_guest_that_was_stopped_goes_on_with_its_transfers,
                a_disk_is_quiet_after_its_guest_and_works_for_the_next,
                the_firmware_boots_from_the_disk, a_guest_without_msi_gets_along_with_intx;
            comparison: a_served_function_looks_as_one_in_process;
        },
        "igb-pair" => trials! { stage(&[FIRST, SECOND]),
            network: two_cards_of_a_guest_reach_each_other,
                two_cards_of_a_guest_reach_each_other_after_its_reset;
        },
        "edu-igb" => trials! { stage(&[FIRST, SECOND]),
            resets: a_reset_of_a_guest_is_one_hot_reset, one_server_for_all_functions_resets_them_once;
            comparison: a_served_function_looks_as_one_in_process;
        },
        "edu-pair" => trials! { stage(&[FIRST, SECOND]),
            resets: a_reset_of_a_guest_is_one_hot_reset, one_function_of_two_is_reset_with_the_other;
            registers: a_device_is_quiet_once_unplugged_and_works_once_plugged_in_again;
        },
        "e1000e" => trials! { stage(&[FIRST]),
            network: a_card_sends_also_after_a_reset_of_its_guest;
        },
        "virtio-pair" => trials_of_virtio(way),
        "virtio-rng" => trials! { stage(&[FIRST]),
            rings: random_bytes_come_by_qemus_device_for_any_kind, random_bytes_come_by_qemus_entropy_device;
        },
        "virtio-queues" => trials! { Stage::new(Way::Rings, &[FIRST], &[]),
            rings: each_processor_has_a_queue_pair_of_the_hardware, packed_rings_carry_packets;
        },
        "gen4" => trials! { stage(&[FIRST]),
            resets: an_unconfirmed_link_is_told_and_the_device_works;
        },
        other => vec![Trial::test("topology", {
            let message = format!("no tests for the topology `{other}`");
            move || Err(message.into())
        })],
    }
}

fn trials_of_virtio(way: Way) -> Vec<Trial> {
    let whole = trials! { Stage::new(way, &[FIRST, SECOND], &[]),
        disk: virtio_functions_work_also_after_a_reset_of_their_guest;
    };
    let rings = trials! { Stage::new(Way::Rings, &[FIRST, SECOND], &[]),
        rings: a_guest_reads_back_what_hardware_rings_wrote, packets_arrive_by_hardware_rings,
            a_guest_sees_what_hardware_and_frontend_have_in_common,
            a_guest_uses_the_room_that_its_disk_has_grown_by,
            hardware_rings_go_on_after_pauses, hardware_rings_work_after_every_reset_of_their_guest,
            hardware_rings_are_quiet_after_their_guest, each_processor_has_a_hardware_ring,
            the_firmware_boots_by_hardware_rings,
            a_guest_gets_its_disk_back_when_its_server_was_started_again, a_device_of_any_kind_runs_its_rings,
            a_guest_rings_the_hardware_by_itself;
    };
    whole.into_iter().chain(rings).collect()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The devices are there once.
    arguments.test_threads = Some(1);
    let topology = std::env::var("TESTVM_TOPOLOGY").unwrap_or_default();
    let is_in_process = std::env::var("GUESTS_WAY").is_ok_and(|way| way == "in-process");
    let way = if is_in_process { Way::InProcess } else { Way::Served };
    let conclusion = libtest_mimic::run(&arguments, trials_of(&topology, way));
    if conclusion.has_failed() && has_stood_still() { STOOD_STILL.into() } else { conclusion.exit_code() }
}
