// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who is who in an image: the plan read back out of it, as far as reports need it.

use crate::status::Failure;
use std::ops::Range;
use trellis_idl::boot::{self, BootHeader, HEADER_OFFSET};
use trellis_idl::control::Control;
use trellis_idl::plan::{Part, Plan};
use zerocopy::FromBytes;

/// A guest as reports speak of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestName {
    /// Its name in the manifest.
    pub name: String,
    /// Guest-physical addresses of its memory.
    pub memory: Range<u64>,
    /// Line of `[guest.NAME]`, from 1.
    pub line: usize,
}

/// The names in an image and the manifest it was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// In the plan's order, as channels count them.
    pub guests: Vec<GuestName>,
    /// In the plan's order.
    pub servers: Vec<String>,
    /// What the host may do by the control channel.
    pub control: Control,
    /// How messages call the manifest.
    pub file: String,
    /// The manifest's text.
    pub manifest: String,
}

impl Names {
    /// Out of an image; `file` is how messages call its manifest.
    pub fn from_image(image: &[u8], file: &str) -> Result<Names, Failure> {
        read(image, file).ok_or_else(|| {
            Failure::hinted("this image holds no plan that this tool can read", "compose it again with `trellis build`")
        })
    }

    /// The guest with this index, or a made-up name.
    pub fn guest(&self, index: u8) -> String {
        self.guests.get(usize::from(index)).map_or_else(|| format!("guest-{index}"), |guest| guest.name.clone())
    }

    /// The server with this index, or a made-up name.
    pub fn server(&self, index: u8) -> String {
        self.servers.get(usize::from(index)).cloned().unwrap_or_else(|| format!("server-{index}"))
    }

    /// The index of the guest with this name.
    pub fn channel(&self, name: &str) -> Option<u8> {
        self.guests.iter().position(|guest| guest.name == name).and_then(|index| index.try_into().ok())
    }

    /// `FILE:LINE: text` of a line of the manifest.
    pub fn line(&self, number: u32) -> Option<String> {
        let text = self.manifest.lines().nth((number as usize).checked_sub(1)?)?;
        Some(format!("{}:{number}: {}", self.file, text.trim()))
    }

    /// `FILE:LINE: text` of the line that gives this guest its memory.
    pub fn memory_line(&self, index: u8) -> Option<String> {
        let guest = self.guests.get(usize::from(index))?;
        let mut table = self.manifest.lines().enumerate().skip(guest.line.checked_sub(1)?);
        let header = table.next()?;
        let memory = table
            .take_while(|(_, text)| !text.trim_start().starts_with('['))
            .find(|(_, text)| text.split('=').next().is_some_and(|key| key.trim() == "memory"));
        let (number, text) = memory.unwrap_or(header);
        Some(format!("{}:{}: {}", self.file, number + 1, text.trim()))
    }
}

fn read(image: &[u8], file: &str) -> Option<Names> {
    let (header, _) = BootHeader::read_from_prefix(image.get(HEADER_OFFSET..)?).ok()?;
    if header.magic != boot::MAGIC {
        return None;
    }
    let payload = slice(image, header.payload.base, header.payload.bytes)?;
    let plan: Plan = postcard::from_bytes(slice(payload, header.plan.base, header.plan.bytes)?).ok()?;
    let Part { offset, bytes } = plan.manifest;
    let manifest = String::from_utf8_lossy(slice(payload, offset, bytes)?).into_owned();
    let guests = plan.guests.iter().map(|guest| GuestName {
        name: guest.name.to_owned(),
        memory: guest.memory_base..guest.memory_base.saturating_add(guest.memory_bytes),
        line: guest.manifest_line as usize,
    });
    Some(Names {
        guests: guests.collect(),
        servers: plan.servers.iter().map(|server| server.name.to_owned()).collect(),
        control: plan.control,
        file: file.to_owned(),
        manifest,
    })
}

fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two guests and five servers, as reports of a small system name them.
    pub(crate) fn two_guests() -> Names {
        let manifest = "name = \"two\"\nboard = \"virt\"\n\n[guest.web]\nkernel = \"hello\"\nmemory = \"16M\"\n\n[guest.db]\nkernel = \"hello\"\n";
        let memory = 0x4000_0000..0x4100_0000;
        Names {
            guests: vec![
                GuestName { name: "web".into(), memory: memory.clone(), line: 4 },
                GuestName { name: "db".into(), memory, line: 8 },
            ],
            servers: ["console", "p2m-web", "vcpu-web", "p2m-db", "vcpu-db"].map(String::from).to_vec(),
            control: Control::Off,
            file: "two.toml".into(),
            manifest: manifest.into(),
        }
    }

    #[test]
    fn the_memory_line_is_found_or_the_table_instead() {
        assert_eq!(two_guests().memory_line(0).as_deref(), Some("two.toml:6: memory = \"16M\""));
        assert_eq!(two_guests().memory_line(1).as_deref(), Some("two.toml:8: [guest.db]"));
        assert_eq!(two_guests().memory_line(2), None);
    }

    #[test]
    fn indices_outside_the_plan_get_a_name_all_the_same() {
        assert_eq!(two_guests().guest(9), "guest-9");
        assert_eq!(two_guests().server(2), "vcpu-web");
        assert_eq!(two_guests().channel("db"), Some(1));
        assert_eq!(two_guests().channel("none"), None);
    }

    #[test]
    fn broken_images_are_refused() {
        for image in [vec![], vec![0; 100], vec![0xff; 8192]] {
            assert!(Names::from_image(&image, "x.toml").is_err());
        }
        let mut header = BootHeader::EMPTY;
        header.magic = boot::MAGIC;
        header.payload = boot::Range { base: u64::MAX, bytes: 2 };
        let mut image = vec![0; 8192];
        image[HEADER_OFFSET..HEADER_OFFSET + size_of::<BootHeader>()].copy_from_slice(zerocopy::IntoBytes::as_bytes(&header));
        assert!(Names::from_image(&image, "x.toml").is_err());
    }
}
