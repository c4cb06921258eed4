// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What resets of a guest are at its functions.

use protocol::extension::{Cookie, ResetMethod, ResetOutcome};
use vhost_device_vfio_tests::launched_vm::LaunchedVm;

use super::stage::Stage;
use super::{FIRST, registers};

/// How many functions have been hit by hot resets, one that was hit twice counted twice. Each server tells of its own.
fn hits(servers: &LaunchedVm) -> usize {
    let log = servers.log();
    let resets =
        log.lines().filter(|line| line.contains("event=reset-done") && line.contains("\"hot reset\""));
    let affected = |line: &str| -> Option<usize> {
        line.split(' ').find_map(|word| word.strip_prefix("affected="))?.parse().ok()
    };
    resets.map(|line| affected(line).unwrap_or_else(|| panic!("{line}"))).sum()
}

/// Of the functions at least the first has no reset of its own.
pub(crate) fn a_reset_of_a_guest_is_one_hot_reset(stage: &Stage) {
    stage.with_passthrough(|passthrough, guest| {
        drop(guest);
        let mut guest = registers::boot(passthrough);
        registers::expect_works(&mut guest, 0, 0);
        let before = passthrough.servers().map(hits);
        guest.resets();
        guest.reset();
        let resets = guest.resets();
        if let (Some(before), Some(servers)) = (before, passthrough.servers()) {
            let (hit, functions) = (hits(servers) - before, passthrough.functions().len());
            // A reset of the machine that follows at once finds the functions as the one before has left them.
            let times = hit / functions;
            assert!(hit % functions == 0 && (1..=resets).contains(&times), "{resets}: {}", servers.log());
        }
        registers::expect_works(&mut guest, 0, 1);
        // It would have been told that a reset took too long.
        assert_eq!(guest.quit(), "");
        None
    });
}

pub(crate) fn one_server_for_all_functions_resets_them_once(stage: &Stage) {
    stage.clear();
    a_reset_of_a_guest_is_one_hot_reset(&stage.with_arguments(&["--servers=vm"]));
}

/// The other function is of the same IOMMU group, and nobody has it.
pub(crate) fn one_function_of_two_is_reset_with_the_other(stage: &Stage) {
    stage.clear();
    a_reset_of_a_guest_is_one_hot_reset(&stage.with_functions(&[FIRST]));
}

pub(crate) fn an_unconfirmed_link_is_told_and_the_device_works(stage: &Stage) {
    stage.with_passthrough(|passthrough, guest| {
        drop(guest);
        if let Some(servers) = passthrough.servers() {
            let report = servers.connect(FIRST).reset(Cookie(1), Some(ResetMethod::Hot), None).unwrap();
            assert_eq!(report.outcome, ResetOutcome::LinkUnconfirmed);
        }
        None
    });
    super::network::a_card_sends_also_after_a_reset_of_its_guest(stage);
}
