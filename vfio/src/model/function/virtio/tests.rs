// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::OwnedFd;

use crate::irq::IrqIndex;
use crate::model::function::Reset;
use crate::model::function::fixture::{CONFIG, MEMORY, Opened, count, interrupt, open};
use crate::model::function::registers::header;
use crate::model::topology::{ControlQueue, Part};

const BAR: u64 = 4;
const STATUS: u64 = 0x14;
const INDIRECT: u32 = 1 << 28;
const EVENT_INDEX: u32 = 1 << 29;
const MERGEABLE: u32 = 1 << 15;
const QUEUE_PAIRS: u32 = 1 << 22;
const QUEUES: Part = Part::VirtioQueues(ControlQueue::Answers);
const QUEUE_COUNT: u64 = 0x12;
/// The upper half of the features: version 1 and platform access.
const MODERN: u32 = 3;
/// In guest memory: rings of 4 KiB each, then buffers.
const BUFFERS: u64 = MEMORY + 0x6000;

/// A driver's side of a queue.
struct Queue {
    number: u64,
    size: u16,
    available: u16,
    used: u16,
}

/// A descriptor: address, length, and whether the device writes there.
type Piece = (u64, u32, bool);

impl Queue {
    fn base(&self) -> u64 {
        MEMORY + 0x1000 * self.number
    }

    /// Sets a queue up and enables it. Vectors are numbered as queues are, from 1.
    fn new(device: &mut Opened, number: u64, size: u16) -> Self {
        let queue = Self { number, size, available: 0, used: 0 };
        device.put(queue.base(), &[0; 0x1000]);
        let number = u16::try_from(number).unwrap();
        device.set_half(BAR, 0x16, number);
        device.set_half(BAR, 0x18, size);
        device.set_half(BAR, 0x1a, number + 1);
        for (register, area) in [(0x20, 0), (0x28, 0x400), (0x30, 0x800)] {
            device.write(BAR, register, &(queue.base() + area).to_le_bytes()).unwrap();
        }
        device.set_half(BAR, 0x1c, 1);
        queue
    }

    /// Writes descriptors that follow each other.
    fn describe(device: &Opened, table: u64, pieces: &[Piece]) {
        for (index, (address, length, is_written)) in pieces.iter().enumerate() {
            let is_last = index + 1 == pieces.len();
            let flags = u16::from(!is_last) | (u16::from(*is_written) << 1);
            put_descriptor(device, table, index, *address, *length, flags);
        }
    }

    /// Makes the chain at `head` available and rings the doorbell.
    fn offer(&mut self, device: &mut Opened, head: u16) {
        device.put(self.base() + 0x404 + 2 * u64::from(self.available % self.size), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        device.put(self.base() + 0x402, &self.available.to_le_bytes());
        let number = u16::try_from(self.number).unwrap();
        device.set_half(BAR, 0x3000 + 4 * self.number, number);
    }

    /// What came back since this was asked last: heads, and how much was written.
    fn take(&mut self, device: &Opened) -> Vec<(u32, u32)> {
        let end = u16::from_le_bytes(device.get(self.base() + 0x802, 2).try_into().unwrap());
        let mut entries = Vec::new();
        while self.used != end {
            let entry = device.get(self.base() + 0x804 + 8 * u64::from(self.used % self.size), 8);
            let [head, length] =
                [&entry[..4], &entry[4..]].map(|word| u32::from_le_bytes(word.try_into().unwrap()));
            entries.push((head, length));
            self.used = self.used.wrapping_add(1);
        }
        entries
    }

    /// Sends one request of a block device. Its status.
    fn request(&mut self, device: &mut Opened, kind: u32, sector: u64, data: &[Piece]) -> u8 {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        device.put(BUFFERS, &header);
        device.put(BUFFERS + 16, &[0xee]);
        let mut pieces = vec![(BUFFERS, 16, false)];
        pieces.extend(data);
        pieces.push((BUFFERS + 16, 1, true));
        Self::describe(device, self.base(), &pieces);
        self.offer(device, 0);
        device.get(BUFFERS + 16, 1)[0]
    }
}

fn put_descriptor(device: &Opened, table: u64, index: usize, address: u64, length: u32, flags: u16) {
    let next = u16::try_from(index + 1).unwrap();
    let mut descriptor = address.to_le_bytes().to_vec();
    descriptor.extend(length.to_le_bytes());
    descriptor.extend(flags.to_le_bytes());
    descriptor.extend(next.to_le_bytes());
    device.put(table + 16 * index as u64, &descriptor);
}

fn status(device: &mut Opened) -> u8 {
    device.read(BAR, STATUS, 1).unwrap()[0]
}

fn set_status(device: &mut Opened, status: u8) {
    device.write(BAR, STATUS, &[status]).unwrap();
}

/// Agrees on features, all of the upper half's being [`MODERN`].
fn negotiate(device: &mut Opened, features: u32) {
    set_status(device, 0);
    set_status(device, 3);
    for (half, value) in [(0, features), (1, MODERN)] {
        device.set_word(BAR, 0x08, half);
        device.set_word(BAR, 0x0c, value);
    }
    set_status(device, 0xb);
    assert_eq!(status(device), 0xb);
}

/// A device that is driven, its queues with an eventfd each.
fn driven<const N: usize>(part: Part, features: u32) -> (Opened, [Queue; N], [OwnedFd; N]) {
    let mut device = open(part);
    negotiate(&mut device, features);
    let eventfds = [(); N].map(|()| interrupt());
    device.arm(IrqIndex::Msix, 1, &eventfds.each_ref().map(Some)).unwrap();
    let mut number = 0;
    let queues = [(); N].map(|()| {
        number += 1;
        Queue::new(&mut device, number - 1, 16)
    });
    set_status(&mut device, 0xf);
    (device, queues, eventfds)
}

#[test]
fn version_1_is_not_agreed_on_without_platform_access() {
    let mut device = open(Part::VirtioBlock);
    set_status(&mut device, 3);
    device.set_word(BAR, 0x08, 1);
    device.set_word(BAR, 0x0c, 1);
    set_status(&mut device, 0xb);
    assert_eq!(status(&mut device), 3);
    device.set_word(BAR, 0x0c, MODERN);
    set_status(&mut device, 0xb);
    assert_eq!(status(&mut device), 0xb);
}

#[test]
fn features_are_offered_in_halves() {
    let features = |part: Part| {
        let mut device = open(part);
        [0, 1, 2].map(|half| {
            device.set_word(BAR, 0x00, half);
            device.word(BAR, 0x04)
        })
    };
    assert_eq!(features(Part::VirtioBlock), [0x3000_7e54, 0x103, 0]);
    assert_eq!(features(Part::VirtioNet), [0x30bf_8024, 0x103, 0]);
    assert_eq!(features(Part::VirtioEntropy), [0x3000_0000, 0x103, 0]);
    assert_eq!(features(QUEUES), [0x30ff_8024, 0x103, 0]);
}

#[test]
fn a_queue_has_the_size_that_the_driver_wants_if_that_is_possible() {
    let mut device = open(Part::VirtioBlock);
    for (wanted, size) in [(64, 64), (0, 64), (512, 64), (256, 256)] {
        device.set_half(BAR, 0x18, wanted);
        assert_eq!(device.half(BAR, 0x18), size);
    }
    device.set_half(BAR, 0x16, 2);
    assert_eq!(device.half(BAR, 0x18), 0);
}

#[test]
fn a_vector_that_does_not_exist_cannot_be_chosen() {
    let mut device = open(Part::VirtioBlock);
    for (wanted, vector) in [(2, 2), (3, 0xffff)] {
        device.set_half(BAR, 0x1a, wanted);
        assert_eq!(device.half(BAR, 0x1a), vector);
    }
}

#[test]
fn what_was_written_is_read_again() {
    let (mut device, [mut queue], [eventfd]) = driven(Part::VirtioBlock, 0);
    device.put(BUFFERS + 0x1000, &[0x5a; 512]);
    device.put(BUFFERS + 0x1200, &[0xa5; 512]);
    assert_eq!(queue.request(&mut device, 1, 3, &[(BUFFERS + 0x1000, 1024, false)]), 0);
    assert_eq!((queue.take(&device), count(&eventfd)), (vec![(0, 1)], 1));
    let pieces = [(BUFFERS + 0x2000, 100, true), (BUFFERS + 0x2064, 412, true)];
    assert_eq!(queue.request(&mut device, 0, 4, &pieces), 0);
    assert_eq!((queue.take(&device), count(&eventfd)), (vec![(0, 513)], 1));
    assert_eq!(device.get(BUFFERS + 0x2000, 512), [0xa5; 512]);
}

#[test]
fn a_disk_survives_resets_and_forgets_what_was_discarded() {
    let (mut device, [mut queue], _) = driven(Part::VirtioBlock, 0);
    let data = BUFFERS + 0x1000;
    device.put(data, &[0x5a; 1024]);
    assert_eq!(queue.request(&mut device, 1, 0, &[(data, 1024, false)]), 0);
    device.function.reset(Reset::Bus);
    negotiate(&mut device, 0);
    let mut queue = Queue::new(&mut device, 0, 16);
    set_status(&mut device, 0xf);
    device.put(data, &[0_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat());
    assert_eq!(queue.request(&mut device, 11, 0, &[(data, 16, false)]), 0);
    assert_eq!(queue.request(&mut device, 0, 0, &[(data, 1024, true)]), 0);
    assert_eq!([device.get(data, 512), device.get(data + 512, 512)], [vec![0; 512], vec![0x5a; 512]]);
}

#[test]
fn a_request_that_cannot_be_served_says_so() {
    let (mut device, [mut queue], _) = driven(Part::VirtioBlock, 0);
    let data = BUFFERS + 0x1000;
    assert_eq!(queue.request(&mut device, 0, 0x2_0000, &[(data, 512, true)]), 1);
    assert_eq!(queue.request(&mut device, 0, u64::MAX, &[(data, 512, true)]), 1);
    assert_eq!(queue.request(&mut device, 0, 0, &[(data, 100, true)]), 1);
    assert_eq!(queue.request(&mut device, 77, 0, &[]), 2);
    assert_eq!(queue.request(&mut device, 4, 0, &[]), 0);
    assert_eq!(queue.request(&mut device, 0, 0x1_ffff, &[(data, 512, true)]), 0);
}

#[test]
fn a_chain_may_be_in_a_table_of_its_own() {
    let (mut device, [mut queue], _) = driven(Part::VirtioBlock, INDIRECT);
    let table = BUFFERS + 0x1000;
    device.put(BUFFERS, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let pieces = [(BUFFERS, 16, false), (BUFFERS + 0x100, 20, true), (BUFFERS + 16, 1, true)];
    Queue::describe(&device, table, &pieces);
    put_descriptor(&device, queue.base(), 5, table, 48, 4);
    queue.offer(&mut device, 5);
    assert_eq!(queue.take(&device), [(5, 21)]);
}

#[test]
fn a_driver_is_interrupted_when_it_wants_to_be() {
    let (mut device, [mut queue], [eventfd]) = driven(Part::VirtioBlock, 0);
    device.put(queue.base() + 0x400, &[1, 0]);
    queue.request(&mut device, 4, 0, &[]);
    assert_eq!(count(&eventfd), 0);
    let (mut device, [mut queue], [eventfd]) = driven(Part::VirtioBlock, EVENT_INDEX);
    // After the second one from now.
    device.put(queue.base() + 0x404 + 2 * 16, &1_u16.to_le_bytes());
    queue.request(&mut device, 4, 0, &[]);
    assert_eq!(count(&eventfd), 0);
    queue.request(&mut device, 4, 0, &[]);
    assert_eq!(count(&eventfd), 1);
    let announced = device.get(queue.base() + 0x804 + 8 * 16, 2);
    assert_eq!(announced, 2_u16.to_le_bytes());
}

#[test]
fn a_message_waits_for_someone_to_listen() {
    let (mut device, [mut queue], [eventfd]) = driven(Part::VirtioBlock, 0);
    device.arm(IrqIndex::Msix, 1, &[None]).unwrap();
    queue.request(&mut device, 4, 0, &[]);
    assert_eq!(count(&eventfd), 0);
    device.arm(IrqIndex::Msix, 1, &[Some(&eventfd)]).unwrap();
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn without_messages_the_line_is_raised_until_its_cause_is_read() {
    let (mut device, [mut queue], _) = driven(Part::VirtioBlock, 0);
    device.act(IrqIndex::Msix, crate::irq::IrqAction::Trigger, 0, 0).unwrap();
    queue.request(&mut device, 4, 0, &[]);
    assert_eq!(device.half(CONFIG, 6) & header::STATUS_INTERRUPT, header::STATUS_INTERRUPT);
    assert_eq!(device.read(BAR, 0x1000, 1).unwrap(), [1]);
    assert_eq!(device.half(CONFIG, 6) & header::STATUS_INTERRUPT, 0);
    assert_eq!(device.read(BAR, 0x1000, 1).unwrap(), [0]);
}

#[test]
fn a_broken_ring_stops_the_device_until_it_is_reset() {
    const NEXT: u64 = 14;
    let breaks: [fn(&mut Opened, &mut Queue); 5] = [
        // A descriptor that does not exist.
        |device, queue| {
            put_descriptor(device, queue.base(), 0, BUFFERS, 16, 1);
            device.put(queue.base() + NEXT, &99_u16.to_le_bytes());
        },
        // A circle.
        |device, queue| {
            put_descriptor(device, queue.base(), 0, BUFFERS, 16, 1);
            device.put(queue.base() + NEXT, &0_u16.to_le_bytes());
        },
        // Memory that is not there.
        |device, queue| {
            Queue::describe(device, queue.base(), &[(0x7000_0000, 16, false), (BUFFERS, 1, true)]);
        },
        // No room for a status.
        |device, queue| Queue::describe(device, queue.base(), &[(BUFFERS, 16, false)]),
        // More than the queue has room for.
        |_, queue| queue.available = 100,
    ];
    for (number, make_broken) in breaks.into_iter().enumerate() {
        let (mut device, [mut queue], _) = driven(Part::VirtioBlock, 0);
        make_broken(&mut device, &mut queue);
        queue.offer(&mut device, 0);
        assert_eq!(status(&mut device), 0x4f, "{number}");
        set_status(&mut device, 0);
        assert_eq!(status(&mut device), 0);
    }
}

#[test]
fn a_function_that_is_no_bus_master_has_no_driver() {
    let (mut device, _, _) = driven::<1>(Part::VirtioBlock, 0);
    device.set_command(header::COMMAND_MEMORY);
    assert_eq!(status(&mut device), 0xb);
}

#[test]
fn every_reset_is_a_new_beginning() {
    for number in 0..3 {
        let (mut device, _, _) = driven::<1>(Part::VirtioBlock, 0);
        match number {
            0 => set_status(&mut device, 0),
            1 => device.function.reset(Reset::Function),
            _ => device.function.reset(Reset::Bus),
        }
        assert_eq!(status(&mut device), 0);
        assert_eq!([0x18, 0x1a, 0x1c].map(|register| device.half(BAR, register)), [256, 0xffff, 0]);
    }
}

#[test]
fn one_queue_can_be_reset_alone() {
    let (mut device, _, _) = driven::<2>(Part::VirtioBlock, 0);
    device.set_half(BAR, 0x16, 1);
    device.set_half(BAR, 0x3a, 1);
    assert_eq!([0x18, 0x1c, 0x3a].map(|register| device.half(BAR, register)), [256, 0, 0]);
    device.set_half(BAR, 0x16, 0);
    assert_eq!([0x18, 0x1c].map(|register| device.half(BAR, register)), [16, 1]);
}

#[test]
fn the_bars_are_reached_through_the_config_space() {
    let mut device = open(Part::VirtioNet);
    let window = 0xc8;
    device.set_word(CONFIG, window + 8, 0x2000);
    device.set_word(CONFIG, window + 12, 4);
    assert_eq!(device.word(CONFIG, window + 16), 0x1200_5452);
    device.set_word(CONFIG, window + 8, 0x14);
    device.set_word(CONFIG, window + 12, 1);
    device.write(CONFIG, window + 16, &[1]).unwrap();
    assert_eq!(status(&mut device), 1);
}

#[test]
fn what_is_sent_is_received() {
    let (mut device, [mut receive, mut send], eventfds) = driven(Part::VirtioNet, 0);
    let frame = b"a frame that comes back";
    Queue::describe(&device, receive.base(), &[(BUFFERS + 0x1000, 12, true), (BUFFERS + 0x100c, 1500, true)]);
    receive.offer(&mut device, 0);
    device.put(BUFFERS, &[0; 12]);
    device.put(BUFFERS + 12, frame);
    Queue::describe(&device, send.base(), &[(BUFFERS, 35, false)]);
    send.offer(&mut device, 0);
    assert_eq!((send.take(&device), receive.take(&device)), (vec![(0, 0)], vec![(0, 35)]));
    assert_eq!(device.get(BUFFERS + 0x1000, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(device.get(BUFFERS + 0x100c, frame.len()), frame);
    assert_eq!(eventfds.each_ref().map(count), [1, 1]);
}

#[test]
fn a_long_frame_is_spread_over_buffers_or_lost() {
    for (features, expected) in [(MERGEABLE, vec![(0, 1000), (1, 12)]), (0, vec![])] {
        let (mut device, [mut receive, mut send], _) = driven(Part::VirtioNet, features);
        for head in 0..3 {
            put_descriptor(&device, receive.base(), head, BUFFERS + 0x1000 * (head as u64 + 1), 1000, 2);
            receive.offer(&mut device, u16::try_from(head).unwrap());
        }
        Queue::describe(&device, send.base(), &[(BUFFERS, 1012, false)]);
        send.offer(&mut device, 0);
        assert_eq!(receive.take(&device), expected);
        assert_eq!(send.take(&device), [(0, 0)]);
    }
}

#[test]
fn commands_of_a_kind_that_exists_are_acknowledged() {
    let (mut device, [_, _, mut control], _) = driven(Part::VirtioNet, 0);
    for (class, acknowledgement) in [(0, 0), (1, 0), (4, 1), (9, 1)] {
        device.put(BUFFERS, &[class, 0, 1]);
        Queue::describe(&device, control.base(), &[(BUFFERS, 3, false), (BUFFERS + 0x100, 1, true)]);
        control.offer(&mut device, 0);
        assert_eq!(device.get(BUFFERS + 0x100, 1), [acknowledgement]);
    }
}

#[test]
fn queues_are_those_that_the_driver_has_agreed_to_and_stay() {
    let mut device = open(QUEUES);
    assert_eq!(device.half(BAR, 0x2008), 2, "pairs");
    assert_eq!(device.half(BAR, QUEUE_COUNT), 3);
    negotiate(&mut device, QUEUE_PAIRS);
    assert_eq!(device.half(BAR, QUEUE_COUNT), 5);
    set_status(&mut device, 0);
    assert_eq!(device.half(BAR, QUEUE_COUNT), 5);
    negotiate(&mut device, 0);
    assert_eq!(device.half(BAR, QUEUE_COUNT), 3);
}

/// Sends a frame by one queue and gives the other of the pair a buffer for it.
fn send_by_second_pair(device: &mut Opened, queues: &mut [Queue; 5]) {
    let [_, _, receive, send, _] = queues;
    Queue::describe(device, receive.base(), &[(BUFFERS + 0x1000, 100, true)]);
    receive.offer(device, 0);
    Queue::describe(device, send.base(), &[(BUFFERS, 20, false)]);
    send.offer(device, 0);
}

/// Has so many pairs used. What the command is answered with.
fn set_pairs(device: &mut Opened, control: &mut Queue, pairs: u8) -> u8 {
    device.put(BUFFERS + 0x100, &[4, 0, pairs, 0, 0xff]);
    let [class, argument, answer] = [BUFFERS + 0x100, BUFFERS + 0x102, BUFFERS + 0x104];
    Queue::describe(device, control.base(), &[(class, 2, false), (argument, 2, false), (answer, 1, true)]);
    control.offer(device, 0);
    device.get(answer, 1)[0]
}

#[test]
fn a_pair_is_served_from_when_on_it_is_in_use() {
    let (mut device, mut queues, _) = driven::<5>(QUEUES, QUEUE_PAIRS);
    send_by_second_pair(&mut device, &mut queues);
    assert_eq!((queues[3].take(&device), queues[2].take(&device)), (vec![], vec![]));
    assert_eq!(set_pairs(&mut device, &mut queues[4], 2), 0);
    assert_eq!((queues[3].take(&device), queues[2].take(&device)), (vec![(0, 0)], vec![(0, 20)]));
    assert_eq!(set_pairs(&mut device, &mut queues[4], 1), 0);
    send_by_second_pair(&mut device, &mut queues);
    assert_eq!((queues[3].take(&device), queues[2].take(&device)), (vec![], vec![]));
}

#[test]
fn a_device_that_was_reset_uses_one_pair() {
    let (mut device, mut queues, _) = driven::<5>(QUEUES, QUEUE_PAIRS);
    assert_eq!(set_pairs(&mut device, &mut queues[4], 2), 0);
    negotiate(&mut device, QUEUE_PAIRS);
    let mut number = 0;
    let mut queues = [(); 5].map(|()| {
        number += 1;
        Queue::new(&mut device, number - 1, 16)
    });
    set_status(&mut device, 0xf);
    send_by_second_pair(&mut device, &mut queues);
    assert!(queues[3].take(&device).is_empty());
}

#[test]
fn only_as_many_pairs_as_there_are_can_be_used() {
    let (mut device, [.., mut control], _) = driven::<5>(QUEUES, QUEUE_PAIRS);
    assert_eq!([0, 1, 2, 3].map(|pairs| set_pairs(&mut device, &mut control, pairs)), [1, 0, 0, 1]);
    let (mut device, [.., mut control], _) = driven::<3>(QUEUES, 0);
    assert_eq!(set_pairs(&mut device, &mut control, 2), 1, "nobody has agreed to several");
}

#[test]
fn a_broken_device_refuses_commands_or_leaves_them() {
    for (kind, answer, answers) in [(ControlQueue::Refuses, 1, 1), (ControlQueue::Silent, 0xff, 0)] {
        let (mut device, [.., mut control], _) = driven::<5>(Part::VirtioQueues(kind), QUEUE_PAIRS);
        assert_eq!(set_pairs(&mut device, &mut control, 2), answer);
        assert_eq!(control.take(&device).len(), answers);
    }
}

#[test]
fn a_buffer_is_filled_with_random_bytes() {
    let (mut device, [mut queue], [eventfd]) = driven(Part::VirtioEntropy, 0);
    let mut fetch = || {
        Queue::describe(&device, queue.base(), &[(BUFFERS, 40, true), (BUFFERS + 0x1000, 24, true)]);
        queue.offer(&mut device, 0);
        assert_eq!((queue.take(&device), count(&eventfd)), (vec![(0, 64)], 1));
        [device.get(BUFFERS, 40), device.get(BUFFERS + 0x1000, 24)]
    };
    let (first, second) = (fetch(), fetch());
    assert!(first[0] != second[0] && first[1] != second[1], "{first:?} {second:?}");
}

#[test]
fn an_entropy_device_has_one_ring_and_no_configuration() {
    let mut device = open(Part::VirtioEntropy);
    assert_eq!([0x12, 0x18].map(|register| device.half(BAR, register)), [1, 8]);
    assert_eq!(device.word(BAR, 0x2000), u32::MAX);
}
