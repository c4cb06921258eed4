// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the structures of a virtio function are (Virtio 1.3, 4.1.4): vendor capabilities of its config space, each of which
//! names a BAR and a range in it.

use vfio::{CallError, ConfigSpace, Device, RegionIndex};

use crate::failure::Failure;

/// Vendor-specific (PCI Local Bus 3.0, appendix H), as which virtio's capabilities are listed.
const VENDOR_SPECIFIC: u8 = 0x09;
/// The config space that every function has, in which capabilities are.
const CONFIG_SPACE: u16 = 256;
const LAST_BAR: u8 = 5;
/// `struct virtio_pci_cap`, and with the multiplier behind it `struct virtio_pci_notify_cap`.
const LENGTH: usize = 16;
const LENGTH_WITH_MULTIPLIER: usize = 20;

/// PCI's name for the vendor of all virtio functions (Virtio 1.3, 4.1.2).
const VENDOR: u16 = 0x1af4;
const DEVICES: std::ops::RangeInclusive<u16> = 0x1000..=0x107f;

/// A structure of a virtio function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StructureKind {
    /// What all virtio devices have.
    Common,
    /// Doorbells.
    Notify,
    /// Why the interrupt line is asserted.
    Isr,
    /// What this kind of virtio device has.
    Device,
}

impl StructureKind {
    /// By its `cfg_type`. Access through the config space (5) and shared memory (8) are of no use here.
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Common),
            2 => Some(Self::Notify),
            3 => Some(Self::Isr),
            4 => Some(Self::Device),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Common => "common configuration",
            Self::Notify => "notification structure",
            Self::Isr => "ISR status",
            Self::Device => "device configuration",
        }
    }

    /// Least length and alignment, in bytes. The common configuration is that of Virtio 1.0, up to `queue_device`.
    const fn least(self) -> (u32, u32) {
        match self {
            Self::Common => (0x38, 4),
            Self::Notify => (2, 2),
            Self::Isr => (1, 1),
            Self::Device => (1, 4),
        }
    }
}

/// A range of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Which BAR, 0 to 5.
    pub region: RegionIndex,
    /// Where it begins there.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
}

impl Structure {
    /// Where `count` bytes at `offset` are in the BAR, if they are all in the structure.
    pub fn place(&self, offset: u64, count: u64) -> Option<u64> {
        let end = offset.checked_add(count)?;
        (end <= self.length.into()).then(|| self.offset.checked_add(offset)).flatten()
    }
}

/// All structures of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structures {
    /// What all virtio devices have.
    pub common: Structure,
    /// Doorbells.
    pub notify: Structure,
    /// How far apart the doorbells are, in bytes: a factor of `queue_notify_off`.
    pub notify_multiplier: u32,
    /// Why the interrupt line is asserted.
    pub isr: Structure,
    /// What this kind of virtio device has, if it has any.
    pub device: Option<Structure>,
}

/// Why a function cannot be driven by its structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingStructure {
    /// Which one there is not.
    pub kind: StructureKind,
    /// Whether there was one, but not within its BAR.
    pub is_malformed: bool,
}

impl MissingStructure {
    /// In words.
    pub fn reason(self) -> String {
        let Self { kind, is_malformed } = self;
        let name = kind.name();
        if is_malformed {
            format!("its {name} is not where its capability says, or too short")
        } else {
            format!("it has no {name}: it is a legacy device")
        }
    }
}

impl Structures {
    /// Finds the structures of a virtio function.
    ///
    /// # Errors
    ///
    /// It is no virtio function, or one for legacy drivers only.
    pub fn of(device: &Device) -> Result<Self, Failure> {
        let config_space = ConfigSpace::new(device);
        let (vendor, id) = config_space.identity().map_err(Failure::device_call)?;
        if vendor != VENDOR || !DEVICES.contains(&id) {
            return Err(Failure::not_virtio(device.address(), vendor, id));
        }
        let offsets = config_space.capabilities(VENDOR_SPECIFIC).map_err(Failure::device_call)?;
        let read = |offset| read_capability(device, offset);
        let capabilities: Result<Vec<_>, _> = offsets.into_iter().map(read).collect();
        let size = |bar: u8| device.region(RegionIndex(bar.into())).map_or(0, |region| region.size);
        Self::find(&capabilities.map_err(Failure::device_call)?, size)
            .map_err(|missing| Failure::not_modern_virtio(device.address(), missing.reason()))
    }

    /// The first structure of each kind that is within a BAR; `size` is that of a BAR, 0 where there is none.
    ///
    /// # Errors
    ///
    /// A structure is missing that every modern device has.
    pub fn find(capabilities: &[Vec<u8>], size: impl Fn(u8) -> u64) -> Result<Self, MissingStructure> {
        let find = |kind| {
            let of_kind = capabilities.iter().filter(|capability| kind_of(capability) == Some(kind));
            let mut is_malformed = false;
            for capability in of_kind {
                if let Some(found) = structure(kind, capability, &size) {
                    return Ok((found, capability));
                }
                is_malformed = true;
            }
            Err(MissingStructure { kind, is_malformed })
        };
        let (notify, capability) = find(StructureKind::Notify)?;
        Ok(Self {
            common: find(StructureKind::Common)?.0,
            notify,
            notify_multiplier: word(capability, LENGTH).unwrap_or_default(),
            isr: find(StructureKind::Isr)?.0,
            device: find(StructureKind::Device).ok().map(|(found, _)| found),
        })
    }
}

/// Reads no more than a capability has: behind the next one's beginning there may be registers that do something.
fn read_capability(device: &Device, offset: u16) -> Result<Vec<u8>, CallError> {
    let mut head = [0; 4];
    device.read_region(RegionIndex::CONFIG, offset.into(), &mut head)?;
    let [_, _, length, kind] = head;
    let longest = if StructureKind::from_number(kind) == Some(StructureKind::Notify) {
        LENGTH_WITH_MULTIPLIER
    } else {
        LENGTH
    };
    let length = usize::from(length.min(u8::try_from(CONFIG_SPACE - offset).unwrap_or(u8::MAX)));
    let mut bytes = vec![0; length.min(longest)];
    device.read_region(RegionIndex::CONFIG, offset.into(), &mut bytes)?;
    Ok(bytes)
}

fn kind_of(capability: &[u8]) -> Option<StructureKind> {
    capability.get(3).copied().and_then(StructureKind::from_number)
}

/// Where a capability says its structure is, if that is possible.
fn structure(kind: StructureKind, capability: &[u8], size: impl Fn(u8) -> u64) -> Option<Structure> {
    let needed = if kind == StructureKind::Notify { LENGTH_WITH_MULTIPLIER } else { LENGTH };
    let bar = capability.get(..needed)?.get(4).copied().filter(|bar| *bar <= LAST_BAR)?;
    let (offset, length) = (word(capability, 8)?, word(capability, 12)?);
    let (least, alignment) = kind.least();
    let end = u64::from(offset) + u64::from(length);
    let is_possible = length >= least && offset.is_multiple_of(alignment) && end <= size(bar);
    is_possible.then_some(Structure { region: RegionIndex(bar.into()), offset: offset.into(), length })
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capability(kind: u8, bar: u8, offset: u32, length: u32) -> Vec<u8> {
        let mut bytes = vec![9, 0, 20, kind, bar, 0, 0, 0];
        bytes.extend([offset, length, 4].into_iter().flat_map(u32::to_le_bytes));
        bytes
    }

    /// As QEMU lays its functions out.
    fn usual() -> Vec<Vec<u8>> {
        let at = |kind: u8| capability(kind, 4, 0x1000 * u32::from(kind), 0x1000);
        vec![at(5), at(2), at(4), at(3), at(1)]
    }

    fn find(capabilities: &[Vec<u8>]) -> Result<Structures, MissingStructure> {
        Structures::find(capabilities, |bar| if bar == 4 { 0x5000 } else { 0 })
    }

    #[test]
    fn structures_are_found_in_any_order() {
        let found = find(&usual()).unwrap();
        assert_eq!(found.common, Structure { region: RegionIndex(4), offset: 0x1000, length: 0x1000 });
        assert_eq!((found.notify.offset, found.notify_multiplier), (0x2000, 4));
        assert_eq!((found.isr.offset, found.device.unwrap().offset), (0x3000, 0x4000));
    }

    #[test]
    fn the_first_of_a_kind_that_is_possible_counts() {
        let mut capabilities = usual();
        capabilities.insert(0, capability(1, 4, 0x100, 0x38));
        capabilities.insert(0, capability(1, 6, 0, 0x38));
        capabilities.insert(0, capability(1, 2, 0, 0x38));
        assert_eq!(find(&capabilities).unwrap().common.offset, 0x100);
    }

    #[test]
    fn a_structure_is_whole_and_aligned_and_within_its_bar() {
        for (offset, length) in
            [(0x1000, 0x37), (0x1002, 0x38), (0x4fd0, 0x38), (u32::MAX - 3, 0x38), (0, u32::MAX)]
        {
            let mut capabilities = usual();
            capabilities.pop();
            capabilities.push(capability(1, 4, offset, length));
            let missing = MissingStructure { kind: StructureKind::Common, is_malformed: true };
            assert_eq!(find(&capabilities), Err(missing), "{length:#x} at {offset:#x}");
        }
    }

    #[test]
    fn a_capability_that_is_cut_off_counts_for_nothing() {
        for length in 0..20 {
            let mut capabilities = usual();
            capabilities[1].truncate(length);
            assert_eq!(find(&capabilities).unwrap_err().kind, StructureKind::Notify);
        }
    }

    #[test]
    fn a_device_without_a_configuration_of_its_own_needs_none() {
        let capabilities: Vec<_> = usual().into_iter().filter(|capability| capability[3] != 4).collect();
        assert_eq!(find(&capabilities).unwrap().device, None);
    }

    #[test]
    fn without_capabilities_a_device_is_a_legacy_one() {
        let missing = find(&[]).unwrap_err();
        assert!(missing.reason().ends_with("it is a legacy device"));
    }

    #[test]
    fn no_access_leaves_its_structure() {
        let structure = Structure { region: RegionIndex(0), offset: 0x1000, length: 8 };
        assert_eq!(structure.place(4, 4), Some(0x1004));
        assert_eq!(structure.place(5, 4), None);
        assert_eq!(structure.place(u64::MAX, 2), None);
    }

    proptest! {
        #[test]
        fn whatever_capabilities_say_structures_are_within_their_bars(
            capabilities in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..24), 0..12),
            sizes in proptest::array::uniform6(0_u64..1 << 33),
        ) {
            let size = |bar: u8| sizes.get(usize::from(bar)).copied().unwrap_or_default();
            if let Ok(found) = Structures::find(&capabilities, size) {
                for structure in [Some(found.common), Some(found.notify), Some(found.isr), found.device].into_iter().flatten() {
                    let size = sizes[usize::try_from(structure.region.0).unwrap()];
                    prop_assert!(structure.offset + u64::from(structure.length) <= size);
                }
            }
        }
    }
}
