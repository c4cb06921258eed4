// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of the vhost-user face, as a server parses them.

use protocol::request::BackedRegion;
use protocol::vhost_user::{
    DeviceRequest, MAX_VRING_SIZE, MemoryTableHeader, SingleMemoryRegion, VringAddress, VringDescriptor,
    VringRequest, VringState,
};
use protocol::{Frame, RequestNumber, VhostUserHeader};
use zerocopy::IntoBytes;

/// The header of a request: every one that there is, and many that there are not.
pub(super) fn header(place: u8, _: u16) -> VhostUserHeader {
    VhostUserHeader::request(RequestNumber(u32::from(place) % 48), place.is_multiple_of(2))
}

/// What can be parsed is what its payload says.
pub(super) fn parse(frame: Frame<VhostUserHeader>) {
    let request = frame.header.request;
    let mut body = frame.body.clone();
    let described = DeviceRequest::described_vring(&frame);
    match DeviceRequest::parse(frame) {
        Ok(parsed) => {
            // Whoever sends a word that means nothing may be careless about it.
            match request {
                RequestNumber::SET_MEM_TABLE | RequestNumber::GET_VRING_BASE => body[4..8].fill(0),
                RequestNumber::ADD_MEM_REG | RequestNumber::REM_MEM_REG => body[..8].fill(0),
                RequestNumber::SET_VRING_ADDR => body[32..40].fill(0),
                RequestNumber::GET_CONFIG => body[12..].fill(0),
                _ => {}
            }
            assert_eq!(payload(&parsed), body, "{parsed:?}");
            if let DeviceRequest::Vring { queue, request } = parsed {
                type Request = VringRequest;
                let is_description =
                    matches!(request, Request::SetSize(_) | Request::SetAddress { .. } | Request::SetBase(_));
                assert_eq!(described, is_description.then_some(queue));
            }
        }
        Err(error) => assert!(error.errno().raw_os_error() > 0, "{error}"),
    }
}

/// The payload of a request.
fn payload(request: &DeviceRequest) -> Vec<u8> {
    match request {
        DeviceRequest::GetFeatures
        | DeviceRequest::SetOwner
        | DeviceRequest::ResetOwner
        | DeviceRequest::GetProtocolFeatures
        | DeviceRequest::GetQueueNumber
        | DeviceRequest::GetMaxMemorySlots
        | DeviceRequest::SetBackendChannel(_)
        | DeviceRequest::ResetDevice
        | DeviceRequest::GetStatus => Vec::new(),
        DeviceRequest::SetFeatures(features) => features.as_bytes().into(),
        DeviceRequest::SetProtocolFeatures(features) => features.as_bytes().into(),
        DeviceRequest::SetMemoryTable(table) => {
            let count = u32::try_from(table.len()).expect("a few regions");
            let mut payload = MemoryTableHeader { count, reserved: 0 }.as_bytes().to_vec();
            payload.extend(table.iter().flat_map(|BackedRegion { region, .. }| region.as_bytes()));
            payload
        }
        DeviceRequest::AddMemoryRegion(BackedRegion { region, .. })
        | DeviceRequest::RemoveMemoryRegion(region) => {
            SingleMemoryRegion { reserved: 0, region: *region }.as_bytes().into()
        }
        DeviceRequest::Vring { queue, request } => payload_of_ring(*queue, request),
        // The bytes of a reading mean nothing; that they are as many as it says was checked.
        DeviceRequest::GetConfig(access) => {
            let size = usize::try_from(access.size).expect("as it came");
            [access.as_bytes(), &vec![0; size]].concat()
        }
        DeviceRequest::SetConfig { access, data } => [access.as_bytes(), data].concat(),
        DeviceRequest::SetStatus(status) => u64::from(*status).as_bytes().into(),
    }
}

fn payload_of_ring(queue: u8, request: &VringRequest) -> Vec<u8> {
    match request {
        VringRequest::SetSize(size) => {
            assert!((1..=MAX_VRING_SIZE).contains(size));
            state(queue, (*size).into())
        }
        VringRequest::SetAddress { descriptors, available, used } => {
            let (index, descriptor) = (u32::from(queue), *descriptors);
            let address =
                VringAddress { index, flags: 0, descriptor, used: *used, available: *available, log: 0 };
            address.as_bytes().into()
        }
        VringRequest::SetBase(base) => state(queue, *base),
        VringRequest::GetBase => state(queue, 0),
        VringRequest::SetKick(eventfd) | VringRequest::SetCall(eventfd) | VringRequest::SetError(eventfd) => {
            let no_descriptor = if eventfd.is_some() { 0 } else { VringDescriptor::NO_DESCRIPTOR };
            VringDescriptor(u64::from(queue) | no_descriptor).as_bytes().into()
        }
        VringRequest::SetEnabled(is_enabled) => state(queue, (*is_enabled).into()),
    }
}

fn state(queue: u8, num: u32) -> Vec<u8> {
    VringState { index: queue.into(), num }.as_bytes().into()
}
