// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What things are called within a sequence. The kernel's own numbers are in no transcript.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A process that uses devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ActorName {
    A,
    B,
    C,
}

impl ActorName {
    pub(crate) const ALL: [Self; 3] = [Self::A, Self::B, Self::C];
}

impl fmt::Display for ActorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

macro_rules! names {
    ($($(#[$documentation:meta])* $name:ident = $prefix:literal;)+) => {$(
        $(#[$documentation])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub(crate) struct $name(pub(crate) u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    )+};
}

names! {
    /// An open file of `/dev/iommu`, which is to say a context.
    IommufdName = "iommufd";
    /// An open file of a VFIO cdev.
    CdevName = "cdev";
    /// An open file of a legacy group.
    GroupName = "group";
    /// An IOAS.
    IoasName = "ioas";
    /// A page table.
    HwptName = "hwpt";
}

/// An open file, of which several processes may have copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum FileName {
    Iommufd(IommufdName),
    Cdev(CdevName),
    Group(GroupName),
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iommufd(name) => name.fmt(f),
            Self::Cdev(name) => name.fmt(f),
            Self::Group(name) => name.fmt(f),
        }
    }
}

/// What a device can be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum TableName {
    Ioas(IoasName),
    Hwpt(HwptName),
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ioas(name) => name.fmt(f),
            Self::Hwpt(name) => name.fmt(f),
        }
    }
}
