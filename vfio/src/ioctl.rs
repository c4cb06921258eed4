// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The number of every VFIO and iommufd request the crate can issue: one table for the calls and for the sandbox.
//!
//! All are `_IO(';', n)`: no size or direction bits, and the kernel looks at the low 32 bits only. The numbers of a
//! device and of a legacy container overlap (0x3b71 is both `VFIO_DEVICE_PCI_HOT_RESET` and `VFIO_IOMMU_MAP_DMA`);
//! the second meaning needs a container or an iommufd with a compatibility IOAS, which nothing in [`ALL`] can make.

/// A request as `<linux/vfio.h>` or `<linux/iommufd.h>` names and numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ioctl {
    /// The name in the uapi header.
    pub name: &'static str,
    /// The whole request number, `0x3b00` included.
    pub number: u32,
}

const TYPE: u32 = (vfio_bindings::bindings::vfio::VFIO_TYPE as u32) << 8;
const VFIO_BASE: u32 = vfio_bindings::bindings::vfio::VFIO_BASE;

const fn vfio(name: &'static str, offset: u32) -> Ioctl {
    Ioctl { name, number: TYPE | (VFIO_BASE + offset) }
}

const fn iommu(name: &'static str, command: u32) -> Ioctl {
    Ioctl { name, number: TYPE | command }
}

macro_rules! table {
    ($($constant:ident = $value:expr;)*) => {
        $(
            #[doc = concat!("`", stringify!($value), "`")]
            pub const $constant: Ioctl = $value;
        )*
        /// Every request this crate can issue.
        pub const ALL: &[Ioctl] = &[$($constant),*];
    };
}

table! {
    DEVICE_GET_INFO = vfio("VFIO_DEVICE_GET_INFO", 7);
    DEVICE_GET_REGION_INFO = vfio("VFIO_DEVICE_GET_REGION_INFO", 8);
    DEVICE_GET_IRQ_INFO = vfio("VFIO_DEVICE_GET_IRQ_INFO", 9);
    DEVICE_SET_IRQS = vfio("VFIO_DEVICE_SET_IRQS", 10);
    DEVICE_RESET = vfio("VFIO_DEVICE_RESET", 11);
    DEVICE_GET_PCI_HOT_RESET_INFO = vfio("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", 12);
    DEVICE_PCI_HOT_RESET = vfio("VFIO_DEVICE_PCI_HOT_RESET", 13);
    DEVICE_IOEVENTFD = vfio("VFIO_DEVICE_IOEVENTFD", 16);
    DEVICE_BIND_IOMMUFD = vfio("VFIO_DEVICE_BIND_IOMMUFD", 18);
    DEVICE_ATTACH_IOMMUFD_PT = vfio("VFIO_DEVICE_ATTACH_IOMMUFD_PT", 19);
    DEVICE_DETACH_IOMMUFD_PT = vfio("VFIO_DEVICE_DETACH_IOMMUFD_PT", 20);
    IOMMU_DESTROY = iommu("IOMMU_DESTROY", 0x80);
    IOMMU_IOAS_ALLOC = iommu("IOMMU_IOAS_ALLOC", 0x81);
    IOMMU_IOAS_COPY = iommu("IOMMU_IOAS_COPY", 0x83);
    IOMMU_IOAS_IOVA_RANGES = iommu("IOMMU_IOAS_IOVA_RANGES", 0x84);
    IOMMU_IOAS_MAP = iommu("IOMMU_IOAS_MAP", 0x85);
    IOMMU_IOAS_UNMAP = iommu("IOMMU_IOAS_UNMAP", 0x86);
    IOMMU_OPTION = iommu("IOMMU_OPTION", 0x87);
    IOMMU_HWPT_ALLOC = iommu("IOMMU_HWPT_ALLOC", 0x89);
    IOMMU_IOAS_MAP_FILE = iommu("IOMMU_IOAS_MAP_FILE", 0x8f);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_uapi_headers() {
        assert_eq!(DEVICE_GET_INFO.number, 0x3b6b);
        assert_eq!(DEVICE_GET_PCI_HOT_RESET_INFO.number, 0x3b70);
        assert_eq!(DEVICE_PCI_HOT_RESET.number, 0x3b71);
        assert_eq!(DEVICE_BIND_IOMMUFD.number, 0x3b76);
        assert_eq!(IOMMU_IOAS_MAP_FILE.number, 0x3b8f);
    }

    #[test]
    fn a_number_stands_in_the_table_once() {
        let mut numbers: Vec<u32> = ALL.iter().map(|ioctl| ioctl.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ALL.len());
    }

    #[test]
    fn container_requests_and_the_compatibility_ioas_are_absent() {
        let forbidden = (0x3b64..=0x3b6a).chain([0x3b88]);
        for number in forbidden {
            assert!(ALL.iter().all(|ioctl| ioctl.number != number), "{number:#x} must stay out");
        }
    }
}
