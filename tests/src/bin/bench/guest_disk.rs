// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that reads its disk: served with trapped BARs, served with mapped ones, and in the hands of QEMU itself.

use std::time::Duration;

use vhost_device_vfio_tests::guest::{Guest, Passthrough, Settings, Way};
use vhost_device_vfio_tests::server_process::binary;

use crate::FIRST;
use crate::comparison::{Comparison, Figure, Goal};
use crate::contest::{median, timed};
use crate::load::LOADS;
use crate::processor::time_of_process;

/// How the guest gets the disk.
#[derive(Clone, Copy, Debug)]
enum Disk {
    InProcess,
    Trapped,
    Mapped,
}

/// How often each guest boots.
const BOOTS: usize = 1;
/// The disk as the guest has it.
const DISK: &str = "/dev/nvme0n1";
const ALL: [Disk; 3] = [Disk::InProcess, Disk::Trapped, Disk::Mapped];
/// How long a guest that does nothing is watched.
const IDLE: Duration = Duration::from_secs(5);

/// What was measured of a guest.
#[derive(Clone, Debug, Default)]
struct Measured {
    boots: Vec<Duration>,
    loads: [Vec<Duration>; LOADS.len()],
    /// Processors' time of the servers while the guest did nothing.
    idle: Duration,
}

impl Disk {
    fn passthrough(self) -> Passthrough {
        match self {
            Self::InProcess => Passthrough::new(Way::InProcess, &[FIRST]),
            Self::Trapped => Passthrough::new(Way::Served, &[FIRST]),
            Self::Mapped => {
                let arguments = ["--server-argument=--bar-access=mmap"];
                Passthrough::with_arguments(Way::Served, &[FIRST], &arguments)
            }
        }
    }

    fn measure(self, measured: &mut Measured) {
        let passthrough = self.passthrough();
        let programs = [binary("reader")];
        let settings = Settings { programs: &programs, ..Settings::default() };
        let mut guest = None;
        measured.boots.push(timed(|| guest = Some(Guest::boot_with(&passthrough, &settings))));
        let mut guest = guest.expect("it has booted");
        for (load, times) in LOADS.iter().zip(&mut measured.loads) {
            times.extend(load.laps(&mut guest, DISK, || ()));
        }
        if let Some(servers) = passthrough.servers() {
            let spent = || -> Duration { servers.processes().map(time_of_process).sum() };
            let before = spent();
            std::thread::sleep(IDLE);
            measured.idle = spent().saturating_sub(before);
        }
    }
}

/// Reads, the boot, and what is spent on a guest that does nothing.
pub(crate) fn guest_disk() -> Vec<Comparison> {
    let mut measured: [Measured; ALL.len()] = Default::default();
    for _ in 0..BOOTS {
        for (disk, measured) in ALL.iter().zip(&mut measured) {
            disk.measure(measured);
        }
    }
    let [in_process, trapped, mapped] = measured;
    let compare = |name: String, served: Vec<Duration>, other: Vec<Duration>, goal| Comparison {
        figure: Figure::Time(median(served)),
        other_name: name.into(),
        other: Figure::Time(median(other)),
        goal,
    };
    let mut comparisons = Vec::new();
    for (place, load) in LOADS.iter().enumerate() {
        for (way, served, goal) in [("mapped", &mapped, Goal::Ratio(1.05)), ("trapped", &trapped, Goal::None)]
        {
            let name = format!("{way}: {}", load.name);
            comparisons.push(compare(
                name,
                served.loads[place].clone(),
                in_process.loads[place].clone(),
                goal,
            ));
        }
    }
    for (way, served) in [("mapped", &mapped), ("trapped", &trapped)] {
        let name = format!("{way}: boot");
        comparisons.push(compare(name, served.boots.clone(), in_process.boots.clone(), Goal::None));
    }
    comparisons.push(Comparison {
        figure: Figure::Time(trapped.idle),
        other_name: "trapped: idle for".into(),
        other: Figure::Time(IDLE),
        goal: Goal::Milliseconds(0),
    });
    comparisons
}
