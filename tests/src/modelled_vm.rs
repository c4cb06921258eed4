// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VM on a modelled machine: its server listens, so that more clients can come, and what the kernel does is in view.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use protocol::extension::{Cookie, Face, IoasChoice, ResetMethod, ResetPolicy, ResetReport, ResetWish};
use protocol::{ClientError, ControlClient};
use vfio::model::order::Nothing;
use vfio::model::{Fault, Order, Settings, Topology};

use crate::host::ModelledMachine;
use crate::pci_function::PciFunction;
use crate::raw_client::RawClient;
use crate::server_process::{ServerProcess, binary, wait_until};
use crate::vmm::Vmm;

/// Two slots with two functions each, of which none can be reset alone: a reset of the one slot is nothing to the other.
const TWO_PAIRS: [(&str, &str, [&str; 2]); 2] = [
    ("0000:00:04.0", "1", ["0000:01:00.0", "0000:01:00.1"]),
    ("0000:00:05.0", "2", ["0000:02:00.0", "0000:02:00.1"]),
];
/// How often the kernel is looked at until something has settled, in all.
const LONG: Duration = Duration::from_mins(1);

/// Two slots with an edu pair each: devices 1 and 2, at 01:00, and 3 and 4, at 02:00.
pub fn two_pairs() -> Topology {
    let slot = |(bridge, bus, functions): (&str, &str, [&str; 2])| {
        let functions = functions.map(|address| {
            format!(
                "[[function]]\naddress = '{address}'\npart = 'edu'\ngroup = 1{bus}\ndriver = 'vfio-pci'\n"
            )
        });
        let bridge =
            format!("[[bridge]]\naddress = '{bridge}'\nkind = 'root-port'\nbus = {bus}\ngroup = {bus}\n");
        bridge + &functions.concat()
    };
    Topology::parse(&TWO_PAIRS.map(slot).concat()).expect("a topology")
}

/// A VM with its server and its machine.
#[derive(Debug)]
pub struct ModelledVm {
    /// The VMM that hands over.
    pub vmm: Vmm,
    /// Where it runs.
    pub machine: ModelledMachine,
    folder: tempfile::TempDir,
}

impl ModelledVm {
    /// On the machine of one of the model's topologies, with a server that is started with `arguments`.
    pub fn start(topology: &str, arguments: &[&str]) -> Self {
        Self::on(ModelledMachine::start(topology), arguments)
    }

    /// On [`two_pairs`], all four handed over, where time passes only by [`Self::pass_until`].
    pub fn with_two_pairs(arguments: &[&str]) -> Self {
        let settings = Settings { virtual_time: true, ..Settings::default() };
        let mut vm = Self::on(ModelledMachine::of(two_pairs(), settings), arguments);
        for (cookie, address) in (1..).zip(TWO_PAIRS.iter().flat_map(|(_, _, functions)| functions)) {
            vm.vmm.add(cookie, address).expect("the device is taken");
        }
        vm
    }

    /// On a machine that runs.
    pub fn on(machine: ModelledMachine, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let vmm = Vmm::listening_with(&machine.host(), &control_path(&folder), arguments);
        Self { vmm, machine, folder }
    }

    /// From now on this rule is in force, too.
    pub fn fault(&self, text: &str) {
        let fault: Fault = toml::from_str(text).expect("a rule");
        self.machine.order(&Order::Fault(Box::new(fault)));
    }

    /// Another control connection.
    pub fn connect(&self) -> ControlClient {
        Vmm::connect_again(&control_path(&self.folder))
    }

    /// Another control connection, which says what it likes.
    pub fn raw_client(&self) -> RawClient {
        RawClient::connect(&control_path(&self.folder))
    }

    /// A second server on the same machine and with the same iommufd, and the path of its control socket.
    pub fn second_server(&self) -> (Vmm, PathBuf) {
        let host = self.machine.host();
        let path = self.folder.path().join("second");
        let server = ServerProcess::listening(&host, &path, &[]);
        let iommufd = self.vmm.iommufd.try_clone().expect("a copy of the iommufd");
        (Vmm::with_address_space_on(&host, server, iommufd, IoasChoice::Allocate), path)
    }

    /// Serves a device on a listening socket, and says where that is.
    pub fn listen(&mut self, cookie: u64) -> PathBuf {
        let path = self.folder.path().join(format!("device-{cookie}"));
        let listener = UnixListener::bind(&path).expect("a listening socket");
        self.vmm.control.serve(Cookie(cookie), Face::VfioUser, listener).expect("the face is served");
        path
    }

    /// Has the kernel's next hot reset of the device's set last until time passes, and asks for it.
    pub fn begin_long_reset(&self, cookie: u64) -> JoinHandle<Result<ResetReport, ClientError>> {
        self.fault("call = 'VFIO_DEVICE_PCI_HOT_RESET'\ndelay = 60000");
        let reset = reset_by(self.connect(), cookie);
        self.wait_for_usage("lasting-calls", 1);
        reset
    }

    /// A minute passes for the kernel, again and again until something has come of it.
    pub fn pass_until(&self, is_so: impl FnMut() -> bool) {
        let mut is_so = is_so;
        assert!(
            wait_until(|| {
                let milliseconds = u64::try_from(LONG.as_millis()).expect("a minute");
                self.machine.order(&Order::Advance(milliseconds));
                is_so()
            }),
            "nothing comes of it: {}",
            self.vmm.server.log()
        );
    }

    /// A number of what the model tells when it is asked what is in use.
    pub fn usage(&self, name: &str) -> u64 {
        let usage = self.machine.order(&Order::Inspect(Nothing {}));
        let value = usage.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        value.unwrap_or_else(|| panic!("no `{name}` in {usage}")).parse().expect("a number")
    }

    /// Waits until it is so many.
    pub fn wait_for_usage(&self, name: &str, value: u64) {
        let is_so = wait_until(|| self.usage(name) == value);
        assert!(is_so, "{name} is {} instead of {value}: {}", self.usage(name), self.vmm.server.log());
    }

    /// How many lines of the log have this text.
    pub fn logged(&self, text: &str) -> usize {
        self.vmm.server.log().lines().filter(|line| line.contains(text)).count()
    }

    /// Waits until so many lines of the log have it.
    pub fn wait_for_lines(&self, text: &str, count: usize) {
        let is_so = wait_until(|| self.logged(text) == count);
        assert!(is_so, "not {count} times `{text}` in {}", self.vmm.server.log());
    }
}

/// Asks for a hot reset on a thread.
pub fn reset_by(mut control: ControlClient, cookie: u64) -> JoinHandle<Result<ResetReport, ClientError>> {
    std::thread::spawn(move || {
        let method = Some(ResetMethod::Hot);
        let wish = ResetWish { method, policy: Some(ResetPolicy::Force), deadline: Some(LONG) };
        control.reset_as(Cookie(cookie), wish)
    })
}

/// Connects to the data face at `path`.
pub fn connect_face(path: &Path) -> PciFunction {
    PciFunction::negotiated(UnixStream::connect(path).expect("the face listens"))
}

/// A client in a process of its own, as that of another VM, that has turned bus mastering on. It goes when this is dropped.
#[derive(Debug)]
pub struct Tenant {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Tenant {
    /// Connects to the data face at `path`.
    pub fn at(path: &Path) -> Self {
        let mut command = Command::new(binary("tenant"));
        command.arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the tenant starts");
        let said = BufReader::new(child.stdout.take().expect("its output"));
        let mut tenant = Self { child, said };
        assert_eq!(tenant.listen(), "active\n", "the tenant has the device in use");
        tenant
    }

    /// Ends it, and returns what it has to say: whether the error interrupt has come, and what the command register is.
    pub fn leave(mut self) -> String {
        drop(self.child.stdin.take());
        self.listen()
    }

    fn listen(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a line");
        line
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn control_path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("control")
}
