// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest of a stock QEMU, with functions passed through to it. Its kernel is that of the machine which the test runs in.

mod console;
mod emulator;
mod initramfs;
mod passthrough;
mod qmp;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

pub use self::console::{Console, Outcome, has_stood_still};
use self::emulator::Emulator;
pub use self::initramfs::Initramfs;
pub use self::passthrough::{Passthrough, Way};
pub use self::qmp::Qmp;

/// How often a guest is switched on that does not boot, and how long it may say nothing: mostly it takes ten seconds.
const BOOT_ATTEMPTS: u32 = 3;
const BOOT_PATIENCE: Duration = Duration::from_mins(1);
/// The kernel that is running.
const KERNEL: &str = "/boot/vmlinuz";
const BUSYBOX: &str = "/usr/bin/busybox";

/// What differs from guest to guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings<'a> {
    /// More words for the kernel's command line.
    pub append: &'a str,
    /// Whether the firmware boots from the first function, and not the kernel from QEMU.
    pub boots_from_function: bool,
    /// How many processors it has beyond the first: nested guests with several stand still at times.
    pub more_processors: u32,
    /// Programs for the guest.
    pub programs: &'a [PathBuf],
}

/// A running QEMU and the guest in it.
#[derive(Debug)]
pub struct Guest {
    emulator: Emulator,
    /// The session with QEMU.
    pub qmp: Qmp,
    /// The guest's shell.
    pub console: Console,
    devices: Vec<Value>,
}

impl Guest {
    /// A guest that has booted with these functions.
    pub fn boot(passthrough: &Passthrough) -> Self {
        Self::boot_with(passthrough, &Settings::default())
    }

    /// The same with settings.
    ///
    /// One that stands still before it has begun is switched off, and another gets its chance.
    pub fn boot_with(passthrough: &Passthrough, settings: &Settings) -> Self {
        for _ in 1..BOOT_ATTEMPTS {
            let mut guest = Self::start(passthrough, settings);
            if guest.console.boots_within(BOOT_PATIENCE) {
                return guest;
            }
            eprintln!("a guest stands still before it has booted");
        }
        let mut guest = Self::start(passthrough, settings);
        guest.wait_for_boot();
        guest
    }

    /// A guest that has only just been switched on.
    pub fn start(passthrough: &Passthrough, settings: &Settings) -> Self {
        let devices: Vec<_> =
            (0..passthrough.functions().len()).map(|number| settings.device(passthrough, number)).collect();
        let mut arguments = vec!["-smp".into(), (1 + settings.more_processors).to_string()];
        arguments.extend(passthrough.arguments());
        for (number, device) in devices.iter().enumerate() {
            arguments.extend(["-device".into(), root_port(number), "-device".into(), device.to_string()]);
        }
        let folder = tempfile::tempdir().expect("a folder");
        if !settings.boots_from_function {
            arguments.extend(settings.kernel(&folder.path().join("initramfs")));
        }
        let (emulator, qmp, console) = Emulator::start(folder, &arguments);
        Self { emulator, qmp: Qmp::begin(qmp), console: Console::new(console), devices }
    }

    /// Waits until the guest has booted, for the first time or again.
    pub fn wait_for_boot(&mut self) {
        self.console.wait_for_boot();
    }

    /// Has a command carried out in the guest, which has to succeed.
    pub fn run(&mut self, command: &str) -> String {
        self.console.run(command)
    }

    /// Resets the guest as its reset button does, and waits until it has booted. Who stands still meanwhile is reset again.
    pub fn reset(&mut self) {
        for _ in 1..BOOT_ATTEMPTS {
            self.qmp.execute("system_reset", &json!({}));
            if self.console.boots_within(BOOT_PATIENCE) {
                return;
            }
            eprintln!("a guest stands still after its reset");
        }
        self.qmp.execute("system_reset", &json!({}));
        self.wait_for_boot();
    }

    /// Has the guest boot again by itself.
    pub fn reboot(&mut self) {
        self.console.begin("reboot -f");
        self.wait_for_boot();
    }

    /// How often the guest's machine was reset since this was asked last. It may be more than anybody wanted: firmware that finds
    /// its own copy in memory, and not the one in its ROM, resets the machine once more, and a kernel that fails boots again.
    pub fn resets(&mut self) -> usize {
        self.qmp.take("RESET")
    }

    /// Takes the function with this number away, and waits until the guest has let it go.
    pub fn unplug(&mut self, number: usize) {
        self.qmp.execute("device_del", &json!({ "id": self.devices[number]["id"] }));
        while self.qmp.wait_for("DEVICE_DELETED")["data"]["device"] != self.devices[number]["id"] {}
    }

    /// Plugs the function with this number in again. The guest finds it later.
    pub fn plug(&mut self, number: usize) {
        self.qmp.execute("device_add", &self.devices[number]);
    }

    /// The address that the function with this number has in the guest.
    pub fn address(number: usize) -> String {
        format!("0000:{:02x}:00.0", number + 1)
    }

    /// What QEMU has complained about.
    pub fn errors(&self) -> String {
        self.emulator.errors()
    }

    /// What the guest's firmware and kernel have said on the serial line.
    pub fn serial(&self) -> String {
        self.emulator.serial()
    }

    /// QEMU's process id.
    pub fn process(&self) -> u32 {
        self.emulator.id()
    }

    /// Has QEMU end, and gives what it has complained about in its life.
    pub fn quit(mut self) -> String {
        self.qmp.execute("quit", &json!({}));
        let status = self.emulator.wait_for_exit();
        assert!(status.success(), "QEMU ends with {status}");
        self.emulator.errors()
    }

    /// Ends QEMU so that it can do nothing about it.
    pub fn kill(mut self) {
        self.emulator.kill();
    }
}

impl Settings<'_> {
    fn device(&self, passthrough: &Passthrough, number: usize) -> Value {
        let mut device = passthrough.device(number);
        if self.boots_from_function {
            device["bootindex"] = json!(number);
        }
        device
    }

    /// QEMU's arguments for the kernel, whose initramfs is written to a file.
    fn kernel(&self, initramfs: &Path) -> [String; 6] {
        std::fs::write(initramfs, archive(self.programs)).expect("the initramfs");
        // In a nested guest the watchdog of clocks interrupts processors that do not answer in time.
        let line = format!("console=ttyS0 panic=-1 oops=panic tsc=reliable {}", self.append);
        let initramfs = initramfs.display().to_string();
        ["-kernel".into(), KERNEL.into(), "-initrd".into(), initramfs, "-append".into(), line]
    }
}

/// The port that a function is behind: its bus is the first whose number is free.
fn root_port(number: usize) -> String {
    format!("pcie-root-port,id=port{number},chassis={0},slot={0},addr={1:x}.0", number + 1, number + 4)
}

fn archive(programs: &[PathBuf]) -> Vec<u8> {
    let mut files = Initramfs::default();
    files.file("/init", console::INIT.as_bytes());
    for folder in ["/proc", "/sys", "/dev", "/tmp"] {
        files.empty_folder(folder);
    }
    files.program(Path::new(BUSYBOX));
    for program in programs {
        files.program(program);
    }
    files.finish()
}
