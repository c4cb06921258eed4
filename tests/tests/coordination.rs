// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two servers that share an iommufd and a reset set, and a broker that says just what a test wants it to say.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use protocol::extension::{
    AbortCause, BrokerMessage, Cookie, CoordinationId, CoordinationRequest, MemberMessage, MemberName,
    PciAddress, Preparation, ResetMethod, ResetOutcome, ResetPolicy, ResetReport, ResetWish,
};
use protocol::{ClientError, ControlClient, ServerChannel, ServerRequest};
use rustix::io::Errno;
use vfio::config_space::command;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, reset_by};
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::server_process::{PATIENCE, wait_until};
use vhost_device_vfio_tests::vmm::{Vmm, refusal};

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
const EDU: PciAddress = PciAddress { segment: 0, bus: 1, devfn: 0 };
const IGB: PciAddress = PciAddress { segment: 0, bus: 1, devfn: 1 };
/// Longer than any test.
const LONG: Duration = Duration::from_mins(5);
const RESET: CoordinationId = CoordinationId(7);

/// The broker's connection to a server.
#[derive(Debug)]
struct Member {
    control: ControlClient,
    channel: ServerChannel,
}

impl Member {
    fn new(mut control: ControlClient, name: &str) -> Self {
        let channel = control.open_server_channel().unwrap();
        control.coordinate(MemberName::new(name)).unwrap();
        Self { control, channel }
    }

    fn tell(&mut self, message: &BrokerMessage) {
        self.control.tell(message).unwrap();
    }

    fn hear(&mut self) -> MemberMessage {
        match self.channel.receive_within(PATIENCE).unwrap() {
            ServerRequest::Member(message) => message,
            other => panic!("{other:?} to the broker"),
        }
    }

    /// What it says to `message`.
    fn ask(&mut self, message: &BrokerMessage) -> MemberMessage {
        self.tell(message);
        self.hear()
    }
}

/// The first server has device 1, which only a hot reset resets, the second device 2, of the same slot.
struct TwoServers {
    vm: ModelledVm,
    second: Vmm,
    first_member: Member,
    second_member: Member,
}

impl TwoServers {
    fn start() -> Self {
        let mut vm = ModelledVm::start("edu-igb", &["--sanitize", "off"]);
        vm.vmm.add(1, FIRST).unwrap();
        let (mut second, path) = vm.second_server();
        second.add(2, SECOND).unwrap();
        let first_member = Member::new(vm.connect(), "first");
        let second_member = Member::new(Vmm::connect_again(&path), "second");
        Self { vm, second, first_member, second_member }
    }

    /// Somebody asks the first server for a hot reset; the broker is asked for it.
    fn ask_first(&mut self) -> (JoinHandle<Result<ResetReport, ClientError>>, CoordinationRequest) {
        let reset = reset_by(self.vm.connect(), 1);
        match self.first_member.hear() {
            MemberMessage::Request(request) => (reset, request),
            other => panic!("{other:?} instead of a request"),
        }
    }

    fn prepare(&mut self) {
        for member in [&mut self.first_member, &mut self.second_member] {
            let answer = member.ask(&preparation());
            assert_eq!(answer, MemberMessage::Ready { coordination: RESET, lost: vec![] });
        }
    }
}

fn preparation() -> BrokerMessage {
    prepared_with(ResetPolicy::Force, LONG, LONG)
}

fn prepared_with(policy: ResetPolicy, tries: Duration, patience: Duration) -> BrokerMessage {
    BrokerMessage::Prepare(Preparation {
        coordination: RESET,
        target: EDU,
        policy,
        tries,
        patience,
        functions: vec![EDU, IGB],
    })
}

fn done(coordination: CoordinationId) -> BrokerMessage {
    BrokerMessage::Done {
        coordination,
        request: None,
        outcome: ResetOutcome::Done,
        attempts: 1,
        missing: None,
    }
}

fn abort(coordination: CoordinationId, cause: AbortCause) -> BrokerMessage {
    BrokerMessage::Abort { coordination: Some(coordination), request: None, cause }
}

const fn grant(coordination: CoordinationId) -> BrokerMessage {
    BrokerMessage::Grant { coordination }
}

fn restored(coordination: CoordinationId) -> MemberMessage {
    MemberMessage::Restored { coordination, lost: vec![] }
}

/// An access that is begun now.
fn access(mut function: PciFunction) -> JoinHandle<u16> {
    spawn(move || function.command())
}

#[test]
fn without_a_broker_a_set_that_two_servers_share_is_not_reset() {
    let mut vm = ModelledVm::start("edu-igb", &[]);
    vm.vmm.add(1, FIRST).unwrap();
    let (mut second, _) = vm.second_server();
    second.add(2, SECOND).unwrap();
    let refused = refusal(reset_by(vm.connect(), 1).join().unwrap());
    assert_eq!(refused, ("sibling-elsewhere".into(), Errno::BUSY.raw_os_error()));
}

#[test]
fn the_broker_is_asked_for_a_reset_that_reaches_into_another_server() {
    let mut servers = TwoServers::start();
    let (reset, request) = servers.ask_first();
    assert_eq!((request.target, request.policy), (EDU, ResetPolicy::Force));
    assert_eq!(request.functions, [EDU, IGB]);
    assert!(!reset.is_finished());
    let cause = AbortCause::UnknownHolder(IGB);
    let no = BrokerMessage::Abort { coordination: None, request: Some(request.request), cause };
    servers.first_member.tell(&no);
    let refused = refusal(reset.join().unwrap());
    assert_eq!(refused.0, "not-coordinated");
}

#[test]
fn a_set_that_two_servers_share_is_reset_when_both_are_ready() {
    let mut servers = TwoServers::start();
    let mut function = servers.second.open(2);
    function.enable();
    let (reset, request) = servers.ask_first();
    servers.prepare();
    let fired = MemberMessage::Fired { coordination: RESET, result: Ok(ResetOutcome::Done), attempts: 1 };
    assert_eq!(servers.first_member.ask(&grant(RESET)), fired);
    assert_eq!(servers.second_member.ask(&done(RESET)), restored(RESET));
    let done = BrokerMessage::Done {
        coordination: RESET,
        request: Some(request.request),
        outcome: ResetOutcome::Done,
        attempts: 1,
        missing: None,
    };
    assert_eq!(servers.first_member.ask(&done), restored(RESET));
    let report = reset.join().unwrap().unwrap();
    assert_eq!((report.method, report.attempts), (ResetMethod::Hot, 1));
    assert_eq!(report.affected, [Cookie(1)], "of this server");
    assert_eq!(
        function.command(),
        command::MEMORY | command::BUS_MASTER,
        "the client of the other server goes on"
    );
    servers.second.server.wait_for_log("event=state-lost");
}

#[test]
fn a_device_that_is_prepared_is_left_alone_until_the_broker_says_how_it_ended() {
    let mut servers = TwoServers::start();
    let function = servers.second.open(2);
    servers.prepare();
    let access = access(function);
    assert!(!access.is_finished());
    let cause = AbortCause::MemberSilent(MemberName::new("first"));
    assert_eq!(servers.second_member.ask(&abort(RESET, cause)), restored(RESET));
    access.join().unwrap();
}

#[test]
fn a_server_that_protects_a_device_refuses() {
    let mut servers = TwoServers::start();
    let mut function = servers.second.open(2);
    function.enable();
    let answer = servers.second_member.ask(&prepared_with(ResetPolicy::Group, LONG, LONG));
    assert_eq!(answer, MemberMessage::Refused { coordination: RESET, device: IGB });
    assert_ne!(function.command() & 7, 0, "nothing was quiesced");
}

#[test]
fn a_reset_that_another_server_refused_is_told_with_its_name() {
    let mut servers = TwoServers::start();
    let (reset, request) = servers.ask_first();
    servers.prepare();
    let cause = AbortCause::MemberRefused { member: MemberName::new("second"), device: IGB };
    let no = BrokerMessage::Abort { coordination: Some(RESET), request: Some(request.request), cause };
    assert_eq!(servers.first_member.ask(&no), restored(RESET));
    match reset.join().unwrap() {
        Err(ClientError::Refused { failure, errno: Errno::BUSY, .. }) => {
            assert_eq!(failure.id(), "not-coordinated");
            assert!(failure.why().contains("second"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_broker_says_of_a_reset_that_a_server_does_not_know_is_answered() {
    let mut servers = TwoServers::start();
    let member = &mut servers.first_member;
    let unknown = CoordinationId(99);
    let not_fired = MemberMessage::Fired { coordination: unknown, result: Err(Errno::PROTO), attempts: 0 };
    assert_eq!(member.ask(&grant(unknown)), not_fired);
    assert_eq!(member.ask(&done(unknown)), restored(unknown));
    let cause = AbortCause::DeadlinePassed;
    assert_eq!(member.ask(&abort(unknown, cause)), restored(unknown));
}

#[test]
fn a_grant_that_comes_too_late_is_not_used() {
    let mut servers = TwoServers::start();
    let late = prepared_with(ResetPolicy::Force, Duration::from_millis(1), LONG);
    assert!(matches!(servers.first_member.ask(&late), MemberMessage::Ready { .. }));
    // Whatever the machine's load, it is over then.
    std::thread::sleep(Duration::from_millis(2));
    let answer = servers.first_member.ask(&grant(RESET));
    let not_fired = MemberMessage::Fired { coordination: RESET, result: Err(Errno::TIMEDOUT), attempts: 0 };
    assert_eq!(answer, not_fired);
    assert_eq!(servers.first_member.ask(&done(RESET)), restored(RESET));
}

#[test]
fn a_server_that_has_nothing_of_the_set_is_ready_at_once() {
    let mut servers = TwoServers::start();
    servers.second.control.remove_device(Cookie(2)).unwrap();
    let ready = MemberMessage::Ready { coordination: RESET, lost: vec![] };
    assert_eq!(servers.second_member.ask(&preparation()), ready);
    assert_eq!(servers.second_member.ask(&done(RESET)), restored(RESET));
}

#[test]
fn a_device_that_is_handed_over_while_its_set_is_prepared_comes_after_that() {
    let mut servers = TwoServers::start();
    servers.second.control.remove_device(Cookie(2)).unwrap();
    servers.prepare();
    let device = servers.vm.machine.host().open_cdev(SECOND.parse().unwrap()).unwrap();
    let TwoServers { second, mut second_member, .. } = servers;
    let Vmm { mut control, server, iommufd, .. } = second;
    let addition = spawn(move || control.add_device(Cookie(2), device).map(|_| control));
    // It waits, or is about to.
    std::thread::sleep(Duration::from_millis(100));
    assert!(!addition.is_finished());
    assert_eq!(second_member.ask(&done(RESET)), restored(RESET));
    assert!(wait_until(|| addition.is_finished()), "{}", server.log());
    drop((addition.join().unwrap().unwrap(), iommufd));
}

#[test]
fn a_server_whose_broker_is_gone_restores() {
    let mut servers = TwoServers::start();
    let function = servers.second.open(2);
    servers.prepare();
    let access = access(function);
    assert!(!access.is_finished());
    drop(servers.second_member);
    access.join().unwrap();
    servers.second.server.wait_for_log("event=broker-gone");
}

#[test]
fn who_waits_for_a_broker_that_is_gone_is_told() {
    let mut servers = TwoServers::start();
    let (reset, _) = servers.ask_first();
    drop(servers.first_member);
    assert_eq!(refusal(reset.join().unwrap()).0, "not-coordinated");
}

#[test]
fn a_server_whose_brokers_channel_ends_restores() {
    let mut servers = TwoServers::start();
    let function = servers.second.open(2);
    servers.prepare();
    let access = access(function);
    let Member { control: _control, channel } = servers.second_member;
    drop(channel);
    access.join().unwrap();
}

#[test]
fn a_server_that_hears_no_end_restores_on_its_own() {
    let mut servers = TwoServers::start();
    let mut function = servers.second.open(2);
    let impatient = prepared_with(ResetPolicy::Force, LONG, Duration::from_millis(50));
    assert!(matches!(servers.second_member.ask(&impatient), MemberMessage::Ready { .. }));
    assert_eq!(servers.second_member.hear(), restored(RESET));
    function.enable();
    assert_ne!(function.command() & 7, 0);
}

#[test]
fn one_client_at_a_time_is_the_broker() {
    let servers = TwoServers::start();
    let mut other = servers.vm.connect();
    let _channel = other.open_server_channel().unwrap();
    let refused = refusal(other.coordinate(MemberName::new("other")));
    assert_eq!(refused, ("already-coordinated".into(), Errno::BUSY.raw_os_error()));
    let Member { control, channel } = servers.first_member;
    drop(channel);
    assert!(wait_until(|| other.coordinate(MemberName::new("other")).is_ok()), "the place is free");
    drop(control);
}

#[test]
fn only_the_broker_coordinates() {
    let servers = TwoServers::start();
    let mut other = servers.vm.connect();
    for message in [preparation(), grant(RESET), done(RESET), abort(RESET, AbortCause::DeadlinePassed)] {
        let refused = refusal(other.tell(&message));
        assert_eq!(refused, ("not-the-broker".into(), Errno::PERM.raw_os_error()));
    }
}

#[test]
fn a_reset_that_one_server_can_do_alone_needs_no_broker() {
    let mut servers = TwoServers::start();
    let wish = ResetWish { method: Some(ResetMethod::Function), policy: None, deadline: None };
    let report = servers.second.control.reset_as(Cookie(2), wish).unwrap();
    assert_eq!(report.method, ResetMethod::Function);
}
