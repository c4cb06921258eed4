// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts of a VFIO PCI device: `VFIO_DEVICE_GET_IRQ_INFO` and `VFIO_DEVICE_SET_IRQS`.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_NORESIZE,
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, vfio_irq_info,
};

/// Vectors a `SET_IRQS` may name: the size of an MSI-X table (PCIe 6.0, 7.7.2).
pub const MAX_VECTORS: u32 = 2048;

/// An interrupt index of a VFIO PCI device (`VFIO_PCI_*_IRQ_INDEX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IrqIndex {
    /// The legacy interrupt line.
    Intx,
    /// Message signalled interrupts.
    Msi,
    /// MSI-X.
    Msix,
    /// Uncorrectable error (AER).
    Err,
    /// The host wants the device back.
    Req,
}

impl IrqIndex {
    /// All of them, in the kernel's order.
    pub const ALL: [Self; 5] = [Self::Intx, Self::Msi, Self::Msix, Self::Err, Self::Req];

    /// The kernel's number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Intx => 0,
            Self::Msi => 1,
            Self::Msix => 2,
            Self::Err => 3,
            Self::Req => 4,
        }
    }

    /// The index with the kernel's number `number`.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|index| index.number() == number)
    }

    /// Whether this index carries the device's own interrupts, of which one kind is enabled at a time.
    pub const fn is_device_interrupt(self) -> bool {
        matches!(self, Self::Intx | Self::Msi | Self::Msix)
    }
}

/// What the kernel says about an interrupt index (`struct vfio_irq_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Number of vectors; 0 where the device has none of this kind.
    pub count: u32,
    /// `VFIO_IRQ_INFO_*`, only the bits this crate knows.
    pub flags: u32,
}

impl IrqInfo {
    pub(crate) fn from_kernel(info: &vfio_irq_info) -> Self {
        let known = VFIO_IRQ_INFO_EVENTFD
            | VFIO_IRQ_INFO_MASKABLE
            | VFIO_IRQ_INFO_AUTOMASKED
            | VFIO_IRQ_INFO_NORESIZE;
        Self { count: info.count, flags: info.flags & known }
    }

    /// Whether there are only the vectors with which the index was enabled, until it is disabled
    /// (`VFIO_IRQ_INFO_NORESIZE`).
    pub const fn is_fixed(&self) -> bool {
        self.flags & VFIO_IRQ_INFO_NORESIZE != 0
    }
}

/// What shall happen to a range of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Hold the interrupt back.
    Mask,
    /// Let it through.
    Unmask,
    /// Arm, disarm or fire it.
    Trigger,
}

impl IrqAction {
    const fn flag(self) -> u32 {
        match self {
            Self::Mask => VFIO_IRQ_SET_ACTION_MASK,
            Self::Unmask => VFIO_IRQ_SET_ACTION_UNMASK,
            Self::Trigger => VFIO_IRQ_SET_ACTION_TRIGGER,
        }
    }
}

/// What comes with a `SET_IRQS`.
#[derive(Clone, Debug)]
pub enum IrqData<'a> {
    /// Nothing, for this many vectors; 0 with [`IrqAction::Trigger`] disables the whole index.
    None(u32),
    /// A boolean for each vector.
    Bool(&'a [u8]),
    /// An eventfd for each vector; `None` takes a vector's eventfd away.
    Eventfd(&'a [Option<BorrowedFd<'a>>]),
}

/// One `VFIO_DEVICE_SET_IRQS`.
#[derive(Clone, Debug)]
pub struct IrqSet<'a> {
    /// Which interrupts.
    pub index: IrqIndex,
    /// First vector.
    pub start: u32,
    /// What to do.
    pub action: IrqAction,
    /// With what, and for how many vectors.
    pub data: IrqData<'a>,
}

impl IrqSet<'_> {
    /// The set that disables a whole index.
    pub const fn disable(index: IrqIndex) -> Self {
        Self { index, start: 0, action: IrqAction::Trigger, data: IrqData::None(0) }
    }

    /// `struct vfio_irq_set` with its data; the first word, `argsz`, is left to the caller.
    ///
    /// # Errors
    ///
    /// `EINVAL` where the range ends beyond [`MAX_VECTORS`].
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Errno> {
        let (data_flag, count, data) = match &self.data {
            IrqData::None(count) => (VFIO_IRQ_SET_DATA_NONE, *count, Vec::new()),
            IrqData::Bool(bools) => (VFIO_IRQ_SET_DATA_BOOL, vectors(bools.len())?, bools.to_vec()),
            IrqData::Eventfd(eventfds) => {
                let numbers = eventfds.iter().flat_map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd()).to_ne_bytes());
                (VFIO_IRQ_SET_DATA_EVENTFD, vectors(eventfds.len())?, numbers.collect())
            }
        };
        self.start.checked_add(count).filter(|end| *end <= MAX_VECTORS).ok_or(Errno::INVAL)?;
        let words = [0, data_flag | self.action.flag(), self.index.number(), self.start, count];
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend(data);
        Ok(bytes)
    }
}

fn vectors(count: usize) -> Result<u32, Errno> {
    u32::try_from(count).map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn words(bytes: &[u8]) -> Vec<i32> {
        bytes.chunks_exact(4).map(|word| i32::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn disabling_an_index_is_a_trigger_without_data_for_no_vector() {
        assert_eq!(words(&IrqSet::disable(IrqIndex::Msi).encode().unwrap()), [0, 0x21, 1, 0, 0]);
    }

    #[test]
    fn a_vector_without_an_eventfd_is_minus_one() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let eventfds = [None, Some(file.as_fd())];
        let set = IrqSet {
            index: IrqIndex::Msix,
            start: 3,
            action: IrqAction::Trigger,
            data: IrqData::Eventfd(&eventfds),
        };
        assert_eq!(words(&set.encode().unwrap()), [0, 0x24, 2, 3, 2, -1, file.as_raw_fd()]);
    }

    #[test]
    fn a_range_beyond_the_largest_table_is_refused_before_the_kernel_sees_it() {
        let edges = [0, 1, MAX_VECTORS - 1, MAX_VECTORS, MAX_VECTORS + 1, 1 << 31, u32::MAX - 1, u32::MAX];
        for (start, count) in edges.iter().flat_map(|start| edges.iter().map(move |count| (*start, *count))) {
            let set =
                IrqSet { index: IrqIndex::Msix, start, action: IrqAction::Mask, data: IrqData::None(count) };
            let is_within = u64::from(start) + u64::from(count) <= MAX_VECTORS.into();
            assert_eq!(set.encode().is_ok(), is_within, "{count} from {start}");
        }
    }
}
