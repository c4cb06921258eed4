// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replies of the vfio-user face, as a client parses them.

use std::time::Duration;

use arbitrary::Arbitrary;
use protocol::ReceiveError;
use protocol::vfio_user::{Capabilities, Client, ClientError, IrqAction, IrqData, RegionWrite, SetIrqs};

use super::stream::{Piece, Sender};
use super::vfio_user_request;

/// Longer than it can take: everything that will ever be received is there already.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most calls: nobody reads them, and they must find room.
const MAX_CALLS: usize = 16;

/// What the client asks for.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Call {
    Version,
    DeviceInfo,
    RegionInfo,
    Region,
    RegionIoFds,
    IrqInfo,
    SetIrqs,
    RegionRead(u8),
    RegionWrite(u8),
    RegionWriteMulti(u8),
    HasResetGroup,
    ResetGroup(u8),
    DeviceReset,
}

/// Has a client call, with `bytes` as all the replies that it gets.
pub(super) fn call(calls: &[Call], pieces: &[Piece], bytes: &[u8]) {
    let (mut sender, far) = Sender::pair();
    let mut client = Client::new(far, PATIENCE);
    sender.send_all(pieces, bytes, |place, count| vfio_user_request::header(place, count).reply());
    sender.finish_sending();
    for call in calls.iter().take(MAX_CALLS) {
        match call.make(&mut client) {
            Ok(()) => {}
            Err(ClientError::Receive { source: ReceiveError::TimedOut, .. }) => panic!("{call:?} waits"),
            Err(ClientError::Receive { .. } | ClientError::Send { .. }) => break,
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

impl Call {
    fn make(self, client: &mut Client) -> Result<(), ClientError> {
        match self {
            Self::Version => {
                let proposal = client.version(&Capabilities::default())?;
                vfio_user_request::check_proposal(&proposal, usize::MAX);
            }
            Self::DeviceInfo => drop(client.device_info()?),
            Self::RegionInfo => drop(client.region_info(7)?),
            Self::Region => drop(client.region(7)?),
            Self::RegionIoFds => drop(client.region_io_fds(7)?),
            Self::IrqInfo => drop(client.irq_info(1)?),
            Self::SetIrqs => {
                let data = IrqData::Bools(vec![true, false]);
                client.set_irqs(&SetIrqs {
                    index: 1,
                    start: 0,
                    count: 2,
                    action: IrqAction::Trigger,
                    data,
                })?;
            }
            Self::RegionRead(count) => client.region_read(7, 0, &mut vec![0; count.into()])?,
            Self::RegionWrite(count) => client.region_write(7, 0, &vec![0; count.into()])?,
            Self::RegionWriteMulti(count) => {
                let write = RegionWrite { offset: 0, region: 7, count: 4, data: [0; 8] };
                client.region_write_multi(&vec![write; count.into()])?;
            }
            Self::HasResetGroup => drop(client.has_reset_group()?),
            Self::ResetGroup(rows) => drop(client.reset_group(0, rows.into())?),
            Self::DeviceReset => client.device_reset()?,
        }
        Ok(())
    }
}
