// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine whose devices are handed over: the nodes below its `/dev` and its sysfs. For whoever may open them, which
//! the server may not.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use vfio::topology::Driver;
use vfio::{PciAddress, Sysfs};

/// The arguments of a program by which it is told the machine.
#[derive(Clone, Debug, clap::Args)]
pub struct HostArguments {
    /// Use the modelled machine in this folder.
    #[cfg(feature = "model")]
    #[arg(long, global = true, value_name = "FOLDER")]
    model: Option<PathBuf>,
}

impl From<&HostArguments> for Host {
    #[cfg(feature = "model")]
    fn from(arguments: &HostArguments) -> Self {
        arguments.model.clone().map_or_else(Self::this, Self::modelled)
    }

    #[cfg(not(feature = "model"))]
    fn from(_: &HostArguments) -> Self {
        Self::this()
    }
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

/// What `/proc` says of an open file.
#[derive(Clone, Debug)]
pub struct OpenFile {
    /// Where its link leads (`/dev/vfio/7`).
    pub link: PathBuf,
    /// Where more is said of it.
    pub details: PathBuf,
}

impl Host {
    /// This machine.
    pub fn this() -> Self {
        Self { root: "/".into() }
    }

    /// A modelled machine in `folder`.
    #[cfg(feature = "model")]
    pub fn modelled(folder: PathBuf) -> Self {
        Self { root: folder }
    }

    /// Its sysfs.
    pub fn sysfs(&self) -> io::Result<Sysfs> {
        Ok(Sysfs::open_at(&self.sysfs_root())?)
    }

    /// Where its sysfs is.
    pub fn sysfs_root(&self) -> PathBuf {
        self.root.join("sys")
    }

    /// The path of `/dev/iommu`.
    pub fn iommufd(&self) -> PathBuf {
        self.root.join("dev/iommu")
    }

    /// The path of the VFIO cdev with this name (`vfio3`).
    pub fn cdev(&self, name: &str) -> PathBuf {
        self.root.join("dev/vfio/devices").join(name)
    }

    /// A file that a process has open, as `/proc` shows it (`…/fd/7`); `None` where that may not be seen.
    pub fn open_file(&self, descriptor: &Path) -> Option<OpenFile> {
        let link = std::fs::read_link(descriptor).ok()?;
        #[cfg(feature = "model")]
        if self.is_modelled() {
            return self.modelled_file(&link);
        }
        let process = descriptor.parent()?.parent()?;
        Some(OpenFile { link, details: process.join("fdinfo").join(descriptor.file_name()?) })
    }

    /// A modelled machine's files are sockets, of which it says itself what they are.
    #[cfg(feature = "model")]
    fn modelled_file(&self, link: &Path) -> Option<OpenFile> {
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        let link = std::fs::read_link(self.root.join("proc/fd").join(inode)).ok()?;
        Some(OpenFile { link, details: self.root.join("proc/fdinfo").join(inode) })
    }

    /// The folder that everything is below.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What a server must be started with to serve devices of this machine.
    pub fn arguments(&self) -> Vec<OsString> {
        #[cfg(feature = "model")]
        if self.is_modelled() {
            return vec!["--model".into(), self.root.clone().into()];
        }
        Vec::new()
    }

    #[cfg(feature = "model")]
    fn is_modelled(&self) -> bool {
        self.root != Path::new("/")
    }

    /// Opens the VFIO cdev of a function.
    ///
    /// # Errors
    ///
    /// `NotFound` where the function has none; otherwise open's.
    pub fn open_cdev(&self, address: PciAddress) -> io::Result<File> {
        match self.sysfs()?.function(address)?.driver {
            Driver::Vfio { device, .. } => self.open(&self.cdev(&device)),
            Driver::Kernel(_) | Driver::None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Opens a node for reading and writing.
    pub fn open(&self, node: &Path) -> io::Result<File> {
        #[cfg(feature = "model")]
        if self.is_modelled() {
            return Ok(vfio::model::open(node)?.into());
        }
        OpenOptions::new().read(true).write(true).open(node)
    }
}
