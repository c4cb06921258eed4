// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a process may do because of who it is: users, groups, capabilities.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::SandboxError;

/// Capabilities have numbers below that.
const MAX_CAPABILITIES: u32 = 64;

/// Who the process shall be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// The user; `None` for whoever started it.
    pub uid: Option<u32>,
    /// The group; `None` for that of whoever started it.
    pub gid: Option<u32>,
}

/// Becomes nobody in particular. The process must have one thread.
pub(crate) fn drop_all(identity: Identity) -> Result<(), SandboxError> {
    drop_bounding_set()?;
    change_identity(identity)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )
    .and_then(|()| clear_ambient_capability_set())
    .map_err(SandboxError::step("drop capabilities"))?;
    set_no_new_privs(true).map_err(SandboxError::step("set no_new_privs"))?;
    // After the change of user, which sets it anew.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(SandboxError::step("forbid core dumps"))
}

/// No program that is run could have a capability. Who may not change that has none to lose.
fn drop_bounding_set() -> Result<(), SandboxError> {
    for number in 0..MAX_CAPABILITIES {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel does not know as many.
            Err(Errno::INVAL) if number > 0 => break,
            Err(Errno::PERM) => break,
            Err(errno) => return Err(SandboxError::step("empty the bounding set")(errno)),
        }
    }
    Ok(())
}

fn change_identity(Identity { uid, gid }: Identity) -> Result<(), SandboxError> {
    if uid.is_some() || gid.is_some() {
        set_thread_groups(&[]).map_err(SandboxError::step("leave the supplementary groups"))?;
    }
    if let Some(gid) = gid.map(Gid::from_raw) {
        set_thread_res_gid(gid, gid, gid).map_err(SandboxError::step("change the group"))?;
    }
    if let Some(uid) = uid.map(Uid::from_raw) {
        set_thread_res_uid(uid, uid, uid).map_err(SandboxError::step("change the user"))?;
    }
    Ok(())
}
