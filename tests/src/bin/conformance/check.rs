// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A check: a named function that finds no device open and leaves none open, and the topologies it applies to.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::machine::Machine;
use crate::scene::Scene;

/// One check.
#[derive(Debug)]
pub(crate) struct Check {
    /// The function's path.
    pub(crate) path: &'static str,
    /// Where it applies.
    pub(crate) topologies: &'static [&'static str],
    /// The function.
    pub(crate) function: fn(&Scene<'_>),
}

impl Check {
    /// Subject and function.
    pub(crate) fn name(&self) -> &'static str {
        self.path.split_once("::").map_or(self.path, |(_, name)| name)
    }

    pub(crate) fn applies_to(&self, machine: &Machine) -> bool {
        self.topologies.contains(&machine.name)
    }

    /// Runs it and says on stderr what came of it.
    pub(crate) fn passes(&self, scene: &Scene<'_>) -> bool {
        let ended = catch_unwind(AssertUnwindSafe(|| (self.function)(scene))).is_ok();
        let surprises = scene.surprises();
        let passed = ended && surprises.is_empty();
        eprintln!("test {} ... {}", self.name(), if passed { "ok" } else { "FAILED" });
        for surprise in &surprises {
            eprintln!("    {surprise}");
        }
        passed
    }
}

/// The table of a subject's checks: which topologies, and which functions.
macro_rules! checks {
    ($($topologies:expr => $($function:ident),+;)*) => {
        pub(crate) const CHECKS: &[$crate::check::Check] = &[$($(
            $crate::check::Check {
                path: concat!(module_path!(), "::", stringify!($function)),
                topologies: $topologies,
                function: $function,
            },
        )+)*];
    };
}
pub(crate) use checks;
