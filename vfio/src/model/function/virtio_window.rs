// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Access to a virtio device's structures through its config space (Virtio 1.3, 4.1.4.9), for firmware that cannot reach
//! its BARs. QEMU does not look at which BAR is meant.

use std::ops::Range;

use crate::model::function::Function;
use crate::model::function::bars::VIRTIO_BAR;
use crate::model::function::capability::VirtioStructure;
use crate::model::function::part::Bar;
use crate::model::function::registers::capability_id;
use crate::model::memory_map::MemoryMap;

/// Offsets in the capability.
const KIND: usize = 3;
const OFFSET: usize = 8;
const LENGTH: usize = 12;
const DATA: usize = 16;

/// What the capability leads to.
struct Window {
    data: usize,
    bar: Bar,
    offset: u64,
    length: usize,
}

impl Function {
    /// Before a range of the config space is read.
    pub(super) fn read_window(&mut self, accessed: Range<usize>) {
        if let Some(window) = self.window(accessed) {
            let mut data = [0; 4];
            let mut signals = Vec::new();
            if let Some(data) = data.get_mut(..window.length) {
                self.bars.read(window.bar, window.offset, data, &mut signals);
                self.registers.set(window.data, data);
            }
            self.deliver(signals);
        }
    }

    /// After a range of the config space was written.
    pub(super) fn write_window(&mut self, accessed: Range<usize>, memory: Option<&MemoryMap>) {
        if let Some(window) = self.window(accessed) {
            let data = self.registers.word(window.data).to_le_bytes();
            let data = data.get(..window.length).unwrap_or_default();
            let signals = self.bars.write(window.bar, window.offset, data, self.reached(memory));
            self.deliver(signals);
        }
    }

    /// The window, if the range touches its data and it is open.
    fn window(&self, accessed: Range<usize>) -> Option<Window> {
        let start = self.registers.capabilities().into_iter().find_map(|(id, start)| {
            let is_window = self.registers.byte(start + KIND) == VirtioStructure::Window.number();
            (id == capability_id::VENDOR && is_window).then_some(start)
        })?;
        let data = start + DATA;
        let length = self.registers.word(start + LENGTH);
        if accessed.start >= data + 4 || accessed.end <= data || !matches!(length, 1 | 2 | 4) {
            return None;
        }
        let bar = *self.layout.bar(VIRTIO_BAR)?;
        let offset = self.registers.word(start + OFFSET) & !(length - 1);
        (offset < bar.size).then_some(Window {
            data,
            bar,
            offset: offset.into(),
            length: usize::try_from(length).ok()?,
        })
    }
}
