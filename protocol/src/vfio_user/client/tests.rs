// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::thread::{self, JoinHandle};

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::extension::{Generation, GroupReason};
use crate::vfio_user::{FeatureRequest, IrqAction, Reply, Request, SparseMmapArea};

const TIMEOUT: Duration = Duration::from_secs(10);

/// A server that answers every command with what `answer` says, until the client closes.
fn serve(
    mut answer: impl FnMut(Request) -> Result<Reply, Errno> + Send + 'static,
) -> (JoinHandle<()>, Client) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut connection = Connection::<VfioUserHeader>::new(ours, Endpoint::Server);
    let server = thread::spawn(move || {
        while let Ok(frame) = connection.receive_within(TIMEOUT) {
            let header = frame.header;
            match answer(Request::parse(frame).unwrap()) {
                Ok(reply) => {
                    let descriptors: Vec<_> = reply.descriptor().into_iter().collect();
                    connection.send_within(header.reply(), &reply.encode(), &descriptors, TIMEOUT).unwrap();
                }
                Err(errno) => connection.send_within(header.error_reply(errno), &[], &[], TIMEOUT).unwrap(),
            }
        }
    });
    (server, Client::new(theirs, TIMEOUT))
}

fn end(server: JoinHandle<()>, client: Client) {
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_device_is_described() {
    let (server, mut client) = serve(|request| match request {
        Request::Version(proposal) => Ok(Reply::Version(proposal.reply(&Capabilities::default()))),
        Request::GetInfo => Ok(Reply::Info(DeviceInfo { argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 })),
        Request::GetRegionInfo { index, argsz } => {
            Ok(Reply::RegionInfo { description: region(index, vec![], None), room: argsz })
        }
        Request::GetIrqInfo { index } => Ok(Reply::IrqInfo(IrqInfo { argsz: 16, flags: 1, index, count: 3 })),
        request => panic!("not asked for: {request:?}"),
    });
    assert_eq!(client.version(&Capabilities::default()).unwrap().minor, MINOR);
    assert_eq!(client.device_info().unwrap().num_regions, 9);
    assert_eq!(client.region_info(7).unwrap().size, 4096);
    assert_eq!(client.irq_info(2).unwrap().count, 3);
    end(server, client);
}

/// A region of a page.
fn region(index: u32, areas: Vec<SparseMmapArea>, file: Option<OwnedFd>) -> RegionDescription {
    let mmap = if file.is_some() { RegionInfo::MMAP } else { 0 };
    let flags = RegionInfo::READ | RegionInfo::WRITE | mmap;
    let info = RegionInfo { argsz: 32, flags, index, cap_offset: 0, size: 4096, offset: 0 };
    RegionDescription { info, areas, file }
}

#[test]
fn a_region_that_can_be_mapped_comes_with_its_areas_and_its_file() {
    const AREAS: [SparseMmapArea; 2] =
        [SparseMmapArea { offset: 0, size: 4096 }, SparseMmapArea { offset: 8192, size: 4096 }];
    let (server, mut client) = serve(|request| match request {
        Request::GetRegionInfo { index, argsz } => {
            let areas = if index == 5 { AREAS.to_vec() } else { vec![] };
            let file = eventfd(index, EventfdFlags::CLOEXEC).unwrap();
            Ok(Reply::RegionInfo { description: region(index, areas, Some(file)), room: argsz })
        }
        request => panic!("not asked for: {request:?}"),
    });
    for (index, areas) in [(5, AREAS.as_slice()), (3, &[])] {
        let described = client.region(index).unwrap();
        assert_eq!((described.info.flags, described.areas.as_slice()), (7, areas));
        let mut count = [0; 8];
        let file = described.file.unwrap();
        rustix::io::read(&file, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::from(index), "the file of this region");
    }
    end(server, client);
}

#[test]
fn a_reset_group_is_probed_and_told() {
    let page = ResetGroupPage {
        generation: Generation(3),
        reason: GroupReason::NoReset,
        total_rows: 0,
        rows: Vec::new(),
    };
    let told = page.clone();
    let (server, mut client) = serve(move |request| match request {
        Request::DeviceFeature(FeatureRequest::ProbeResetGroup { flags }) => {
            Ok(Reply::FeatureProbed { flags })
        }
        Request::DeviceFeature(FeatureRequest::GetResetGroup { first_row: 2, max_rows: 7 }) => {
            Ok(Reply::ResetGroup(told.clone()))
        }
        request => panic!("not asked for: {request:?}"),
    });
    assert!(client.has_reset_group().unwrap());
    assert_eq!(client.reset_group(2, 7).unwrap(), page);
    end(server, client);
    let (server, mut client) = serve(|_| Err(Errno::NOTTY));
    assert!(!client.has_reset_group().unwrap());
    end(server, client);
}

#[test]
fn several_writes_are_one_message() {
    let (server, mut client) = serve(|request| match request {
        Request::RegionWriteMulti(writes) => Ok(Reply::RegionWriteMulti(writes.len() as u64 - 1)),
        Request::GetRegionIoFds { index } => Ok(Reply::RegionIoFds { index }),
        request => panic!("not asked for: {request:?}"),
    });
    let write = RegionWrite { offset: 0, region: 0, count: 4, data: [0; 8] };
    assert_eq!(client.region_write_multi(&[write; 3]).unwrap(), 2);
    assert_eq!(client.region_io_fds(0).unwrap(), 0);
    end(server, client);
}

#[test]
fn a_region_is_read_and_written() {
    let mut memory = vec![0; 1 << 20];
    let (server, mut client) = serve(move |request| match request {
        Request::RegionRead(access) => Ok(Reply::RegionRead { access, data: memory.clone() }),
        Request::RegionWrite { access, data } => {
            memory.copy_from_slice(&data);
            Ok(Reply::RegionWrite(access))
        }
        request => panic!("not asked for: {request:?}"),
    });
    let written: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
    client.region_write(0, 0, &written).unwrap();
    let mut read = vec![0; 1 << 20];
    client.region_read(0, 0, &mut read).unwrap();
    assert_eq!(read, written);
    end(server, client);
}

#[test]
fn an_access_too_large_is_not_sent() {
    let (server, mut client) = serve(|request| panic!("nothing must come: {request:?}"));
    let outcome = client.region_read(0, 0, &mut vec![0; MAX_DATA + 1]);
    assert!(matches!(outcome, Err(ClientError::Send { source: SendError::TooLarge { .. }, .. })));
    end(server, client);
}

#[test]
fn a_read_that_is_answered_with_fewer_bytes_is_malformed() {
    let (server, mut client) = serve(|request| match request {
        Request::RegionRead(access) => Ok(Reply::RegionRead { access, data: vec![0; 3] }),
        request => panic!("not asked for: {request:?}"),
    });
    assert!(matches!(client.region_read(0, 0, &mut [0; 4]), Err(ClientError::Malformed { .. })));
    end(server, client);
}

#[test]
fn an_eventfd_reaches_the_server() {
    let (server, mut client) = serve(|request| match request {
        Request::SetIrqs(SetIrqs { data: IrqData::Eventfds(eventfds), .. }) => {
            rustix::io::write(&eventfds[0], &7_u64.to_ne_bytes()).unwrap();
            Ok(Reply::Done)
        }
        request => panic!("not asked for: {request:?}"),
    });
    let ours = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let data = IrqData::Eventfds(vec![ours.try_clone().unwrap()]);
    let change = SetIrqs { index: 2, start: 0, count: 1, action: IrqAction::Trigger, data };
    client.set_irqs(&change).unwrap();
    let mut count = [0; 8];
    rustix::io::read(&ours, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 7);
    end(server, client);
}

#[test]
fn a_refusal_is_told_with_its_errno() {
    let (server, mut client) = serve(|_| Err(Errno::NODEV));
    let error = client.device_reset().unwrap_err();
    assert!(matches!(error, ClientError::Refused { command: Command::DEVICE_RESET, errno: Errno::NODEV }));
    end(server, client);
}

#[test]
fn a_reply_with_another_id_is_malformed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut server = Connection::<VfioUserHeader>::new(ours, Endpoint::Server);
    server.send(VfioUserHeader::command(9, Command::DEVICE_RESET).reply(), &[], &[]).unwrap();
    let mut client = Client::new(theirs, TIMEOUT);
    assert!(matches!(client.device_reset(), Err(ClientError::Malformed { .. })));
}
