// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::vfio_user::{IrqAction, Reply, Request};

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
            let (reply, body) = match answer(Request::parse(frame).unwrap()) {
                Ok(reply) => (header.reply(), reply.encode()),
                Err(errno) => (header.error_reply(errno), Vec::new()),
            };
            connection.send_within(reply, &body, &[], TIMEOUT).unwrap();
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
        Request::GetRegionInfo { index, argsz: 32 } => {
            let flags = RegionInfo::READ | RegionInfo::WRITE;
            Ok(Reply::RegionInfo(RegionInfo {
                argsz: 32,
                flags,
                index,
                cap_offset: 0,
                size: 4096,
                offset: 0,
            }))
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
