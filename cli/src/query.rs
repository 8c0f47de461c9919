// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis query`: reads an image back: its manifest, its parts, the hash of each.

use crate::session::Outputs;
use crate::status::{Doing, Failure, Status};
use clap::Args;
use std::path::PathBuf;
use trellis_images::Queried;

/// Shows what an image was made of.
#[derive(Args, Clone, Debug)]
pub struct Query {
    /// The image
    pub image: PathBuf,
}

impl Query {
    /// Does it.
    pub fn carry_out(&self, outputs: &mut Outputs) -> Result<Status, Failure> {
        let path = self.image.display();
        let image = std::fs::read(&self.image).doing(|| format!("read {path}"))?;
        let queried = trellis_images::query(&image).map_err(|error| {
            Failure::usage(format!("{path} cannot be read back: {error}"), "name an image that `trellis build` made")
        })?;
        write!(outputs.out, "{}", text(&queried)).doing(|| "write the output".into())?;
        match queried.parts.iter().find(|part| !part.intact) {
            Some(part) => Err(Failure::says(format!("{path}: the part {} is damaged", part.name))),
            None => Ok(Status::Well),
        }
    }
}

/// The manifest as it was, then a line for each part.
fn text(queried: &Queried) -> String {
    let mut text = queried.manifest.clone();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("\n# parts: SHA-256, bytes, name\n");
    for part in &queried.parts {
        let damaged = if part.intact { "" } else { " (damaged)" };
        text.push_str(&format!("# {} {:>10} {}{damaged}\n", part.sha256_text(), part.bytes, part.name));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_images::PartInfo;

    #[test]
    fn the_text_is_the_manifest_and_stays_one() {
        let part = PartInfo { name: "kernel".into(), offset: 0, bytes: 7, sha256: [0xab; 32], intact: false };
        let shown = text(&Queried { manifest: "name = \"x\"".into(), parts: vec![part] });
        let hash = "ab".repeat(32);
        assert_eq!(shown, format!("name = \"x\"\n\n# parts: SHA-256, bytes, name\n# {hash}          7 kernel (damaged)\n"));
    }
}
