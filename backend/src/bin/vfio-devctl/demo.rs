// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the server is for, in a few seconds on any machine: the real server with the devices of a modelled one.

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use protocol::ControlClient;
use protocol::extension::{Cookie, Face, IoasChoice, ResetMethod};
use protocol::vfio_user::{Capabilities, Client};
use protocol::vhost_user::MemoryRegion;
use rustix::fs::{MemfdFlags, SealFlags};
use vfio::PciAddress;
use vfio::config_space::command;
use vfio::model::order::{DriverOrder, FunctionOrder};
use vfio::model::{Machine, Order, Settings, Topology};
use vhost_device_vfio::host::Host;

use crate::reset_group_view::ResetGroupView;
use crate::server::RunningServer;
use crate::tool_error::ToolError;
use crate::view::{DeviceView, ResetView, View};

/// One slot, two functions, two IOMMU groups.
const TOPOLOGY: &str = include_str!("../../../../vfio/topologies/edu-igb.toml");
const PATIENCE: Duration = Duration::from_secs(10);
const EDU: Cookie = Cookie(1);
const IGB: Cookie = Cookie(2);
const GUEST_MEMORY: u64 = 4 << 20;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The name under which this program is the server: `cargo run` builds no second one.
const SERVER: &str = "vhost-device-vfio";

/// Whether this process was started by [`run`] to be the server.
pub(crate) fn is_server() -> bool {
    std::env::args_os().next().is_some_and(|name| name == SERVER)
}

/// Runs the demonstration.
pub(crate) fn run() -> Result<(), ToolError> {
    show().map_err(|error| ToolError::demo(&*error))
}

fn show() -> Outcome {
    let folder = tempfile::tempdir()?;
    let machine = Machine::start(Topology::parse(TOPOLOGY)?, Settings::default(), folder.path())?;
    let host = Host::modelled(folder.path().into());
    let (edu, igb): (PciAddress, PciAddress) = ("0000:01:00.0".parse()?, "0000:01:00.1".parse()?);
    machine.order(&Order::Unbind(FunctionOrder { function: igb }))?;
    machine.order(&Order::Bind(DriverOrder { function: igb, driver: "igb".into() }))?;
    println!("A modelled machine with a card of two functions: {edu} is for a VM, the host uses {igb}.");

    step("A server starts. It opens nothing: the launcher hands it an iommufd and the first function.");
    let mut server = Server::start(&host, &folder.path().join("control"))?;
    server.client.set_iommufd(host.open(&host.iommufd())?, IoasChoice::Allocate)?;
    server.client.add_device(EDU, host.open_cdev(edu)?)?;
    server.show_devices()?;

    step("The VMM hands over guest memory, drives the device, and the device copies memory by DMA.");
    let memory = guest_memory()?;
    server.client.set_memory_table(&[region()], &[memory.as_fd()])?;
    server.copy_by_dma(&memory)?;

    step(
        "Can the function be reset? It has no reset of its own; its slot has one, which hits the other function too.",
    );
    server.show_group()?;
    let refused = server.client.reset(EDU, Some(ResetMethod::Hot), None).map(drop);
    println!("So a reset is refused: {}", refused.err().ok_or("it was not")?);

    step("The remedy, as it says: take the function from the host's driver, bind it to vfio-pci …");
    machine.order(&Order::Unbind(FunctionOrder { function: igb }))?;
    machine.order(&Order::Bind(DriverOrder { function: igb, driver: "vfio-pci".into() }))?;
    server.show_group()?;

    step("… and hand it over too.");
    server.client.add_device(IGB, host.open_cdev(igb)?)?;
    server.show_group()?;

    step("Now one reset takes both, quiesced before and restored after.");
    let report = server.client.reset(EDU, Some(ResetMethod::Hot), None)?;
    let view = ResetView::new(&server.client.device_info(EDU)?, &report);
    println!("{}", view.text());
    server.process.stop()?;
    drop(server);

    step("The server is gone, and so is everything it held:");
    print!("{}", machine.order(&Order::Inspect(vfio::model::order::Nothing {}))?);
    Ok(())
}

fn step(text: &str) {
    println!("\n# {text}");
}

fn guest_memory() -> Outcome<File> {
    let memory = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&memory, GUEST_MEMORY)?;
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK)?;
    Ok(memory.into())
}

const fn region() -> MemoryRegion {
    MemoryRegion { guest_address: 0, size: GUEST_MEMORY, user_address: 0, offset: 0 }
}

/// The server as a process of its own, and a session with it.
struct Server {
    process: RunningServer,
    socket: PathBuf,
    client: ControlClient,
}

impl Server {
    fn start(host: &Host, socket: &Path) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg0(SERVER).args(["--log-level", "error"]).args(host.arguments());
        let process = RunningServer::spawn(command, UnixListener::bind(socket)?)?;
        let mut client = ControlClient::new(UnixStream::connect(socket)?, PATIENCE);
        client.negotiate()?;
        Ok(Self { process, socket: socket.into(), client })
    }

    fn show_devices(&mut self) -> Outcome {
        let devices = crate::all_devices(&mut self.client)?;
        println!("$ vfio-devctl info\n{}", DeviceView::list(&devices).text().trim_end());
        Ok(())
    }

    fn show_group(&mut self) -> Outcome {
        let device = self.client.device_info(EDU)?;
        let group = ResetGroupView::new(&device, &self.client.reset_group(EDU)?, &[], &self.socket);
        println!("$ vfio-devctl reset-group {}\n{}", device.address, group.text().trim_end());
        Ok(())
    }

    /// Has the device copy a sentence from one end of guest memory to the other.
    fn copy_by_dma(&mut self, memory: &File) -> Outcome {
        const SENTENCE: &[u8] = b"moved by the device, seen by nobody else";
        const FROM: u64 = 0x1000;
        const TO: u64 = 0x20_0000;
        memory.write_all_at(SENTENCE, FROM)?;
        let (near, far) = UnixStream::pair()?;
        self.client.serve(EDU, Face::VfioUser, far)?;
        Edu::open(near)?.copy(FROM, TO, SENTENCE.len() as u64)?;
        let mut found = vec![0; SENTENCE.len()];
        memory.read_exact_at(&mut found, TO)?;
        println!("At guest address {TO:#x} is now: \"{}\"", String::from_utf8_lossy(&found));
        if found == SENTENCE { Ok(()) } else { Err("the copy did not arrive".into()) }
    }
}

/// A driver for QEMU's `edu` device (docs/specs/edu.rst), as much of it as copies memory.
struct Edu(Client);

impl Edu {
    const BAR: u32 = 0;
    const CONFIG: u32 = 7;
    const COMMAND: u64 = 4;
    /// The device's own memory, by which everything it copies goes.
    const BUFFER: u64 = 0x4_0000;
    const TO_GUEST: u64 = 2;

    fn open(socket: UnixStream) -> Outcome<Self> {
        let mut client = Client::new(socket, PATIENCE);
        client.version(&Capabilities::default())?;
        let enabled = command::MEMORY | command::BUS_MASTER;
        client.region_write(Self::CONFIG, Self::COMMAND, &enabled.to_le_bytes())?;
        Ok(Self(client))
    }

    fn copy(&mut self, from: u64, to: u64, length: u64) -> Outcome {
        self.transfer(from, Self::BUFFER, length, 0)?;
        self.transfer(Self::BUFFER, to, length, Self::TO_GUEST)
    }

    fn transfer(&mut self, source: u64, destination: u64, length: u64, direction: u64) -> Outcome {
        const START: u64 = 1;
        for (register, value) in
            [(0x80, source), (0x88, destination), (0x90, length), (0x98, START | direction)]
        {
            self.0.region_write(Self::BAR, register, &value.to_le_bytes())?;
        }
        Ok(())
    }
}
