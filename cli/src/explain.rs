// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis explain`: who may do what to whom in a system, as text and as a picture.

use crate::session::Outputs;
use crate::status::{Doing, Failure, Status};
use crate::system::{Host, load};
use clap::Args;
use std::path::PathBuf;

/// Shows who may do what to whom.
#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// The manifest
    pub manifest: PathBuf,
    /// Draws a picture into this file too
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Explains it for this board instead of the manifest's
    #[arg(long, value_name = "NAME")]
    pub board: Option<String>,
}

impl Explain {
    /// Does it.
    pub fn carry_out(&self, outputs: &mut Outputs) -> Result<Status, Failure> {
        let system = load(&self.manifest, self.board.as_deref(), &Host::default())?;
        write!(outputs.out, "{}", system.explain()).doing(|| "write the output".into())?;
        if let Some(path) = &self.svg {
            std::fs::write(path, system.picture()).doing(|| format!("write {}", path.display()))?;
        }
        Ok(Status::Well)
    }
}
