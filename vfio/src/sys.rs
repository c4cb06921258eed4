// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every VFIO and iommufd system call of the program, and the only `unsafe` code they need. What a call means, and what
//! its errno means, is for the modules above.

use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use iommufd_bindings::{
    iommu_destroy, iommu_hwpt_alloc, iommu_ioas_alloc, iommu_ioas_copy, iommu_ioas_iova_ranges,
    iommu_ioas_map, iommu_ioas_map_file, iommu_ioas_unmap, iommu_iova_range, iommu_option,
};
use rustix::io::Errno;
#[cfg(feature = "model")]
use vfio_bindings::bindings::vfio::VFIO_IRQ_SET_DATA_EVENTFD;
use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt, vfio_device_info,
    vfio_device_ioeventfd, vfio_irq_info,
};
use vm_memory::MmapRegion;

use crate::ioctl::{self, Ioctl};
#[cfg(feature = "model")]
use crate::model::client::ModelFile;

/// A descriptor of a VFIO cdev.
#[derive(Debug)]
pub(crate) struct DeviceFd(pub(crate) OwnedFd);

/// A descriptor of `/dev/iommu`.
#[derive(Debug)]
pub(crate) struct IommuFd(pub(crate) OwnedFd);

impl AsFd for DeviceFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for IommuFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A uapi structure of fixed size, with the request that takes it.
///
/// # Safety
///
/// The type must be plain integers without padding, and the kernel, given [`Self::REQUEST`], must access no memory but the first
/// [`Self::LENGTH`] bytes of it: any address it holds is zero and stays so.
pub(crate) unsafe trait Argument: Default {
    const REQUEST: Ioctl;
    /// How much of the structure the kernel is told about; at most its size.
    const LENGTH: u32;
    /// Writes [`Self::LENGTH`] to the structure's length word.
    fn announce_length(&mut self);
    /// The descriptor that the structure names, if it does.
    #[cfg_attr(not(feature = "model"), allow(dead_code))]
    fn named_descriptor(&self) -> Option<RawFd>;
}

macro_rules! argument {
    ($structure:ty, $length_word:ident, $request:expr, $length:expr $(, $descriptor:ident)?) => {
        // SAFETY: a bindgen structure of integers; the request reads and writes only what the length word announces,
        // which the assertion keeps within the structure. `data_uptr` and `token_uuid_ptr` are never set.
        unsafe impl Argument for $structure {
            const REQUEST: Ioctl = $request;
            const LENGTH: u32 = {
                assert!($length <= size_of::<$structure>() && $length < 4096);
                #[allow(clippy::cast_possible_truncation)]
                let length = $length as u32;
                length
            };
            fn announce_length(&mut self) {
                self.$length_word = Self::LENGTH;
            }
            fn named_descriptor(&self) -> Option<RawFd> {
                let named: [RawFd; _] = [$(self.$descriptor)?];
                named.first().copied().filter(|fd| *fd >= 0)
            }
        }
    };
    ($structure:ty, $length_word:ident, $request:expr) => {
        argument!($structure, $length_word, $request, size_of::<$structure>());
    };
}

argument!(vfio_device_info, argsz, ioctl::DEVICE_GET_INFO);
argument!(vfio_irq_info, argsz, ioctl::DEVICE_GET_IRQ_INFO);
// Without the VF token: the 16 bytes that every kernel with cdevs knows.
argument!(
    vfio_device_bind_iommufd,
    argsz,
    ioctl::DEVICE_BIND_IOMMUFD,
    offset_of!(vfio_device_bind_iommufd, token_uuid_ptr),
    iommufd
);
argument!(vfio_device_ioeventfd, argsz, ioctl::DEVICE_IOEVENTFD, size_of::<vfio_device_ioeventfd>(), fd);
argument!(vfio_device_attach_iommufd_pt, argsz, ioctl::DEVICE_ATTACH_IOMMUFD_PT);
argument!(vfio_device_detach_iommufd_pt, argsz, ioctl::DEVICE_DETACH_IOMMUFD_PT);
argument!(iommu_destroy, size, ioctl::IOMMU_DESTROY);
argument!(iommu_ioas_alloc, size, ioctl::IOMMU_IOAS_ALLOC);
argument!(iommu_ioas_map_file, size, ioctl::IOMMU_IOAS_MAP_FILE, size_of::<iommu_ioas_map_file>(), fd);
argument!(iommu_ioas_copy, size, ioctl::IOMMU_IOAS_COPY);
argument!(iommu_ioas_unmap, size, ioctl::IOMMU_IOAS_UNMAP);
argument!(iommu_option, size, ioctl::IOMMU_OPTION);
argument!(iommu_hwpt_alloc, size, ioctl::IOMMU_HWPT_ALLOC);

/// Issues the request that takes `argument`. The result is the ioctl's non-negative return value.
pub(crate) fn call<T: Argument>(fd: impl AsFd, argument: &mut T) -> Result<u32, Errno> {
    argument.announce_length();
    #[cfg(feature = "model")]
    if let Some(file) = ModelFile::of(fd.as_fd()) {
        // SAFETY: whoever filled the structure in keeps the descriptor that it names open until this returns.
        let named = argument.named_descriptor().map(|named| unsafe { BorrowedFd::borrow_raw(named) });
        let length = usize::try_from(T::LENGTH).unwrap_or(0);
        let announced = bytes(argument).get_mut(..length).ok_or(Errno::INVAL)?;
        return file.ioctl(T::REQUEST.number, announced, &[], named.as_slice()).0;
    }
    // SAFETY: `Argument` promises that the kernel stays within the exclusively borrowed structure.
    let result =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request(T::REQUEST), std::ptr::from_mut(argument)) };
    outcome(result)
}

/// Shows a request of a modelled file to the filters of system calls, which would see it if the file were the kernel's: the
/// socket that stands for the file knows no such request, and touches nothing.
///
/// # Errors
///
/// `EPERM`: a filter refuses it.
#[cfg(feature = "model")]
#[allow(clippy::cast_lossless)]
pub(crate) fn show_to_filters(fd: BorrowedFd<'_>, number: u32) -> Result<(), Errno> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: no address is passed, and sockets know no request with these numbers.
    match outcome(unsafe { libc::ioctl(fd.as_raw_fd(), number as libc::Ioctl, nothing) }) {
        Err(Errno::PERM) => Err(Errno::PERM),
        _ => Ok(()),
    }
}

/// A uapi structure whose bytes can be sent.
///
/// # Safety
///
/// The type must be plain integers without padding.
#[cfg(feature = "model")]
unsafe trait Plain {}

#[cfg(feature = "model")]
// SAFETY: `Argument` promises as much.
unsafe impl<T: Argument> Plain for T {}

#[cfg(feature = "model")]
// SAFETY: 32-bit words in even number, then 64-bit words.
unsafe impl Plain for iommu_ioas_iova_ranges {}
#[cfg(feature = "model")]
// SAFETY: two 64-bit words.
unsafe impl Plain for iommu_iova_range {}
#[cfg(feature = "model")]
// SAFETY: 32-bit words in even number, then 64-bit words.
unsafe impl Plain for iommu_ioas_map {}

#[cfg(feature = "model")]
fn bytes<T: Plain>(structure: &mut T) -> &mut [u8] {
    // SAFETY: the structure is exclusively borrowed, and plain integers without padding: any bytes will do.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(structure).cast(), size_of::<T>()) }
}

/// Issues a request whose argument ends in an array. The first word of `argument`, its `argsz`, is written here.
///
/// # Errors
///
/// The kernel's errno; `EINVAL` if the buffer has no room for the length word or is over 4 GiB.
pub(crate) fn call_with_array(fd: impl AsFd, array: Array, argument: &mut [u8]) -> Result<u32, Errno> {
    let length = u32::try_from(argument.len()).map_err(|_| Errno::INVAL)?;
    argument
        .first_chunk_mut()
        .ok_or(Errno::INVAL)
        .map(|argsz: &mut [u8; 4]| *argsz = length.to_ne_bytes())?;
    #[cfg(feature = "model")]
    if let Some(file) = ModelFile::of(fd.as_fd()) {
        let named = array.named_descriptors(argument);
        // SAFETY: whoever filled the argument in keeps the descriptors that it names open until this returns.
        let named: Vec<_> = named.into_iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }).collect();
        return file.ioctl(array.request().number, argument, &[], &named).0;
    }
    // SAFETY: the requests of `Array` hold no addresses, and the kernel stays within the `argsz` bytes announced just
    // now, which are the exclusively borrowed buffer.
    let result =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request(array.request()), argument.as_mut_ptr()) };
    outcome(result)
}

/// The requests of [`call_with_array`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Array {
    /// `struct vfio_region_info` and its capabilities.
    RegionInfo,
    /// `struct vfio_irq_set` and its data.
    IrqSet,
    /// `struct vfio_pci_hot_reset_info` and its rows.
    HotResetInfo,
    /// `struct vfio_pci_hot_reset` and its (for a cdev: no) group descriptors.
    HotReset,
}

impl Array {
    /// The request that takes this argument.
    pub(crate) const fn request(self) -> Ioctl {
        match self {
            Self::RegionInfo => ioctl::DEVICE_GET_REGION_INFO,
            Self::IrqSet => ioctl::DEVICE_SET_IRQS,
            Self::HotResetInfo => ioctl::DEVICE_GET_PCI_HOT_RESET_INFO,
            Self::HotReset => ioctl::DEVICE_PCI_HOT_RESET,
        }
    }

    /// The descriptors in an argument: the eventfds of `VFIO_DEVICE_SET_IRQS`, as far as a vector has one.
    #[cfg(feature = "model")]
    fn named_descriptors(self, argument: &[u8]) -> Vec<RawFd> {
        const FLAGS: usize = 4;
        const DATA: usize = 20;
        let word = |bytes: &[u8]| bytes.first_chunk().copied().map_or(0, u32::from_ne_bytes);
        let flags = argument.get(FLAGS..).map_or(0, word);
        if !matches!(self, Self::IrqSet) || flags & VFIO_IRQ_SET_DATA_EVENTFD == 0 {
            return Vec::new();
        }
        let (data, _) = argument.get(DATA..).unwrap_or_default().as_chunks();
        data.iter().map(|bytes| RawFd::from_ne_bytes(*bytes)).filter(|fd| *fd >= 0).collect()
    }
}

/// `VFIO_DEVICE_RESET`, which takes no argument.
pub(crate) fn reset(fd: &DeviceFd) -> Result<(), Errno> {
    #[cfg(feature = "model")]
    if let Some(file) = ModelFile::of(fd.as_fd()) {
        return file.ioctl(ioctl::DEVICE_RESET.number, &mut [], &[], &[]).0.map(drop);
    }
    // SAFETY: the request takes no argument, so the kernel accesses no memory of ours.
    outcome(unsafe { libc::ioctl(fd.0.as_raw_fd(), request(ioctl::DEVICE_RESET)) }).map(drop)
}

/// `IOMMU_IOAS_IOVA_RANGES`: fills `ranges` from its start and returns how many ranges there are and their alignment.
///
/// # Errors
///
/// The kernel's errno. `EMSGSIZE` comes with the count in the error: there are more ranges than room.
pub(crate) fn iova_ranges(
    fd: &IommuFd,
    ioas: u32,
    ranges: &mut [iommu_iova_range],
) -> Result<(u32, u64), IovaRangesError> {
    let room = u32::try_from(ranges.len()).map_err(|_| IovaRangesError::Errno(Errno::INVAL))?;
    let mut argument = iommu_ioas_iova_ranges {
        size: length_of::<iommu_ioas_iova_ranges>(),
        ioas_id: ioas,
        num_iovas: room,
        ..Default::default()
    };
    let result = fill_iova_ranges(fd, &mut argument, ranges);
    match result {
        Ok(_) => Ok((argument.num_iovas, argument.out_iova_alignment)),
        Err(Errno::MSGSIZE) => Err(IovaRangesError::MoreThanRoom(argument.num_iovas)),
        Err(errno) => Err(IovaRangesError::Errno(errno)),
    }
}

/// Issues the request with `ranges` as its `allowed_iovas`.
fn fill_iova_ranges(
    fd: &IommuFd,
    argument: &mut iommu_ioas_iova_ranges,
    ranges: &mut [iommu_iova_range],
) -> Result<u32, Errno> {
    #[cfg(feature = "model")]
    if let Some(file) = ModelFile::of(fd.as_fd()) {
        let number = ioctl::IOMMU_IOAS_IOVA_RANGES.number;
        let (outcome, written) = file.ioctl(number, bytes(argument), &[], &[]);
        let (written, _) = written.as_chunks::<{ size_of::<iommu_iova_range>() }>();
        for (range, written) in ranges.iter_mut().zip(written) {
            bytes(range).copy_from_slice(written);
        }
        return outcome;
    }
    argument.allowed_iovas = ranges.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: besides the structure the kernel writes at most `num_iovas` entries at `allowed_iovas`, and that is the
    // exclusively borrowed slice, whose length the caller put there.
    outcome(unsafe {
        libc::ioctl(fd.0.as_raw_fd(), request(ioctl::IOMMU_IOAS_IOVA_RANGES), std::ptr::from_mut(argument))
    })
}

/// Why [`iova_ranges`] failed.
pub(crate) enum IovaRangesError {
    /// There are this many ranges.
    MoreThanRoom(u32),
    Errno(Errno),
}

/// `IOMMU_IOAS_MAP` of the whole of `memory` at `iova`, for kernels without `IOMMU_IOAS_MAP_FILE`.
///
/// The kernel may read the process's page tables at the mapping's addresses again when another page table is attached:
/// the caller keeps `memory` mapped for as long as the IOVAs are.
pub(crate) fn ioas_map(
    fd: &IommuFd,
    ioas: u32,
    flags: u32,
    memory: &MmapRegion,
    iova: u64,
) -> Result<(), Errno> {
    let mut argument = iommu_ioas_map {
        size: length_of::<iommu_ioas_map>(),
        flags,
        ioas_id: ioas,
        user_va: memory.as_ptr().expose_provenance() as u64,
        length: memory.size() as u64,
        iova,
        ..Default::default()
    };
    #[cfg(feature = "model")]
    if let Some(file) = ModelFile::of(fd.as_fd()) {
        let backing = memory.file_offset().ok_or(Errno::FAULT)?;
        let number = ioctl::IOMMU_IOAS_MAP.number;
        let offset = backing.start().to_ne_bytes();
        return file.ioctl(number, bytes(&mut argument), &offset, &[backing.file().as_fd()]).0.map(drop);
    }
    // SAFETY: the kernel accesses the structure and pins the pages of `memory`, a live shared mapping of guest RAM that
    // Rust code holds no reference into, so what a device writes there breaks no aliasing rule.
    let result = unsafe {
        libc::ioctl(fd.0.as_raw_fd(), request(ioctl::IOMMU_IOAS_MAP), std::ptr::from_mut(&mut argument))
    };
    outcome(result).map(drop)
}

/// Reads from a region at the offset `VFIO_DEVICE_GET_REGION_INFO` gave for it.
pub(crate) fn read(fd: &DeviceFd, data: &mut [u8], offset: u64) -> Result<usize, Errno> {
    #[cfg(feature = "model")]
    if let Some(file) = ModelFile::of(fd.as_fd()) {
        return file.read(data, offset);
    }
    rustix::io::pread(fd, data, offset)
}

/// Writes to a region at the offset `VFIO_DEVICE_GET_REGION_INFO` gave for it.
pub(crate) fn write(fd: &DeviceFd, data: &[u8], offset: u64) -> Result<usize, Errno> {
    #[cfg(feature = "model")]
    if let Some(file) = ModelFile::of(fd.as_fd()) {
        return file.write(data, offset);
    }
    rustix::io::pwrite(fd, data, offset)
}

/// The type of ioctl's second parameter is `unsigned long` in glibc and `int` in musl; all numbers fit both.
#[allow(clippy::cast_lossless, clippy::cast_possible_wrap)]
const fn request(ioctl: Ioctl) -> libc::Ioctl {
    ioctl.number as libc::Ioctl
}

#[allow(clippy::cast_possible_truncation)]
const fn length_of<T>() -> u32 {
    assert!(size_of::<T>() < 4096);
    size_of::<T>() as u32
}

fn outcome(result: libc::c_int) -> Result<u32, Errno> {
    u32::try_from(result).map_err(|_| {
        // The C library has just set errno, so there is one.
        Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
    })
}
