// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Orders as they are carried out. An unbind waits until nobody has the function open; nothing else waits.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;

use super::Process;
use crate::irq::IrqIndex;
use crate::model::order::{self, Order, Signal};
use crate::model::schedule::Clock;
use crate::model::topology::Driver;
use crate::pci_address::PciAddress;

/// An unbind that waits.
#[derive(Debug)]
pub(super) struct Unbinding {
    function: PciAddress,
    and_remove: bool,
    told: Option<UnixStream>,
}

/// What an order is answered.
enum Answer {
    Now(String),
    /// Whoever gave it is told when it is done.
    Later,
}

impl Process {
    /// An order is short, and whoever gives one sends it at once.
    pub(super) fn take_order(&mut self) -> io::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let (mut stream, _) = self.orders.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        let order = match stream.read_to_string(&mut text) {
            Ok(_) => toml::from_str(&text).map_err(|_| Errno::INVAL),
            Err(_) => Err(Errno::TIMEDOUT),
        };
        let answer = order.and_then(|order| self.carry_out_order(order, &stream));
        self.changed();
        match answer {
            Ok(Answer::Now(text)) => tell(stream, Ok(text)),
            Ok(Answer::Later) => {}
            Err(errno) => tell(stream, Err(errno)),
        }
        Ok(())
    }

    fn carry_out_order(&mut self, order: Order, stream: &UnixStream) -> Result<Answer, Errno> {
        match order {
            Order::Unbind(order) => return self.unbind_and_tell(order.function, false, stream),
            Order::Remove(order) => return self.unbind_and_tell(order.function, true, stream),
            Order::Inspect(_) => {
                let usage = self.kernel.usage();
                let (lasting, waiting) = self.schedule.lengths();
                let calls = format!("lasting-calls = {lasting}\nwaiting-calls = {waiting}\n");
                return Ok(Answer::Now(usage + &calls));
            }
            Order::Bind(order) => self.kernel.bind_driver(order.function, driver(&order.driver)?)?,
            Order::Add(text) => self.kernel.hotplug(&text.parse().map_err(|_| Errno::INVAL)?)?,
            Order::Fault(fault) => self.faults.add(*fault),
            Order::Signal(order) => {
                let index = match order.interrupt {
                    Signal::Error => IrqIndex::Err,
                    Signal::Request => IrqIndex::Req,
                };
                self.kernel.signal(order.function, index)?;
            }
            Order::Advance(milliseconds) => match &mut self.clock {
                Clock::Virtual(now) => *now += Duration::from_millis(milliseconds),
                Clock::Real(_) => return Err(Errno::INVAL),
            },
        }
        Ok(Answer::Now(String::new()))
    }

    fn unbind_and_tell(
        &mut self,
        function: PciAddress,
        and_remove: bool,
        stream: &UnixStream,
    ) -> Result<Answer, Errno> {
        let told = stream.try_clone().map_err(|_| Errno::NFILE)?;
        self.unbind(function, and_remove, Some(told)).map(|()| Answer::Later)
    }

    pub(super) fn unbind(
        &mut self,
        function: PciAddress,
        and_remove: bool,
        told: Option<UnixStream>,
    ) -> Result<(), Errno> {
        match self.kernel.begin_unbind(function) {
            // What has no driver can be removed all the same.
            Err(Errno::NODEV) if and_remove && self.shown.contains_key(&function) => {}
            other => other?,
        }
        self.unbinding.push(Unbinding { function, and_remove, told });
        self.changed();
        self.finish_unbinding();
        Ok(())
    }

    /// Ends every unbind that nothing hinders any more.
    pub(super) fn finish_unbinding(&mut self) {
        for unbinding in std::mem::take(&mut self.unbinding) {
            if !self.kernel.finish_unbind(unbinding.function) {
                self.unbinding.push(unbinding);
                continue;
            }
            if unbinding.and_remove {
                self.kernel.unplug(unbinding.function);
            }
            self.changed();
            if let Some(told) = unbinding.told {
                tell(told, Ok(String::new()));
            }
        }
    }
}

pub(super) fn driver(name: &str) -> Result<Driver, Errno> {
    Driver::from_name(name).ok_or(Errno::INVAL)
}

/// Whoever gave an order may be gone.
fn tell(mut stream: UnixStream, outcome: Result<String, Errno>) {
    let _ = stream.write_all(order::answer(outcome).as_bytes());
}
