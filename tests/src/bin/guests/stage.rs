// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests of a topology have one after the other: a guest that has booted, with the topology's functions.

use std::sync::{Mutex, PoisonError};

use vhost_device_vfio_tests::guest::{Guest, Passthrough, Way};

/// Functions, how they are given to guests, and the guest that has them.
#[derive(Debug)]
pub(crate) struct Stage {
    way: Way,
    functions: Vec<&'static str>,
    arguments: Vec<&'static str>,
    scene: Mutex<Option<Scene>>,
}

/// A guest, and what it needs as long as it is there.
#[derive(Debug)]
struct Scene {
    // First, so that it ends first.
    guest: Option<Guest>,
    passthrough: Passthrough,
}

impl Stage {
    /// A stage that is set up when a test needs it, with these arguments for `vfio-devctl run`.
    pub(crate) fn new(way: Way, functions: &[&'static str], arguments: &[&'static str]) -> Self {
        let (functions, arguments) = (functions.into(), arguments.into());
        Self { way, functions, arguments, scene: Mutex::default() }
    }

    /// Another one that differs in the arguments for `vfio-devctl run`.
    pub(crate) fn with_arguments(&self, arguments: &[&'static str]) -> Self {
        Self::new(self.way, &self.functions, arguments)
    }

    /// Another one with other functions.
    pub(crate) fn with_functions(&self, functions: &[&'static str]) -> Self {
        Self::new(self.way, functions, &self.arguments)
    }

    /// Has a test use the guest. Of a test that fails nothing is left to the next.
    pub(crate) fn with_guest(&self, test: impl FnOnce(&mut Guest, &Passthrough)) {
        self.with_passthrough(|passthrough, guest| {
            let mut guest = guest.unwrap_or_else(|| Guest::boot(passthrough));
            test(&mut guest, passthrough);
            Some(guest)
        });
    }

    /// Has a test use the functions, and the guest that has them, if there is one. It gives the guest that has them then.
    pub(crate) fn with_passthrough(&self, test: impl FnOnce(&Passthrough, Option<Guest>) -> Option<Guest>) {
        let Scene { guest, passthrough } = self.take().unwrap_or_else(|| self.set_up());
        let guest = test(&passthrough, guest);
        *self.scene.lock().unwrap_or_else(PoisonError::into_inner) = Some(Scene { guest, passthrough });
    }

    /// Ends the guest and the servers, so that a test can have the functions to itself.
    pub(crate) fn clear(&self) {
        self.take();
    }

    fn take(&self) -> Option<Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The functions for a test that has them to itself.
    pub(crate) fn passthrough(&self, way: Way) -> Passthrough {
        Passthrough::with_arguments(way, &self.functions, &self.arguments)
    }

    fn set_up(&self) -> Scene {
        Scene { guest: None, passthrough: self.passthrough(self.way) }
    }
}
