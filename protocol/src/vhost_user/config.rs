// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Payloads about the configuration space (QEMU's vhost-user.rst, "Virtio device config space").

use vhost::vhost_user::message::VHOST_USER_CONFIG_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the part of the configuration space ends that can be reached, in bytes.
///
/// QEMU reads the first 256 at most. rust-vmm's `vhost` crate lets a guest read up to here and would wait for ever where
/// that is refused: it has no way to be told.
pub const MAX_CONFIG: u32 = VHOST_USER_CONFIG_SIZE;

/// What `GET_CONFIG`, its reply and `SET_CONFIG` begin with; `size` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigAccess {
    /// Where in the configuration space, in bytes.
    pub offset: u32,
    /// How many bytes; not 0.
    pub size: u32,
    /// 0 or 1, with the same meaning.
    ///
    /// The specification says 0 when the guest writes and 1 for a migration. crosvm and what is built with rust-vmm's
    /// `vhost` crate, as Cloud Hypervisor, say 1 when the guest reads or writes. There is no migration here.
    pub flags: u32,
}

impl ConfigAccess {
    /// The highest value of the flags.
    pub(crate) const MAX_FLAGS: u32 = 1;

    /// Whether the bytes lie within the first [`MAX_CONFIG`] and there are any.
    pub(crate) fn is_within(&self) -> bool {
        self.size != 0 && self.offset.checked_add(self.size).is_some_and(|end| end <= MAX_CONFIG)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use vhost::vhost_user::message::VhostUserConfig;

    use super::*;

    #[test]
    fn the_payload_has_the_layout_of_the_vhost_crate() {
        assert_eq!(size_of::<ConfigAccess>(), size_of::<VhostUserConfig>());
        for (ours, theirs) in [
            (offset_of!(ConfigAccess, offset), offset_of!(VhostUserConfig, offset)),
            (offset_of!(ConfigAccess, size), offset_of!(VhostUserConfig, size)),
            (offset_of!(ConfigAccess, flags), offset_of!(VhostUserConfig, flags)),
        ] {
            assert_eq!(ours, theirs);
        }
    }
}
