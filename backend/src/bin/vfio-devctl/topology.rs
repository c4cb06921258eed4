// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `topology`: the machine's PCI functions, what is reset together and what the IOMMU holds together.

use std::path::PathBuf;

use serde::Serialize;
use vfio::{OwnReset, PciAddress, Place};
use vhost_device_vfio::host::Host;

use crate::drawing::{Drawing, Mark};
use crate::plan::read_hierarchy;
use crate::plan_view::ScopeView;
use crate::tool_error::ToolError;
use crate::view::{View, driver_names};

/// Draw the machine's bridges and functions, with what is reset together and what is in one IOMMU group.
#[derive(Debug, clap::Args)]
pub(crate) struct TopologyArguments {
    /// Draw only what is reset or owned together with these functions, given by their PCI addresses.
    #[arg(value_name = "ADDRESS")]
    functions: Vec<PciAddress>,
    /// Draw the same into an SVG file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// What is drawn, function by function.
#[derive(Debug, Serialize)]
struct TopologyView {
    functions: Vec<FunctionView>,
    #[serde(skip)]
    drawing: String,
}

#[derive(Debug, Serialize)]
struct FunctionView {
    address: String,
    vendor: String,
    device: String,
    class: String,
    bridge: Option<String>,
    secondary_bus: Option<u8>,
    slot: Option<String>,
    physical_function: Option<String>,
    iommu_group: Option<u32>,
    vfio_device: String,
    driver: String,
    function_resets: Vec<&'static str>,
    scope: ScopeView,
}

impl TopologyArguments {
    pub(crate) fn run(&self, host: &Host, json: bool) -> Result<(), ToolError> {
        let hierarchy = read_hierarchy(host)?;
        if let Some(missing) = self.functions.iter().find(|function| hierarchy.place(**function).is_none()) {
            return Err(ToolError::no_such_function(*missing));
        }
        let drawing = Drawing::new(&hierarchy, &self.functions, |_| Mark::default());
        if let Some(path) = &self.svg {
            drawing.write_svg(path)?;
        }
        let places = drawing.addresses().filter_map(|address| hierarchy.place(address));
        let functions = places.map(|place| {
            FunctionView::new(place, ScopeView::from(&hierarchy.reset_scope(place.function.address)))
        });
        TopologyView { functions: functions.collect(), drawing: drawing.text() }.print(json)
    }
}

impl FunctionView {
    fn new(place: &Place, scope: ScopeView) -> Self {
        let function = &place.function;
        let (vfio_device, driver) = driver_names(&function.driver);
        Self {
            address: function.address.to_string(),
            vendor: format!("{:04x}", function.vendor),
            device: format!("{:04x}", function.device),
            class: format!("{:06x}", function.class),
            bridge: place.bridge.map(|bridge| bridge.to_string()),
            secondary_bus: place.secondary_bus,
            slot: place.slot.clone(),
            physical_function: place.physical_function.map(|physical| physical.to_string()),
            iommu_group: function.iommu_group,
            vfio_device: vfio_device.into(),
            driver: driver.into(),
            function_resets: place.own_resets.iter().map(|method| OwnReset::name(*method)).collect(),
            scope,
        }
    }
}

impl View for TopologyView {
    fn text(&self) -> String {
        self.drawing.clone()
    }
}
