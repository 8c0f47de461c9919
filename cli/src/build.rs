// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis build`: composes a bootable image; the same inputs give the same bytes.

use crate::session::Outputs;
use crate::status::{Doing, Failure, Status};
use crate::system::{Host, load};
use clap::Args;
use std::path::PathBuf;
use trellis_images::quantity::show_size;

/// Composes a bootable image.
#[derive(Args, Clone, Debug)]
pub struct Build {
    /// The manifest
    pub manifest: PathBuf,
    /// The image to write
    #[arg(short, long, value_name = "IMAGE")]
    pub output: PathBuf,
    /// Builds it for this board instead of the manifest's
    #[arg(long, value_name = "NAME")]
    pub board: Option<String>,
}

impl Build {
    /// Does it.
    pub fn carry_out(&self, outputs: &mut Outputs) -> Result<Status, Failure> {
        let host = Host::default();
        let system = load(&self.manifest, self.board.as_deref(), &host)?;
        let image = host.compose(&system)?;
        let output = self.output.display();
        std::fs::write(&self.output, &image).doing(|| format!("write {output}"))?;
        let size = show_size(image.len() as u64);
        writeln!(outputs.log, "trellis| {output}: {size} for {}", system.board().title).doing(|| "write the output".into())?;
        Ok(Status::Well)
    }
}
