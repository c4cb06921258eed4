// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The server that is judged: where it listens, and what it offers.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::case::{Finding, Judgement, fault, not_applicable, require};
use crate::client::{Answer, Client, Reply};
use crate::wire::{self, command, u32_at, u64_at, version};

/// Number of a PCI function's config space among the regions.
pub(crate) const CONFIG: u32 = 7;
/// What QEMU 11.1 says first.
pub(crate) const QEMU: &str = r#"{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,"max_data_xfer_size":1048576,"migration":{"max_bitmap_size":268435456,"pgsize":4096},"write_multiple":true}}"#;
/// Bit 1 of the device's flags: it is a PCI device.
pub(crate) const IS_PCI: u32 = 2;
/// EBUSY.
const BUSY: u32 = 16;
/// Pause before another attempt to connect.
const PAUSE: Duration = Duration::from_millis(5);

/// A region as `DEVICE_GET_REGION_INFO` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) size: u64,
}

impl Region {
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const MMAP: u32 = 4;
    pub(crate) const CAPS: u32 = 8;
}

/// An interrupt index as `DEVICE_GET_IRQ_INFO` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Irq {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) count: u32,
}

impl Irq {
    pub(crate) const EVENTFD: u32 = 1;
    pub(crate) const MASKABLE: u32 = 2;
}

/// What the device is.
#[derive(Debug, Default)]
pub(crate) struct Device {
    pub(crate) flags: u32,
    pub(crate) regions: Vec<Region>,
    pub(crate) irqs: Vec<Irq>,
    /// What the server answers to QEMU's proposal.
    pub(crate) capabilities: Map<String, Value>,
}

/// The server.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    patience: Duration,
    pub(crate) device: Device,
}

impl Server {
    /// The server that listens at `path` and answers within `patience`, and what it offers.
    pub(crate) fn discover(path: PathBuf, patience: Duration) -> Judgement<Self> {
        let mut server = Self { path, patience, device: Device::default() };
        server.device = server.session_with_reply().and_then(|(client, reply)| describe(client, &reply))?;
        Ok(server)
    }

    /// A connection on which nothing was said yet. A server that has one client in its life may be on its way up again.
    pub(crate) fn connect(&self) -> Judgement<Client> {
        let set_up = |stream: UnixStream| {
            stream.set_read_timeout(Some(self.patience))?;
            stream.set_write_timeout(Some(self.patience))?;
            Ok(stream)
        };
        let deadline = Instant::now() + self.patience;
        loop {
            match UnixStream::connect(&self.path).and_then(set_up) {
                Ok(stream) => return Ok(Client::new(stream)),
                Err(error) if Instant::now() > deadline => return fault(format!("cannot connect: {error}")),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// A client that has agreed on version and capabilities as QEMU does.
    pub(crate) fn session(&self) -> Judgement<Client> {
        self.session_with_reply().map(|(client, _)| client)
    }

    /// The same with the reply to `VERSION`. A server that takes one client at a time may not have noticed yet that the one
    /// before has gone, and say so or close the connection at once.
    fn session_with_reply(&self) -> Judgement<(Client, Reply)> {
        let deadline = Instant::now() + self.patience;
        loop {
            let mut client = self.connect()?;
            let id = client.new_id();
            let is_sent = client.try_send(&wire::message(id, command::VERSION, 0, &version(1, QEMU)), &[])?;
            let answer = if is_sent { client.receive()? } else { Answer::End };
            match answer {
                Answer::Reply(Reply { error: Some(BUSY), .. }) if Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                }
                Answer::Reply(reply) => {
                    require!(
                        (reply.id, reply.command) == (id, command::VERSION),
                        "VERSION has the reply of {:?}",
                        (reply.id, reply.command)
                    );
                    require!(reply.error.is_none(), "QEMU's VERSION is refused");
                    return Ok((client, reply));
                }
                Answer::End if Instant::now() > deadline => {
                    return fault("the connection ends instead of a reply to VERSION");
                }
                Answer::End => std::thread::sleep(PAUSE),
            }
        }
    }

    /// A PCI device's config space.
    pub(crate) fn config(&self) -> Judgement<Region> {
        let is_pci = self.device.flags & IS_PCI != 0;
        match self.device.regions.iter().find(|region| is_pci && region.index == CONFIG) {
            Some(region) => Ok(*region),
            None => not_applicable("it is no PCI device"),
        }
    }

    /// The interrupt index, of those of a PCI device's work, with most interrupts that eventfds can be given to.
    pub(crate) fn irq(&self) -> Judgement<Irq> {
        let usable = |irq: &&Irq| irq.index < 3 && irq.count > 0 && irq.flags & Irq::EVENTFD != 0;
        let most = self.device.irqs.iter().filter(usable).max_by_key(|irq| irq.count);
        most.map_or_else(|| not_applicable("the device has no interrupt"), |irq| Ok(*irq))
    }

    /// The same with at least so many interrupts.
    pub(crate) fn irq_of(&self, count: u32) -> Judgement<Irq> {
        let irq = self.irq()?;
        if irq.count < count {
            return not_applicable(format!("the device has {} interrupts, not {count}", irq.count));
        }
        Ok(irq)
    }

    /// A number among the capabilities, or what the specification says if there is none.
    pub(crate) fn capability(&self, name: &str, default: u64) -> u64 {
        self.device.capabilities.get(name).and_then(Value::as_u64).unwrap_or(default)
    }

    /// Most descriptors that the server takes with one message.
    pub(crate) fn max_descriptors(&self) -> usize {
        usize::try_from(self.capability("max_msg_fds", 1)).unwrap_or(usize::MAX)
    }

    /// Most bytes that the server reads or writes with one message.
    pub(crate) fn max_data(&self) -> u64 {
        self.capability("max_data_xfer_size", 1 << 20)
    }

    /// The smallest page that can be mapped, in bytes.
    pub(crate) fn page(&self) -> u64 {
        let sizes = self.capability("pgsizes", 4096);
        if sizes == 0 { 4096 } else { 1 << sizes.trailing_zeros() }
    }

    /// How long the server may take.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }
}

/// Asks for everything that the device has.
fn describe(mut client: Client, reply: &Reply) -> Judgement<Device> {
    let capabilities = capabilities(&reply.payload)?;
    let info = client.ask(command::DEVICE_GET_INFO, &wire::device_info(16), &[])?;
    require!(info.error.is_none(), "DEVICE_GET_INFO is refused");
    let flags = u32_at(&info.payload, 4)?;
    let (regions, irqs) = (u32_at(&info.payload, 8)?, u32_at(&info.payload, 12)?);
    require!(regions <= 100 && irqs <= 50, "{regions} regions and {irqs} interrupt indexes");
    let mut device = Device { flags, capabilities, ..Device::default() };
    for index in 0..regions {
        let reply = client.ask(command::DEVICE_GET_REGION_INFO, &wire::region_info(32, index), &[])?;
        require!(reply.error.is_none(), "DEVICE_GET_REGION_INFO of {index} is refused");
        let (flags, size) = (u32_at(&reply.payload, 4)?, u64_at(&reply.payload, 16)?);
        device.regions.push(Region { index, flags, size });
    }
    for index in 0..irqs {
        let reply = client.ask(command::DEVICE_GET_IRQ_INFO, &wire::irq_info(16, index), &[])?;
        require!(reply.error.is_none(), "DEVICE_GET_IRQ_INFO of {index} is refused");
        let (flags, count) = (u32_at(&reply.payload, 4)?, u32_at(&reply.payload, 12)?);
        device.irqs.push(Irq { index, flags, count });
    }
    Ok(device)
}

/// What the reply to `VERSION` says besides the versions.
pub(crate) fn capabilities(payload: &[u8]) -> Judgement<Map<String, Value>> {
    let Some(json) = payload.get(4..).filter(|json| !json.is_empty()) else { return Ok(Map::new()) };
    let Some(text) = json.strip_suffix(&[0]) else { return fault("the reply's JSON does not end with NUL") };
    let malformed =
        || Finding::Fault(format!("the reply's JSON is malformed: {}", String::from_utf8_lossy(text)));
    let root: Map<String, Value> = serde_json::from_slice(text).map_err(|_| malformed())?;
    match root.get("capabilities") {
        None => Ok(Map::new()),
        Some(Value::Object(capabilities)) => Ok(capabilities.clone()),
        Some(_) => Err(malformed()),
    }
}
