// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Config spaces as sysfs showed them in the test machine, with QEMU 11.1 and Linux 7.3, before the functions were opened. Rows
//! that are missing are zero.

use crate::model::function::fixture::{CONFIG, PARTS, open_as};
use crate::model::function::registers::capability_id;
use crate::model::function::{Function, Role};
use crate::model::topology::{KernelVersion, Part};

/// edu, the first of two functions.
const EDU: &str = "
000: 34 12 e8 11 03 01 10 00 10 00 ff 00 00 00 80 00
010: 00 00 40 fe 00 00 00 00 00 00 00 00 00 00 00 00
020: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 00 00 40 00 00 00 00 00 00 00 0a 01 00 00
040: 05 00 80 00 00 00 00 00 00 00 00 00 00 00 00 00
";

/// igb.
const IGB: &str = "
000: 86 80 c9 10 03 01 10 00 01 00 00 02 00 00 00 00
010: 00 00 40 fe 00 00 42 fe 01 c0 00 00 04 00 44 fe
020: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 00 00 40 00 00 00 00 00 00 00 0a 01 00 00
040: 01 50 22 00 03 00 00 00 00 00 00 00 00 00 00 00
050: 05 70 80 01 00 00 00 00 00 00 00 00 00 00 00 00
070: 11 a0 09 00 03 00 00 00 03 20 00 00 00 00 00 00
0a0: 10 00 02 00 20 80 00 10 00 00 00 00 11 04 00 00
0b0: 00 00 11 00 00 00 00 00 00 00 00 00 00 00 00 00
0c0: 00 00 00 00 00 00 30 00 00 00 00 00 00 00 00 00
100: 01 00 01 15 00 00 00 00 00 00 40 02 30 20 46 00
110: 00 00 00 00 00 c0 00 00 a0 00 00 00 00 00 00 00
150: 0e 00 01 16 00 00 00 00 00 00 00 00 00 00 00 00
160: 10 00 01 00 00 00 00 00 10 00 00 00 08 00 08 00
170: 00 00 00 00 80 00 02 00 00 00 ca 10 53 05 00 00
180: 01 00 00 00 0c 00 80 fe 00 00 00 00 00 00 00 00
190: 0c 00 82 fe 00 00 00 00 00 00 00 00 00 00 00 00
";

/// e1000e.
const E1000E: &str = "
000: 86 80 d3 10 03 01 10 00 00 00 00 02 00 00 00 00
010: 00 00 44 fe 00 00 46 fe 01 c0 00 00 00 00 48 fe
020: 00 00 00 00 00 00 00 00 00 00 00 00 86 80 00 00
030: 00 00 40 fe c8 00 00 00 00 00 00 00 0a 01 00 00
0a0: 11 00 04 00 03 00 00 00 03 20 00 00 00 00 00 00
0c0: 00 00 00 00 00 00 00 00 01 d0 22 00 03 00 00 00
0d0: 05 e0 80 00 00 00 00 00 00 00 00 00 00 00 00 00
0e0: 10 a0 01 00 20 80 00 00 00 00 00 00 11 04 00 00
0f0: 00 00 11 00 00 00 00 00 00 00 00 00 00 00 00 00
100: 01 00 02 14 00 00 00 00 00 00 40 02 30 20 46 00
110: 00 00 00 00 00 c0 00 00 a0 00 00 00 00 00 00 00
140: 03 00 01 00 56 34 12 ff ff 00 54 52 00 00 00 00
";

/// i82559er.
const I82559ER: &str = "
000: 86 80 09 12 03 01 90 02 09 00 00 02 00 20 00 00
010: 08 00 80 fe 01 c0 00 00 00 00 20 fe 00 00 00 00
020: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 22 fe dc 00 00 00 00 00 00 00 0b 01 08 18
0d0: 00 00 00 00 00 00 00 00 00 00 00 00 01 00 21 7e
";

/// nvme.
const NVME: &str = "
000: 36 1b 10 00 03 01 10 00 02 02 08 01 00 00 00 00
010: 04 00 40 fe 00 00 00 00 00 00 00 00 00 00 00 00
020: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 00 00 40 00 00 00 00 00 00 00 0a 01 00 00
040: 11 80 40 00 00 20 00 00 00 30 00 00 00 00 00 00
060: 01 00 03 00 0b 00 00 00 00 00 00 00 00 00 00 00
080: 10 60 02 00 20 80 00 10 00 00 00 00 11 04 00 00
090: 00 00 11 00 00 00 00 00 00 00 00 00 00 00 00 00
0a0: 00 00 00 00 00 00 30 00 00 00 00 00 00 00 00 00
";

/// virtio-blk, the first of two functions.
const VIRTIO_BLOCK: &str = "
000: f4 1a 42 10 03 01 10 00 01 00 00 01 00 00 80 00
010: 00 00 00 00 00 00 84 fe 00 00 00 00 00 00 00 00
020: 0c 00 00 fd 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 00 00 dc 00 00 00 00 00 00 00 0a 01 00 00
040: 10 00 02 00 20 80 00 10 00 00 00 00 11 04 00 00
050: 00 00 11 00 00 00 00 00 00 00 00 00 00 00 00 00
060: 00 00 00 00 00 00 30 00 00 00 00 00 00 00 00 00
070: 00 00 00 00 00 00 00 00 00 00 00 00 01 40 03 00
080: 03 00 00 00 09 7c 10 01 04 00 00 00 00 00 00 00
090: 00 10 00 00 09 84 10 03 04 00 00 00 00 10 00 00
0a0: 00 10 00 00 09 94 10 04 04 00 00 00 00 20 00 00
0b0: 00 10 00 00 09 a4 14 02 04 00 00 00 00 30 00 00
0c0: 00 00 40 00 00 10 00 00 09 b4 14 05 00 00 00 00
0d0: 00 00 00 00 00 00 00 00 00 00 00 00 11 c8 02 00
0e0: 01 00 00 00 01 08 00 00 00 00 00 00 00 00 00 00
";

/// virtio-net.
const VIRTIO_NET: &str = "
000: f4 1a 41 10 03 01 10 00 01 00 00 02 00 00 00 00
010: 00 00 00 00 00 10 84 fe 00 00 00 00 00 00 00 00
020: 0c 00 80 fd 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 80 fe dc 00 00 00 00 00 00 00 0a 01 00 00
040: 10 00 02 00 20 80 00 10 00 00 00 00 11 04 00 00
050: 00 00 11 00 00 00 00 00 00 00 00 00 00 00 00 00
060: 00 00 00 00 00 00 30 00 00 00 00 00 00 00 00 00
070: 00 00 00 00 00 00 00 00 00 00 00 00 01 40 03 00
080: 03 00 00 00 09 7c 10 01 04 00 00 00 00 00 00 00
090: 00 10 00 00 09 84 10 03 04 00 00 00 00 10 00 00
0a0: 00 10 00 00 09 94 10 04 04 00 00 00 00 20 00 00
0b0: 00 10 00 00 09 a4 14 02 04 00 00 00 00 30 00 00
0c0: 00 10 00 00 04 00 00 00 09 b4 14 05 00 00 00 00
0d0: 00 00 00 00 00 00 00 00 00 00 00 00 11 c8 03 00
0e0: 01 00 00 00 01 08 00 00 00 00 00 00 00 00 00 00
";

/// virtio-net with two queue pairs and six vectors.
const VIRTIO_QUEUES: &str = "
000: f4 1a 41 10 03 01 10 00 01 00 00 02 00 00 00 00
010: 00 00 00 00 00 00 44 fe 00 00 00 00 00 00 00 00
020: 0c 00 80 fe 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 40 fe dc 00 00 00 00 00 00 00 0a 01 00 00
040: 10 00 02 00 20 80 00 10 00 00 00 00 11 04 00 00
050: 00 00 11 00 00 00 00 00 00 00 00 00 00 00 00 00
060: 00 00 00 00 00 00 30 00 00 00 00 00 00 00 00 00
070: 00 00 00 00 00 00 00 00 00 00 00 00 01 40 03 00
080: 03 00 00 00 09 7c 10 01 04 00 00 00 00 00 00 00
090: 00 10 00 00 09 84 10 03 04 00 00 00 00 10 00 00
0a0: 00 10 00 00 09 94 10 04 04 00 00 00 00 20 00 00
0b0: 00 10 00 00 09 a4 14 02 04 00 00 00 00 30 00 00
0c0: 00 10 00 00 04 00 00 00 09 b4 14 05 00 00 00 00
0d0: 00 00 00 00 00 00 00 00 00 00 00 00 11 c8 05 00
0e0: 01 00 00 00 01 08 00 00 00 00 00 00 00 00 00 00
";

/// virtio-rng.
const VIRTIO_ENTROPY: &str = "
000: f4 1a 44 10 03 01 10 00 01 00 ff 00 00 00 00 00
010: 00 00 00 00 00 00 40 fe 00 00 00 00 00 00 00 00
020: 0c 00 80 fe 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 00 00 dc 00 00 00 00 00 00 00 0a 01 00 00
040: 10 00 02 00 20 80 00 10 00 00 00 00 11 04 00 00
050: 00 00 11 00 00 00 00 00 00 00 00 00 00 00 00 00
060: 00 00 00 00 00 00 30 00 00 00 00 00 00 00 00 00
070: 00 00 00 00 00 00 00 00 00 00 00 00 01 40 03 00
080: 03 00 00 00 09 7c 10 01 04 00 00 00 00 00 00 00
090: 00 10 00 00 09 84 10 03 04 00 00 00 00 10 00 00
0a0: 00 10 00 00 09 94 10 04 04 00 00 00 00 20 00 00
0b0: 00 10 00 00 09 a4 14 02 04 00 00 00 00 30 00 00
0c0: 00 10 00 00 04 00 00 00 09 b4 14 05 00 00 00 00
0d0: 00 00 00 00 00 00 00 00 00 00 00 00 11 c8 01 00
0e0: 01 00 00 00 01 08 00 00 00 00 00 00 00 00 00 00
";

/// The rows of a recording, as bytes.
fn bytes(rows: &str, length: usize) -> Vec<u8> {
    let mut config = vec![0; length];
    for (offset, row) in rows.lines().filter_map(|row| row.split_once(": ")) {
        let offset = usize::from_str_radix(offset, 16).unwrap();
        let row: Vec<u8> = row.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        config[offset..offset + row.len()].copy_from_slice(&row);
    }
    config
}

/// A part's recording, and what it was in its device.
fn recording(part: Part) -> (&'static str, Role) {
    match part {
        Part::Edu => (EDU, Role::FirstOfSeveral),
        Part::Igb => (IGB, Role::Single),
        Part::E1000e => (E1000E, Role::Single),
        Part::I82559er => (I82559ER, Role::Single),
        Part::Nvme => (NVME, Role::Single),
        Part::VirtioBlock => (VIRTIO_BLOCK, Role::FirstOfSeveral),
        Part::VirtioNet => (VIRTIO_NET, Role::Single),
        Part::VirtioEntropy => (VIRTIO_ENTROPY, Role::Single),
        Part::VirtioQueues(_) => (VIRTIO_QUEUES, Role::Single),
    }
}

#[test]
fn every_part_shows_the_config_space_that_was_recorded() {
    for (part, reset) in PARTS {
        let (rows, role) = recording(part);
        let function = Function::new(part, reset, KernelVersion::Linux7_3, role).unwrap();
        let config = function.config();
        assert_eq!(config, bytes(rows, config.len()), "{part:?}");
    }
}

#[test]
fn opening_a_function_wakes_it_and_hides_power_management_events() {
    for (part, reset) in PARTS {
        let (rows, role) = recording(part);
        let mut opened = open_as(Function::new(part, reset, KernelVersion::Linux7_3, role).unwrap(), true);
        let length = opened.function.registers.length();
        let mut expected = bytes(rows, length);
        if let Some(start) = opened.function.registers.capability(capability_id::POWER_MANAGEMENT) {
            expected[start + 3] &= 0x07;
            expected[start + 4] &= !0b11;
        }
        assert_eq!(opened.read(CONFIG, 0, length).unwrap(), expected, "{part:?}");
    }
}
