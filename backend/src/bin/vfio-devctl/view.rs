// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tool prints: the same facts as text for people and as JSON for programs.

use std::io::Write;

use protocol::extension::{DeviceFlags, DeviceInfo, ResetMethod, ResetOutcome, ResetReport};
use serde::Serialize;
use vfio::topology::Driver;

use crate::table::Table;
use crate::tool_error::ToolError;

/// Something that can be printed in both forms.
pub(crate) trait View: Serialize {
    /// The lines for a person.
    fn text(&self) -> String;

    fn print(&self, json: bool) -> Result<(), ToolError> {
        let text = if json {
            serde_json::to_string(self).map_err(|error| ToolError::output(&error.into()))?
        } else {
            self.text()
        };
        writeln!(std::io::stdout(), "{}", text.trim_end()).map_err(|error| ToolError::output(&error))
    }
}

/// A device.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceView {
    cookie: u64,
    address: String,
    vendor: String,
    device: String,
    class: String,
    iommu_group: Option<u32>,
    vfio_device: String,
    driver: String,
    function_reset: bool,
    served: bool,
    regions: u32,
    irqs: u32,
}

impl DeviceView {
    pub(crate) fn list(devices: &[DeviceInfo]) -> Vec<Self> {
        devices.iter().map(Self::from).collect()
    }
}

impl From<&DeviceInfo> for DeviceView {
    fn from(info: &DeviceInfo) -> Self {
        Self {
            cookie: info.cookie.0,
            address: info.address.to_string(),
            vendor: format!("{:04x}", info.vendor),
            device: format!("{:04x}", info.device),
            class: format!("{:06x}", info.class),
            iommu_group: info.iommu_group.number(),
            vfio_device: info.vfio_device.as_str().into(),
            driver: info.driver.as_str().into(),
            function_reset: info.flags.contains(DeviceFlags::FUNCTION_RESET),
            served: info.flags.contains(DeviceFlags::SERVED),
            regions: info.regions,
            irqs: info.irqs,
        }
    }
}

impl View for Vec<DeviceView> {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            "cookie",
            "address",
            "id",
            "class",
            "group",
            "cdev",
            "driver",
            "own reset",
            "served",
        ]);
        for device in self {
            table.row(&[
                device.cookie.to_string(),
                device.address.clone(),
                format!("{}:{}", device.vendor, device.device),
                device.class.clone(),
                number_or_dash(device.iommu_group),
                device.vfio_device.clone(),
                device.driver.clone(),
                yes_or_no(device.function_reset),
                yes_or_no(device.served),
            ]);
        }
        table.text()
    }
}

/// A reset that was done.
#[derive(Debug, Serialize)]
pub(crate) struct ResetView {
    device: String,
    method: &'static str,
    outcome: &'static str,
    epoch: u64,
    duration_us: u64,
    attempts: u32,
    affected: Vec<u64>,
}

impl ResetView {
    pub(crate) fn new(device: &DeviceInfo, report: &ResetReport) -> Self {
        Self {
            device: device.address.to_string(),
            method: match report.method {
                ResetMethod::Function => "function",
                ResetMethod::Hot => "hot",
            },
            outcome: match report.outcome {
                ResetOutcome::Done => "done",
                ResetOutcome::LinkUnconfirmed => "done-link-unconfirmed",
            },
            epoch: report.epoch.0,
            duration_us: u64::try_from(report.duration.as_micros()).unwrap_or(u64::MAX),
            attempts: report.attempts,
            affected: report.affected.iter().map(|cookie| cookie.0).collect(),
        }
    }
}

impl View for ResetView {
    fn text(&self) -> String {
        let affected: Vec<_> = self.affected.iter().map(u64::to_string).collect();
        format!(
            "{}: {} reset {} in {} us, {} attempt(s), epoch {}; devices reset: {}",
            self.device,
            self.method,
            self.outcome.replace('-', ", "),
            self.duration_us,
            self.attempts,
            self.epoch,
            affected.join(", ")
        )
    }
}

/// Name of the cdev and of the driver, empty where there is none.
pub(crate) fn driver_names(driver: &Driver) -> (&str, &str) {
    match driver {
        Driver::None => ("", ""),
        Driver::Kernel(name) => ("", name),
        Driver::Vfio { name, device } => (device, name),
    }
}

pub(crate) fn yes_or_no(value: bool) -> String {
    if value { "yes".into() } else { "no".into() }
}

pub(crate) fn number_or_dash(number: Option<u32>) -> String {
    number.map_or("-".into(), |number| number.to_string())
}
