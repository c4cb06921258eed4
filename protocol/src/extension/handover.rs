// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `SET_IOMMUFD`, `ADD_DEVICE`, `SERVE` and `REMOVE_DEVICE`: how a server comes to hold what it serves, and how it loses it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

/// The name of a device, chosen by the client that hands it over. Unique among the devices of a server.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Cookie(pub u64);

/// Payload of the `SET_IOMMUFD` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetIommufdRequest {
    /// Bit 0, [`SetIommufdRequest::ADOPT_IOAS`]; bit 1, [`SetIommufdRequest::FILL_IOAS`]. Not both; the others are 0.
    pub flags: u32,
    /// Id of an existing address space, 0 without a flag.
    pub ioas: u32,
}

impl SetIommufdRequest {
    /// Attach devices to the existing address space `ioas`.
    pub const ADOPT_IOAS: u32 = 1;
    /// The same, and map the memory table in it.
    pub const FILL_IOAS: u32 = 2;
}

/// Which address space (IOAS) of the iommufd devices are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoasChoice {
    /// A new one, which the server fills from the memory table and destroys in the end.
    Allocate,
    /// An existing one, by its id, that another process fills. The server maps and destroys nothing.
    Adopt(u32),
    /// An existing one, by its id, that the server fills from the memory table. It maps, and destroys nothing.
    Fill(u32),
}

impl From<IoasChoice> for SetIommufdRequest {
    fn from(choice: IoasChoice) -> Self {
        match choice {
            IoasChoice::Allocate => Self { flags: 0, ioas: 0 },
            IoasChoice::Adopt(ioas) => Self { flags: Self::ADOPT_IOAS, ioas },
            IoasChoice::Fill(ioas) => Self { flags: Self::FILL_IOAS, ioas },
        }
    }
}

/// What the running kernel's iommufd can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct KernelFeatures(pub u64);

impl KernelFeatures {
    /// Bit 0: `IOMMU_IOAS_MAP_FILE`. The server never maps guest memory into itself.
    pub const MAP_FILE: Self = Self(1);

    /// Whether all of `features` are in this set.
    pub fn contains(self, features: Self) -> bool {
        self.0 & features.0 == features.0
    }
}

/// Payload of the reply to `SET_IOMMUFD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetIommufdReply {
    /// What the kernel can do.
    pub kernel_features: KernelFeatures,
}

/// Payload of the `ADD_DEVICE` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddDeviceRequest {
    /// How the client calls the device from now on.
    pub cookie: Cookie,
    /// 0.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

/// Payload of the `REMOVE_DEVICE` and `GET_DEVICE_INFO` requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CookieRequest {
    /// Which device.
    pub cookie: Cookie,
}

/// The protocol that is spoken on a device's data socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum Face {
    /// vfio-user: the whole PCI function.
    VfioUser = 1,
    /// vhost-user: the rings of a virtio function.
    VhostUser = 2,
}
super::numbered!(Face);

/// Payload of the `SERVE` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServeRequest {
    /// Which device.
    pub cookie: Cookie,
    /// A [`Face`].
    pub face: u32,
    /// 0.
    pub flags: u32,
}
