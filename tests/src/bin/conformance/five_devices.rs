// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The case of five devices in one reset set: A and B share an IOMMU group; C, D and E each have their own. A is bound to a
//! context and B is not open; a legacy user has C; D is bound to another context; E is not open.

// They had these names when the case was made.
#![allow(clippy::many_single_char_names)]

use vfio::{Device, HotReset};
use vhost_device_vfio_tests::legacy_group::{LegacyGroup, LegacyUser};

use crate::answer::{Answer, EBUSY, EINVAL, answer, bind_answer, ok, refused, rows, value};
use crate::check::checks;
use crate::drivers::OtherDriver;
use crate::groups::legacy_rows;
use crate::machine::Function;
use crate::registers::{IGB_VET_DEFAULT, igb_vet, soil_igb};
use crate::scene::Scene;

checks! {
    &["five-devices"] => the_report_as_seen_from_a, the_report_as_seen_from_c, the_report_as_seen_from_d,
        nobody_can_reset, e_joins_a, everybody_but_b_is_in_one_context, everybody_is_in_one_context,
        a_group_without_members_of_ours_is_not_implied, b_is_refused_to_the_context_of_d, b_without_driver_blocks;
}

const DONE: Answer<HotReset> = Ok(HotReset::Done);

fn by_name(scene: &Scene<'_>) -> [&'static Function; 5] {
    [0, 1, 2, 3, 4].map(|number| &scene.functions()[number])
}

fn legacy_user(scene: &Scene<'_>, function: &Function) -> LegacyUser {
    LegacyUser::open(scene.host, function.group, function.address)
}

/// A in its context, C with a legacy user, D in another context.
fn all_hold_what_they_hold(scene: &Scene<'_>) -> (Device, LegacyUser, Device) {
    let [a, _b, c, d, _e] = by_name(scene);
    (scene.bind(a, &scene.context()), legacy_user(scene, c), scene.bind(d, &scene.context()))
}

fn the_report_as_seen_from_a(scene: &Scene<'_>) {
    let (a, _c, _d) = all_hold_what_they_hold(scene);
    scene.expect(
        "rows",
        rows(a.hot_reset_info(), &[&a]),
        ok(
            "blocked: 0000:01:00.0 bound, 0000:01:00.1 implied, 0000:01:00.2 not owned, 0000:01:00.3 not owned, \
             0000:01:03.0 not owned",
        ),
    );
}

fn the_report_as_seen_from_c(scene: &Scene<'_>) {
    let (_a, c, _d) = all_hold_what_they_hold(scene);
    scene.expect(
        "rows",
        legacy_rows(&c.device),
        ok(
            "flags 0: 0000:01:00.0 group 5, 0000:01:00.1 group 5, 0000:01:00.2 group 6, 0000:01:00.3 group 7, \
             0000:01:03.0 group 8",
        ),
    );
}

fn the_report_as_seen_from_d(scene: &Scene<'_>) {
    let (_a, _c, d) = all_hold_what_they_hold(scene);
    scene.expect(
        "rows",
        rows(d.hot_reset_info(), &[&d]),
        ok(
            "blocked: 0000:01:00.0 not owned, 0000:01:00.1 not owned, 0000:01:00.2 not owned, 0000:01:00.3 bound, \
             0000:01:03.0 not owned",
        ),
    );
}

fn nobody_can_reset(scene: &Scene<'_>) {
    use std::os::fd::AsFd;
    let (a, c, d) = all_hold_what_they_hold(scene);
    scene.expect("HOT_RESET by A", value(a.hot_reset()), EINVAL);
    scene.expect("HOT_RESET by D", value(d.hot_reset()), EINVAL);
    let outcome = c.device.hot_reset(&[c.group.as_fd()]);
    scene.expect("HOT_RESET by C with its group", answer(outcome), EINVAL);
    // The groups of A and D cannot be had, that of E can.
    let [a, b, _c, d, e] = by_name(scene);
    for (name, function) in [("A", a), ("B", b), ("D", d)] {
        let opened = answer(LegacyGroup::open(scene.host, function.group));
        scene.expect(&format!("C opens the group of {name}"), opened, EBUSY);
    }
    let group = LegacyGroup::open(scene.host, e.group).expect("the group");
    let outcome = c.device.hot_reset(&[c.group.as_fd(), group.as_fd()]);
    scene.expect("HOT_RESET by C with what groups it can have", answer(outcome), EINVAL);
}

fn e_joins_a(scene: &Scene<'_>) {
    let [a, _b, c, d, e] = by_name(scene);
    let context = scene.context();
    let a = scene.bind(a, &context);
    let _c = legacy_user(scene, c);
    let d = scene.bind(d, &scene.context());
    let e = scene.bind(e, &context);
    let seen_from_a = "blocked: 0000:01:00.0 bound, 0000:01:00.1 implied, 0000:01:00.2 not owned, \
                       0000:01:00.3 not owned, 0000:01:03.0 bound";
    scene.expect("rows as seen from A", rows(a.hot_reset_info(), &[&a, &e]), ok(seen_from_a));
    scene.expect("rows as seen from E", rows(e.hot_reset_info(), &[&a, &e]), ok(seen_from_a));
    let seen_from_d = "blocked: 0000:01:00.0 not owned, 0000:01:00.1 not owned, 0000:01:00.2 not owned, \
                       0000:01:00.3 bound, 0000:01:03.0 not owned";
    scene.expect("rows as seen from D", rows(d.hot_reset_info(), &[&d]), ok(seen_from_d));
    scene.expect("HOT_RESET by A", value(a.hot_reset()), EINVAL);
    scene.expect("HOT_RESET by E", value(e.hot_reset()), EINVAL);
}

fn everybody_but_b_is_in_one_context(scene: &Scene<'_>) {
    let [a, _b, c, d, e] = by_name(scene);
    let context = scene.context();
    let [a, c, d, e] = [a, c, d, e].map(|function| scene.bind(function, &context));
    let ours = [&a, &c, &d, &e];
    let expected = "available: 0000:01:00.0 bound, 0000:01:00.1 implied, 0000:01:00.2 bound, 0000:01:00.3 bound, \
                    0000:01:03.0 bound";
    for (name, device) in ["A", "C", "D", "E"].iter().zip(ours) {
        scene.expect(
            &format!("rows as seen from {name}"),
            rows(device.hot_reset_info(), &ours),
            ok(expected),
        );
    }
    for igb in [&c, &d, &e] {
        soil_igb(igb);
    }
    scene.expect("HOT_RESET by A", value(a.hot_reset()), DONE);
    scene.expect("registers of C, D and E", [&c, &d, &e].map(igb_vet), [IGB_VET_DEFAULT; 3]);
    scene.expect("HOT_RESET by D", value(d.hot_reset()), DONE);
}

fn everybody_is_in_one_context(scene: &Scene<'_>) {
    let context = scene.context();
    let devices = by_name(scene).map(|function| scene.bind(function, &context));
    let ours = devices.each_ref();
    let expected = "available: 0000:01:00.0 bound, 0000:01:00.1 bound, 0000:01:00.2 bound, 0000:01:00.3 bound, \
                    0000:01:03.0 bound";
    for (name, device) in ["A", "B", "C", "D", "E"].iter().zip(ours) {
        scene.expect(
            &format!("rows as seen from {name}"),
            rows(device.hot_reset_info(), &ours),
            ok(expected),
        );
        scene.expect(&format!("HOT_RESET by {name}"), value(device.hot_reset()), DONE);
    }
}

fn a_group_without_members_of_ours_is_not_implied(scene: &Scene<'_>) {
    let [a, _b, c, _d, _e] = by_name(scene);
    let context = scene.context();
    let a = scene.bind(a, &context);
    let c = scene.bind(c, &context);
    let with_a = "blocked: 0000:01:00.0 bound, 0000:01:00.1 implied, 0000:01:00.2 bound, 0000:01:00.3 not owned, \
                  0000:01:03.0 not owned";
    scene.expect("rows as seen from C", rows(c.hot_reset_info(), &[&a, &c]), ok(with_a));
    drop(a);
    let without_a = "blocked: 0000:01:00.0 not owned, 0000:01:00.1 not owned, 0000:01:00.2 bound, \
                     0000:01:00.3 not owned, 0000:01:03.0 not owned";
    scene.expect("rows as seen from C when A is closed", rows(c.hot_reset_info(), &[&c]), ok(without_a));
}

fn b_is_refused_to_the_context_of_d(scene: &Scene<'_>) {
    let [a, b, _c, d, _e] = by_name(scene);
    let _a = scene.bind(a, &scene.context());
    let other = scene.context();
    let _d = scene.bind(d, &other);
    scene.expect("BIND", bind_answer(scene.try_bind(b, &other)), refused("EPERM ForeignOwner"));
}

fn b_without_driver_blocks(scene: &Scene<'_>) {
    let [a, b, c, d, e] = by_name(scene);
    let _other = OtherDriver::none(scene, b);
    let context = scene.context();
    let [a, c, d, e] = [a, c, d, e].map(|function| scene.bind(function, &context));
    let expected = "blocked: 0000:01:00.0 bound, 0000:01:00.1 not owned, 0000:01:00.2 bound, 0000:01:00.3 bound, \
                    0000:01:03.0 bound";
    scene.expect("rows", rows(a.hot_reset_info(), &[&a, &c, &d, &e]), ok(expected));
    scene.expect("HOT_RESET", value(a.hot_reset()), EINVAL);
}
