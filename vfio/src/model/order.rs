// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an administrator, or the hardware, does to a modelled machine: orders as TOML text over a socket in its folder.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::model::fault::Fault;
use crate::model::wire;
use crate::pci_address::PciAddress;

/// One order.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// A driver for a function that has none.
    Bind(DriverOrder),
    /// Takes a function's driver away; done when nobody has the function open any more.
    Unbind(FunctionOrder),
    /// Takes the driver away, and then the function.
    Remove(FunctionOrder),
    /// A function appears; the text describes it as a `[[function]]` of a topology file does.
    Add(String),
    /// From now on this rule is in force, too.
    Fault(Box<Fault>),
    /// The hardware reports an error, or the host asks for the device back.
    Signal(SignalOrder),
    /// With virtual time: so many milliseconds pass.
    Advance(u64),
    /// Answered with what is in use: open files, contexts, bytes mapped.
    Inspect(Nothing),
}

/// No further words.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// A function.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct FunctionOrder {
    /// Where it is.
    pub function: PciAddress,
}

/// A function and a driver.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DriverOrder {
    /// Where it is.
    pub function: PciAddress,
    /// Its driver: one whose name has `vfio` in it is a VFIO driver.
    pub driver: String,
}

/// A function and an interrupt that is not the device's own.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SignalOrder {
    /// Where it is.
    pub function: PciAddress,
    /// Which.
    pub interrupt: Signal,
}

/// An interrupt that is not the device's own.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// An uncorrectable error.
    Error,
    /// The host wants the device back.
    Request,
}

/// Where a machine in `folder` takes orders.
pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join("orders")
}

/// Gives an order to the machine in `folder`, waits until it is carried out, and returns what it answers.
///
/// # Errors
///
/// The errno of the order; `ENODEV` where there is no machine, `EIO` where it ends before it answers.
pub fn give(folder: &Path, order: &Order) -> Result<String, Errno> {
    let text = toml::to_string(order).map_err(|_| Errno::INVAL)?;
    let mut stream = UnixStream::connect(socket(folder)).map_err(|_| Errno::NODEV)?;
    let mut answer = String::new();
    stream.write_all(text.as_bytes()).map_err(|_| Errno::IO)?;
    stream.shutdown(Shutdown::Write).map_err(|_| Errno::IO)?;
    stream.read_to_string(&mut answer).map_err(|_| Errno::IO)?;
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some(("error", number)) => Err(number.trim().parse().map_or(Errno::PROTO, wire::errno)),
        _ => Err(Errno::IO),
    }
}

/// How the outcome of an order is answered.
pub(crate) fn answer(outcome: Result<String, Errno>) -> String {
    match outcome {
        Ok(text) => format!("ok\n{text}"),
        Err(errno) => format!("error\n{}", errno.raw_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_the_same_behind_its_text() {
        let function = "0000:01:00.0".parse().unwrap();
        let orders = [
            Order::Bind(DriverOrder { function, driver: "vfio-pci".into() }),
            Order::Unbind(FunctionOrder { function }),
            Order::Signal(SignalOrder { function, interrupt: Signal::Request }),
            Order::Advance(60_000),
            Order::Inspect(Nothing {}),
        ];
        for order in orders {
            let text = toml::to_string(&order).unwrap();
            assert_eq!(toml::from_str::<Order>(&text), Ok(order), "{text}");
        }
    }
}
