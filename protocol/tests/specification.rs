// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compares the tables of `docs/protocol.md` with the code, both ways: what only one of them has is a failure.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::mem::offset_of;

use protocol::extension::{
    AbortReason, AbortRequest, AddDeviceRequest, AffectedDevice, AffectedState, Cookie, CookieRequest,
    CoordinateRequest, CoordinationRequestHeader, DeviceFlags, DeviceInfo, DoneRequest, EventKinds, Face,
    GrantRequest, GroupEvent, GroupReason, LastFailureReply, ListDevicesReply, MemberAnswer, Ownership,
    PciAddress, PrepareRequest, ReplyStatus, ResetAnswer, ResetEventHeader, ResetGroupReply,
    ResetGroupRequest, ResetGroupRow, ResetMethod, ResetOutcome, ResetPolicy, ResetReply, ResetRequest,
    ResetStage, RowFlags, RowReason, ServeRequest, SetIommufdReply, SetIommufdRequest, SubscribeRequest,
    VersionReply, VersionRequest,
};
use protocol::features::ProtocolFeatures;
use protocol::vfio_user::{
    Command, DeviceFeature, DeviceInfo as VfioDeviceInfo, DmaMapPayload, DmaUnmapPayload, IrqInfo, IrqSet,
    RegionAccess, RegionInfo, RegionIoFds, RegionWrite, ResetGroupWish, SparseMmap, SparseMmapArea,
    VersionPayload, VfioUserHeader,
};
use protocol::vhost_user::{
    ConfigAccess, DeviceRequest, MemoryRegion, MemoryTableHeader, SingleMemoryRegion, VringAddress,
    VringArea, VringState,
};
use protocol::{
    ControlRequest, Descriptors, Frame, ReceiveError, RequestError, RequestNumber, VhostUserHeader,
};

const SPECIFICATION: &str = include_str!("../../docs/protocol.md");

/// A field: its name, its offset and its size in bytes.
type Field = (String, usize, usize);

/// Size in bytes of what a field accessor leads to.
fn size_behind<Structure, Type>(_: fn(&Structure) -> &Type) -> usize {
    size_of::<Type>()
}

/// Name, size and fields of each structure. That the pattern names every field is checked by the compiler.
macro_rules! structures {
    ($($name:ident { $($field:ident),* })*) => {
        BTreeMap::from([$({
            let _ = |$name { $($field: _),* }: $name| {};
            let fields = vec![$((
                stringify!($field).to_owned(),
                offset_of!($name, $field),
                size_behind::<$name, _>(|structure| &structure.$field),
            )),*];
            (stringify!($name).to_owned(), (size_of::<$name>(), fields))
        }),*])
    };
}

fn structures_of_the_code() -> BTreeMap<String, (usize, Vec<Field>)> {
    structures! {
        VhostUserHeader { request, flags, size }
        ReplyStatus { errno, reserved }
        MemoryTableHeader { count, reserved }
        MemoryRegion { guest_address, size, user_address, offset }
        SingleMemoryRegion { reserved, region }
        VersionRequest { major, minor, flags }
        VersionReply { major, minor, max_payload, max_descriptors, max_devices, max_memory_slots, reserved }
        SetIommufdRequest { flags, ioas }
        SetIommufdReply { kernel_features }
        AddDeviceRequest { cookie, flags, reserved }
        CookieRequest { cookie }
        PciAddress { segment, bus, devfn }
        DeviceInfo {
            cookie, address, vendor, device, class, iommu_group, flags, regions, irqs, reserved, vfio_device, driver
        }
        ServeRequest { cookie, face, flags }
        ResetGroupRequest { cookie, first_row, max_rows }
        ResetGroupReply { generation, available, reason, total_rows, rows }
        ResetGroupRow {
            address, ownership, cookie, flags, iommu_group, reason, header_type, vfio_device, driver
        }
        ResetRequest { cookie, method, policy, deadline_ms, reserved }
        ResetReply { epoch, duration_us, method, outcome, attempts, affected }
        LastFailureReply { errno, request }
        ListDevicesReply { count, reserved }
        SubscribeRequest { events, poll_ms }
        CoordinateRequest { name }
        PrepareRequest { coordination, target, policy, tries_ms, patience_ms, count, reserved }
        GrantRequest { coordination }
        DoneRequest { coordination, request, outcome, attempts, missing }
        AbortRequest { coordination, request, reason, errno, attempts, device, member }
        ResetEventHeader {
            reset, epoch, duration_us, stage, method, outcome, errno, attempts, affected
        }
        AffectedDevice { cookie, state, reserved }
        GroupEvent { generation, cookie, available, reason }
        CoordinationRequestHeader { request, target, policy, tries_ms, count }
        ResetAnswer { coordination, answer, errno, outcome, attempts, device, count }
        VfioUserHeader { id, command, size, flags, errno }
        VersionPayload { major, minor }
        DmaMapPayload { argsz, flags, offset, address, size }
        DmaUnmapPayload { argsz, flags, address, size }
        VfioDeviceInfo { argsz, flags, num_regions, num_irqs }
        RegionInfo { argsz, flags, index, cap_offset, size, offset }
        SparseMmap { id, version, next, nr_areas, reserved }
        SparseMmapArea { offset, size }
        RegionIoFds { argsz, flags, index, count }
        RegionAccess { offset, region, count }
        RegionWrite { offset, region, count, data }
        IrqInfo { argsz, flags, index, count }
        IrqSet { argsz, flags, index, start, count }
        DeviceFeature { argsz, flags }
        ResetGroupWish { first_row, reserved }
        VringState { index, num }
        VringAddress { index, flags, descriptor, used, available, log }
        ConfigAccess { offset, size, flags }
        VringArea { vring, size, offset }
    }
}

/// The number and the name of each variant of an enum that is sent as a number.
fn values<Enum: TryFrom<u32> + Debug>() -> Vec<(u32, String)> {
    let variants =
        (0..=u32::from(u16::MAX)).filter_map(|number| Some((number, Enum::try_from(number).ok()?)));
    variants.map(|(number, variant)| (number, format!("{variant:?}"))).collect()
}

fn values_of_the_code() -> BTreeMap<String, Vec<(u32, String)>> {
    BTreeMap::from([
        ("Face".to_owned(), values::<Face>()),
        ("GroupReason".to_owned(), values::<GroupReason>()),
        ("Ownership".to_owned(), values::<Ownership>()),
        ("RowReason".to_owned(), values::<RowReason>()),
        ("ResetMethod".to_owned(), values::<ResetMethod>()),
        ("ResetOutcome".to_owned(), values::<ResetOutcome>()),
        ("ResetPolicy".to_owned(), values::<ResetPolicy>()),
        ("AbortReason".to_owned(), values::<AbortReason>()),
        ("ResetStage".to_owned(), values::<ResetStage>()),
        ("AffectedState".to_owned(), values::<AffectedState>()),
        ("MemberAnswer".to_owned(), values::<MemberAnswer>()),
    ])
}

/// A table that a line of the form "`Name`, what:" announces: its cells, with the marks of code taken off.
struct Table {
    name: String,
    what: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn number(row: &[String], column: usize) -> u32 {
        row[column].parse().unwrap()
    }
}

/// All announced tables of the specification.
fn tables() -> Vec<Table> {
    let mut tables = Vec::new();
    let mut lines = SPECIFICATION.lines();
    while let Some(line) = lines.next() {
        let announced = line.strip_prefix('`').and_then(|line| line.strip_suffix(':'));
        let Some((name, what)) = announced.and_then(|line| line.split_once("`, ")) else { continue };
        assert_eq!(lines.next(), Some(""), "after {line}");
        let rows = lines.by_ref().take_while(|line| line.starts_with('|')).map(cells).skip(2).collect();
        tables.push(Table { name: name.to_owned(), what: what.to_owned(), rows });
    }
    tables
}

fn cells(line: &str) -> Vec<String> {
    let inner = line.trim_matches('|');
    inner.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
}

#[test]
fn structures_are_laid_out_as_specified() {
    let specified: BTreeMap<_, _> = tables()
        .into_iter()
        .filter_map(|table| {
            let size: usize = table.what.strip_suffix(" bytes")?.parse().unwrap();
            let field =
                |row: &Vec<String>| (row[0].clone(), row[1].parse().unwrap(), row[2].parse().unwrap());
            Some((table.name, (size, table.rows.iter().map(field).collect())))
        })
        .collect();
    assert_eq!(specified, structures_of_the_code());
}

#[test]
fn numbers_mean_what_is_specified() {
    let specified: BTreeMap<_, Vec<_>> = tables()
        .into_iter()
        .filter(|table| table.what == "values")
        .map(|table| {
            let rows = table.rows.iter().map(|row| (Table::number(row, 0), row[1].clone())).collect();
            (table.name, rows)
        })
        .collect();
    assert_eq!(specified, values_of_the_code());
}

#[test]
fn flags_are_the_bits_specified() {
    let specified: Vec<_> = tables()
        .into_iter()
        .filter(|table| table.what == "bits")
        .flat_map(|table| table.rows)
        .map(|row| (1 << Table::number(&row, 0), row[1].clone()))
        .collect();
    let code = [
        (DeviceFlags::FUNCTION_RESET.0, "FUNCTION_RESET".to_owned()),
        (DeviceFlags::SERVED.0, "SERVED".to_owned()),
        (RowFlags::HAS_COOKIE.0, "HAS_COOKIE".to_owned()),
        (RowFlags::UNBINDING.0, "UNBINDING".to_owned()),
        (RowFlags::NO_IOMMU.0, "NO_IOMMU".to_owned()),
        (EventKinds::RESETS.0, "RESETS".to_owned()),
        (EventKinds::DEVICE_ERRORS.0, "DEVICE_ERRORS".to_owned()),
        (EventKinds::UNPLUG_REQUESTS.0, "UNPLUG_REQUESTS".to_owned()),
        (EventKinds::GROUPS.0, "GROUPS".to_owned()),
    ];
    assert_eq!(specified, code);
}

#[test]
fn every_request_has_its_section() {
    let specified: Vec<_> = SPECIFICATION
        .lines()
        .filter_map(|line| line.strip_prefix("### ")?.strip_suffix(')')?.split_once(" ("))
        .map(|(name, number)| {
            let number = number.strip_prefix("0x").map_or(number.parse(), |hex| u32::from_str_radix(hex, 16));
            (number.unwrap(), name)
        })
        .collect();
    let code: Vec<_> = (1..=0x52ff)
        .map(RequestNumber)
        .filter(|request| request.is_from_server() || is_known(*request, ControlRequest::parse))
        .filter_map(|request| Some((request.0, request.name()?)))
        .collect();
    assert_eq!(specified, code);
}

/// Whether `parse` knows the request.
fn is_known<Request>(
    request: RequestNumber,
    parse: fn(Frame<VhostUserHeader>) -> Result<Request, RequestError>,
) -> bool {
    let header = VhostUserHeader::request(request, false);
    let outcome = parse(Frame { header, body: Vec::new(), descriptors: Descriptors::Complete(Vec::new()) });
    !matches!(outcome, Err(RequestError::Unknown { .. }))
}

/// The rows of the table that is announced as that of `what`.
fn rows_of(what: &str) -> Vec<Vec<String>> {
    tables().into_iter().filter(|table| table.what == what).flat_map(|table| table.rows).collect()
}

#[test]
fn every_request_of_the_vhost_user_face_is_specified_with_its_answer() {
    let specified: Vec<_> = rows_of("requests")
        .iter()
        .map(|row| (Table::number(row, 1), row[0].clone(), row[3].starts_with("an acknowledgement")))
        .collect();
    let code: Vec<_> = (0..=0x52ff)
        .map(RequestNumber)
        .filter(|request| is_known(*request, DeviceRequest::parse))
        .map(|request| (request.0, request.to_string(), !request.is_always_answered()))
        .collect();
    assert_eq!(specified, code);
}

#[test]
fn the_protocol_features_of_the_vhost_user_face_are_specified() {
    let specified: u64 = rows_of("features").iter().map(|row| 1 << Table::number(row, 0)).sum();
    assert_eq!(specified, ProtocolFeatures::OF_DEVICES.0);
}

#[test]
fn commands_of_the_vfio_user_face_have_their_numbers() {
    let (_, section) = SPECIFICATION.split_once("\n## The vfio-user face\n").unwrap();
    let (_, table) = section.split_once("| Command | Number |").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let specified: Vec<_> = table
        .lines()
        .map(cells)
        .filter_map(|row| Some((row.first()?.clone(), row.get(1)?.parse().ok()?)))
        .collect();
    assert_eq!(specified.len(), 13);
    for (name, number) in specified {
        assert_eq!(Command(number).name(), Some(name.as_str()));
    }
}

#[test]
fn every_id_of_a_failure_is_specified() {
    let request = RequestNumber::RESET;
    let region = MemoryRegion { guest_address: 0, size: 0, user_address: 0, offset: 0 };
    let refusals = [
        RequestError::Unknown { request },
        RequestError::Size { request, expected: 0, actual: 0 },
        RequestError::Descriptors { request, expected: 0, actual: 0 },
        RequestError::TooManyDescriptors { request },
        RequestError::Field { request, field: "flags", value: 0 },
        RequestError::Region { request, region },
        RequestError::Major { major: 0 },
    ]
    .map(|error| error.failure());
    let header = protocol::frame::HeaderError::Flags(0);
    let ends = [
        ReceiveError::Truncated,
        ReceiveError::LateDescriptors,
        ReceiveError::Header(header),
        ReceiveError::TimedOut,
    ]
    .map(|error| protocol::extension::Failure::from(&error));
    for failure in refusals.iter().chain(&ends) {
        assert!(SPECIFICATION.contains(&format!("`{}`", failure.id())), "{} is not specified", failure.id());
    }
}

#[test]
fn a_cookie_among_the_affected_has_eight_bytes() {
    assert_eq!(size_of::<Cookie>(), 8);
}
