// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One server, and what adds up: hostile and broken connections to both of its faces, and devices that come and go. In the
//! end it has as many descriptors, threads and mappings as before, and no more memory.
//!
//!     soak [CONNECTIONS [CYCLES]]

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used)]

mod hostility;
mod usage;

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use hostility::Hostility;
use protocol::ControlClient;
use protocol::extension::{Cookie, Face, IoasChoice};
use usage::Usage;
use vfio::PciAddress;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::{Host, ModelledMachine};
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess, server_binary, wait_until};

/// The device that hostile clients connect to, and the one that comes and goes.
const VICTIM: (Cookie, &str) = (Cookie(1), "0000:01:00.0");
const VISITOR: (Cookie, &str) = (Cookie(2), "0000:01:00.1");

/// A server with a device and its face, and the client that behaves.
struct Siege {
    server: ServerProcess,
    client: ControlClient,
    host: Host,
    control: PathBuf,
    face: PathBuf,
}

impl Siege {
    fn begin(host: Host, folder: &Path) -> Self {
        let (control, face) = (folder.join("control"), folder.join("face"));
        let mut command = Command::new(server_binary());
        // Nobody reads what it would say of each of them.
        command.args(host.arguments()).args(["--log-level", "off", "--socket-path"]).arg(&control);
        let server = ServerProcess::spawn(command);
        assert!(wait_until(|| UnixStream::connect(&control).is_ok()), "nobody listens");
        let mut client = ControlClient::new(UnixStream::connect(&control).unwrap(), PATIENCE);
        client.negotiate().expect("the extension is negotiated");
        client.set_iommufd(host.open_iommufd().unwrap(), IoasChoice::Allocate).expect("the iommufd is taken");
        let mut siege = Self { server, client, host, control, face };
        siege.add(VICTIM);
        let listener = UnixListener::bind(&siege.face).unwrap();
        siege.client.serve(VICTIM.0, Face::VfioUser, listener).expect("the face is served");
        siege
    }

    fn add(&mut self, (cookie, address): (Cookie, &str)) {
        let address: PciAddress = address.parse().unwrap();
        let device = self.host.open_cdev(address).unwrap();
        self.client.add_device(cookie, device).expect("the device is taken");
    }

    /// So many connections, none of which means well.
    fn attack(&mut self, connections: u64) {
        let mut hostility = Hostility::new();
        for number in 0..connections {
            hostility.connect(number, &self.control, &self.face);
            // The server is to be broken by what is sent, not by a queue that it never gets to see.
            if number % 64 == 0 {
                assert_eq!(self.client.list_devices().expect("the server answers"), [VICTIM.0]);
            }
        }
    }

    /// A device comes, guest memory is mapped for it and taken away, and it goes, so many times.
    fn visit(&mut self, cycles: u64) {
        let memory = GuestMemory::new(0, 1 << 20);
        for _ in 0..cycles {
            self.add(VISITOR);
            self.client.set_memory_table(&[memory.region()], &[memory.as_fd()]).expect("memory is mapped");
            self.client.set_memory_table(&[], &[]).expect("memory is unmapped");
            self.client.remove_device(VISITOR.0).expect("the device goes");
        }
    }

    /// What the server uses when it has done with all of them.
    fn usage(&mut self, expected_files: Option<usize>) -> Usage {
        self.client.list_devices().expect("the server answers");
        if let Some(expected) = expected_files {
            wait_until(|| self.server.open_files() == expected);
        }
        Usage::of(&self.server)
    }
}

/// The number at this place of the command line.
fn argument(place: usize, default: u64) -> u64 {
    std::env::args().nth(place).map_or(default, |text| text.parse().expect("a number"))
}

fn main() -> ExitCode {
    let (connections, cycles) = (argument(1, 100_000), argument(2, 10_000));
    let machine = ModelledMachine::start("edu-pair");
    let folder = tempfile::tempdir().expect("a folder");
    let mut siege = Siege::begin(machine.host(), folder.path());
    // Whatever is allocated once is there after these.
    siege.attack(connections / 20 + 40);
    siege.visit(cycles / 20 + 1);
    // A client that goes is gone only when its device is in order again.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let before = siege.usage(None);
    println!("{:<28}{}", "", Usage::HEADING);
    println!("{:<28}{before}", "before");
    let start = Instant::now();
    siege.attack(connections);
    let attacked = siege.usage(Some(before.files));
    println!("{:<28}{attacked}", format!("{connections} connections"));
    siege.visit(cycles);
    let after = siege.usage(Some(before.files));
    println!("{:<28}{after}", format!("{cycles} devices"));
    println!("in {} s", start.elapsed().as_secs());
    match after.grown_since(&before).or_else(|| attacked.grown_since(&before)) {
        None => ExitCode::SUCCESS,
        Some(what) => {
            eprintln!("soak: the server has more {what} than before");
            ExitCode::FAILURE
        }
    }
}
