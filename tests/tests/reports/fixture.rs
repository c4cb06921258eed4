// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VM, whoever asks about its devices, and others who have some.

use std::process::Command;
use std::sync::Arc;

use protocol::extension::{Cookie, ResetGroup, RowReason};
use serde_json::Value;
use vfio::model::Order;
use vfio::model::order::{DriverOrder, FunctionOrder};
use vfio::{Device, Iommufd, PciAddress, UnboundDevice};
use vhost_device_vfio_tests::host::{Host, ModelledMachine};
use vhost_device_vfio_tests::server_process::tool_binary;
use vhost_device_vfio_tests::vmm::Vmm;

pub(crate) const FIRST: &str = "0000:01:00.0";
pub(crate) const SECOND: &str = "0000:01:00.1";
pub(crate) const THIRD: &str = "0000:01:00.2";
pub(crate) const FOURTH: &str = "0000:01:00.3";
pub(crate) const FIFTH: &str = "0000:01:03.0";

pub(crate) fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// A VM with some functions of a machine, named from 1 on, and whoever asks about them.
pub(crate) struct Vm {
    pub(crate) vmm: Vmm,
    host: Host,
    pub(crate) folder: tempfile::TempDir,
}

impl Vm {
    pub(crate) fn on(host: &Host, functions: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = Vmm::listening_on(host, &folder.path().join("control"));
        for (cookie, function) in (1..).zip(functions) {
            vmm.add(cookie, function).unwrap();
        }
        Self { vmm, host: host.clone(), folder }
    }

    pub(crate) fn group(&mut self, cookie: u64) -> ResetGroup {
        self.vmm.control.reset_group(Cookie(cookie)).unwrap()
    }

    /// Why the server says that a function blocks.
    pub(crate) fn told(&mut self, function: &str) -> RowReason {
        let group = self.group(1);
        group.rows.iter().find(|row| row.address.to_string() == function).unwrap().reason
    }

    pub(crate) fn tool(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(tool_binary());
        command.args(self.host.arguments()).arg("reset-group").args(arguments);
        let output = command.arg("--socket").arg(self.folder.path().join("control")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the tool tells of a device.
    pub(crate) fn report(&self, device: &str) -> Report {
        Report(serde_json::from_str(&self.tool(&[device, "--json"])).unwrap())
    }
}

/// What the tool told, as JSON.
pub(crate) struct Report(pub(crate) Value);

impl Report {
    pub(crate) fn row(&self, function: &str) -> &Value {
        let mut rows = self.0["functions"].as_array().unwrap().iter();
        rows.find(|row| row["address"] == function).unwrap_or_else(|| panic!("no {function} in {}", self.0))
    }

    /// Every function with its reason, or whose it is where it does not block.
    pub(crate) fn reasons(&self) -> Vec<(&str, &str)> {
        let rows = self.0["functions"].as_array().unwrap().iter();
        let reason = |row: &Value| if row["blocks"] == true { "reason" } else { "ownership" };
        rows.map(|row| (row["address"].as_str().unwrap(), row[reason(row)].as_str().unwrap())).collect()
    }

    pub(crate) fn remedy(&self, function: &str) -> &str {
        self.row(function)["remedy"].as_str().unwrap()
    }

    /// Whether it can be reset now, and whether that will hold.
    pub(crate) fn verdict(&self) -> (bool, &str) {
        (self.0["available"].as_bool().unwrap(), self.0["outlook"]["id"].as_str().unwrap())
    }

    pub(crate) fn depends_on(&self) -> Vec<&str> {
        self.0["outlook"]["depends_on"]
            .as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap())
            .collect()
    }

    pub(crate) fn holders(&self, function: &str) -> Vec<u64> {
        let holders = self.row(function)["holders"].as_array().unwrap().iter();
        holders.map(|holder| holder["process"].as_u64().unwrap()).collect()
    }

    /// Blocks for this reason, and the remedy says all these things.
    pub(crate) fn expect(&self, function: &str, reason: &str, sentences: &[&str]) {
        let row = self.row(function);
        assert_eq!((row["blocks"].as_bool(), row["reason"].as_str()), (Some(true), Some(reason)), "{row}");
        for sentence in sentences {
            assert!(self.remedy(function).contains(sentence), "no `{sentence}` in {row}");
        }
    }
}

pub(crate) fn this_process() -> u64 {
    std::process::id().into()
}

/// A function as somebody else has it: bound to an iommufd of his own.
pub(crate) fn bind_elsewhere(host: &Host, function: &str) -> (Arc<Iommufd>, Device) {
    let sysfs = host.sysfs();
    let context = Arc::new(Iommufd::from_fd(host.open_iommufd().unwrap().into(), &sysfs).unwrap());
    let file = host.open_cdev(address(function)).unwrap().into();
    let device = UnboundDevice::from_fd(file, &sysfs).unwrap().bind(&context, &sysfs).unwrap();
    (context, device)
}

pub(crate) fn set_driver(machine: &ModelledMachine, function: &str, driver: Option<&str>) {
    let function = address(function);
    machine.order(&Order::Unbind(FunctionOrder { function }));
    if let Some(driver) = driver {
        machine.order(&Order::Bind(DriverOrder { function, driver: driver.into() }));
    }
}
