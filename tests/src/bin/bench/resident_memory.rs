// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory of a server that has answered and waits, next to that of an echo: the C library and Rust's runtime are in both.

use std::time::Duration;

use protocol::VhostUserHeader;
use vhost_device_vfio_tests::server_process::ServerProcess;

use crate::comparison::{Comparison, Figure, Goal};
use crate::echo::{Echo, Work};
use crate::exchange::Exchange;

/// Long enough for a process to come to rest.
const REST: Duration = Duration::from_millis(300);

/// Resident memory of a process in bytes, with what it shares with others.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    size.and_then(|size| size.parse::<u64>().ok()).expect("its resident memory") << 10
}

/// Both after one exchange.
pub(crate) fn resident_memory() -> Vec<Comparison> {
    let exchange = Exchange::features();
    let (server, socket) = ServerProcess::start();
    exchange.check_reply::<VhostUserHeader>(&socket);
    let echo = Echo::start(&exchange, Work::Nothing);
    std::thread::sleep(REST);
    vec![Comparison {
        figure: Figure::Memory(resident(server.id())),
        other_name: "echo".into(),
        other: Figure::Memory(resident(echo.id())),
        goal: Goal::Mebibytes(4),
    }]
}
