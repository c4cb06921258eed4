// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Plans made from sysfs against what the modelled kernel then says and does, on every example of a machine.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use protocol::extension::ResetMethod;
use vfio::device::UnboundDevice;
use vfio::model::order::{DriverOrder, FunctionOrder};
use vfio::model::{Order, Settings, Topology};
use vfio::{Device, Hierarchy, Iommufd, PciAddress};
use vhost_device_vfio::reset::plan::{Assignment, Change, Plan, Verdict, WorkingReset};
use vhost_device_vfio_tests::host::ModelledMachine;

/// Every example, except the one in which the kernel knows what sysfs does not show.
fn examples() -> Vec<(String, Topology)> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../vfio/topologies"));
    let paths = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let examples = paths.filter(|path| !path.ends_with("no-bus-reset.toml")).map(|path| {
        let topology = Topology::load(&path).unwrap();
        (path.display().to_string(), topology)
    });
    examples.collect()
}

fn start(topology: &Topology) -> ModelledMachine {
    ModelledMachine::of(topology.clone(), Settings::default())
}

/// Each function of a machine alone, and each two.
fn choices(topology: &Topology) -> Vec<Vec<PciAddress>> {
    let functions: Vec<_> = topology.functions.iter().map(|function| function.address).collect();
    let pairs = functions
        .iter()
        .enumerate()
        .flat_map(|(place, first)| functions[place + 1..].iter().map(move |second| vec![*first, *second]));
    functions.iter().map(|function| vec![*function]).chain(pairs).collect()
}

fn plan(machine: &ModelledMachine, functions: &[PciAddress], wanted: Option<ResetMethod>) -> Plan {
    let hierarchy = Hierarchy::read(&machine.host().sysfs()).unwrap();
    Plan::new(&hierarchy, &[Assignment { vm: "a".into(), functions: functions.to_vec() }], wanted)
}

/// What a VM has: the functions bound to its iommufd, or nothing if one cannot be.
fn bind(machine: &ModelledMachine, functions: &[PciAddress]) -> Option<(Iommufd, Vec<Device>)> {
    let (host, sysfs) = (machine.host(), machine.host().sysfs());
    let iommufd = Iommufd::from_fd(host.open_iommufd().unwrap().into(), &sysfs).unwrap();
    let bind = |function: &PciAddress| {
        let device = UnboundDevice::from_fd(host.open_cdev(*function).ok()?.into(), &sysfs).ok()?;
        device.bind(&iommufd, &sysfs).ok()
    };
    let devices: Option<Vec<_>> = functions.iter().map(bind).collect();
    Some((iommufd, devices?))
}

/// Whether the kernel says that it has a reset of this kind for the device now.
fn works(device: &Device, wanted: Option<ResetMethod>) -> bool {
    let by_function = device.info().has_function_reset;
    let by_group = device.hot_reset_info().is_ok_and(|info| info.all_owned);
    match wanted {
        Some(ResetMethod::Function) => by_function,
        Some(ResetMethod::Hot) => by_group,
        None => by_function || by_group,
    }
}

/// Whether all can be bound and reset.
fn all_work(machine: &ModelledMachine, functions: &[PciAddress], wanted: Option<ResetMethod>) -> bool {
    bind(machine, functions)
        .is_some_and(|(_iommufd, devices)| devices.iter().all(|device| works(device, wanted)))
}

/// Does what a plan says; what is handed over is for the caller.
fn carry_out(machine: &ModelledMachine, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Unbind { function, .. } => {
                machine.order(&Order::Unbind(FunctionOrder { function: *function }))
            }
            Change::Bind { function } => {
                machine.order(&Order::Bind(DriverOrder { function: *function, driver: "vfio-pci".into() }))
            }
            Change::HandOver { .. } => String::new(),
        };
    }
}

#[test]
fn every_verdict_on_every_example_is_the_kernels() {
    for (name, topology) in examples() {
        let mut machine = start(&topology);
        for functions in choices(&topology) {
            for wanted in [None, Some(ResetMethod::Function), Some(ResetMethod::Hot)] {
                let plan = plan(&machine, &functions, wanted);
                let place = format!("{name}: {functions:?} by {wanted:?}: {plan:?}");
                let works_as_it_is = plan.verdict() == Verdict::Works;
                assert_eq!(all_work(&machine, &functions, wanted), works_as_it_is, "{place}");
                if plan.vms[0].changes.is_empty() {
                    continue;
                }
                carry_out(&machine, &plan.vms[0].changes);
                let devices = plan.vms[0].devices.iter().map(|device| device.address);
                let works_then = plan.verdict() != Verdict::Cannot;
                let works = all_work(&machine, &devices.collect::<Vec<_>>(), wanted);
                assert_eq!(works, works_then, "after the changes, {place}");
                machine = start(&topology);
            }
        }
    }
}

#[test]
fn the_reset_that_is_named_is_one_that_the_kernel_does() {
    for (name, topology) in examples() {
        let machine = start(&topology);
        for functions in choices(&topology) {
            let plan = plan(&machine, &functions, None);
            let Some((_iommufd, devices)) = bind(&machine, &functions) else { continue };
            for (device, planned) in devices.iter().zip(&plan.vms[0].devices) {
                let place = format!("{name}: {functions:?}: {planned:?}");
                match planned.reset.filter(|_| planned.verdict == Verdict::Works) {
                    Some(WorkingReset::Function(_)) => assert!(device.reset().is_ok(), "{place}"),
                    Some(WorkingReset::Hot) => assert!(device.hot_reset().is_ok(), "{place}"),
                    None => {}
                }
                // The scope is the kernel's, in its order, where there is one.
                if let Ok(info) = device.hot_reset_info() {
                    let affected: Vec<_> = info.functions.iter().map(|function| function.address).collect();
                    assert_eq!(planned.scope.affected(), affected, "{place}");
                } else {
                    assert_eq!(planned.scope.affected(), [], "{place}");
                }
            }
        }
    }
}
