// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device finds behind which address: the mappings of an address space, and DMA through them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::ioas::Iova;

/// A run of addresses that lead into a file.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    /// In bytes; at least 1.
    pub(crate) length: u64,
    /// Guest memory.
    pub(crate) file: Arc<File>,
    /// Where in the file the run begins.
    pub(crate) offset: u64,
    /// Whether a device may read it.
    pub(crate) readable: bool,
    /// Whether a device may write it.
    pub(crate) writable: bool,
}

/// The mappings of an address space, which do not overlap.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryMap(pub(crate) BTreeMap<Iova, Mapping>);

/// A device's access that led nowhere: the IOMMU dropped it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DmaFault(pub(crate) Iova);

impl MemoryMap {
    /// The mapping that an address is in, and where it begins.
    pub(crate) fn find(&self, address: Iova) -> Option<(Iova, &Mapping)> {
        let (start, mapping) = self.0.range(..=address).next_back()?;
        (address.0 - start.0 < mapping.length).then_some((*start, mapping))
    }

    /// A device reads memory. A part of what it wants may have arrived when it faults.
    pub(crate) fn read(&self, address: Iova, data: &mut [u8]) -> Result<(), DmaFault> {
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let address = Iova(address.0.saturating_add(done as u64));
            let (file, offset, run) = self.run(address, rest.len(), |mapping| mapping.readable)?;
            let part = rest.get_mut(..run).ok_or(DmaFault(address))?;
            file.read_exact_at(part, offset).map_err(|_| DmaFault(address))?;
            done += run;
        }
        Ok(())
    }

    /// A device writes memory. A part of it may have been written when it faults.
    pub(crate) fn write(&self, address: Iova, data: &[u8]) -> Result<(), DmaFault> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let address = Iova(address.0.saturating_add(done as u64));
            let (file, offset, run) = self.run(address, rest.len(), |mapping| mapping.writable)?;
            let part = rest.get(..run).ok_or(DmaFault(address))?;
            file.write_all_at(part, offset).map_err(|_| DmaFault(address))?;
            done += run;
        }
        Ok(())
    }

    /// How far one mapping leads from `address`, at most `length` bytes, and to where.
    fn run(
        &self,
        address: Iova,
        length: usize,
        allows: fn(&Mapping) -> bool,
    ) -> Result<(&File, u64, usize), DmaFault> {
        let (start, mapping) =
            self.find(address).filter(|(_, mapping)| allows(mapping)).ok_or(DmaFault(address))?;
        let inside = address.0 - start.0;
        let run = usize::try_from(mapping.length - inside).unwrap_or(usize::MAX).min(length);
        Ok((&mapping.file, mapping.offset + inside, run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(file: &Arc<File>, offset: u64, writable: bool) -> Mapping {
        Mapping { length: 0x1000, file: Arc::clone(file), offset, readable: true, writable }
    }

    /// Two adjacent mappings in reverse order of the file, the second read-only, then a hole.
    fn map() -> (Arc<File>, MemoryMap) {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(0x2000).unwrap();
        let mut map = MemoryMap::default();
        map.0.insert(Iova(0x10_0000), mapping(&file, 0x1000, true));
        map.0.insert(Iova(0x10_1000), mapping(&file, 0, false));
        (file, map)
    }

    #[test]
    fn an_access_crosses_from_one_mapping_into_the_next() {
        let (file, map) = map();
        file.write_all_at(b"end", 0x1ffd).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        let mut data = [0; 8];
        map.read(Iova(0x10_0ffd), &mut data).unwrap();
        assert_eq!(&data, b"endbegin");
    }

    #[test]
    fn a_hole_faults_at_its_first_address() {
        let (_, map) = map();
        assert_eq!(map.read(Iova(0x10_1ffe), &mut [0; 4]), Err(DmaFault(Iova(0x10_2000))));
        assert_eq!(map.read(Iova(0xf_ffff), &mut [0; 1]), Err(DmaFault(Iova(0xf_ffff))));
    }

    #[test]
    fn a_read_only_mapping_is_not_written() {
        let (_, map) = map();
        assert_eq!(map.write(Iova(0x10_1000), &[1]), Err(DmaFault(Iova(0x10_1000))));
    }
}
