// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes on a data face that are no good commands: the client is told or parted from, and no other device notices.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use protocol::extension::{Cookie, Face};
use rustix::io::Errno;
use vhost_device_vfio_tests::foreign_file::ForeignFile;
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::raw_client::RawClient;
use vhost_device_vfio_tests::vmm::Vmm;

use super::{FIRST, SECOND};

/// Numbers of commands.
const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const GET_INFO: u16 = 4;
const GET_REGION_INFO: u16 = 5;
const GET_IRQ_INFO: u16 = 7;
const SET_IRQS: u16 = 8;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const DMA_READ: u16 = 11;
const RESET: u16 = 13;

/// Version 0.1, no capabilities.
const GOOD_VERSION: [u8; 4] = [0, 0, 1, 0];
const GOOD_INFO: [u32; 4] = [16, 0, 0, 0];
const COMMAND: u32 = 0;
const NO_REPLY: u32 = 0x10;
const ERROR_REPLY: u32 = 0x21;
const HEADER: usize = 16;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A region access as it stands in a command.
fn access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [offset.to_ne_bytes().as_slice(), &words(&[region, count])].concat()
}

/// A header that says these things, whatever follows it.
fn header(command: u16, size: u32, flags: u32) -> Vec<u8> {
    let id: u16 = 0x5a5a;
    [[id.to_ne_bytes(), command.to_ne_bytes()].concat(), words(&[size, flags, 0])].concat()
}

fn message(command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER + body.len()).unwrap();
    [header(command, size, flags).as_slice(), body].concat()
}

/// A VMM that uses the second function as it should, and is about to misuse the first.
struct Victim {
    vmm: Vmm,
    second: PciFunction,
    open_files: usize,
}

impl Victim {
    fn new() -> Self {
        let mut vmm = Vmm::start();
        vmm.add(1, FIRST).unwrap();
        vmm.add(2, SECOND).unwrap();
        let mut second = vmm.open(2);
        second.enable();
        let open_files = vmm.server.open_files();
        Self { vmm, second, open_files }
    }

    /// A connection to the first function on which nothing was said yet.
    fn connect(&mut self) -> RawClient {
        let (near, far) = UnixStream::pair().unwrap();
        self.vmm.control.serve(Cookie(1), Face::VfioUser, far).unwrap();
        near.into()
    }

    fn negotiate(&mut self) -> RawClient {
        let mut client = self.connect();
        client.send(&message(VERSION, COMMAND, &GOOD_VERSION), &[]);
        client.receive_bytes(HEADER + GOOD_VERSION.len());
        client
    }

    /// The second function goes on, and so many connections to the first are open.
    fn assert_unharmed(&mut self, connections: usize) {
        assert_ne!(self.second.command(), 0);
        self.vmm.server.wait_for_open_files(self.open_files + connections);
    }
}

/// The reply is an error and has nothing else.
fn expect_error(client: &mut RawClient, command: u16, errno: Errno, what: &str) {
    let errno = errno.raw_os_error().unsigned_abs();
    let mut expected = header(command, 16, ERROR_REPLY);
    expected[12..].copy_from_slice(&errno.to_ne_bytes());
    assert_eq!(client.receive_bytes(HEADER), expected, "{what}");
}

/// The stream is where a command begins: what was refused was read whole, and answered once.
fn expect_in_step(client: &mut RawClient) {
    client.send(&message(GET_INFO, COMMAND, &words(&GOOD_INFO)), &[]);
    let reply = client.receive_bytes(2 * HEADER);
    assert_eq!(reply[..HEADER], header(GET_INFO, 32, 1));
}

pub(crate) fn a_malformed_command_ends_its_connection_only() {
    let mut victim = Victim::new();
    let null = File::open("/dev/null").unwrap();
    for (size, flags, reason) in [
        (0, COMMAND, "announces 0 bytes, less than the header has"),
        (15, COMMAND, "announces 15 bytes, less than the header has"),
        ((1 << 20) + 49, COMMAND, "announces a body of 1048609 bytes"),
        (u32::MAX, COMMAND, "announces a body of 4294967279 bytes"),
        (16, 0x1, "flags 0x1 have the wrong direction"),
        (16, ERROR_REPLY, "flags 0x21 have the wrong direction"),
        (16, 0x20, "flags 0x20 have the wrong direction"),
        (16, 0x2, "flags 0x2 are not a known version and type"),
        (16, 0x40, "flags 0x40 are not a known version and type"),
    ] {
        let mut client = victim.negotiate();
        client.send(&header(GET_INFO, size, flags), &[null.as_fd()]);
        client.assert_ended();
        victim.vmm.server.wait_for_log(reason);
        victim.assert_unharmed(0);
    }
}

pub(crate) fn a_refused_command_has_one_error_reply() {
    let mut victim = Victim::new();
    let mut client = victim.negotiate();
    let mega = 1 << 20;
    let irqs = |flags, index, start, count| words(&[20, flags, index, start, count]);
    for (command, body, errno) in [
        (DMA_MAP, vec![0; 32], Errno::INVAL),
        (DMA_READ, vec![0; 32], Errno::OPNOTSUPP),
        (0, vec![], Errno::OPNOTSUPP),
        (99, vec![0; 16], Errno::OPNOTSUPP),
        (u16::MAX, vec![0; mega], Errno::OPNOTSUPP),
        (GET_INFO, vec![], Errno::INVAL),
        (GET_INFO, vec![0xff; 64], Errno::INVAL),
        (GET_INFO, words(&[15, 0, 0, 0]), Errno::INVAL),
        (GET_REGION_INFO, words(&[32, 0, 0]), Errno::INVAL),
        (GET_REGION_INFO, words(&[31, 0, 0, 0, 0, 0, 0, 0]), Errno::INVAL),
        (GET_REGION_INFO, words(&[32, 0, u32::MAX, 0, 0, 0, 0, 0]), Errno::INVAL),
        (GET_IRQ_INFO, words(&[16, 0, 5, 0]), Errno::INVAL),
        (SET_IRQS, vec![0; 19], Errno::INVAL),
        (SET_IRQS, irqs(0, 1, 0, 1), Errno::INVAL),
        (SET_IRQS, irqs(0x3f, 1, 0, 1), Errno::INVAL),
        (SET_IRQS, irqs(0x21, u32::MAX, 0, 1), Errno::INVAL),
        (SET_IRQS, irqs(0x21, 1, u32::MAX, 1), Errno::INVAL),
        (SET_IRQS, irqs(0x21, 1, 0, u32::MAX), Errno::INVAL),
        (SET_IRQS, irqs(0x22, 1, 0, 1), Errno::INVAL),
        (REGION_READ, access(0, 0, 0), Errno::INVAL),
        (REGION_READ, access(0, 0, u32::MAX), Errno::INVAL),
        (REGION_READ, access(0, 7, 1 << 20), Errno::INVAL),
        (REGION_READ, access(0, u32::MAX, 4), Errno::INVAL),
        (REGION_READ, access(u64::MAX, 7, 4), Errno::INVAL),
        (REGION_READ, access(u64::MAX - 4, 7, 4), Errno::INVAL),
        (REGION_READ, access(1 << 40, 7, 4), Errno::INVAL),
        (REGION_READ, access(0, 7, 4)[..15].to_vec(), Errno::INVAL),
        (REGION_WRITE, access(0, 7, 4), Errno::INVAL),
        (REGION_WRITE, [access(0, 7, 4), vec![0; 5]].concat(), Errno::INVAL),
        (REGION_WRITE, [access(1 << 20, 7, 4), vec![0; 4]].concat(), Errno::INVAL),
        (RESET, vec![0; 4], Errno::INVAL),
        (VERSION, GOOD_VERSION.to_vec(), Errno::PROTO),
    ] {
        client.send(&message(command, COMMAND, &body), &[]);
        expect_error(&mut client, command, errno, &format!("{command}, {} bytes", body.len()));
        expect_in_step(&mut client);
    }
    victim.assert_unharmed(1);
}

pub(crate) fn a_version_that_is_none_is_refused() {
    let mut victim = Victim::new();
    let json = |text: &[u8]| [GOOD_VERSION.as_slice(), text].concat();
    for (body, errno) in [
        (vec![], Errno::INVAL),
        (vec![0, 0], Errno::INVAL),
        (vec![1, 0, 0, 0], Errno::PROTONOSUPPORT),
        (json(b"{}"), Errno::INVAL),
        (json(b"\0"), Errno::INVAL),
        (json(b"{\0"), Errno::INVAL),
        (json(b"[]\0"), Errno::INVAL),
        (json(b"{\"capabilities\":7}\0"), Errno::INVAL),
        (json(b"{\"capabilities\":{\"max_msg_fds\":\"many\"}}\0"), Errno::INVAL),
        (json(b"{\"capabilities\":{\"max_msg_fds\":-1}}\0"), Errno::INVAL),
        (json(b"\xff\xfe\0"), Errno::INVAL),
        (json(&[b"[".repeat(2000).as_slice(), b"\0"].concat()), Errno::INVAL),
        (json(&[b' '; 5000]), Errno::INVAL),
    ] {
        let mut client = victim.connect();
        client.send(&message(VERSION, COMMAND, &body), &[]);
        expect_error(&mut client, VERSION, errno, &String::from_utf8_lossy(&body));
        client.send(&message(GET_INFO, COMMAND, &words(&GOOD_INFO)), &[]);
        expect_error(&mut client, GET_INFO, Errno::PROTO, "nothing is agreed on yet");
        client.send(&message(VERSION, COMMAND, &GOOD_VERSION), &[]);
        client.receive_bytes(HEADER + GOOD_VERSION.len());
        expect_in_step(&mut client);
        drop(client);
        victim.assert_unharmed(0);
    }
}

pub(crate) fn only_eventfds_become_interrupts() {
    let mut victim = Victim::new();
    let mut client = victim.negotiate();
    let set_msi = message(SET_IRQS, COMMAND, &words(&[20, 0x24, 1, 0, 1]));
    for ForeignFile { kind, file } in ForeignFile::all() {
        let errno = match kind {
            "an eventfd" => continue,
            "a mere path" => Errno::BADF,
            _ => Errno::INVAL,
        };
        client.send(&set_msi, &[file.as_fd()]);
        expect_error(&mut client, SET_IRQS, errno, kind);
        victim.assert_unharmed(1);
    }
    let null = File::open("/dev/null").unwrap();
    for (command, body, count, errno) in [
        (SET_IRQS, words(&[20, 0x24, 1, 0, 1]), 2, Errno::INVAL),
        (SET_IRQS, words(&[20, 0x21, 1, 0, 1]), 1, Errno::INVAL),
        (SET_IRQS, words(&[20, 0x24, 1, 0, 1]), 17, Errno::TOOBIG),
        (GET_INFO, words(&GOOD_INFO), 1, Errno::INVAL),
        (RESET, vec![], 16, Errno::INVAL),
        (RESET, vec![], 40, Errno::TOOBIG),
    ] {
        client.send(&message(command, COMMAND, &body), &vec![null.as_fd(); count]);
        expect_error(&mut client, command, errno, &format!("{count} descriptors"));
        victim.assert_unharmed(1);
    }
    expect_in_step(&mut client);
}

pub(crate) fn a_command_is_refused_in_silence_if_it_wants_no_reply() {
    let mut victim = Victim::new();
    let mut client = victim.negotiate();
    for (command, body) in [(99, vec![0; 16]), (GET_INFO, vec![]), (REGION_READ, access(0, u32::MAX, 4))] {
        client.send(&message(command, NO_REPLY, &body), &[]);
        expect_in_step(&mut client);
    }
    victim.vmm.server.wait_for_log("(no-such-region)");
}

pub(crate) fn half_a_command_does_not_wait_for_ever() {
    let mut victim = Victim::new();
    let null = File::open("/dev/null").unwrap();
    let command = message(GET_INFO, COMMAND, &words(&GOOD_INFO));
    let mut client = victim.negotiate();
    client.send(&command[..HEADER], &[null.as_fd()]);
    client.assert_ended();
    victim.vmm.server.wait_for_log("(message-timeout)");
    victim.assert_unharmed(0);
}
