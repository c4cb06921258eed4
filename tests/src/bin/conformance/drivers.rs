// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Functions whose driver goes, comes or changes, also while somebody has them open.

use std::thread;

use vfio::IrqIndex;
use vfio::topology::Driver;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::legacy_group::{LegacyGroup, LegacyUser};
use vhost_device_vfio_tests::server_process::wait_until;

use crate::answer::{EINVAL, OK, answer, bind_answer, ok, refused, rows, value};
use crate::check::checks;
use crate::irqs::arm;
use crate::machine::{FLR_PAIR, Function, WITH_SIBLING};
use crate::scene::{Scene, address};

checks! {
    WITH_SIBLING => a_function_without_driver_has_no_device_file,
        a_function_without_driver_keeps_its_place_in_the_reset_set,
        a_function_that_gets_its_driver_back_is_as_before;
    &["virtio-pair"] => a_kernel_driver_in_the_group_refuses_the_bind,
        a_kernel_driver_that_left_the_group_refuses_nothing,
        a_kernel_driver_does_not_get_the_sibling_of_a_bound_device,
        a_kernel_driver_gets_the_sibling_of_a_released_device;
    &["virtio-trio"] => a_kernel_driver_in_another_group_blocks_only_the_reset;
    FLR_PAIR => an_unbind_that_waits_takes_the_device_file_away,
        an_unbind_that_waits_refuses_the_bind_of_an_open_file,
        an_unbind_that_waits_refuses_a_function_reset, an_unbind_that_waits_refuses_a_hot_reset,
        an_unbind_that_waits_leaves_the_rows_as_they_are, an_unbind_asks_for_the_device,
        an_unbind_that_waits_can_be_told_from_one_that_is_over;
    USED => a_function_is_switched_on_while_somebody_uses_it;
    &["edu-pair"] => an_unbind_that_waits_for_a_device_without_reset;
}

/// One function of each kind, and who else can use it.
const USED: &[&str] = &["edu-pair", "igb-pair", "nvme", "e1000e", "bridge", "virtio-trio"];

/// A function that is not driven by vfio-pci. It is again when this is dropped.
#[derive(Debug)]
pub(crate) struct OtherDriver<'a> {
    scene: &'a Scene<'a>,
    function: &'static Function,
}

impl<'a> OtherDriver<'a> {
    /// Takes a function's driver away.
    pub(crate) fn none(scene: &'a Scene<'a>, function: &'static Function) -> Self {
        scene.host.unbind_driver(address(function)).expect("the driver lets go");
        Self { scene, function }
    }

    /// Has another driver drive a function, if the kernel lets it.
    pub(crate) fn some(scene: &'a Scene<'a>, function: &'static Function, driver: &str) -> Self {
        let changed = Self::none(scene, function);
        scene.expect("driver change", answer(scene.host.bind_driver(address(function), driver)), OK);
        changed
    }

    fn is_driven(&self) -> bool {
        self.scene.sysfs().function(address(self.function)).expect("it is there").driver != Driver::None
    }
}

impl Drop for OtherDriver<'_> {
    fn drop(&mut self) {
        let address = address(self.function);
        if self.is_driven() {
            self.scene.host.unbind_driver(address).expect("the driver lets go");
        }
        self.scene.host.bind_driver(address, "vfio-pci").expect("vfio-pci takes the function");
        assert!(self.is_driven(), "vfio-pci has not taken {address}");
    }
}

/// Has the host take `function`'s driver away, which waits for the `holder` of its device, and calls `body` meanwhile.
pub(crate) fn while_unbinding<H>(
    scene: &Scene<'_>,
    function: &'static Function,
    holder: H,
    body: impl FnOnce(H),
) {
    // From then on the device is locked, although the driver is still there.
    let is_waiting = || driver(scene, function) == "none";
    let host = scene.host;
    let _restored = OtherDriver { scene, function };
    thread::scope(|scope| {
        let unbind = scope.spawn(|| host.unbind_driver(address(function)));
        // Until the body gives it up, and also when it panics: the scope waits for the unbind.
        let holder = holder;
        assert!(wait_until(is_waiting), "the unbind does not begin");
        body(holder);
        scene.expect("the unbind in the end", answer(unbind.join().expect("the unbind")), OK);
    });
}

fn driver(scene: &Scene<'_>, function: &Function) -> String {
    match scene.sysfs().function(address(function)).expect("it is there").driver {
        Driver::None => "none".into(),
        // The device file's number is the machine's own business.
        Driver::Vfio { name, .. } => format!("{name} with a device file"),
        Driver::Kernel(name) => name,
    }
}

fn a_function_without_driver_has_no_device_file(scene: &Scene<'_>) {
    let sibling = scene.second();
    scene.expect("driver before", driver(scene, sibling), "vfio-pci with a device file");
    let _other = OtherDriver::none(scene, sibling);
    scene.expect("driver", driver(scene, sibling), "none");
    let opened = scene.host.open_cdev(address(sibling)).map(drop);
    scene.expect("open", opened.map_err(|error| error.kind()), refused(std::io::ErrorKind::NotFound));
}

fn a_function_without_driver_keeps_its_place_in_the_reset_set(scene: &Scene<'_>) {
    let _other = OtherDriver::none(scene, scene.second());
    let context = scene.context();
    let device = scene.bind(scene.first(), &context);
    let info = value(device.hot_reset_info()).map(|info| (info.all_owned, info.functions.len()));
    scene.expect("availability and size", info, ok((false, scene.functions().len())));
}

fn a_function_that_gets_its_driver_back_is_as_before(scene: &Scene<'_>) {
    drop(OtherDriver::none(scene, scene.second()));
    let context = scene.context();
    let devices = scene.bind_all(&context);
    let ours: Vec<_> = devices.iter().collect();
    scene.expect("rows", rows(devices[0].hot_reset_info(), &ours), scene.first().set.rows_with_all);
}

fn a_kernel_driver_in_the_group_refuses_the_bind(scene: &Scene<'_>) {
    let _other = OtherDriver::some(scene, scene.second(), "virtio-pci");
    scene.expect("sibling's driver", driver(scene, scene.second()), "virtio-pci");
    let context = scene.context();
    let outcome = scene.try_bind(scene.first(), &context);
    scene.expect("BIND", bind_answer(outcome), refused("EPERM 0000:01:00.1 has virtio-pci"));
}

fn a_kernel_driver_that_left_the_group_refuses_nothing(scene: &Scene<'_>) {
    drop(OtherDriver::some(scene, scene.second(), "virtio-pci"));
    let context = scene.context();
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &context)), OK);
    scene.expect("BIND of the sibling", bind_answer(scene.try_bind(scene.second(), &context)), OK);
}

fn a_kernel_driver_does_not_get_the_sibling_of_a_bound_device(scene: &Scene<'_>) {
    let context = scene.context();
    let _device = scene.bind(scene.first(), &context);
    let _other = OtherDriver::none(scene, scene.second());
    let probed = scene.host.bind_driver(address(scene.second()), "virtio-pci");
    // `drivers_probe` knows no other errno.
    scene.expect("driver change", answer(probed), EINVAL);
    scene.expect("driver", driver(scene, scene.second()), "none");
}

fn a_kernel_driver_gets_the_sibling_of_a_released_device(scene: &Scene<'_>) {
    let context = scene.context();
    drop(scene.bind(scene.first(), &context));
    let _other = OtherDriver::some(scene, scene.second(), "virtio-pci");
    scene.expect("driver", driver(scene, scene.second()), "virtio-pci");
}

fn a_kernel_driver_in_another_group_blocks_only_the_reset(scene: &Scene<'_>) {
    let _other = OtherDriver::some(scene, scene.first(), "virtio-pci");
    let context = scene.context();
    let device = scene.bind(scene.second(), &context);
    scene.expect(
        "rows",
        rows(device.hot_reset_info(), &[&device]),
        ok("blocked: 0000:01:00.0 not owned, 0000:01:00.1 bound, 0000:01:00.2 not owned"),
    );
    let _third = scene.bind(&scene.functions()[2], &context);
    scene.expect("HOT_RESET", value(device.hot_reset()), EINVAL);
    scene.expect("RESET", answer(device.reset()), OK);
}

fn an_unbind_that_waits_takes_the_device_file_away(scene: &Scene<'_>) {
    let function = scene.second();
    while_unbinding(scene, function, scene.open_file(function), |file| {
        scene.expect("driver", driver(scene, function), "none");
        let opened = scene.host.open_cdev(address(function)).map(drop);
        scene.expect("open", opened.map_err(|error| error.kind()), refused(std::io::ErrorKind::NotFound));
        drop(file);
    });
    scene.expect("driver afterwards", driver(scene, function), "vfio-pci with a device file");
}

fn an_unbind_that_waits_refuses_the_bind_of_an_open_file(scene: &Scene<'_>) {
    let context = scene.context();
    let device = scene.open(scene.second());
    while_unbinding(scene, scene.second(), device, |device| {
        let outcome = device.bind(&context, &scene.sysfs());
        scene.expect("BIND", bind_answer(outcome), refused("EAGAIN DeviceLocked"));
    });
}

fn an_unbind_that_waits_refuses_a_function_reset(scene: &Scene<'_>) {
    let context = scene.context();
    let device = scene.bind(scene.second(), &context);
    while_unbinding(scene, scene.second(), device, |device| {
        scene.expect("RESET", answer(device.reset()), refused("EAGAIN"));
    });
}

fn an_unbind_that_waits_refuses_a_hot_reset(scene: &Scene<'_>) {
    let context = scene.context();
    let first = scene.bind(scene.first(), &context);
    let second = scene.bind(scene.second(), &context);
    while_unbinding(scene, scene.second(), second, |second| {
        scene.expect("HOT_RESET by the sibling", value(first.hot_reset()), refused("EAGAIN"));
        scene.expect("HOT_RESET by itself", value(second.hot_reset()), refused("EAGAIN"));
    });
    let second = scene.bind(scene.second(), &context);
    scene.expect("HOT_RESET afterwards", value(first.hot_reset()), ok(vfio::HotReset::Done));
    drop(second);
}

fn an_unbind_that_waits_leaves_the_rows_as_they_are(scene: &Scene<'_>) {
    let context = scene.context();
    let first = scene.bind(scene.first(), &context);
    let second = scene.bind(scene.second(), &context);
    while_unbinding(scene, scene.second(), second, |second| {
        let ours = [&first, &second];
        scene.expect("rows", rows(first.hot_reset_info(), &ours), scene.first().set.rows_with_all);
    });
}

fn an_unbind_asks_for_the_device(scene: &Scene<'_>) {
    let context = scene.context();
    let device = scene.bind(scene.second(), &context);
    let (request, eventfd) = Interrupt::new();
    scene.expect("arming REQ", answer(arm(&device, IrqIndex::Req, &eventfd)), OK);
    while_unbinding(scene, scene.second(), device, |_device| {
        scene.expect("REQ fires", request.fires(), true);
    });
}

fn an_unbind_that_waits_for_a_device_without_reset(scene: &Scene<'_>) {
    let context = scene.context();
    let first = scene.bind(scene.first(), &context);
    let unbound = scene.open(scene.second());
    while_unbinding(scene, scene.second(), unbound, |unbound| {
        let bound = unbound.bind(&context, &scene.sysfs());
        scene.expect("HOT_RESET by the sibling", value(first.hot_reset()), refused("EAGAIN"));
        scene.expect("BIND", bind_answer(bound), OK);
    });
}

/// Whether a function is switched on, and which driver is about to leave it.
fn usage(scene: &Scene<'_>, function: &Function) -> (bool, Option<String>) {
    let sysfs = scene.sysfs();
    let is_enabled = sysfs.is_enabled(address(function)).expect("it is there");
    (is_enabled, sysfs.departing_driver(address(function)).expect("it is there"))
}

fn an_unbind_that_waits_can_be_told_from_one_that_is_over(scene: &Scene<'_>) {
    let function = scene.second();
    let vfio = || Some("vfio-pci".to_owned());
    scene.expect("before", wait_until(|| usage(scene, function) == (false, None)), true);
    while_unbinding(scene, function, scene.open_file(function), |file| {
        scene.expect("while it is open", usage(scene, function), (false, vfio()));
        drop(file);
    });
    let device = scene.bind(function, &scene.context());
    while_unbinding(scene, function, device, |device| {
        scene.expect("while it is bound", usage(scene, function), (true, vfio()));
        drop(device);
    });
    let _other = OtherDriver::none(scene, function);
    scene.expect("when it is over", usage(scene, function), (false, None::<String>));
}

fn a_function_is_switched_on_while_somebody_uses_it(scene: &Scene<'_>) {
    let function = scene.first();
    let is_enabled = || usage(scene, function).0;
    scene.expect("when nobody has it", wait_until(|| !is_enabled()), true);
    let opened = scene.open(function);
    scene.expect("when its cdev is open", is_enabled(), false);
    drop(opened);
    let device = scene.bind(function, &scene.context());
    scene.expect("when it is bound", is_enabled(), true);
    drop(device);
    scene.expect("in the end, when it is closed", wait_until(|| !is_enabled()), true);
    let group = LegacyGroup::open(scene.host, function.group).expect("the group");
    scene.expect("when its group is open", is_enabled(), false);
    drop(group);
    let legacy = LegacyUser::open(scene.host, function.group, function.address);
    scene.expect("when its group gave it", is_enabled(), true);
    drop(legacy);
    scene.expect("in the end, when that is closed", wait_until(|| !is_enabled()), true);
}
