// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! First light: a VMM hands devices over to the real server. Runs for the topology that `TESTVM_TOPOLOGY` names, on the real
//! kernel in the test VM, or with `FIRST_LIGHT_MODEL` set on a modelled one that behaves as the version in `TESTVM_KERNEL`.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

mod disk;
mod dma;
mod doorbells;
mod framing;
mod handover;
mod interrupts;
mod peer;
mod queue_pairs;
mod refusals;
mod regions;
mod removal;
mod reset;
mod rings;
mod rust_vmm;
mod servers;
mod sharing;
mod teardown;
mod tool;
mod views;
mod virtio;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use vhost_device_vfio_tests::host::{Host, ModelledMachine};

/// The two functions of every topology with a pair.
const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
/// The first function below the switch.
const BELOW_SWITCH: &str = "0000:03:00.0";
/// The function on the root bus.
const ON_ROOT_BUS: &str = "0000:00:05.0";

/// Names each test by its function.
macro_rules! trials {
    ($($module:ident: $($test:ident),+;)*) => {
        vec![$($(Trial::test(stringify!($test), || { $module::$test(); Ok(()) }),)+)*]
    };
}

fn trials_of(topology: &str) -> Vec<Trial> {
    match topology {
        "edu-pair" => trials! {
            handover: the_server_works_with_an_empty_dev, an_inherited_device_is_served,
                a_server_of_fixed_devices_works_without_sysfs,
                devices_are_described, a_listening_face_takes_one_client_after_the_other,
                an_adopted_address_space_is_left_to_its_owner,
                a_device_cannot_write_memory_that_is_mapped_for_reading,
                a_listener_that_its_owner_kept_can_be_handed_over_again;
            dma: dma_arrives_in_guest_memory, dma_of_unmapped_memory_does_not_arrive,
                a_table_before_the_first_device_is_mapped_with_it, regions_come_and_go_one_by_one,
                guest_memory_stays_out_of_the_server_where_the_kernel_allows,
                a_table_over_the_memory_lock_limit_leaves_the_old_one,
                a_failed_change_leaves_the_old_table;
            views: memory_that_a_client_maps_is_reached_until_it_is_unmapped,
                memory_that_two_clients_have_changes_with_each_of_them,
                memory_that_a_client_maps_for_reading_is_not_written;
            interrupts: a_client_is_told_how_many_interrupts_there_are, an_msi_signals_its_eventfd, intx_is_silent_while_masked, a_disabled_msi_is_silent,
                a_client_gives_another_eventfd_for_unmasking,
                an_interrupt_goes_on_after_a_reset_that_the_host_has_asked_for;
            peer: cloud_hypervisors_client_finds_the_device, cloud_hypervisors_client_has_the_device_reach_its_memory,
                cloud_hypervisors_client_is_interrupted, cloud_hypervisors_client_resets_the_device;
            regions: a_bar_is_mapped_through_the_devices_descriptor, only_bars_in_memory_space_are_mapped;
            reset: an_unopened_sibling_of_the_group_is_implied, both_functions_of_the_pair_are_ours,
                the_header_alone_tells_whether_a_reset_is_available, a_hot_reset_leaves_quiet_devices,
                the_mapping_outlives_a_hot_reset, a_reset_spares_a_sibling_in_use_unless_it_is_forced,
                a_guest_that_resets_all_its_devices_causes_one_reset,
                a_function_reset_that_does_not_exist_is_refused, auto_falls_back_to_the_hot_reset,
                a_reset_that_waits_hinders_nobody_and_ends_with_the_server;
            refusals: a_bound_device_is_refused, an_open_group_is_told, a_foreign_owner_is_told,
                a_cookie_is_used_once, regions_in_the_interrupt_window_are_refused,
                a_second_iommufd_is_refused, only_the_owner_takes_a_device_away, a_second_face_is_refused,
                overlapping_regions_are_refused, a_region_goes_only_as_it_came,
                more_regions_than_the_table_has_are_refused, nodes_are_no_substitutes_for_one_another,
                a_device_node_is_no_iommufd, a_face_needs_a_unix_stream;
            framing: a_malformed_command_ends_its_connection_only, a_refused_command_has_one_error_reply,
                a_version_that_is_none_is_refused, only_eventfds_become_interrupts,
                a_command_is_refused_in_silence_if_it_wants_no_reply, half_a_command_does_not_wait_for_ever;
            teardown: closing_the_connection_frees_the_devices, a_removed_device_can_be_used_again,
                a_killed_client_leaves_nothing_behind, descriptors_are_as_before_after_add_and_remove,
                sigterm_ends_the_server_at_once;
            sharing: functions_of_one_group_in_two_servers_reach_the_same_memory,
                guest_memory_is_pinned_once_for_two_servers, memory_goes_with_the_server_that_filled_it,
                the_second_server_outlives_the_first;
            virtio: a_function_that_is_no_virtio_device_is_told;
            rings: only_a_virtio_function_is_served_over_vhost_user;
        },
        "virtio-pair" => trials_of_virtio(),
        "virtio-rng" => trials_of_entropy(),
        "virtio-queues" => trials_of_queue_pairs(),
        "edu-igb" => trials! {
            reset: a_hot_reset_brings_registers_to_their_defaults, a_sibling_of_another_group_blocks_until_it_is_passed,
                a_function_without_driver_blocks, function_reset_is_preferred,
                a_guests_function_level_reset_is_carried_out;
            servers: a_reset_asked_of_either_server_resets_the_functions_of_both,
                a_function_in_use_in_another_server_is_spared, a_sibling_that_is_read_all_the_time_in_another_server_makes_no_reset_busy,
                a_server_that_hangs_hinders_no_other,
                a_killed_server_leaves_its_function_to_the_next;
            tool: the_tool_names_the_blocker_and_the_remedy, the_tool_names_who_has_the_sibling,
                the_tool_names_whom_an_unbind_waits_for, the_tool_resets_what_is_complete,
                the_tool_leaves_nothing_behind, the_plan_names_what_the_kernel_then_wants;
        },
        "igb-pair" => trials! {
            interrupts: eight_vectors_are_armed_and_again_after_a_reset;
            regions: the_interrupt_tables_of_igb_are_left_out;
            servers: a_reset_asked_of_either_server_resets_the_functions_of_both,
                a_sibling_that_is_read_all_the_time_in_another_server_makes_no_reset_busy;
        },
        // A modelled reset takes no time.
        "bridge" => trials! {
            servers: a_server_killed_in_the_kernel_leaves_the_other_in_order,
                a_server_killed_while_another_resets_is_missed_when_it_is_done;
        },
        "hotplug-slot" => trials! { tool: the_plan_finds_the_slot_that_the_kernel_resets; },
        // A modelled device can vanish, but is not taken out of a slot.
        "hotplug-pair" => trials! { removal: a_device_that_is_pulled_out_harms_no_other; },
        "switch" => trials! { tool: the_plan_knows_that_a_switch_is_never_reset; },
        // The sample device that is not PCI is only in the newer kernel's configuration, and not modelled.
        "rciep" if is_real_kernel_7() => trials! {
            reset: a_device_on_the_root_bus_has_no_hot_reset;
            refusals: a_device_that_is_not_pci_is_told;
            tool: the_plan_knows_that_the_root_bus_is_never_reset;
        },
        "rciep" => trials! {
            reset: a_device_on_the_root_bus_has_no_hot_reset;
            tool: the_plan_knows_that_the_root_bus_is_never_reset;
        },
        "nvme" => trials! {
            regions: the_interrupt_tables_of_nvme_are_left_out;
            interrupts: forty_vectors_are_armed_in_three_commands_and_again_after_a_reset;
        },
        "e1000e" => trials! { reset: a_power_management_reset_comes_last; },
        "gen4" => trials! {
            reset: a_link_that_does_not_come_back_is_reported;
        },
        "edu-noremap" => trials! {
            refusals: missing_interrupt_remapping_is_told;
            tool: the_plan_knows_that_interrupts_are_not_remapped;
        },
        other => vec![Trial::test("topology", {
            let message = format!("no tests for the topology `{other}`");
            move || Err(message.into())
        })],
    }
}

fn trials_of_queue_pairs() -> Vec<Trial> {
    trials! {
        queue_pairs: frames_of_a_pair_arrive_while_it_is_enabled, pairs_go_on_after_a_pause,
            pairs_begin_anew_after_a_reset, a_frontend_that_wants_one_pair_gets_it,
            a_frontend_after_one_with_one_pair_has_two,
            the_control_ring_is_refused_to_who_has_left_it,
            the_control_rings_memory_is_no_guest_memory;
    }
}

fn trials_of_virtio() -> Vec<Trial> {
    let mut trials = trials! {
        virtio: a_kick_makes_the_hardware_read_a_sector, what_was_offered_before_the_start_is_served_without_a_kick,
            a_paused_device_goes_on_with_its_rings,
            a_device_finishes_what_it_was_given_before_it_is_silent, a_silent_device_does_nothing_for_a_kick,
            a_call_is_replaced_while_the_device_runs, a_device_that_was_reset_does_not_go_on_and_begins_anew,
            a_ring_in_no_memory_needs_a_reset_and_gets_it, a_configuration_is_read_and_written,
            a_network_device_has_an_address;
        rings: a_frontend_reads_back_what_it_wrote, a_frontend_may_name_rings_by_its_own_addresses,
            a_frontend_without_status_and_acknowledgements_works,
            what_the_hardware_offers_is_offered_but_for_what_is_the_servers,
            a_configuration_is_the_hardwares, a_frontend_that_pauses_goes_on_where_it_was,
            a_ring_that_shall_go_on_elsewhere_is_refused, a_reset_device_begins_anew,
            a_frontend_that_goes_leaves_a_quiet_device_to_the_next, memory_comes_and_goes_while_rings_run,
            memory_that_a_running_ring_lies_in_stays,
            a_ring_that_is_wrong_is_refused_and_the_device_stays_silent, a_call_is_replaced_while_rings_run,
            a_reset_by_somebody_else_is_told_and_the_frontend_begins_anew, stock_frontends_read_a_sector,
            a_second_frontend_is_turned_away, a_network_function_is_served_too,
            a_device_that_is_taken_away_leaves_nothing_of_its_frontend,
            a_change_of_the_configuration_is_told;
        rust_vmm: the_frontend_of_the_vhost_crate_reads_back_what_it_wrote;
        doorbells: a_frontend_gets_the_doorbells_of_rings_that_run,
            a_frontend_that_cannot_map_a_doorbell_kicks, a_reset_by_somebody_else_takes_the_doorbells_away,
            a_device_whose_doorbells_a_frontend_could_map_is_never_taken_for_clean,
            who_does_not_want_doorbells_gets_none, doorbells_that_share_a_page_are_not_offered;
    };
    // A modelled device does not see what is written to a mapped BAR, and a modelled disk keeps its size.
    if !Host::current().is_modelled() {
        trials.extend(trials! {
            doorbells: a_guest_rings_the_hardware_by_itself;
            rings: a_disk_that_grows_is_told_and_has_more_sectors;
        });
    }
    trials
}

fn trials_of_entropy() -> Vec<Trial> {
    trials! {
        rings: random_bytes_come_by_a_ring_of_the_hardware,
            what_the_hardware_offers_is_offered_but_for_what_is_the_servers, a_second_frontend_is_turned_away;
    }
}

fn is_real_kernel_7() -> bool {
    !Host::current().is_modelled() && std::env::var("TESTVM_KERNEL").is_ok_and(|kernel| kernel != "6.12")
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The devices are there once.
    arguments.test_threads = Some(1);
    let topology = std::env::var("TESTVM_TOPOLOGY").unwrap_or_default();
    let machine = std::env::var_os("FIRST_LIGHT_MODEL").map(|_| ModelledMachine::of_lane(&topology));
    if let Some(machine) = &machine {
        machine.host().make_current();
    }
    libtest_mimic::run(&arguments, trials_of(&topology)).exit_code()
}
