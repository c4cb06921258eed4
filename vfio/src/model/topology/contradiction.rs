// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Machines that cannot be: what a file says in one line against what it says in another.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;

use super::error::{Problem, TopologyError, line_of};
use super::field::Group;
use super::file::{BridgeEntry, Document, FunctionEntry, is_true};
use super::{BridgeKind, Bus, Link};
use crate::pci_address::PciAddress;

/// A contradiction, and the field that is at odds with what comes before it.
type Contradiction = (Range<usize>, Problem);

/// Refuses a file that contradicts itself.
pub(super) fn refuse(document: &Document, text: &str) -> Result<(), TopologyError> {
    find(document, text).map_err(|(place, problem)| TopologyError::new(text, place, problem))
}

fn find(document: &Document, text: &str) -> Result<(), Contradiction> {
    let line = |place: Range<usize>| line_of(text, &place);
    document.addresses_differ(line)?;
    document.buses_differ(line)?;
    document.groups_are_in_one_segment(line)?;
    for bridge in &document.bridge {
        bridge.leads_on()?;
        bridge.has_what_its_kind_has()?;
        document.bridge_is_in_place(bridge)?;
        document.has_function_zero(&bridge.address)?;
        document.shares_conventional_bus(&bridge.address, bridge.group.as_ref(), line)?;
    }
    for function in &document.function {
        if let Some(physical) = &function.virtual_function_of {
            document.virtual_function_is_in_place(function, physical)?;
        } else {
            document.function_is_in_place(function)?;
            document.has_function_zero(&function.address)?;
        }
        document.shares_conventional_bus(&function.address, function.group.as_ref(), line)?;
        function.is_mapped_by_an_iommu()?;
    }
    Ok(())
}

impl Document {
    fn addresses(&self) -> impl Iterator<Item = &Spanned<PciAddress>> {
        let bridges = self.bridge.iter().map(|bridge| &bridge.address);
        bridges.chain(self.function.iter().map(|function| &function.address))
    }

    fn bridge_to(&self, bus: Bus) -> Option<&BridgeEntry> {
        self.bridge.iter().find(|bridge| bridge.leads_to() == bus)
    }

    /// The bridge that leads to an address's bus, or `None` on a root bus.
    fn parent(&self, address: &Spanned<PciAddress>) -> Result<Option<&BridgeEntry>, Contradiction> {
        let bus = Bus::of(*address.get_ref());
        let missing = Problem::BusMissing { segment: bus.segment, number: bus.number };
        match self.bridge_to(bus) {
            None if !bus.is_root() => Err((address.span(), missing)),
            bridge => Ok(bridge),
        }
    }

    fn addresses_differ(&self, line: impl Fn(Range<usize>) -> usize) -> Result<(), Contradiction> {
        let mut taken = BTreeMap::new();
        for address in self.addresses() {
            if let Some(other) = taken.insert(*address.get_ref(), address.span()) {
                return Err((address.span(), Problem::AddressTaken(line(other))));
            }
        }
        Ok(())
    }

    fn buses_differ(&self, line: impl Fn(Range<usize>) -> usize) -> Result<(), Contradiction> {
        let mut taken = BTreeMap::new();
        for bridge in &self.bridge {
            if let Some(other) = taken.insert(bridge.leads_to(), bridge.bus.span()) {
                return Err((bridge.bus.span(), Problem::BusTaken(line(other))));
            }
        }
        Ok(())
    }

    fn groups_are_in_one_segment(&self, line: impl Fn(Range<usize>) -> usize) -> Result<(), Contradiction> {
        let bridges = self.bridge.iter().map(|bridge| (&bridge.address, &bridge.group));
        let all = bridges.chain(self.function.iter().map(|function| (&function.address, &function.group)));
        let mut segments = BTreeMap::new();
        for (address, group) in all {
            let Some(group) = group else { continue };
            let here = (address.get_ref().segment(), group.span());
            let (segment, place) = segments.entry(*group.get_ref()).or_insert(here.clone());
            if *segment != here.0 {
                let (segment, line) = (*segment, line(place.clone()));
                return Err((here.1, Problem::GroupInTwoSegments { segment, line }));
            }
        }
        Ok(())
    }

    fn bridge_is_in_place(&self, bridge: &BridgeEntry) -> Result<(), Contradiction> {
        let parent = self.parent(&bridge.address)?;
        let above = parent.map(|parent| *parent.kind.get_ref());
        let (place, is_there) = match bridge.kind.get_ref() {
            BridgeKind::RootPort => ("on a root bus", above.is_none()),
            BridgeKind::UpstreamPort => (
                "behind a bridge of kind root-port or downstream-port",
                above.is_some_and(BridgeKind::is_express_port),
            ),
            BridgeKind::DownstreamPort => {
                ("behind a bridge of kind upstream-port", above == Some(BridgeKind::UpstreamPort))
            }
            BridgeKind::ExpressToPci => (
                "on a root bus or behind a bridge of kind root-port or downstream-port",
                above.is_none_or(BridgeKind::is_express_port),
            ),
            // Also behind a port: hardware has none there, QEMU does.
            BridgeKind::Pci => ("not behind an upstream-port", above != Some(BridgeKind::UpstreamPort)),
        };
        if !is_there {
            return Err((bridge.kind.span(), Problem::BridgeOutOfPlace(place)));
        }
        is_of_the_one_device(&bridge.address, parent)
    }

    fn function_is_in_place(&self, function: &FunctionEntry) -> Result<(), Contradiction> {
        let parent = self.parent(&function.address)?;
        if parent.is_some_and(|parent| *parent.kind.get_ref() == BridgeKind::UpstreamPort) {
            return Err((function.address.span(), Problem::InsideSwitch));
        }
        is_of_the_one_device(&function.address, parent)
    }

    fn virtual_function_is_in_place(
        &self,
        function: &FunctionEntry,
        physical: &Spanned<PciAddress>,
    ) -> Result<(), Contradiction> {
        let of = *physical.get_ref();
        match self.function.iter().find(|other| *other.address.get_ref() == of) {
            None => return Err((physical.span(), Problem::PhysicalFunctionMissing(of))),
            Some(other) if other.virtual_function_of.is_some() => {
                return Err((physical.span(), Problem::PhysicalFunctionVirtual(of)));
            }
            Some(_) => {}
        }
        let (bus, home) = (Bus::of(*function.address.get_ref()), Bus::of(of));
        let is_made_up = bus.segment == home.segment && bus > home && self.bridge_to(bus).is_none();
        if bus == home || is_made_up {
            Ok(())
        } else {
            Err((function.address.span(), Problem::VirtualFunctionElsewhere))
        }
    }

    /// The kernel looks for a device's other functions only where there is a function 0. With ARI all on the bus is one device.
    fn has_function_zero(&self, address: &Spanned<PciAddress>) -> Result<(), Contradiction> {
        let place = address.get_ref();
        let has_ari = self.bridge_to(Bus::of(*place)).is_some_and(|parent| is_true(parent.ari.as_ref()));
        let first = if has_ari { 0 } else { place.devfn() & !7 };
        let zero = PciAddress::from_devfn(place.segment(), place.bus(), first);
        if self.addresses().any(|other| *other.get_ref() == zero) {
            Ok(())
        } else {
            Err((address.span(), Problem::FunctionZeroMissing(zero)))
        }
    }

    fn shares_conventional_bus(
        &self,
        address: &Spanned<PciAddress>,
        group: Option<&Spanned<Group>>,
        line: impl Fn(Range<usize>) -> usize,
    ) -> Result<(), Contradiction> {
        let parent = self.bridge_to(Bus::of(*address.get_ref()));
        let Some(parent) = parent.filter(|parent| parent.kind.get_ref().is_conventional()) else {
            return Ok(());
        };
        if group.map(Spanned::get_ref) == parent.group.as_ref().map(Spanned::get_ref) {
            return Ok(());
        }
        let place = group.map_or_else(|| address.span(), Spanned::span);
        Err((place, Problem::GroupNotOfBridge(line(parent.address.span()))))
    }
}

impl BridgeEntry {
    fn leads_to(&self) -> Bus {
        Bus { segment: self.address.get_ref().segment(), number: self.bus.get_ref().0 }
    }

    fn leads_on(&self) -> Result<(), Contradiction> {
        let own = self.address.get_ref().bus();
        if self.bus.get_ref().0 > own { Ok(()) } else { Err((self.bus.span(), Problem::BusNotGreater(own))) }
    }

    fn has_what_its_kind_has(&self) -> Result<(), Contradiction> {
        let unconfirmed = self.link.as_ref().filter(|link| *link.get_ref() == Link::Unconfirmed);
        let of_ports = [
            ("slot-reset", self.slot_reset.as_ref().filter(|field| *field.get_ref()).map(Spanned::span)),
            ("ari", self.ari.as_ref().filter(|field| *field.get_ref()).map(Spanned::span)),
            ("link", unconfirmed.map(Spanned::span)),
        ];
        let is_port = self.kind.get_ref().is_express_port();
        for (name, place) in of_ports {
            if let Some(place) = place.filter(|_| !is_port) {
                return Err((place, Problem::NoExpressPort(name)));
            }
        }
        Ok(())
    }
}

impl FunctionEntry {
    fn is_mapped_by_an_iommu(&self) -> Result<(), Contradiction> {
        match &self.firmware_mapping {
            Some(demand) if *demand.get_ref() && self.group.is_none() => {
                Err((demand.span(), Problem::FirmwareMappingWithoutGroup))
            }
            _ => Ok(()),
        }
    }
}

/// Refuses a second device at the end of an Express link.
fn is_of_the_one_device(
    address: &Spanned<PciAddress>,
    parent: Option<&BridgeEntry>,
) -> Result<(), Contradiction> {
    let is_one = parent.is_none_or(|parent| {
        !parent.kind.get_ref().is_express_port()
            || is_true(parent.ari.as_ref())
            || address.get_ref().devfn() < 8
    });
    if is_one { Ok(()) } else { Err((address.span(), Problem::SecondDevice)) }
}
