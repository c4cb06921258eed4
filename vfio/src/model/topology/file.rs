// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The TOML file that describes a machine.

use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use super::error::{LoadError, Problem, TopologyError};
use super::field::{BusNumber, Group};
use super::{
    Bridge, BridgeKind, Driver, Endpoint, FunctionReset, KernelVersion, Link, Part, Topology, contradiction,
};
use crate::pci_address::PciAddress;

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Document {
    #[serde(default)]
    kernel: KernelVersion,
    interrupt_remapping: Option<bool>,
    dynamic_msix: Option<bool>,
    #[serde(default)]
    pub(super) bridge: Vec<BridgeEntry>,
    #[serde(default)]
    pub(super) function: Vec<FunctionEntry>,
    /// For people.
    #[serde(rename = "description")]
    _description: Option<String>,
}

/// A `[[bridge]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct BridgeEntry {
    pub(super) address: Spanned<PciAddress>,
    pub(super) kind: Spanned<BridgeKind>,
    pub(super) bus: Spanned<BusNumber>,
    pub(super) group: Option<Spanned<Group>>,
    pub(super) slot_reset: Option<Spanned<bool>>,
    pub(super) no_bus_reset: Option<bool>,
    pub(super) link: Option<Spanned<Link>>,
    /// Whether the device that it leads to has functions beyond 7, which are at addresses of other devices then.
    pub(super) ari: Option<Spanned<bool>>,
}

/// A `[[function]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct FunctionEntry {
    pub(super) address: Spanned<PciAddress>,
    part: Part,
    pub(super) group: Option<Spanned<Group>>,
    driver: Option<Driver>,
    reset: Option<FunctionReset>,
    pub(super) virtual_function_of: Option<Spanned<PciAddress>>,
    pub(super) firmware_mapping: Option<Spanned<bool>>,
}

impl Topology {
    /// Reads a machine from a file's text.
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        let document: Document = toml::from_str(text).map_err(|error| {
            let problem = Problem::Syntax(error.message().to_owned());
            TopologyError::new(text, error.span().unwrap_or_default(), problem)
        })?;
        contradiction::refuse(&document, text)?;
        Ok(document.into())
    }

    /// Reads a machine from a file.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|source| LoadError::Invalid { path: path.to_owned(), source })
    }
}

impl FromStr for Endpoint {
    type Err = toml::de::Error;

    /// Reads one function from the lines below its `[[function]]`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        toml::from_str::<FunctionEntry>(text).map(Self::from)
    }
}

impl From<Document> for Topology {
    fn from(document: Document) -> Self {
        let mut bridges: Vec<_> = document.bridge.into_iter().map(Bridge::from).collect();
        let mut functions: Vec<_> = document.function.into_iter().map(Endpoint::from).collect();
        bridges.sort_by_key(|bridge| bridge.address);
        functions.sort_by_key(|function| (function.is_virtual(), function.address));
        let interrupt_remapping = document.interrupt_remapping.unwrap_or(true);
        let dynamic_msix = document.dynamic_msix.unwrap_or(true);
        Self { kernel: document.kernel, interrupt_remapping, dynamic_msix, bridges, functions }
    }
}

impl From<BridgeEntry> for Bridge {
    fn from(entry: BridgeEntry) -> Self {
        Self {
            address: entry.address.into_inner(),
            kind: entry.kind.into_inner(),
            bus: entry.bus.into_inner().0,
            slot_reset: is_true(entry.slot_reset.as_ref()),
            no_bus_reset: entry.no_bus_reset.unwrap_or_default(),
            link: entry.link.map(Spanned::into_inner).unwrap_or_default(),
            iommu_group: entry.group.map(|group| group.into_inner().0),
        }
    }
}

impl From<FunctionEntry> for Endpoint {
    fn from(entry: FunctionEntry) -> Self {
        Self {
            address: entry.address.into_inner(),
            part: entry.part,
            reset: entry.reset.unwrap_or(entry.part.own_reset()),
            iommu_group: entry.group.map(|group| group.into_inner().0),
            driver: entry.driver.unwrap_or(Driver::Missing),
            physical_function: entry.virtual_function_of.map(Spanned::into_inner),
            firmware_mapping: is_true(entry.firmware_mapping.as_ref()),
        }
    }
}

/// Whether a field is there and true.
pub(super) fn is_true(field: Option<&Spanned<bool>>) -> bool {
    field.is_some_and(|field| *field.get_ref())
}

#[cfg(test)]
mod tests;
