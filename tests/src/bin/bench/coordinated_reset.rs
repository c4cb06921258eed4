// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hot reset of two functions in two servers, next to the same calls done bare and to a reset of each function alone.

use std::cell::RefCell;

use vhost_device_vfio_tests::host::Host;

use crate::comparison::{Comparison, Figure, Goal};
use crate::contest::Contest;
use crate::processor::OneProcessor;
use crate::reset_set::ResetSet;
use crate::served_vm;
use crate::{FIRST, SECOND};

/// A lap takes a tenth of a second or two in the test machine.
const CONTEST: Contest = Contest { rounds: 6, warm_up: 1, laps: 3 };

/// One reset of the set instead of one for each function.
pub(crate) fn coordinated_reset() -> Vec<Comparison> {
    let _pinned = OneProcessor::pin();
    let functions = [FIRST, SECOND].map(|address| address.parse().expect("a PCI address"));
    let set = RefCell::new(ResetSet::new(Host::current(), functions.into(), 2, served_vm::SERVER));
    let set = || set.borrow_mut();
    let [coordinated, single, at_once, bare, bare_single] = CONTEST.medians([
        &mut || set().served().hot_reset(),
        &mut || set().served().function_resets(),
        &mut || set().served().function_resets_at_once(),
        &mut || set().bare().hot_reset(),
        &mut || set().bare().function_resets(),
    ]);
    let compare = |other_name: &'static str, other, goal| Comparison {
        figure: Figure::Time(coordinated),
        other_name: other_name.into(),
        other: Figure::Time(other),
        goal,
    };
    vec![
        compare("bare hot reset", bare, Goal::Ratio(1.05)),
        compare("two function resets", single, Goal::Ratio(0.7)),
        compare("two bare ones", bare_single, Goal::Ratio(0.7)),
        compare("two at the same time", at_once, Goal::None),
    ]
}
