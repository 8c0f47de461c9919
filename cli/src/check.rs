// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis check`: says what is wrong with a manifest before anything is built of it.

use crate::session::Outputs;
use crate::status::{Doing, Failure, Status};
use crate::system::{Host, load};
use clap::Args;
use std::path::PathBuf;

/// Says what is wrong with a manifest.
#[derive(Args, Clone, Debug)]
pub struct Check {
    /// The manifest
    pub manifest: PathBuf,
    /// Checks it for this board instead of the manifest's
    #[arg(long, value_name = "NAME")]
    pub board: Option<String>,
}

impl Check {
    /// Does it.
    pub fn carry_out(&self, outputs: &mut Outputs) -> Result<Status, Failure> {
        let system = load(&self.manifest, self.board.as_deref(), &Host::default())?;
        let guests = system.guests().iter().map(|guest| guest.name.as_str()).collect::<Vec<_>>().join(", ");
        let manifest = self.manifest.display();
        writeln!(outputs.out, "{manifest}: {} is a good system for {}: {guests}", system.name(), system.board().title)
            .doing(|| "write the output".into())?;
        Ok(Status::Well)
    }
}
