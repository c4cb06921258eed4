// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::File;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::io::Errno;

use super::*;
use crate::frame::Header;
use crate::vfio_user::{IrqAction, IrqData, IrqSet};

const ACCESS: RegionAccess = RegionAccess { offset: 0x10, region: 7, count: 4 };

fn parse(command: Command, body: &[u8], descriptors: usize) -> Result<Request, RequestError> {
    let file = File::open("/dev/null").unwrap();
    let descriptors = (0..descriptors).map(|_| OwnedFd::from(file.try_clone().unwrap())).collect();
    let header = VfioUserHeader::command(1, command).with_body_size(body.len().try_into().unwrap());
    Request::parse(Frame { header, body: body.to_vec(), descriptors: Descriptors::Complete(descriptors) })
}

fn irq_set(flags: u32, start: u32, count: u32) -> Vec<u8> {
    IrqSet { argsz: 20, flags, index: 2, start, count }.as_bytes().to_vec()
}

fn set_irqs(body: &[u8], descriptors: usize) -> Result<SetIrqs, RequestError> {
    parse(Command::DEVICE_SET_IRQS, body, descriptors).map(|request| match request {
        Request::SetIrqs(change) => change,
        other => panic!("not what was sent: {other:?}"),
    })
}

fn field_of<T: std::fmt::Debug>(outcome: Result<T, RequestError>) -> &'static str {
    match outcome {
        Err(RequestError::Field { field, .. }) => field,
        other => panic!("not refused for a field: {other:?}"),
    }
}

#[test]
fn commands_that_the_server_does_not_have_are_unsupported() {
    for number in [0, 11, 12, 14, 17, 18, 19, u16::MAX] {
        let command = Command(number);
        let error = parse(command, &[0; 32], 0).unwrap_err();
        assert_eq!(error, RequestError::Unsupported { command });
        assert_eq!(error.errno(), Errno::NOTSUP);
    }
}

#[test]
fn every_command_must_have_its_size() {
    for (command, size) in [
        (Command::DEVICE_GET_INFO, 16),
        (Command::DEVICE_GET_REGION_INFO, 32),
        (Command::DEVICE_GET_REGION_IO_FDS, 16),
        (Command::DEVICE_GET_IRQ_INFO, 16),
        (Command::DEVICE_SET_IRQS, 20),
        (Command::REGION_READ, 16),
        (Command::DEVICE_RESET, 0),
    ] {
        for wrong in [size - 1_isize, size + 1, size + 48] {
            let Ok(wrong) = usize::try_from(wrong) else { continue };
            // As SET_IRQS a good one, so that nothing but its size is wrong.
            let body = [irq_set(0x21, 0, 1).as_slice(), &[0; 128]].concat();
            let outcome = parse(command, &body[..wrong], 0);
            assert!(matches!(outcome, Err(RequestError::Size { .. })), "{command} of {wrong}: {outcome:?}");
        }
    }
}

#[test]
fn only_interrupts_come_with_descriptors() {
    for (command, body) in [
        (Command::DEVICE_GET_INFO, [16_u32, 0, 0, 0].as_bytes()),
        (Command::REGION_READ, ACCESS.as_bytes()),
        (Command::DEVICE_RESET, &[]),
    ] {
        assert!(parse(command, body, 0).is_ok());
        assert_eq!(parse(command, body, 1).unwrap_err(), RequestError::Descriptors { command, actual: 1 });
    }
}

#[test]
fn lost_descriptors_refuse_any_command() {
    let header = VfioUserHeader::command(1, Command::DEVICE_RESET);
    let outcome = Request::parse(Frame { header, body: vec![], descriptors: Descriptors::Truncated });
    assert_eq!(outcome.unwrap_err().errno(), Errno::TOOBIG);
}

#[test]
fn device_info_is_given_to_whoever_has_room_for_it() {
    for (argsz, good) in [(0, false), (15, false), (16, true), (24, true), (32, true)] {
        assert_eq!(
            parse(Command::DEVICE_GET_INFO, [argsz, 0, 0, 0].as_bytes(), 0).is_ok(),
            good,
            "{argsz} bytes"
        );
    }
}

#[test]
fn a_region_is_described_as_far_as_the_client_has_room() {
    let body = RegionInfo { argsz: 64, flags: 0, index: 7, cap_offset: 0, size: 0, offset: 0 };
    let request = parse(Command::DEVICE_GET_REGION_INFO, body.as_bytes(), 0).unwrap();
    assert!(matches!(request, Request::GetRegionInfo { index: 7, argsz: 64 }));
    let body = RegionInfo { argsz: 31, ..body };
    assert_eq!(field_of(parse(Command::DEVICE_GET_REGION_INFO, body.as_bytes(), 0)), "argsz");
}

#[test]
fn descriptors_of_a_region_are_asked_for_with_nothing_else() {
    let info = |argsz, flags, count| {
        parse(Command::DEVICE_GET_REGION_IO_FDS, [argsz, flags, 2, count].as_bytes(), 0)
    };
    assert!(matches!(info(16, 0, 0), Ok(Request::GetRegionIoFds { index: 2 })));
    assert_eq!(field_of(info(15, 0, 0)), "argsz");
    assert_eq!(field_of(info(16, 1, 0)), "flags");
    assert_eq!(field_of(info(16, 0, 1)), "count");
}

#[test]
fn a_write_carries_its_data() {
    let body = [ACCESS.as_bytes(), &[1, 2, 3, 4]].concat();
    let Request::RegionWrite { access, data } = parse(Command::REGION_WRITE, &body, 0).unwrap() else {
        panic!("not a write");
    };
    assert_eq!((access, data.as_slice()), (ACCESS, [1, 2, 3, 4].as_slice()));
}

#[test]
fn a_write_of_another_size_than_it_says_is_refused() {
    for size in [0, 3, 5] {
        let body = [ACCESS.as_bytes(), &vec![0; size]].concat();
        let outcome = parse(Command::REGION_WRITE, &body, 0);
        assert!(matches!(outcome, Err(RequestError::Size { expected: 20, .. })), "{outcome:?}");
    }
}

#[test]
fn an_access_has_between_one_byte_and_one_mebibyte() {
    for (count, good) in [(0, false), (1, true), (1 << 20, true), ((1 << 20) + 1, false), (u32::MAX, false)] {
        let body = RegionAccess { count, ..ACCESS };
        assert_eq!(parse(Command::REGION_READ, body.as_bytes(), 0).is_ok(), good, "{count} bytes");
    }
}

#[test]
fn an_access_does_not_wrap_around() {
    for (offset, good) in [(u64::MAX - 4, true), (u64::MAX - 3, false), (u64::MAX, false)] {
        let body = RegionAccess { offset, ..ACCESS };
        assert_eq!(parse(Command::REGION_READ, body.as_bytes(), 0).is_ok(), good, "at {offset:#x}");
    }
}

#[test]
fn interrupts_get_one_eventfd_each() {
    let change = set_irqs(&irq_set(0x24, 1, 3), 3).unwrap();
    assert_eq!((change.index, change.start, change.count), (2, 1, 3));
    assert_eq!(change.action, IrqAction::Trigger);
    assert!(matches!(change.data, IrqData::Eventfds(eventfds) if eventfds.len() == 3));
}

#[test]
fn interrupts_without_eventfds_lose_theirs() {
    let change = set_irqs(&irq_set(0x24, 1, 3), 0).unwrap();
    assert!(matches!(change.data, IrqData::Eventfds(eventfds) if eventfds.is_empty()));
}

#[test]
fn too_few_or_too_many_eventfds_are_refused() {
    for count in [1, 2, 4] {
        let outcome = set_irqs(&irq_set(0x24, 1, 3), count);
        assert!(matches!(outcome, Err(RequestError::Descriptors { .. })), "{count}: {outcome:?}");
    }
    assert!(matches!(set_irqs(&irq_set(0x21, 0, 1), 1), Err(RequestError::Descriptors { .. })));
}

#[test]
fn a_trigger_of_no_interrupts_disables_the_index() {
    let change = set_irqs(&irq_set(0x21, 0, 0), 0).unwrap();
    assert!(matches!(change, SetIrqs { count: 0, action: IrqAction::Trigger, data: IrqData::None, .. }));
}

#[test]
fn data_for_no_interrupts_is_refused() {
    for flags in [0x22, 0x24] {
        assert_eq!(field_of(set_irqs(&irq_set(flags, 0, 0), 0)), "count");
    }
}

#[test]
fn there_is_one_boolean_for_each_interrupt() {
    let body = [irq_set(0x0a, 0, 3).as_slice(), &[0, 1, 0xff]].concat();
    let change = set_irqs(&body, 0).unwrap();
    assert_eq!(change.action, IrqAction::Mask);
    assert!(matches!(change.data, IrqData::Bools(bools) if bools == [false, true, true]));
    assert!(matches!(set_irqs(&body[..22], 0), Err(RequestError::Size { expected: 23, .. })));
}

#[test]
fn a_change_has_exactly_one_kind_of_data_and_one_action() {
    for flags in [0x00, 0x01, 0x20, 0x23, 0x26, 0x31, 0x61, 0x8000_0021] {
        assert_eq!(field_of(set_irqs(&irq_set(flags, 0, 1), 0)), "flags", "{flags:#x}");
    }
}

#[test]
fn interrupts_beyond_an_msix_table_are_refused() {
    for (start, count, good) in [
        (0, 2048, true),
        (2047, 1, true),
        (0, 2049, false),
        (2048, 1, false),
        (u32::MAX, 1, false),
        (1, u32::MAX, false),
    ] {
        assert_eq!(set_irqs(&irq_set(0x21, start, count), 0).is_ok(), good, "{count} from {start}");
    }
}

proptest! {
    #[test]
    fn no_command_makes_the_parser_panic(
        number in 0..20_u16,
        body in prop::collection::vec(any::<u8>(), 0..64),
        descriptors in 0..=16_usize,
    ) {
        if let Err(error) = parse(Command(number), &body, descriptors) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_header_makes_the_receiver_panic(header in any::<[u8; 16]>()) {
        let header = VfioUserHeader::read_from_bytes(&header).unwrap();
        for receiver in [crate::Endpoint::Server, crate::Endpoint::Client] {
            if let Ok(size) = header.body_size(receiver) {
                prop_assert!(size <= VfioUserHeader::MAX_BODY);
            }
        }
    }

    #[test]
    fn booleans_survive_the_wire(start in 0..1000_u32, bools in prop::collection::vec(any::<bool>(), 1..1000)) {
        let count = bools.len().try_into().unwrap();
        let sent = SetIrqs { index: 2, start, count, action: IrqAction::Unmask, data: IrqData::Bools(bools.clone()) };
        let change = set_irqs(&sent.encode(), 0).unwrap();
        prop_assert_eq!((change.index, change.start, change.count, change.action), (2, start, count, sent.action));
        prop_assert!(matches!(change.data, IrqData::Bools(received) if received == bools));
    }
}
