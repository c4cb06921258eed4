// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A modelled machine as a process, for servers and launchers that are told its folder by `--model`.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use vfio::model::{Fault, Settings, Topology};

use crate::tool_error::ToolError;

/// Run a modelled machine, whose devices --model then finds; ends on a signal.
#[derive(Debug, clap::Args)]
pub(crate) struct Model {
    /// What the machine consists of; vfio/topologies has examples.
    topology: PathBuf,
    /// Where it shall be: a folder that does not exist, for what stands for /dev and /sys.
    folder: PathBuf,
    /// Rules for what shall fail, and when.
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Where chance in those rules comes from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// A fault script.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    #[serde(default)]
    fault: Vec<Fault>,
}

impl Model {
    pub(crate) fn run(self) -> Result<(), ToolError> {
        let topology = Topology::load(&self.topology)
            .map_err(|error| ToolError::model_file(&self.topology, &error.to_string()))?;
        let faults = self.faults.as_deref().map(read_script).transpose()?.unwrap_or_default();
        let settings = Settings { seed: self.seed, faults: faults.fault, virtual_time: false };
        let ended = self.run_until_signal(topology, settings);
        ended.map_err(|error| ToolError::model(&self.folder, &error))
    }

    /// The folder is there while the machine runs.
    fn run_until_signal(&self, topology: Topology, settings: Settings) -> io::Result<()> {
        let (stop, signal) = UnixStream::pair()?;
        for number in [SIGINT, SIGTERM] {
            signal_hook::low_level::pipe::register(number, signal.try_clone()?)?;
        }
        std::fs::create_dir(&self.folder)?;
        let ended = vfio::model::run(topology, settings, &self.folder, &stop);
        std::fs::remove_dir_all(&self.folder)?;
        ended
    }
}

fn read_script(path: &Path) -> Result<Script, ToolError> {
    let text = std::fs::read_to_string(path).map_err(|error| ToolError::open(path, &error))?;
    toml::from_str(&text).map_err(|error| ToolError::model_file(path, &error.to_string()))
}
