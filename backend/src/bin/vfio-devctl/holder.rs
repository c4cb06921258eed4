// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who has a function open. The server cannot look, but whoever may read other processes' `/proc` can.

use std::path::Path;

use protocol::extension::ResetGroupRow;
use vhost_device_vfio::host::{Host, OpenFile};
use vhost_device_vfio::reset::remedy;

use crate::blocker;

/// Where the kernel shows processes.
pub(crate) const PROC: &str = "/proc";
/// What links to the cdevs of VFIO begin with.
const CDEVS: &str = "/dev/vfio/devices/";
/// Where the links of VFIO's files lead, be it to nodes or not.
const VFIO_FILES: [&str; 2] = ["/dev/vfio/", "anon_inode:[vfio-device]"];
/// How the file of a device says which one it is, from Linux 6.18 on.
const DEVICE_PATH: &str = "vfio-device-syspath:";

/// A process that has a function open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    /// Its id.
    pub(crate) process: u32,
    /// The name of its program.
    pub(crate) command: String,
    pub(crate) way: Way,
}

/// How a process came to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// By the function's cdev.
    Cdev,
    /// By its IOMMU group, the legacy way.
    Group,
}

/// A file of VFIO, and whose it is.
struct VfioFile {
    process: u32,
    link: String,
    /// The function, where the kernel says it.
    function: Option<String>,
}

impl Holder {
    /// Who has the functions of these rows open, row by row, each process and way once; as far as that may be seen, and only
    /// where it tells why a row blocks.
    pub(crate) fn find(proc: &Path, host: &Host, rows: &[ResetGroupRow]) -> Vec<Vec<Self>> {
        let matters = |row: &ResetGroupRow| blocker::depends_on_holders(row.reason);
        let files = if rows.iter().any(matters) { vfio_files(proc, host) } else { Vec::new() };
        let of_row = |row| {
            let opened = files.iter().filter_map(|file| Some((file.process, file.way_to(row)?)));
            let mut holders: Vec<_> =
                opened.map(|(process, way)| Self { process, command: command(proc, process), way }).collect();
            holders.sort_unstable();
            holders.dedup();
            holders
        };
        rows.iter().map(|row| if matters(row) { of_row(row) } else { Vec::new() }).collect()
    }
}

impl VfioFile {
    /// Reads a descriptor of a process.
    fn read(process: u32, file: &OpenFile) -> Option<Self> {
        let link = file.link.to_str()?.to_owned();
        if !VFIO_FILES.iter().any(|start| link.starts_with(start)) {
            return None;
        }
        let details = std::fs::read_to_string(&file.details).unwrap_or_default();
        let path = details.lines().find_map(|line| line.strip_prefix(DEVICE_PATH));
        let function = path.and_then(|path| path.trim().rsplit('/').next()).map(ToOwned::to_owned);
        Some(Self { process, link, function })
    }

    /// How it gives a row's function, if it does. The names of nodes are used again, so where the kernel says the function, that
    /// counts.
    fn way_to(&self, row: &ResetGroupRow) -> Option<Way> {
        let way = if self.link.starts_with(CDEVS) { Way::Cdev } else { Way::Group };
        let is_its = match &self.function {
            Some(function) => *function == row.address.to_string(),
            None => remedy::nodes(row).contains(&self.link),
        };
        is_its.then_some(way)
    }
}

/// Every file of VFIO that any process has open. Processes end while one looks.
fn vfio_files(proc: &Path, host: &Host) -> Vec<VfioFile> {
    let mut files = Vec::new();
    for process in entries(proc) {
        let Ok(id) = process.parse() else { continue };
        let descriptors = proc.join(process).join("fd");
        let opened = entries(&descriptors).into_iter().filter_map(|number| {
            let file = host.open_file(&descriptors.join(number))?;
            VfioFile::read(id, &file)
        });
        files.extend(opened);
    }
    files
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn command(proc: &Path, process: u32) -> String {
    let name = std::fs::read_to_string(proc.join(process.to_string()).join("comm")).unwrap_or_default();
    // Whoever runs a program may call it anything.
    name.trim_end().chars().filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use protocol::extension::{Cookie, IommuGroup, Name, Ownership, PciAddress, RowFlags, RowReason};

    use super::*;

    const PATH: &str = "pos:\t0\nvfio-device-syspath: /sys/devices/pci0000:00/0000:00:04.0/0000:01:00.1\n";

    fn row() -> ResetGroupRow {
        ResetGroupRow {
            address: PciAddress { segment: 0, bus: 1, devfn: 1 },
            ownership: Ownership::Blocking,
            cookie: Cookie(0),
            flags: RowFlags::default(),
            iommu_group: IommuGroup(6),
            reason: RowReason::InUse,
            header_type: 0,
            vfio_device: Name::new("vfio1"),
            driver: Name::new("vfio-pci"),
        }
    }

    /// A `/proc` in which the process 12 has these files open, by their links and details.
    fn proc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let process = proc.path().join("12");
        for folder in ["fd", "fdinfo"] {
            std::fs::create_dir_all(process.join(folder)).unwrap();
        }
        std::fs::write(process.join("comm"), "qemu-system-x86\n").unwrap();
        for (number, (link, details)) in files.iter().enumerate() {
            symlink(link, process.join("fd").join(number.to_string())).unwrap();
            std::fs::write(process.join("fdinfo").join(number.to_string()), details).unwrap();
        }
        proc
    }

    fn ways(files: &[(&str, &str)]) -> Vec<Way> {
        let found = Holder::find(proc(files).path(), &Host::this(), &[row()]);
        found.concat().iter().map(|holder| holder.way).collect()
    }

    #[test]
    fn a_cdev_and_a_group_are_told_apart() {
        assert_eq!(ways(&[("/dev/vfio/devices/vfio1", PATH)]), [Way::Cdev]);
        assert_eq!(ways(&[("/dev/vfio/6", "pos:\t0\n")]), [Way::Group]);
        assert_eq!(ways(&[("anon_inode:[vfio-device]", PATH)]), [Way::Group]);
    }

    #[test]
    fn a_kernel_that_does_not_say_the_device_is_believed_its_node() {
        assert_eq!(ways(&[("/dev/vfio/devices/vfio1", "pos:\t0\n")]), [Way::Cdev]);
        assert_eq!(ways(&[("anon_inode:[vfio-device]", "pos:\t0\n")]), []);
    }

    #[test]
    fn a_node_that_is_gone_is_not_its_successor() {
        assert_eq!(ways(&[("/dev/vfio/devices/vfio1 (deleted)", "pos:\t0\n")]), []);
        assert_eq!(ways(&[("/dev/vfio/devices/vfio9 (deleted)", PATH)]), [Way::Cdev]);
        let of_another = PATH.replace("0000:01:00.1", "0000:01:00.2");
        assert_eq!(ways(&[("/dev/vfio/devices/vfio1", &of_another)]), []);
    }

    #[test]
    fn other_files_are_nobodys_business() {
        assert_eq!(
            ways(&[("/dev/vfio/vfio", ""), ("/dev/vfio/7", ""), ("/dev/null", PATH), ("socket:[6]", "")]),
            []
        );
    }

    #[test]
    fn who_has_what_does_not_block_is_not_told() {
        let proc = proc(&[("/dev/vfio/devices/vfio1", PATH)]);
        let ours = ResetGroupRow { ownership: Ownership::Ours, reason: RowReason::None, ..row() };
        assert_eq!(
            Holder::find(proc.path(), &Host::this(), &[ours, row()]).iter().map(Vec::len).collect::<Vec<_>>(),
            [0, 1]
        );
    }

    #[test]
    fn a_process_is_named_once_for_each_way() {
        let files = [("/dev/vfio/6", ""), ("anon_inode:[vfio-device]", PATH)];
        let found = Holder::find(proc(&files).path(), &Host::this(), &[row()]);
        let expected = Holder { process: 12, command: "qemu-system-x86".into(), way: Way::Group };
        assert_eq!(found, [vec![expected]]);
    }
}
