// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two frontends, our own and that of the `vhost` crate, talk to a tiny backend that is made of nothing but the codec.

#![cfg(test)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::vhost_user::{
    BackendChannel, BackendRequest, DeviceReply, DeviceRequest, Frontend, FrontendError, MemoryRegion, Vring,
    VringRequest,
};
use protocol::{Connection, Endpoint, RequestNumber, VhostUserHeader};
use rustix::io::Errno;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend as VhostFrontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const TIMEOUT: Duration = Duration::from_secs(10);
const QUEUES: u8 = 2;
const MEMORY: u64 = 0x10000;
const FEATURES: VirtioFeatures =
    VirtioFeatures(VirtioFeatures::VERSION_1.0 | VirtioFeatures::PROTOCOL_FEATURES.0 | 1 << 5);

/// What the frontend said, as far as it matters to the tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Device {
    features: VirtioFeatures,
    status: u8,
    config: Vec<u8>,
    regions: Vec<MemoryRegion>,
    queues: [Queue; QUEUES as usize],
    is_reset: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Queue {
    size: u16,
    base: u32,
    addresses: [u64; 3],
    has_kick: bool,
    has_call: bool,
    is_enabled: bool,
}

impl Device {
    fn queue(&mut self, queue: u8) -> Result<&mut Queue, Errno> {
        self.queues.get_mut(usize::from(queue)).ok_or(Errno::INVAL)
    }

    fn answer_of_ring(&mut self, queue: u8, request: VringRequest) -> Result<DeviceReply, Errno> {
        let ring = self.queue(queue)?;
        match request {
            VringRequest::GetBase => return Ok(DeviceReply::VringBase { queue, base: ring.base }),
            VringRequest::SetSize(size) => ring.size = size,
            VringRequest::SetBase(base) => ring.base = base,
            VringRequest::SetAddress { descriptors, available, used } => {
                ring.addresses = [descriptors, available, used];
            }
            VringRequest::SetKick(eventfd) => ring.has_kick = eventfd.is_some(),
            VringRequest::SetCall(eventfd) => ring.has_call = eventfd.is_some(),
            VringRequest::SetError(_) => {}
            VringRequest::SetEnabled(is_enabled) => ring.is_enabled = is_enabled,
        }
        Ok(DeviceReply::Done)
    }

    fn answer(&mut self, request: DeviceRequest) -> Result<DeviceReply, Errno> {
        match request {
            DeviceRequest::GetFeatures => return Ok(DeviceReply::Features(FEATURES)),
            DeviceRequest::GetProtocolFeatures => {
                return Ok(DeviceReply::ProtocolFeatures(ProtocolFeatures::OF_DEVICES));
            }
            DeviceRequest::GetQueueNumber => return Ok(DeviceReply::QueueNumber(QUEUES.into())),
            DeviceRequest::GetMaxMemorySlots => return Ok(DeviceReply::MaxMemorySlots(256)),
            DeviceRequest::GetStatus => return Ok(DeviceReply::Status(self.status)),
            DeviceRequest::GetConfig(access) => {
                let start = usize::try_from(access.offset).unwrap();
                let end = start + usize::try_from(access.size).unwrap();
                let data = self.config.get(start..end).ok_or(Errno::INVAL)?.to_vec();
                return Ok(DeviceReply::Config { access, data });
            }
            DeviceRequest::SetConfig { access, data } => {
                let start = usize::try_from(access.offset).unwrap();
                let room = self.config.get_mut(start..start + data.len()).ok_or(Errno::INVAL)?;
                room.copy_from_slice(&data);
            }
            DeviceRequest::SetFeatures(features) => self.features = features,
            DeviceRequest::SetProtocolFeatures(_) | DeviceRequest::SetOwner | DeviceRequest::ResetOwner => {}
            DeviceRequest::SetStatus(status) => self.status = status,
            DeviceRequest::ResetDevice => self.is_reset = true,
            DeviceRequest::SetMemoryTable(table) => {
                self.regions = table.iter().map(|backed| backed.region).collect();
            }
            DeviceRequest::AddMemoryRegion(backed) => self.regions.push(backed.region),
            DeviceRequest::RemoveMemoryRegion(region) => self.regions.retain(|kept| *kept != region),
            DeviceRequest::Vring { queue, request } => return self.answer_of_ring(queue, request),
            DeviceRequest::SetBackendChannel(socket) => {
                BackendChannel::new(socket.into()).config_changed().unwrap();
            }
        }
        Ok(DeviceReply::Done)
    }
}

/// A backend that answers until the frontend closes, and then tells what it knows.
fn backend() -> (JoinHandle<Device>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut connection = Connection::<VhostUserHeader>::new(ours, Endpoint::Server);
    let backend = thread::spawn(move || {
        let mut device = Device { config: vec![0; 60], ..Device::default() };
        let mut agreed = ProtocolFeatures::default();
        while let Ok(frame) = connection.receive_within(TIMEOUT) {
            let header = frame.header;
            let request = DeviceRequest::parse(frame);
            if let Ok(DeviceRequest::SetProtocolFeatures(features)) = request {
                agreed = features;
            }
            let outcome = request.map_err(|error| error.errno()).and_then(|request| device.answer(request));
            if header.is_answered(agreed) {
                let body = outcome.unwrap_or_else(DeviceReply::Refused).encode(header.request);
                connection.send_within(VhostUserHeader::reply(header.request), &body, &[], TIMEOUT).unwrap();
            }
        }
        device
    });
    (backend, theirs)
}

fn region() -> MemoryRegion {
    MemoryRegion { guest_address: 0, size: MEMORY, user_address: 0x7f00_0000_0000, offset: 0 }
}

/// What the backend knows of a ring that both frontends describe alike.
fn started(base: u32) -> Queue {
    let addresses = [0x7f00_0000_1000, 0x7f00_0000_2000, 0x7f00_0000_3000];
    Queue { size: 128, base, addresses, has_kick: true, has_call: true, is_enabled: true }
}

#[test]
fn our_frontend_drives_a_device() {
    let (backend, socket) = backend();
    let mut frontend = Frontend::new(socket, TIMEOUT);
    let (features, agreed) = frontend.negotiate(ProtocolFeatures::OF_DEVICES).unwrap();
    assert_eq!((features, agreed), (FEATURES, ProtocolFeatures::OF_DEVICES));
    assert_eq!(frontend.queue_number().unwrap(), 2);
    assert_eq!(frontend.max_memory_slots().unwrap(), 256);
    let mut channel = frontend.open_backend_channel().unwrap();
    assert!(matches!(channel.receive_within(TIMEOUT).unwrap(), (BackendRequest::ConfigChange, false)));
    frontend.set_features(FEATURES).unwrap();
    let memory = File::open("/dev/null").unwrap();
    frontend.set_memory_table(&[], &[]).unwrap();
    frontend.add_memory_region(region(), memory.as_fd()).unwrap();
    let [descriptors, available, used] = started(0).addresses;
    let vring = Vring {
        size: 128,
        base: 7,
        descriptors,
        available,
        used,
        kick: memory.as_fd(),
        call: memory.as_fd(),
    };
    frontend.start_vring(1, &vring).unwrap();
    frontend.set_vring_error(1, None).unwrap();
    frontend.set_vring_enable(1, true).unwrap();
    frontend.set_config(8, &[1, 2, 3]).unwrap();
    let mut read = [0; 4];
    frontend.config(7, &mut read).unwrap();
    assert_eq!(read, [0, 1, 2, 3]);
    frontend.set_status(0xf).unwrap();
    assert_eq!(frontend.status().unwrap(), 0xf);
    assert_eq!(frontend.stop_vring(1).unwrap(), 7);
    drop(frontend);
    let device = backend.join().unwrap();
    assert_eq!((device.regions, device.status), (vec![region()], 0xf));
    assert_eq!(device.queues, [Queue::default(), started(7)]);
}

#[test]
fn a_refusal_reaches_the_frontend_however_the_request_is_answered() {
    let (backend, socket) = backend();
    let mut frontend = Frontend::new(socket, TIMEOUT);
    frontend.negotiate(ProtocolFeatures::OF_DEVICES).unwrap();
    let refused = |outcome| match outcome {
        Err(FrontendError::Refused { request, errno }) => (request, errno),
        other => panic!("{other:?}"),
    };
    let enable = refused(frontend.set_vring_enable(2, true));
    assert_eq!(enable, (RequestNumber::SET_VRING_ENABLE, Some(Errno::INVAL)));
    let config = refused(frontend.config(60, &mut [0]));
    assert_eq!(config, (RequestNumber::GET_CONFIG, None));
    let base = refused(frontend.stop_vring(9).map(drop));
    assert_eq!(base, (RequestNumber::GET_VRING_BASE, None));
    frontend.reset_device().unwrap();
    drop(frontend);
    assert!(backend.join().unwrap().is_reset);
}

/// As Cloud Hypervisor does, with `need_reply` on everything, and as crosvm does, without.
#[test]
fn the_frontend_of_the_vhost_crate_drives_a_device() {
    for flags in [VhostUserHeaderFlag::NEED_REPLY, VhostUserHeaderFlag::empty()] {
        let (backend, socket) = backend();
        let mut frontend = VhostFrontend::from_stream(socket, QUEUES.into());
        drive(&mut frontend, flags);
        drop(frontend);
        let device = backend.join().unwrap();
        assert_eq!(device.features, FEATURES);
        assert_eq!(device.regions, [region()]);
        assert_eq!(device.queues, [started(0), started(0)]);
        assert_eq!(device.config[..4], [0, 9, 9, 0]);
        assert!(device.is_reset);
    }
}

fn drive(frontend: &mut VhostFrontend, flags: VhostUserHeaderFlag) {
    frontend.set_owner().unwrap();
    assert_eq!(frontend.get_features().unwrap(), FEATURES.0);
    let wanted = VhostUserProtocolFeatures::all() - VhostUserProtocolFeatures::GPA_ADDRESSES;
    let offered = frontend.get_protocol_features().unwrap();
    assert_eq!(offered.bits(), ProtocolFeatures::OF_DEVICES.0);
    frontend.set_protocol_features(offered & wanted).unwrap();
    frontend.set_hdr_flags(flags);
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    frontend.set_features(FEATURES.0).unwrap();
    let memory = File::open("/dev/null").unwrap();
    let info = VhostUserMemoryRegionInfo {
        guest_phys_addr: region().guest_address,
        memory_size: region().size,
        userspace_addr: region().user_address,
        mmap_offset: region().offset,
        mmap_handle: memory.as_raw_fd(),
    };
    frontend.set_mem_table(&[info]).unwrap();
    for queue in 0..usize::from(QUEUES) {
        let [desc_table_addr, avail_ring_addr, used_ring_addr] = started(0).addresses;
        let config = VringConfigData {
            queue_max_size: 256,
            queue_size: 128,
            flags: 0,
            desc_table_addr,
            used_ring_addr,
            avail_ring_addr,
            log_addr: None,
        };
        let eventfd = EventFd::new(0).unwrap();
        frontend.set_vring_num(queue, 128).unwrap();
        frontend.set_vring_addr(queue, &config).unwrap();
        frontend.set_vring_base(queue, 0).unwrap();
        frontend.set_vring_call(queue, &eventfd).unwrap();
        frontend.set_vring_kick(queue, &eventfd).unwrap();
        frontend.set_vring_enable(queue, true).unwrap();
    }
    frontend.set_config(1, VhostUserConfigFlags::WRITABLE, &[9, 9]).unwrap();
    let (_, read) = frontend.get_config(0, 4, VhostUserConfigFlags::WRITABLE, &[0; 4]).unwrap();
    assert_eq!(read, [0, 9, 9, 0]);
    frontend.reset_device().unwrap();
    assert_eq!(frontend.get_vring_base(1).unwrap(), 0);
}
