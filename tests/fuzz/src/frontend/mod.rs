// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A session of the vhost-user face: what frontends, their guests and a hostile kernel do to the rings of a modelled virtio
//! device. Nothing may panic or wait for ever, and in the end nothing is left.

mod request;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use arbitrary::Arbitrary;
use protocol::extension::{Cookie, Face, IoasChoice};
use protocol::vhost_user::FrontendChannel;
use protocol::{ControlClient, VhostUserHeader};
use vfio::model::Order;
use vfio::model::order;
use vhost_device_vfio::policy::{DoorbellAccess, Policies};
use vhost_device_vfio_tests::guest_memory::GuestMemory;

use self::request::{Kept, Place, Region, Request, Ring, eventfd_of};
use crate::patience::PATIENCE;
use crate::session::Left;
use crate::session::flaw::Flaw;
use crate::session::logger;
use crate::session::machine::{FaultRule, Machine, Setup};
use crate::session::peer::{MAX_DESCRIPTORS, Peer};
use crate::session::server::{self, Server};

const TOPOLOGY: &str = include_str!("../../../../vfio/topologies/virtio-pair.toml");
const DEVICE: Cookie = Cookie(1);
/// Most steps of a session.
const MAX_STEPS: usize = 64;
const MEMORY: u64 = 1 << 20;
const SOON: Duration = Duration::from_millis(10);
const RING_SIZE: u16 = 16;

/// What happens.
#[derive(Arbitrary, Debug)]
pub struct Session {
    setup: Setup,
    /// The device is the network device, not the disk.
    is_network: bool,
    /// The server lends doorbells.
    lends: bool,
    steps: Vec<Step>,
}

/// Something that happens.
#[derive(Arbitrary, Debug)]
enum Step {
    /// A frontend comes, says what it knows, and describes the memory. The one before goes.
    Come { taken_away: u64 },
    /// It comes and says nothing.
    ComeSilently,
    /// It goes.
    Go,
    /// It sends something.
    Say { request: Request, flaw: Option<Flaw>, hurries: bool },
    /// It starts a ring as is right.
    Start { ring: Ring, base: u16 },
    /// Its guest offers buffers, and kicks.
    Offer { ring: Ring, descriptors: [Descriptor; 3], count: u8 },
    /// Its guest writes somewhere.
    Write { at: u16, data: u64 },
    /// It kicks.
    Kick(Ring),
    /// It answers what came on its channel.
    Acknowledge { is_done: bool },
    /// The device is reset, by the control client.
    Reset,
    /// It is taken away, and handed over again.
    Replace,
    /// A call of the kernel will fail.
    Fault(FaultRule),
}

/// Of a ring.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Descriptor {
    address: u16,
    length: u16,
    flags: u8,
    next: u8,
}

/// Plays it.
pub fn play(session: &Session) {
    let Session { setup, is_network, lends, steps } = session;
    logger::start();
    let left = Left::now();
    let machine = setup.start_topology(TOPOLOGY);
    let doorbells = if *lends { DoorbellAccess::Map } else { DoorbellAccess::Eventfd };
    let (server, _) = Server::start(&machine, false, Policies { doorbells, ..Policies::default() });
    let mut scene = Scene::new(&machine, *is_network);
    scene.hand_over();
    for step in steps.iter().take(MAX_STEPS) {
        scene.take(step);
    }
    drop(scene);
    machine.wait_until_unused();
    server.end();
    drop(machine);
    left.wait_for();
}

/// A device, its frontend, and the guest of that.
struct Scene<'a> {
    machine: &'a Machine,
    place: usize,
    control: ControlClient,
    memory: GuestMemory,
    peer: Option<Peer<VhostUserHeader>>,
    kept: Kept,
    available: u16,
}

impl<'a> Scene<'a> {
    fn new(machine: &'a Machine, is_network: bool) -> Self {
        let folder = machine.machine.host().root().to_owned();
        let stream = UnixStream::connect(server::socket(&folder)).expect("the server listens");
        let mut control = ControlClient::new(stream, PATIENCE);
        control.negotiate().expect("the server agrees");
        let memory = GuestMemory::new(0, MEMORY);
        let place = usize::from(is_network);
        Self { machine, place, control, memory, peer: None, kept: Kept::default(), available: 0 }
    }

    /// With a kernel that may refuse everything.
    fn hand_over(&mut self) {
        let host = self.machine.machine.host();
        let Ok(iommufd) = host.open_iommufd() else { return };
        let _ = self.control.set_iommufd(iommufd, IoasChoice::Allocate);
        let Ok(cdev) = host.open_cdev(self.machine.topology.functions[self.place].address) else { return };
        let _ = self.control.add_device(DEVICE, cdev);
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Come { taken_away } => {
                self.come();
                let greeting = [
                    Request::SetProtocolFeatures { taken_away: *taken_away },
                    Request::SetBackendChannel,
                    Request::AddMemoryRegion(Region::ALL),
                    Request::SetFeatures { others: 0 },
                ];
                self.say_all(&greeting);
            }
            Step::ComeSilently => self.come(),
            Step::Go => self.peer = None,
            Step::Say { request, flaw, hurries } => self.say(request, flaw.as_ref(), *hurries),
            Step::Start { ring, base } => self.start(*ring, *base),
            Step::Offer { ring, descriptors, count } => self.offer(*ring, descriptors, *count),
            Step::Write { at, data } => self.memory.write((*at).into(), &data.to_le_bytes()),
            Step::Kick(ring) => self.kick(*ring),
            Step::Acknowledge { is_done } => self.acknowledge(*is_done),
            Step::Reset => drop(self.control.reset(DEVICE, None, Some(SOON))),
            Step::Replace => {
                let _ = self.control.remove_device(DEVICE);
                self.peer = None;
                self.hand_over();
            }
            Step::Fault(rule) => {
                let order = Order::Fault(Box::new((*rule).into()));
                let _ = order::give(self.machine.machine.host().root(), &order);
            }
        }
    }

    fn come(&mut self) {
        self.peer = None;
        self.kept = Kept::default();
        let (near, far) = UnixStream::pair().expect("a socket pair");
        if self.control.serve(DEVICE, Face::VhostUser, far).is_ok() {
            self.peer = Some(Peer::new(near));
        }
    }

    fn say_all(&mut self, requests: &[Request]) {
        for request in requests {
            self.say(request, None, true);
        }
    }

    fn say(&mut self, request: &Request, flaw: Option<&Flaw>, hurries: bool) {
        let (number, body, mut descriptors) = request.parts(&self.memory, &mut self.kept);
        if let Some(Flaw::Descriptors(others)) = flaw {
            descriptors = others.iter().take(MAX_DESCRIPTORS).map(|_| eventfd_of()).collect();
        }
        let Some(mut peer) = self.peer.take() else { return };
        let sent = peer.send(VhostUserHeader::request(number, true), body, &descriptors, flaw);
        drop(descriptors);
        let outcome = sent.and_then(|()| if hurries { Ok(()) } else { peer.wait() });
        self.peer = outcome.ok().map(|()| peer);
    }

    fn start(&mut self, ring: Ring, base: u16) {
        let page = 16 + ring.number() % 4 * 4;
        let [descriptors, available, used] = [0, 1, 2].map(|part| Place::Page(page + part));
        let requests = [
            Request::SetVringSize { ring, size: RING_SIZE },
            Request::SetVringAddress { ring, descriptors, available, used },
            Request::SetVringBase { ring, base: base.into() },
            Request::SetVringCall { ring, is_there: true },
            Request::SetVringKick { ring, is_there: true },
            Request::SetVringEnable { ring, is_enabled: true },
            Request::SetStatus(0xf),
        ];
        self.say_all(&requests);
    }

    fn offer(&mut self, ring: Ring, descriptors: &[Descriptor; 3], count: u8) {
        let page = (16 + u64::from(ring.number() % 4) * 4) << 12;
        for (place, descriptor) in (0..).zip(descriptors) {
            let Descriptor { address, length, flags, next } = *descriptor;
            let words =
                [u64::from(address), u64::from(length) | u64::from(flags % 8) << 32 | u64::from(next) << 48];
            let at = page + 16 * place;
            self.memory.write(at, &words[0].to_le_bytes());
            self.memory.write(at + 8, &words[1].to_le_bytes());
        }
        self.available = self.available.wrapping_add((count % 4).into());
        self.memory.write(page + 0x1002, &self.available.to_le_bytes());
        self.kick(ring);
    }

    fn kick(&self, ring: Ring) {
        if let Some(Some(kick)) = self.kept.kicks.get(usize::from(ring.number())) {
            let _ = rustix::io::write(kick.as_fd(), &1_u64.to_ne_bytes());
        }
    }

    fn acknowledge(&mut self, is_done: bool) {
        let Some(channel) = self.kept.channel.as_ref().and_then(|channel| channel.try_clone().ok()) else {
            return;
        };
        let mut channel = FrontendChannel::new(channel);
        while let Ok((request, needs_reply)) = channel.receive_within(Duration::ZERO) {
            if needs_reply {
                let _ = channel.acknowledge(&request, is_done);
            }
        }
    }
}
