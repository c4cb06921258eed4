// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the start of the process to its first reply, next to the start and end of one that does nothing.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use vhost_device_vfio_tests::server_process::server_binary;

use crate::comparison::{Comparison, Figure, Goal};
use crate::contest::{Contest, timed};
use crate::exchange::{Exchange, receive};

const CONTEST: Contest = Contest { rounds: 100, warm_up: 1, laps: 3 };
/// A program that does nothing.
const NOTHING: &str = "/bin/true";

/// A command as the standard library starts it without a copy of this process: nothing is to be done before `exec`.
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The request is in the socket before there is a server.
fn time_to_first_reply(exchange: &Exchange, arguments: &[&str]) -> Duration {
    let (mut near, far) = UnixStream::pair().expect("a socket pair");
    fcntl_setfd(&far, FdFlags::empty()).expect("the far end is inherited");
    let mut server = command(server_binary());
    server.args(["--fd", &far.as_raw_fd().to_string()]).args(arguments);
    near.write_all(&exchange.request).expect("the request is taken");
    let start = Instant::now();
    let mut server = server.spawn().expect("the server starts");
    receive(&near, &mut vec![0; exchange.reply]);
    let time = start.elapsed();
    drop((near, far));
    server.wait().expect("the server ends");
    time
}

fn time_of_nothing() -> Duration {
    let mut nothing = command(NOTHING);
    timed(|| {
        let mut child = nothing.spawn().expect("the program starts");
        child.wait().expect("the program ends");
    })
}

/// `GET_FEATURES` of a server that was just started: as it is, without its sandbox, and without sysfs in that.
pub(crate) fn start_up() -> Vec<Comparison> {
    let exchange = Exchange::features();
    let [server, nothing, open, without_sysfs] = CONTEST.medians([
        &mut || time_to_first_reply(&exchange, &[]),
        &mut || time_of_nothing(),
        &mut || time_to_first_reply(&exchange, &["--sandbox", "none"]),
        &mut || time_to_first_reply(&exchange, &["--sysfs", "off"]),
    ]);
    let compare = |other_name: &'static str, other, goal| Comparison {
        figure: Figure::Time(server),
        other_name: other_name.into(),
        other: Figure::Time(other),
        goal,
    };
    vec![
        compare("vfork + exec + wait", nothing, Goal::Ratio(3.0)),
        compare("without a sandbox", open, Goal::Difference(Duration::from_millis(1))),
        compare("without sysfs", without_sysfs, Goal::None),
    ]
}
