// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that reads its virtio disk: by rings that the hardware runs, by rings in software, and with the device in QEMU's own
//! hands.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use vfio::PciAddress;
use vhost_device_vfio_tests::guest::{Guest, Passthrough, Settings, Way};
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::server_process::{ServerProcess, binary, wait_until};

use crate::FIRST;
use crate::comparison::{Comparison, Figure, Goal};
use crate::contest::median;
use crate::load::{LAPS_AT_ALL, LOADS};
use crate::processor::time_of_process;

/// The disk as the guest has it.
const DISK: &str = "/dev/vda";

/// How often each has its turn, with a guest of its own, unless `BENCH_ROUNDS` says otherwise.
const ROUNDS: u32 = 2;

fn rounds() -> u32 {
    std::env::var("BENCH_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"))
}

/// Who runs the rings.
#[derive(Clone, Copy, Debug)]
enum Runner {
    /// The device, which QEMU has itself.
    InProcess,
    /// The device, which the server has.
    Hardware,
    /// The same, and the guest rings the doorbell by itself.
    Mapped,
    Software(Program),
}

const ALL: [Runner; 5] = [
    Runner::InProcess,
    Runner::Hardware,
    Runner::Mapped,
    Runner::Software(Program::BlockBackend),
    Runner::Software(Program::StorageDaemon),
];

/// What was measured of guests.
#[derive(Debug, Default)]
struct Measured {
    loads: [Vec<Duration>; LOADS.len()],
    /// Processors' time of the server; none without a server.
    spent: Duration,
}

impl Measured {
    /// Has a guest read, whose disk this server process has, if any.
    fn add(&mut self, passthrough: &Passthrough, server: Option<u32>, before_lap: impl Fn()) {
        let programs = [binary("reader")];
        let settings = Settings { programs: &programs, ..Settings::default() };
        let mut guest = Guest::boot_with(passthrough, &settings);
        let spent = || server.map(time_of_process).unwrap_or_default();
        let before = spent();
        for (load, times) in LOADS.iter().zip(&mut self.loads) {
            times.extend(load.laps(&mut guest, DISK, &before_lap));
        }
        self.spent += spent().saturating_sub(before);
    }

    /// The same with the server, started with these arguments for `vfio-devctl run`.
    fn add_of_server(&mut self, arguments: &[&str]) {
        let passthrough = Passthrough::with_arguments(Way::Rings, &[FIRST], arguments);
        let server = passthrough.servers().and_then(|servers| servers.processes().next());
        self.add(&passthrough, server, || ());
    }

    /// What the server takes for a read, all loads taken together.
    fn spent_on_read(&self) -> Duration {
        self.spent / (LOADS.iter().map(|load| load.count).sum::<u32>() * LAPS_AT_ALL * rounds())
    }
}

impl Runner {
    fn measure(self, measured: &mut Measured) {
        match self {
            Self::InProcess => measured.add(&Passthrough::new(Way::InProcess, &[FIRST]), None, || ()),
            Self::Hardware => measured.add_of_server(&[]),
            Self::Mapped => measured.add_of_server(&["--server-argument=--doorbell=mmap"]),
            Self::Software(program) => {
                let backend = SoftwareBackend::start(program, FIRST);
                let passthrough = Passthrough::by_another(Way::Rings, FIRST, &backend.socket);
                measured.add(&passthrough, Some(backend.process.id()), || backend.forget());
            }
        }
    }
}

/// What runs rings in software.
#[derive(Clone, Copy, Debug)]
enum Program {
    /// Of `tests/peers`.
    BlockBackend,
    /// QEMU's own.
    StorageDaemon,
}

impl Program {
    /// Serves this disk at this socket. Either has one ring.
    fn command(self, disk: &Path, socket: &Path) -> Command {
        match self {
            Self::BlockBackend => {
                let mut command = Command::new(binary("block-backend"));
                command.arg("--socket").arg(socket).arg("--image").arg(disk);
                command
            }
            Self::StorageDaemon => {
                // Past the page cache and without threads of its own for it, as is advised for disks.
                let disk = format!(
                    "host_device,node-name=disk,filename={},cache.direct=on,aio=native",
                    disk.display()
                );
                let export = format!(
                    "vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
                    socket.display()
                );
                let mut command = Command::new("qemu-storage-daemon");
                command.args(["--blockdev", &disk, "--export", &export]);
                command
            }
        }
    }
}

/// A process that runs rings for a disk that this machine's own driver has. With it the function is VFIO's again.
#[derive(Debug)]
struct SoftwareBackend {
    process: ServerProcess,
    function: PciAddress,
    disk: PathBuf,
    socket: PathBuf,
    _folder: TempDir,
}

impl SoftwareBackend {
    fn start(program: Program, function: &str) -> Self {
        let address = function.parse().expect("a PCI address");
        change_driver(address, "virtio-pci");
        let disk = disk_of(function);
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("socket");
        let process = ServerProcess::spawn(program.command(&disk, &socket));
        assert!(wait_until(|| socket.exists()), "nobody listens: {}", process.log());
        Self { process, function: address, disk, socket, _folder: folder }
    }

    /// Has this machine's page cache lose what it has of the disk: the other ways have none that could help them.
    fn forget(&self) {
        let flushed =
            Command::new("blockdev").arg("--flushbufs").arg(&self.disk).stdout(Stdio::null()).status();
        assert!(flushed.expect("blockdev runs").success(), "the page cache is not emptied");
    }
}

impl Drop for SoftwareBackend {
    fn drop(&mut self) {
        self.process.kill();
        change_driver(self.function, "vfio-pci");
    }
}

fn change_driver(function: PciAddress, driver: &str) {
    Host::current().unbind_driver(function).expect("the driver lets go");
    Host::current().bind_driver(function, driver).expect("the other driver takes it");
}

/// The node of a virtio function's disk.
fn disk_of(function: &str) -> PathBuf {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).expect("a folder of sysfs");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    let folders = entries(&Path::new("/sys/bus/pci/devices").join(function));
    let disks = folders.iter().map(|folder| folder.join("block")).filter(|folder| folder.exists());
    let disk = disks.flat_map(|folder| entries(&folder)).next().expect("a disk");
    Path::new("/dev").join(disk.file_name().expect("its name"))
}

/// Reads, and what they take of processors.
pub(crate) fn guest_rings() -> Vec<Comparison> {
    let mut measured: [Measured; ALL.len()] = Default::default();
    for round in 0..rounds() {
        for turn in 0..ALL.len() {
            // Back and forth, as in a contest.
            let number = if round % 2 == 0 { turn } else { ALL.len() - 1 - turn };
            ALL[number].measure(&mut measured[number]);
        }
    }
    let [in_process, hardware, mapped, software, daemon] = &measured;
    let mut comparisons = Vec::new();
    for (place, load) in LOADS.iter().enumerate() {
        let figure = |measured: &Measured| Figure::Time(median(measured.loads[place].clone()));
        // 0.9 of the speed, and ahead.
        let contests = [
            ("in process", hardware, in_process, 1.11),
            ("mapped", mapped, in_process, 1.11),
            ("software", hardware, software, 1.0),
            ("daemon", hardware, daemon, 1.0),
        ];
        for (way, rings, other, goal) in contests {
            comparisons.push(Comparison {
                figure: figure(rings),
                other_name: format!("{way}: {}", load.name).into(),
                other: figure(other),
                goal: Goal::Ratio(goal),
            });
        }
    }
    for (way, other) in [("software", software), ("daemon", daemon)] {
        comparisons.push(Comparison {
            figure: Figure::Time(hardware.spent_on_read()),
            other_name: format!("{way}: processors").into(),
            other: Figure::Time(other.spent_on_read()),
            goal: Goal::None,
        });
    }
    comparisons
}
