// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts: what there is, what can be armed, and what then arrives.

use std::os::fd::{AsFd, OwnedFd};

use vfio::config_space::command;
use vfio::irq::{IrqData, IrqSet};
use vfio::{CallError, Device, IrqAction, IrqIndex};
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::interrupt::Interrupt;

use crate::answer::{EINVAL, OK, answer, refused, value};
use crate::check::checks;
use crate::machine::{EACH_PART, EVERYWHERE};
use crate::registers::{enable, raises_interrupt, set_command};
use crate::scene::Scene;

checks! {
    EVERYWHERE => each_index_has_its_count_and_flags;
    EACH_PART => an_armed_vector_can_be_fired, an_index_that_is_not_armed_cannot_be_fired,
        only_one_kind_is_armed_at_a_time, a_vector_beyond_the_last_is_refused, a_request_for_the_device_can_be_fired,
        an_index_without_vectors_cannot_be_armed, an_index_that_is_not_armed_cannot_be_disabled;
    &["edu-pair", "igb-pair"] => a_boolean_fires_only_where_it_is_true, a_vector_without_eventfd_is_silent,
        another_eventfd_takes_the_place_of_the_first, messages_cannot_be_masked, a_disabled_index_is_silent,
        an_interrupt_line_can_be_masked, an_interrupt_line_that_is_not_armed_cannot_be_masked;
    &["edu-pair", "nvme"] => the_error_interrupt_is_for_express_devices;
    &["igb-pair", "virtio-pair", "nvme"] => each_vector_has_its_own_eventfd, a_vector_can_be_added_later,
        one_vector_can_be_disarmed;
    &["edu-pair", "edu-igb", "rciep"] => a_message_of_the_device_arrives, a_message_needs_bus_mastering,
        a_raised_line_arrives_once, a_masked_line_arrives_when_it_is_unmasked,
        a_raised_line_is_seen_in_the_status_register, a_disabled_line_is_seen_in_the_status_register;
}

/// Arms vector 0 of an index with an eventfd.
pub(crate) fn arm(device: &Device, index: IrqIndex, eventfd: &OwnedFd) -> Result<(), CallError> {
    arm_from(device, index, 0, &[Some(eventfd)])
}

fn arm_from(
    device: &Device,
    index: IrqIndex,
    start: u32,
    eventfds: &[Option<&OwnedFd>],
) -> Result<(), CallError> {
    let eventfds: Vec<_> = eventfds.iter().map(|eventfd| eventfd.map(AsFd::as_fd)).collect();
    change(device, index, start, IrqAction::Trigger, IrqData::Eventfd(&eventfds))
}

/// Fires vector 0 as if the device had.
pub(crate) fn fire(device: &Device, index: IrqIndex) -> Result<(), CallError> {
    change(device, index, 0, IrqAction::Trigger, IrqData::None(1))
}

fn change(
    device: &Device,
    index: IrqIndex,
    start: u32,
    action: IrqAction,
    data: IrqData<'_>,
) -> Result<(), CallError> {
    device.set_irqs(&IrqSet { index, start, action, data })
}

/// An eventfd on vector 0 of an index.
pub(crate) fn armed(device: &Device, index: IrqIndex) -> Interrupt {
    let (interrupt, eventfd) = Interrupt::new();
    arm(device, index, &eventfd).expect("the vector can be armed");
    interrupt
}

fn first_device(scene: &Scene<'_>) -> Device {
    scene.bind(scene.first(), &scene.context())
}

/// Indexes of the device's own interrupts that have vectors.
fn kinds(device: &Device) -> Vec<IrqIndex> {
    let has_vectors = |index: &IrqIndex| device.irq_info(*index).is_ok_and(|info| info.count > 0);
    IrqIndex::ALL.into_iter().filter(|index| index.is_device_interrupt()).filter(has_vectors).collect()
}

/// Messages of either sort: MSI-X if there is any.
fn messages(device: &Device) -> IrqIndex {
    *kinds(device).last().expect("a kind of interrupt")
}

fn each_index_has_its_count_and_flags(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        for (index, (count, flags)) in IrqIndex::ALL.into_iter().zip(function.part.irqs) {
            let seen = value(device.irq_info(index)).map(|info| (info.count, info.flags));
            let is_missing =
                index == IrqIndex::Err && !function.part.is_express && scene.by_kernel(true, false);
            let expected = if is_missing { Err("EINVAL") } else { Ok((count, flags)) };
            scene.expect(&format!("{} {index:?}", function.address), seen, expected);
        }
    }
}

fn an_armed_vector_can_be_fired(scene: &Scene<'_>) {
    let device = first_device(scene);
    for index in kinds(&device) {
        let (interrupt, eventfd) = Interrupt::new();
        scene.expect(&format!("arming {index:?}"), answer(arm(&device, index, &eventfd)), OK);
        scene.expect(&format!("firing {index:?}"), answer(fire(&device, index)), OK);
        scene.expect(&format!("{index:?} arrives"), interrupt.fires(), true);
        scene.expect(&format!("disabling {index:?}"), answer(device.set_irqs(&IrqSet::disable(index))), OK);
    }
}

fn an_index_that_is_not_armed_cannot_be_fired(scene: &Scene<'_>) {
    let device = first_device(scene);
    for index in kinds(&device) {
        scene.expect(&format!("firing {index:?}"), answer(fire(&device, index)), EINVAL);
        drop(armed(&device, index));
        device.set_irqs(&IrqSet::disable(index)).expect("the index can be disabled");
        scene.expect(&format!("firing {index:?} when disabled"), answer(fire(&device, index)), EINVAL);
    }
}

fn only_one_kind_is_armed_at_a_time(scene: &Scene<'_>) {
    let device = first_device(scene);
    let kinds = kinds(&device);
    let (_interrupt, eventfd) = Interrupt::new();
    for armed_kind in &kinds {
        let _armed = armed(&device, *armed_kind);
        for other in kinds.iter().filter(|kind| *kind != armed_kind) {
            let what = format!("arming {other:?} beside {armed_kind:?}");
            scene.expect(&what, answer(arm(&device, *other, &eventfd)), EINVAL);
        }
        device.set_irqs(&IrqSet::disable(*armed_kind)).expect("the index can be disabled");
    }
}

fn a_vector_beyond_the_last_is_refused(scene: &Scene<'_>) {
    let device = first_device(scene);
    let (_interrupt, eventfd) = Interrupt::new();
    for index in IrqIndex::ALL {
        let Ok(info) = device.irq_info(index) else { continue };
        let outcome = arm_from(&device, index, info.count, &[Some(&eventfd)]);
        scene.expect(&format!("arming {index:?} {}", info.count), answer(outcome), EINVAL);
    }
}

fn a_request_for_the_device_can_be_fired(scene: &Scene<'_>) {
    let device = first_device(scene);
    scene.expect("firing what is not armed", answer(fire(&device, IrqIndex::Req)), EINVAL);
    let request = armed(&device, IrqIndex::Req);
    scene.expect("firing", answer(fire(&device, IrqIndex::Req)), OK);
    scene.expect("it arrives", request.fires(), true);
}

fn an_index_without_vectors_cannot_be_armed(scene: &Scene<'_>) {
    let device = first_device(scene);
    let (_interrupt, eventfd) = Interrupt::new();
    for index in [IrqIndex::Intx, IrqIndex::Msi, IrqIndex::Msix] {
        if !kinds(&device).contains(&index) {
            scene.expect(&format!("arming {index:?}"), answer(arm(&device, index, &eventfd)), EINVAL);
        }
    }
}

fn an_index_that_is_not_armed_cannot_be_disabled(scene: &Scene<'_>) {
    let device = first_device(scene);
    for index in kinds(&device) {
        drop(armed(&device, index));
        scene.expect(&format!("disabling {index:?}"), answer(device.set_irqs(&IrqSet::disable(index))), OK);
        let again = answer(device.set_irqs(&IrqSet::disable(index)));
        scene.expect(&format!("disabling {index:?} again"), again, EINVAL);
    }
}

fn a_boolean_fires_only_where_it_is_true(scene: &Scene<'_>) {
    let device = first_device(scene);
    let index = messages(&device);
    let interrupt = armed(&device, index);
    for (value, arrives) in [(0, false), (1, true)] {
        let fired = change(&device, index, 0, IrqAction::Trigger, IrqData::Bool(&[value]));
        scene.expect(&format!("firing with {value}"), answer(fired), OK);
        scene.expect("it is silent", interrupt.is_silent(), !arrives);
    }
}

fn a_vector_without_eventfd_is_silent(scene: &Scene<'_>) {
    let device = first_device(scene);
    let index = messages(&device);
    let interrupt = armed(&device, index);
    scene.expect("taking the eventfd away", answer(arm_from(&device, index, 0, &[None])), OK);
    scene.expect("firing", answer(fire(&device, index)), OK);
    scene.expect("it is silent", interrupt.is_silent(), true);
}

fn another_eventfd_takes_the_place_of_the_first(scene: &Scene<'_>) {
    let device = first_device(scene);
    let index = messages(&device);
    let first = armed(&device, index);
    let second = armed(&device, index);
    scene.expect("firing", answer(fire(&device, index)), OK);
    scene.expect("the second fires", second.fires(), true);
    scene.expect("the first is silent", first.is_silent(), true);
}

fn messages_cannot_be_masked(scene: &Scene<'_>) {
    let device = first_device(scene);
    let index = messages(&device);
    let _interrupt = armed(&device, index);
    for action in [IrqAction::Mask, IrqAction::Unmask] {
        let outcome = change(&device, index, 0, action, IrqData::None(1));
        scene.expect(&format!("{action:?}"), answer(outcome), refused("ENOTTY"));
    }
}

fn a_disabled_index_is_silent(scene: &Scene<'_>) {
    let device = first_device(scene);
    let index = messages(&device);
    let interrupt = armed(&device, index);
    scene.expect("disabling", answer(device.set_irqs(&IrqSet::disable(index))), OK);
    scene.expect("firing", answer(fire(&device, index)), EINVAL);
    scene.expect("it is silent", interrupt.is_silent(), true);
}

fn an_interrupt_line_can_be_masked(scene: &Scene<'_>) {
    let device = first_device(scene);
    let _interrupt = armed(&device, IrqIndex::Intx);
    for action in [IrqAction::Mask, IrqAction::Mask, IrqAction::Unmask, IrqAction::Unmask] {
        let changed = change(&device, IrqIndex::Intx, 0, action, IrqData::None(1));
        scene.expect(&format!("{action:?}"), answer(changed), OK);
    }
}

fn an_interrupt_line_that_is_not_armed_cannot_be_masked(scene: &Scene<'_>) {
    let device = first_device(scene);
    for action in [IrqAction::Mask, IrqAction::Unmask] {
        let outcome = change(&device, IrqIndex::Intx, 0, action, IrqData::None(1));
        scene.expect(&format!("{action:?}"), answer(outcome), EINVAL);
    }
}

fn the_error_interrupt_is_for_express_devices(scene: &Scene<'_>) {
    let device = first_device(scene);
    let (interrupt, eventfd) = Interrupt::new();
    let armed = answer(arm(&device, IrqIndex::Err, &eventfd));
    if !scene.first().part.is_express && scene.by_kernel(true, false) {
        scene.expect("arming", armed, EINVAL);
    } else {
        scene.expect("arming", armed, OK);
        scene.expect("firing", answer(fire(&device, IrqIndex::Err)), OK);
        scene.expect("it arrives", interrupt.fires(), true);
    }
}

fn each_vector_has_its_own_eventfd(scene: &Scene<'_>) {
    let device = first_device(scene);
    let ((first, far_first), (second, far_second)) = (Interrupt::new(), Interrupt::new());
    let arming = arm_from(&device, IrqIndex::Msix, 0, &[Some(&far_first), Some(&far_second)]);
    scene.expect("arming", answer(arming), OK);
    let fired = change(&device, IrqIndex::Msix, 1, IrqAction::Trigger, IrqData::None(1));
    scene.expect("firing the second", answer(fired), OK);
    scene.expect("the second fires", second.fires(), true);
    scene.expect("the first is silent", first.is_silent(), true);
    let fired = change(&device, IrqIndex::Msix, 0, IrqAction::Trigger, IrqData::Bool(&[1, 0]));
    scene.expect("firing the first of both", answer(fired), OK);
    scene.expect("the first fires", first.fires(), true);
    scene.expect("the second is silent", second.is_silent(), true);
}

fn a_vector_can_be_added_later(scene: &Scene<'_>) {
    let device = first_device(scene);
    let _first = armed(&device, IrqIndex::Msix);
    let (second, eventfd) = Interrupt::new();
    scene.expect("arming", answer(arm_from(&device, IrqIndex::Msix, 1, &[Some(&eventfd)])), OK);
    let fired = change(&device, IrqIndex::Msix, 1, IrqAction::Trigger, IrqData::None(1));
    scene.expect("firing", answer(fired), OK);
    scene.expect("it arrives", second.fires(), true);
}

fn one_vector_can_be_disarmed(scene: &Scene<'_>) {
    let device = first_device(scene);
    let ((first, far_first), (second, far_second)) = (Interrupt::new(), Interrupt::new());
    arm_from(&device, IrqIndex::Msix, 0, &[Some(&far_first), Some(&far_second)]).expect("both can be armed");
    scene.expect("disarming the first", answer(arm_from(&device, IrqIndex::Msix, 0, &[None])), OK);
    let fired = change(&device, IrqIndex::Msix, 0, IrqAction::Trigger, IrqData::None(2));
    scene.expect("firing both", answer(fired), OK);
    scene.expect("the second fires", second.fires(), true);
    scene.expect("the first is silent", first.is_silent(), true);
}

fn a_message_of_the_device_arrives(scene: &Scene<'_>) {
    let device = first_device(scene);
    enable(&device);
    let interrupt = armed(&device, IrqIndex::Msi);
    Edu::new(&device).raise_interrupt();
    scene.expect("it arrives", interrupt.fires(), true);
    scene.expect("once", interrupt.is_silent(), true);
}

fn a_message_needs_bus_mastering(scene: &Scene<'_>) {
    let device = first_device(scene);
    let interrupt = armed(&device, IrqIndex::Msi);
    set_command(&device, command::MEMORY);
    Edu::new(&device).raise_interrupt();
    scene.expect("it is silent", interrupt.is_silent(), true);
}

fn a_raised_line_arrives_once(scene: &Scene<'_>) {
    let device = first_device(scene);
    enable(&device);
    let interrupt = armed(&device, IrqIndex::Intx);
    let mut edu = Edu::new(&device);
    edu.raise_interrupt();
    scene.expect("it arrives", interrupt.fires(), true);
    edu.raise_interrupt();
    scene.expect("it is silent until it is unmasked", interrupt.is_silent(), true);
    let unmasked = change(&device, IrqIndex::Intx, 0, IrqAction::Unmask, IrqData::None(1));
    scene.expect("unmasking", answer(unmasked), OK);
    scene.expect("it arrives, as it is still raised", interrupt.fires(), true);
    edu.acknowledge_interrupt();
    let unmasked = change(&device, IrqIndex::Intx, 0, IrqAction::Unmask, IrqData::None(1));
    scene.expect("unmasking when acknowledged", answer(unmasked), OK);
    scene.expect("it is silent", interrupt.is_silent(), true);
}

fn a_masked_line_arrives_when_it_is_unmasked(scene: &Scene<'_>) {
    let device = first_device(scene);
    enable(&device);
    let interrupt = armed(&device, IrqIndex::Intx);
    let masked = change(&device, IrqIndex::Intx, 0, IrqAction::Mask, IrqData::None(1));
    scene.expect("masking", answer(masked), OK);
    Edu::new(&device).raise_interrupt();
    scene.expect("it is silent", interrupt.is_silent(), true);
    let unmasked = change(&device, IrqIndex::Intx, 0, IrqAction::Unmask, IrqData::Bool(&[1]));
    scene.expect("unmasking", answer(unmasked), OK);
    scene.expect("it arrives", interrupt.fires(), true);
    Edu::new(&device).acknowledge_interrupt();
}

fn a_raised_line_is_seen_in_the_status_register(scene: &Scene<'_>) {
    let device = first_device(scene);
    enable(&device);
    scene.expect("raised at first", raises_interrupt(&device), false);
    let mut edu = Edu::new(&device);
    edu.raise_interrupt();
    scene.expect("raised", raises_interrupt(&device), true);
    edu.acknowledge_interrupt();
    scene.expect("raised when acknowledged", raises_interrupt(&device), false);
}

fn a_disabled_line_is_seen_in_the_status_register(scene: &Scene<'_>) {
    let device = first_device(scene);
    set_command(&device, command::MEMORY | command::INTX_DISABLE);
    let mut edu = Edu::new(&device);
    edu.raise_interrupt();
    scene.expect("raised", raises_interrupt(&device), true);
    edu.acknowledge_interrupt();
}
