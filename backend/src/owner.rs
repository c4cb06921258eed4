// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who handed something over.

/// A connection of this process; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Who handed something over. It stays until the owner takes it back or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The command line; stays as long as the process.
    Process,
    /// A control connection.
    Connection(ConnectionId),
}
