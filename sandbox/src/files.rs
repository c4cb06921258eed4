// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of the file system a process can see: at most sysfs, for reading. Confined twice, as far as the kernel and who
//! started the process allow: by an empty root and by Landlock.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::fs::{AtFlags, CWD, Mode, mkdirat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::SandboxError;
use crate::policy::SYSFS_SUBTREES;

/// Leaves the namespaces of whoever started the process; `false` where that may not be.
///
/// Not the one of process ids: `SO_PEERCRED` would then not tell which clients are one process. There is no call in the
/// policy that takes a process id.
pub(crate) fn leave_namespaces() -> Result<bool, SandboxError> {
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: the table of open files stays shared with nobody but this process's threads, of which there is one.
    match unsafe { unshare_unsafe(namespaces) } {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(errno) => Err(SandboxError::step("leave the namespaces")(errno)),
    }
}

/// Replaces the root by an empty one that has only what is needed of sysfs, for reading. In a mount namespace of our own.
pub(crate) fn enter_empty_root(sysfs: Option<&Path>) -> Result<(), SandboxError> {
    let failed = SandboxError::step("make an empty root");
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).map_err(&failed)?;
    let subtrees = sysfs.map_or_else(Vec::new, subtrees);
    // Any directory will do to put it on, and this one is there.
    let place = Path::new("/sys");
    let root = new_tmpfs().map_err(&failed)?;
    let attach = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, "", CWD, place, attach).map_err(&failed)?;
    for (path, subtree) in &subtrees {
        make_directories(&root, path).map_err(&failed)?;
        let target = place.join(path);
        move_mount(subtree, "", CWD, &target, attach).map_err(&failed)?;
        let read_only = MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        mount_remount(&target, read_only, "").map_err(&failed)?;
    }
    let read_only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(place, read_only, "").map_err(&failed)?;
    chdir(place).map_err(&failed)?;
    pivot_root(".", ".").map_err(&failed)?;
    unmount(".", UnmountFlags::DETACH).map_err(&failed)?;
    chdir("/").map_err(failed)
}

/// What is there of the subtrees, each as a mount that is nowhere yet.
fn subtrees(sysfs: &Path) -> Vec<(&'static str, OwnedFd)> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let subtree = |path: &&'static str| Some((*path, open_tree(CWD, sysfs.join(path), flags).ok()?));
    SYSFS_SUBTREES.iter().filter_map(subtree).collect()
}

fn new_tmpfs() -> Result<OwnedFd, Errno> {
    let settings = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(settings.as_fd(), "mode", "0555")?;
    fsconfig_create(settings.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(settings.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn make_directories(root: &OwnedFd, path: &str) -> Result<(), Errno> {
    let mut made = PathBuf::new();
    for component in Path::new(path).components() {
        made.push(component);
        match mkdirat(root, &made, Mode::from_raw_mode(0o555)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Whether there is a file of this path, without opening it.
pub(crate) fn exists(path: &Path) -> bool {
    rustix::fs::statat(CWD, path, AtFlags::empty()).is_ok()
}

/// Takes away every access to files but reading below `readable`, to the network, and to processes outside. Says how much
/// of that the kernel can do.
pub(crate) fn restrict(readable: Option<&Path>) -> Result<RulesetStatus, RulesetError> {
    let newest = ABI::V6;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?
        .add_rules(path_beneath_rules(readable, reading))?;
    ruleset.restrict_self().map(|status| status.ruleset)
}
