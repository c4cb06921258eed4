// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration that a kind of virtio device has of its own (Virtio 1.3, 2.5 and 4.1.4.6).

use std::ops::Range;

use super::capability::Structure;
use super::transport::{VirtioFunction, read, write};
use crate::failure::Failure;

/// How often a configuration is read that changes while it is being read.
const CONFIG_ATTEMPTS: u32 = 16;

impl VirtioFunction {
    /// How many bytes the configuration of its own has.
    pub fn config_length(&self) -> u32 {
        self.structures().device.map_or(0, |structure| structure.length)
    }

    /// Reads of the device's configuration, all at one moment.
    ///
    /// Fields are naturally aligned, and of up to 4 bytes or accessed in such parts: no access cuts one.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), Failure> {
        let structure = self.config(offset, data.len())?;
        for _ in 0..CONFIG_ATTEMPTS {
            let before = self.config_generation()?;
            for (at, part) in accesses(offset, data.len()) {
                if let Some(data) = data.get_mut(part) {
                    read(self.device(), &structure, at, data).map_err(Failure::device_call)?;
                }
            }
            if self.config_generation()? == before {
                return Ok(());
            }
        }
        Err(Failure::config_unstable(self.address()))
    }

    /// Writes to the device's configuration.
    pub fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let structure = self.config(offset, data.len())?;
        for (at, part) in accesses(offset, data.len()) {
            if let Some(data) = data.get(part) {
                write(self.device(), &structure, at, data).map_err(Failure::device_call)?;
            }
        }
        Ok(())
    }

    /// The device's configuration, for an access within its bounds.
    fn config(&self, offset: u64, size: usize) -> Result<Structure, Failure> {
        let count = u64::try_from(size).unwrap_or(u64::MAX);
        let structure = self.structures().device.filter(|structure| structure.place(offset, count).is_some());
        structure.ok_or_else(|| Failure::config_beyond_end(offset, size, self.config_length()))
    }
}

/// Cuts an access into naturally aligned ones of 4, 2 or 1 bytes: where each is, and what of the data it moves.
fn accesses(offset: u64, length: usize) -> Vec<(u64, Range<usize>)> {
    let mut accesses = Vec::new();
    let mut done = 0;
    while done < length {
        let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        let width = [4_usize, 2].into_iter().find(|width| {
            length - done >= *width && u64::try_from(*width).is_ok_and(|width| at.is_multiple_of(width))
        });
        let end = done + width.unwrap_or(1);
        accesses.push((at, done..end));
        done = end;
    }
    accesses
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_configuration_is_read_in_parts_that_cut_no_field() {
        assert_eq!(accesses(0, 7), [(0, 0..4), (4, 4..6), (6, 6..7)]);
        assert_eq!(accesses(3, 4), [(3, 0..1), (4, 1..3), (6, 3..4)]);
        assert_eq!(accesses(8, 0), []);
    }

    proptest! {
        #[test]
        fn every_access_is_aligned_and_together_they_are_everything(offset in 0_u64..5000, length in 0_usize..300) {
            let mut next = 0;
            for (at, part) in accesses(offset, length) {
                prop_assert_eq!(part.start, next);
                prop_assert_eq!(at, offset + part.start as u64);
                prop_assert!(matches!(part.len(), 1 | 2 | 4) && at.is_multiple_of(part.len() as u64));
                next = part.end;
            }
            prop_assert_eq!(next, length);
        }
    }
}
