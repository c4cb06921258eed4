// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VM's I/O address space: guest memory at IOVA = guest-physical address, for every device of the VM.
//!
//! Attach first, map second: without a device attached the kernel checks nothing. What is described before the first device is
//! kept, and mapped when that device is attached.
//!
//! Several clients describe the memory: the control face's table holds for all devices, and who has a device on a data face
//! describes what that one shall reach. Functions of one IOMMU group share an address space whatever anybody wants, so there
//! is one, of all that is described.

mod mapping;

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::extension::{Cookie, IoasChoice};
use rustix::io::Errno;
use vfio::{Device, Hwpt, Ioas, Iommufd, Iova};

use crate::failure::Failure;
use crate::memory::plan::Areas;
use crate::memory::region::OpenFiles;
use crate::memory::union::MemoryUnion;
use crate::memory::view::MAX_MAPPINGS;
use crate::memory::{GuestAddress, GuestRange, Mapping, MemoryRegion, MemoryView};
use crate::memory_lock::MemoryLimit;

/// Whose description of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViewOf {
    /// The memory table of the control face.
    Table,
    /// What the client of this device's data face maps.
    Device(Cookie),
    /// The page of this device's control ring, which is driven here: no client describes it.
    ControlRing(Cookie),
}

/// A client changes its view.
#[derive(Clone, Debug)]
pub enum ViewChange {
    /// It adds something.
    Map(Mapping),
    /// It takes away what it added with just this range.
    Unmap(GuestRange),
    /// It takes everything away.
    Clear,
}

/// What a change did to a view.
#[derive(Debug)]
enum Changed {
    Added(Mapping),
    Removed(Mapping),
}

/// An IOAS, the page tables over it, and the memory in it.
#[derive(Debug)]
pub struct AddressSpace {
    // The page tables go before the IOAS that they are over.
    page_tables: Vec<Hwpt>,
    ioas: Ioas,
    choice: IoasChoice,
    iommufd: Arc<Iommufd>,
    views: BTreeMap<ViewOf, MemoryView>,
    /// Of all views.
    wanted: MemoryUnion,
    files: OpenFiles,
    /// What the IOAS maps.
    areas: Areas,
    mapping: MappingState,
    limit: MemoryLimit,
}

/// Whether what is wanted is in the IOAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MappingState {
    /// No device has been attached.
    Deferred,
    /// From the first attachment on. A page table of ours keeps it when the last device is detached; an IOAS that others
    /// use keeps at least the mappings, which are pinned anew with the next attachment.
    InForce,
    /// Something is missing that was mapped before, or was not unmapped. The next change tries once more.
    Incomplete,
}

impl AddressSpace {
    /// An address space without memory, of which so much may be pinned.
    pub fn new(iommufd: Arc<Iommufd>, choice: IoasChoice, limit: MemoryLimit) -> Result<Self, Failure> {
        let ioas = match choice {
            IoasChoice::Allocate => Ioas::allocate(Arc::clone(&iommufd)),
            IoasChoice::Adopt(id) | IoasChoice::Fill(id) => Ioas::adopt(Arc::clone(&iommufd), id),
        };
        let ioas = ioas.map_err(Failure::no_address_space)?;
        Ok(Self {
            page_tables: Vec::new(),
            ioas,
            choice,
            iommufd,
            views: BTreeMap::new(),
            wanted: MemoryUnion::default(),
            files: OpenFiles::default(),
            areas: Areas::default(),
            mapping: MappingState::Deferred,
            limit,
        })
    }

    /// The context that devices are bound to.
    pub const fn iommufd(&self) -> &Arc<Iommufd> {
        &self.iommufd
    }

    /// The memory table as it was last accepted.
    pub fn table(&self) -> MemoryView {
        self.views.get(&ViewOf::Table).cloned().unwrap_or_default()
    }

    /// Whether any memory is described in this view.
    pub fn has_view(&self, of: ViewOf) -> bool {
        self.views.contains_key(&of)
    }

    /// Whether another process maps this address space.
    pub const fn is_adopted(&self) -> bool {
        matches!(self.choice, IoasChoice::Adopt(_))
    }

    /// Attaches a bound device, and maps what is wanted if it is the first one. On failure it is detached again.
    pub fn attach(&mut self, device: &Device) -> Result<(), Failure> {
        self.attach_to_page_table(device)?;
        if self.mapping != MappingState::Deferred {
            return Ok(());
        }
        self.mapping = MappingState::Incomplete;
        self.map_wanted(&[], &[]).inspect_err(|_| {
            self.mapping = MappingState::Deferred;
            if let Err(error) = device.detach() {
                log::warn!(
                    "event=detach-failed device={} errno={}",
                    device.address(),
                    error.errno.raw_os_error()
                );
            }
        })
    }

    /// A page table serves every device of its kind; a device that none fits gets one that others may share.
    ///
    /// An IOAS that several servers use has the kernel's own page tables, which all of them share: functions of one IOMMU
    /// group cannot be attached to two, and nobody can name another process's.
    fn attach_to_page_table(&mut self, device: &Device) -> Result<(), Failure> {
        match self.choice {
            IoasChoice::Adopt(_) | IoasChoice::Fill(_) => {
                device.attach_ioas(&self.ioas).map_err(Failure::attach)
            }
            IoasChoice::Allocate => attach_to_one_of(&mut self.page_tables, &self.ioas, device),
        }
    }

    /// Puts another memory table in force. On failure the old one stands. `devices` are those attached.
    pub fn change_table(&mut self, next: &MemoryView, devices: &[Arc<Device>]) -> Result<(), Failure> {
        let (removed, added) = self.table().change_to(next);
        let removed = removed.iter().map(|mapping| ViewChange::Unmap(*mapping.range()));
        let changes = removed.chain(added.into_iter().map(ViewChange::Map));
        let mut done = Vec::new();
        let noted = changes.into_iter().try_for_each(|change| self.note(ViewOf::Table, change, &mut done));
        noted
            .and_then(|()| self.map_wanted(&touched(&done), devices))
            .inspect_err(|_| self.undo(ViewOf::Table, done))
    }

    /// Changes a view, and tells what came of each change. What cannot be done leaves everything as it was.
    ///
    /// All changes are carried out at once if they can be: memory that comes back elsewhere or in pieces stays pinned.
    pub fn change_view(
        &mut self,
        of: ViewOf,
        changes: Vec<ViewChange>,
        devices: &[Arc<Device>],
    ) -> Vec<Result<(), Failure>> {
        let mut done = Vec::new();
        let outcomes: Vec<_> =
            changes.iter().map(|change| self.note(of, change.clone(), &mut done)).collect();
        let Err(failure) = self.map_wanted(&touched(&done), devices) else { return outcomes };
        self.undo(of, done);
        if let [_] = changes[..] {
            return vec![Err(failure)];
        }
        // One after the other, so that each gets its own answer.
        changes.into_iter().flat_map(|change| self.change_view(of, vec![change], devices)).collect()
    }

    /// Maps the page of a device's control ring, as far from guest memory as devices reach. Where they see it; it stays there.
    ///
    /// # Errors
    ///
    /// There is no such address, or it cannot be mapped.
    pub fn map_control_ring(
        &mut self,
        cookie: Cookie,
        page: &MemoryRegion,
        devices: &[Arc<Device>],
    ) -> Result<Iova, Failure> {
        let of = ViewOf::ControlRing(cookie);
        let mapped = self.views.get(&of).and_then(|view| view.mappings().next());
        if let Some(mapped) = mapped {
            return Ok(Iova(mapped.range().address().0));
        }
        let ranges = self.ioas.iova_ranges().map_err(Failure::no_address_space)?;
        let address = self.wanted.highest_gap(&ranges, page.size());
        let region = address.and_then(|address| page.clone().moved_to(address));
        let region = region.ok_or_else(|| Failure::control_memory("guest memory is at all addresses"))?;
        let address = Iova(region.address().0);
        let change = ViewChange::Map(Mapping::Backed(region));
        self.change_view(of, vec![change], devices).into_iter().collect::<Result<(), _>>()?;
        Ok(address)
    }

    /// Takes a client's view away, because it is gone. What cannot be unmapped is in the log, and tried again with the next
    /// change.
    pub fn clear(&mut self, of: ViewOf, devices: &[Arc<Device>]) {
        let mut done = Vec::new();
        let cleared = self.note(of, ViewChange::Clear, &mut done);
        if let Err(failure) = cleared.and_then(|()| self.map_wanted(&touched(&done), devices)) {
            log::error!("event=memory-not-released reason=\"{failure}\"");
            self.mapping = MappingState::Incomplete;
        }
    }

    /// Changes a view and what is wanted, and nothing of the IOAS. What was done is added to `done`.
    fn note(&mut self, of: ViewOf, change: ViewChange, done: &mut Vec<Changed>) -> Result<(), Failure> {
        let outcome = self.change(of, change, done);
        // Who describes nothing has no view, so that those of devices that come and go are not kept.
        self.views.retain(|_, view| !view.is_empty());
        outcome
    }

    fn change(&mut self, of: ViewOf, change: ViewChange, done: &mut Vec<Changed>) -> Result<(), Failure> {
        let view = self.views.entry(of).or_default();
        match change {
            ViewChange::Map(mut mapping) => {
                if let Mapping::Backed(region) = &mut mapping {
                    region.share_file(&mut self.files);
                }
                view.insert(mapping.clone(), MAX_MAPPINGS)?;
                if let Some(Err(other)) = mapping.region().map(|region| self.wanted.add(region)) {
                    let address = mapping.range().address();
                    view.remove(*mapping.range())?;
                    return Err(self.conflict(address, other));
                }
                done.push(Changed::Added(mapping));
            }
            ViewChange::Unmap(range) => {
                let mapping = view.remove(range)?;
                if let Some(region) = mapping.region() {
                    self.wanted.remove(region);
                }
                done.push(Changed::Removed(mapping));
            }
            ViewChange::Clear => {
                for mapping in self.views.remove(&of).iter().flat_map(MemoryView::mappings) {
                    if let Some(region) = mapping.region() {
                        self.wanted.remove(region);
                    }
                    done.push(Changed::Removed(mapping.clone()));
                }
            }
        }
        Ok(())
    }

    /// Why memory cannot be at an address: there is other memory.
    fn conflict(&self, address: GuestAddress, other: GuestAddress) -> Failure {
        let is_control = self.views.iter().any(|(of, view)| {
            matches!(of, ViewOf::ControlRing(_)) && view.mappings().any(|own| own.range().address() == other)
        });
        let refusal = if is_control { Failure::region_taken } else { Failure::region_conflicts };
        refusal(address.0, other.0)
    }

    /// Takes back what was noted, the last first.
    fn undo(&mut self, of: ViewOf, done: Vec<Changed>) {
        for changed in done.into_iter().rev() {
            let change = match changed {
                Changed::Added(mapping) => ViewChange::Unmap(*mapping.range()),
                Changed::Removed(mapping) => ViewChange::Map(mapping),
            };
            if let Err(failure) = self.note(of, change, &mut Vec::new()) {
                log::error!("event=view-not-restored reason=\"{failure}\"");
            }
        }
    }
}

impl Drop for AddressSpace {
    /// An IOAS that is not ours stays, and what we have mapped in it must not.
    fn drop(&mut self) {
        if let IoasChoice::Fill(_) = self.choice {
            for area in self.areas.iter().cloned().collect::<Vec<_>>() {
                if let Err(failure) = self.unmap(&area) {
                    log::error!("event=memory-not-released reason=\"{failure}\"");
                }
            }
        }
    }
}

fn attach_to_one_of(page_tables: &mut Vec<Hwpt>, ioas: &Ioas, device: &Device) -> Result<(), Failure> {
    for page_table in page_tables.iter() {
        match device.attach(page_table) {
            Ok(()) => return Ok(()),
            Err(error) if error.errno == Errno::INVAL => {}
            Err(error) => return Err(Failure::attach(error)),
        }
    }
    let page_table = Hwpt::allocate(ioas, device.id()).map_err(Failure::attach)?;
    device.attach(&page_table).map_err(Failure::attach)?;
    page_tables.push(page_table);
    Ok(())
}

fn touched(done: &[Changed]) -> Vec<GuestRange> {
    let range = |changed: &Changed| match changed {
        Changed::Added(mapping) | Changed::Removed(mapping) => mapping.region().map(|region| *region.range()),
    };
    done.iter().filter_map(range).collect()
}
