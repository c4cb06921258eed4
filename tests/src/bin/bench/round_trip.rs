// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From request to reply, next to an echo of the same sizes, and to one that also does the call that has to be done.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use protocol::VhostUserHeader;
use protocol::extension::{Cookie, Face};
use protocol::vfio_user::{Capabilities, Client, VfioUserHeader};
use vhost_device_vfio_tests::node;
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess, server_binary};
use vhost_device_vfio_tests::vmm::Vmm;

use crate::comparison::{Comparison, Figure, Goal};
use crate::contest::{Contest, timed};
use crate::echo::{Echo, Work, read_config_space};
use crate::exchange::Exchange;
use crate::processor::OneProcessor;
use crate::{FIRST, SECOND};

const CONTEST: Contest = Contest { rounds: 40, warm_up: 20, laps: 100 };
const GOAL: Goal = Goal::Ratio(1.3);
const DEVICE: Cookie = Cookie(1);

fn compare(server: Duration, other_name: &'static str, other: Duration, goal: Goal) -> Comparison {
    Comparison {
        figure: Figure::Time(server),
        other_name: other_name.into(),
        other: Figure::Time(other),
        goal,
    }
}

/// A VMM whose server has the first device, the socket of its control face, and the VMM's own copy of the device.
fn with_device() -> (Vmm, UnixStream, File) {
    let (server, socket) = ServerProcess::start();
    let near = socket.try_clone().expect("a second descriptor");
    let mut vmm = Vmm::with_server((server, socket));
    let device = node::cdev(FIRST);
    vmm.control.add_device(DEVICE, &device).expect("the device is taken");
    (vmm, near, device)
}

/// `GET_FEATURES`, about which nobody has to be asked: of a server as it is, and of one without filters of system calls.
pub(crate) fn features() -> Vec<Comparison> {
    let _pinned = OneProcessor::pin();
    let exchange = Exchange::features();
    let (_server, socket) = ServerProcess::start();
    let mut unfiltered = Command::new(server_binary());
    unfiltered.args(["--seccomp", "off"]);
    let (_unfiltered, unfiltered) = ServerProcess::start_command(unfiltered);
    exchange.check_reply::<VhostUserHeader>(&socket);
    exchange.check_reply::<VhostUserHeader>(&unfiltered);
    let echo = Echo::start(&exchange, Work::Nothing);
    let [server, echo, unfiltered] = CONTEST.medians([
        &mut exchange.lap(&socket),
        &mut exchange.lap(&echo.socket),
        &mut exchange.lap(&unfiltered),
    ]);
    vec![
        compare(server, "echo", echo, GOAL),
        compare(server, "without filters", unfiltered, Goal::Ratio(1.05)),
    ]
}

/// The header of `GET_RESET_GROUP`.
pub(crate) fn reset_group() -> Vec<Comparison> {
    let _pinned = OneProcessor::pin();
    let exchange = Exchange::reset_group_header(DEVICE);
    let (vmm, socket, _device) = with_device();
    exchange.check_reply::<VhostUserHeader>(&socket);
    let echo = Echo::start(&exchange, Work::Nothing);
    // The other function of the same group, bound to the same iommufd: what the kernel looks at is the same.
    let iommufd = vmm.iommufd.try_clone().expect("a second descriptor");
    let asking = Echo::start(&exchange, Work::AskResetGroup { iommufd, device: node::cdev(SECOND) });
    let [server, echo, asking] = CONTEST.medians([
        &mut exchange.lap(&socket),
        &mut exchange.lap(&echo.socket),
        &mut exchange.lap(&asking.socket),
    ]);
    vec![compare(server, "echo", echo, GOAL), compare(server, "echo + INFO ioctl", asking, Goal::None)]
}

/// 4 bytes of config space over vfio-user.
pub(crate) fn region_read() -> Vec<Comparison> {
    let _pinned = OneProcessor::pin();
    let exchange = Exchange::config_space_read();
    let (mut vmm, _control, device) = with_device();
    let (socket, far) = UnixStream::pair().expect("a socket pair");
    vmm.control.serve(DEVICE, Face::VfioUser, far).expect("the face is served");
    let mut client = Client::new(socket.try_clone().expect("a second descriptor"), PATIENCE);
    client.version(&Capabilities::default()).expect("vfio-user is negotiated");
    exchange.check_reply::<VfioUserHeader>(&socket);
    let echo = Echo::start(&exchange, Work::Nothing);
    let copy = device.try_clone().expect("a second descriptor");
    let reading = Echo::start(&exchange, Work::ReadConfigSpace(copy));
    let [server, echo, reading, alone] = CONTEST.medians([
        &mut exchange.lap(&socket),
        &mut exchange.lap(&echo.socket),
        &mut exchange.lap(&reading.socket),
        &mut || timed(|| assert_ne!(read_config_space(&device), [0xff; 4])),
    ]);
    vec![
        compare(server, "echo", echo, GOAL),
        compare(server, "echo + pread", reading, Goal::None),
        compare(server, "pread", alone, Goal::None),
    ]
}
