// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everybody around the server: its clients, the host's administrator, and other users of the devices.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::patience::PATIENCE;
use arbitrary::Arbitrary;
use protocol::vfio_user::{Command, VfioUserHeader};
use protocol::{RequestNumber, VhostUserHeader};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use vfio::model::Order;
use vfio::model::order::{self, DriverOrder, FunctionOrder, Signal, SignalOrder};
use vfio::{Device, Iommufd, PciAddress, UnboundDevice};
use vhost_device_vfio_tests::guest_memory::memfd;
use vhost_device_vfio_tests::host::Host;

use super::channel_message::Message;
use super::control_message::{ControlMessage, Parts};
use super::data_message::DataMessage;
use super::flaw::Flaw;
use super::liar::{self, Lie};
use super::machine::{FaultRule, Machine};
use super::peer::{Gone, MAX_DESCRIPTORS, Peer};
use super::server;

const CLIENTS: usize = 3;
const FACES: usize = 4;
/// Size of a file of guest memory.
const MEMORY: u64 = 1 << 20;

/// How long an order takes that has nothing to wait for.
const SOON: Duration = Duration::from_millis(5);

/// Something that happens.
#[derive(Arbitrary, Debug)]
pub(super) enum Step {
    /// A control client comes, and agrees on the extension.
    Connect(u8),
    /// It comes and says nothing.
    ConnectSilently(u8),
    /// It goes, whatever it was about.
    Disconnect(u8),
    /// It sends something.
    Control { client: u8, message: Message, flaw: Option<Flaw>, hurries: bool },
    /// Somebody comes to a listening face.
    ConnectFace(u8),
    /// A client of a face goes.
    DisconnectFace(u8),
    /// It sends something.
    Data { face: u8, message: DataMessage, flaw: Option<Flaw>, hurries: bool },
    /// Something happens to the machine.
    Host(HostStep),
}

/// What others do to the machine. They are given a function by its place among all.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum HostStep {
    Unbind(u8),
    Remove(u8),
    Bind {
        function: u8,
        is_vfio: bool,
    },
    Add {
        number: u8,
        group: u8,
    },
    Error(u8),
    Request(u8),
    Fault(FaultRule),
    /// Another VMM binds a function to a context of its own.
    Claim(u8),
    /// Another VMM opens a group the legacy way.
    OpenGroup(u8),
    /// The other VMM goes.
    Release,
}

/// Another VMM on the same machine.
#[derive(Debug, Default)]
struct Stranger {
    iommufd: Option<Iommufd>,
    devices: Vec<Device>,
    groups: Vec<File>,
}

/// Everybody.
pub(super) struct World {
    pub(super) host: Host,
    functions: Vec<PciAddress>,
    clients: [Option<Peer<VhostUserHeader>>; CLIENTS],
    faces: [Option<Peer<VfioUserHeader>>; FACES],
    /// Where listening faces are found.
    listening: [Option<PathBuf>; FACES],
    sockets: u32,
    /// The near ends of server channels. Nobody reads there.
    channels: [Option<UnixStream>; CLIENTS],
    iommufds: [Option<OwnedFd>; 2],
    cdev: Option<OwnedFd>,
    /// What functions say that is not so.
    lies: Vec<Lie>,
    memory: [Option<OwnedFd>; 3],
    stranger: Stranger,
    /// Functions, or their drivers, came or went.
    pub(super) has_changed_nodes: bool,
    /// A reset for a guest, or before a device is served, may not have ended yet. Together with an order that waits it would
    /// last for a minute: the kernel is busy for as long as the order waits, and the server tries again until its deadline.
    may_be_resetting: bool,
    /// Orders that wait until nobody has a function open.
    orders: Vec<Receiver<Result<String, Errno>>>,
}

impl World {
    pub(super) fn new(machine: &Machine, first: Option<UnixStream>, lies: &[Lie]) -> Self {
        Self {
            host: machine.machine.host(),
            functions: machine.topology.functions.iter().map(|endpoint| endpoint.address).collect(),
            clients: [first.map(Peer::new), None, None],
            faces: [const { None }; FACES],
            listening: [const { None }; FACES],
            sockets: 0,
            channels: [const { None }; CLIENTS],
            iommufds: [const { None }; 2],
            cdev: None,
            lies: lies.into(),
            memory: [const { None }; 3],
            stranger: Stranger::default(),
            has_changed_nodes: false,
            may_be_resetting: false,
            orders: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, step: &Step) {
        match step {
            Step::Connect(client) => {
                self.connect(*client);
                for message in &ControlMessage::NEGOTIATION {
                    self.send_control(*client, |world| message.parts(world), None, true);
                }
            }
            Step::ConnectSilently(client) => self.connect(*client),
            Step::Disconnect(client) => self.clients[usize::from(*client) % CLIENTS] = None,
            Step::Control { client, message, flaw, hurries } => {
                self.send_control(*client, |world| message.parts(world), flaw.as_ref(), *hurries);
            }
            Step::ConnectFace(face) => self.connect_face(*face),
            Step::DisconnectFace(face) => self.faces[usize::from(*face) % FACES] = None,
            Step::Data { face, message, flaw, hurries } => {
                self.send_data(*face, message, flaw.as_ref(), *hurries);
            }
            Step::Host(step) => self.take_host(*step),
        }
    }

    /// Everybody goes, and what they waited for comes to its end.
    pub(super) fn leave(mut self) {
        let orders = std::mem::take(&mut self.orders);
        drop(self);
        for order in orders {
            // Whatever it says: a function may be gone by now.
            let _ = order.recv_timeout(PATIENCE).expect("the order is carried out");
        }
    }

    fn connect(&mut self, client: u8) {
        let client = &mut self.clients[usize::from(client) % CLIENTS];
        *client = None;
        *client = UnixStream::connect(server::socket(self.host.root())).ok().map(Peer::new);
    }

    fn connect_face(&mut self, face: u8) {
        let face = usize::from(face) % FACES;
        self.faces[face] = None;
        let stream = self.listening[face].as_ref().and_then(|path| UnixStream::connect(path).ok());
        self.faces[face] = stream.map(Peer::new);
    }

    fn send_control(
        &mut self,
        client: u8,
        message: impl FnOnce(&mut Self) -> Parts,
        flaw: Option<&Flaw>,
        hurries: bool,
    ) {
        let client = usize::from(client) % CLIENTS;
        let Some(mut peer) = self.clients[client].take() else { return };
        let (number, body, descriptors) = message(self);
        if number == RequestNumber::SERVE && !self.may_reset(hurries || flaw.is_some()) {
            self.clients[client] = Some(peer);
            return;
        }
        let descriptors = self.spoil_descriptors(descriptors, flaw);
        let header = VhostUserHeader::request(number, true);
        let sent = peer.send(header, body, &descriptors, flaw);
        drop(descriptors);
        let outcome = sent.and_then(|()| if hurries { Ok(()) } else { peer.wait() });
        self.clients[client] = outcome.map_or_else(|Gone| None, |()| Some(peer));
    }

    fn send_data(&mut self, face: u8, message: &DataMessage, flaw: Option<&Flaw>, hurries: bool) {
        let face = usize::from(face) % FACES;
        let (command, body, descriptors) = message.parts(self);
        if command == Command::DEVICE_RESET && !self.may_reset(hurries || flaw.is_some()) {
            return;
        }
        let Some(mut peer) = self.faces[face].take() else { return };
        let descriptors = self.spoil_descriptors(descriptors, flaw);
        let sent = peer.send(VfioUserHeader::command(7, command), body, &descriptors, flaw);
        drop(descriptors);
        let outcome = sent.and_then(|()| if hurries { Ok(()) } else { peer.wait() });
        self.faces[face] = outcome.map_or_else(|Gone| None, |()| Some(peer));
    }

    /// Whether something may be sent that has a device reset, and whose end may not be seen.
    fn may_reset(&mut self, may_outlast_step: bool) -> bool {
        self.may_be_resetting |= may_outlast_step && self.orders.is_empty();
        self.orders.is_empty()
    }

    fn spoil_descriptors(&mut self, descriptors: Vec<OwnedFd>, flaw: Option<&Flaw>) -> Vec<OwnedFd> {
        match flaw {
            Some(Flaw::Descriptors(others)) => {
                others.iter().take(MAX_DESCRIPTORS).filter_map(|other| other.get(self)).collect()
            }
            _ => descriptors,
        }
    }

    fn function(&self, place: u8) -> PciAddress {
        self.functions[usize::from(place) % self.functions.len()]
    }

    /// One of the contexts that a VMM keeps.
    pub(super) fn iommufd(&mut self, which: u8) -> Option<OwnedFd> {
        let kept = &mut self.iommufds[usize::from(which) % 2];
        if kept.is_none() {
            *kept = self.host.open_iommufd().ok().map(OwnedFd::from);
        }
        kept.as_ref()?.try_clone().ok()
    }

    /// Opens a function.
    pub(super) fn open_cdev(&self, place: u8) -> Option<OwnedFd> {
        let file = self.host.open_cdev(self.function(place)).ok()?.into();
        Some(if self.lies.is_empty() { file } else { liar::open(file, &self.lies) })
    }

    /// Opens a function, and keeps it open. The one kept before is closed.
    pub(super) fn keep_cdev(&mut self, place: u8) -> Option<OwnedFd> {
        self.cdev = self.open_cdev(place);
        self.kept_cdev()
    }

    /// The function that is kept open, once more.
    pub(super) fn kept_cdev(&self) -> Option<OwnedFd> {
        self.cdev.as_ref()?.try_clone().ok()
    }

    pub(super) fn open_group(&self, place: u8) -> Option<File> {
        let group = self.host.sysfs().function(self.function(place)).ok()?.iommu_group?;
        self.host.open_group(group).ok()
    }

    /// A file of guest memory. One of them may shrink.
    pub(super) fn memory(&mut self, which: u8) -> OwnedFd {
        let which = usize::from(which) % self.memory.len();
        let seals = if which == 2 { SealFlags::GROW } else { SealFlags::SHRINK };
        let memory = self.memory[which].get_or_insert_with(|| memfd(MEMORY, seals));
        memory.try_clone().expect("a second descriptor")
    }

    /// The server's end of a face's socket.
    pub(super) fn socket_of_face(&mut self, face: u8, listens: bool) -> OwnedFd {
        let face = usize::from(face) % FACES;
        if !listens {
            let (near, far) = UnixStream::pair().expect("a socket pair");
            self.faces[face] = Some(Peer::new(near));
            return far.into();
        }
        self.sockets += 1;
        let path = self.host.root().join(format!("face-{}", self.sockets));
        let listener = UnixListener::bind(&path).expect("a free path");
        self.listening[face] = Some(path);
        listener.into()
    }

    /// The server's end of a server channel. Its other end is kept until there is another one, or is gone at once.
    pub(super) fn server_channel(&mut self, which: u8, is_kept: bool) -> OwnedFd {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        self.channels[usize::from(which) % CLIENTS] = Some(near).filter(|_| is_kept);
        far.into()
    }

    /// Where a function is, as the protocol has it.
    pub(super) fn wire_address(&self, place: u8) -> protocol::extension::PciAddress {
        vhost_device_vfio::reset::report::wire_address(self.function(place))
    }

    fn take_host(&mut self, step: HostStep) {
        type Step = HostStep;
        self.has_changed_nodes |=
            matches!(step, Step::Unbind(_) | Step::Remove(_) | Step::Bind { .. } | Step::Add { .. });
        let order = match step {
            Step::Unbind(place) => {
                return self.give_in_time(Order::Unbind(FunctionOrder { function: self.function(place) }));
            }
            Step::Remove(place) => {
                return self.give_in_time(Order::Remove(FunctionOrder { function: self.function(place) }));
            }
            Step::Bind { function, is_vfio } => {
                let driver = if is_vfio { "vfio-pci" } else { "e1000e" }.into();
                Order::Bind(DriverOrder { function: self.function(function), driver })
            }
            Step::Add { number, group } => Order::Add(format!(
                "address = \"0000:01:{:02x}.{}\"\npart = \"igb\"\ngroup = {}\ndriver = \"vfio-pci\"",
                number >> 3 & 0x1f,
                number & 7,
                group % 16
            )),
            Step::Error(place) => {
                Order::Signal(SignalOrder { function: self.function(place), interrupt: Signal::Error })
            }
            Step::Request(place) => {
                Order::Signal(SignalOrder { function: self.function(place), interrupt: Signal::Request })
            }
            Step::Fault(rule) => Order::Fault(Box::new(rule.into())),
            Step::Claim(place) => return self.claim(place).unwrap_or_default(),
            Step::OpenGroup(place) => return self.stranger.groups.extend(self.open_group(place)),
            Step::Release => return self.stranger = Stranger::default(),
        };
        // It may be refused.
        let _ = order::give(self.host.root(), &order);
    }

    /// Gives an order that may have to wait.
    fn give_in_time(&mut self, order: Order) {
        if self.may_be_resetting {
            return;
        }
        let (told, outcome) = channel();
        let folder = self.host.root().to_owned();
        std::thread::spawn(move || {
            // Nobody may be left to be told.
            let _ = told.send(order::give(&folder, &order));
        });
        if outcome.recv_timeout(SOON).is_err() {
            self.orders.push(outcome);
        }
    }

    fn claim(&mut self, place: u8) -> Option<()> {
        let sysfs = self.host.sysfs();
        if self.stranger.iommufd.is_none() {
            let iommufd = self.host.open_iommufd().ok()?;
            self.stranger.iommufd = Iommufd::from_fd(iommufd.into(), &sysfs).ok();
        }
        let cdev = self.host.open_cdev(self.function(place)).ok()?;
        let device = UnboundDevice::from_fd(cdev.into(), &sysfs).ok()?;
        self.stranger.devices.extend(device.bind(self.stranger.iommufd.as_ref()?, &sysfs).ok());
        Some(())
    }
}
