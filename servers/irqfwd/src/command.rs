// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands of the interrupt translation service (GICv3 5.3): four words each.

/// Bytes of a command.
pub const BYTES: u64 = 32;

const VALID: u64 = 1 << 63;

/// What a device writes: who it is, and which of its messages this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// By which the service knows the device.
    pub device: u32,
    /// Which of its messages.
    pub number: u32,
}

/// A redistributor, as commands name it (RDbase, 5.3.1): its place already in the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target(u64);

impl Target {
    /// By its address, where the service wants that (GITS_TYPER.PTA).
    pub const fn by_address(address: u64) -> Target {
        Target(address & 0x0007_ffff_ffff_0000)
    }

    /// By the number of its processor (GICR_TYPER.Processor_Number).
    pub const fn by_number(number: u16) -> Target {
        Target((number as u64) << 16)
    }
}

/// A command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command(pub [u64; 4]);

impl Command {
    const fn of(number: u8, event: Event, rest: u64) -> Command {
        Command([number as u64 | (event.device as u64) << 32, event.number as u64, rest, 0])
    }

    const fn about(number: u8, rest: u64) -> Command {
        Command([number as u64, 0, rest, 0])
    }

    /// MAPD (5.3.11): a device has a table of its own for messages of so many bits.
    pub const fn map_device(device: u32, table: u64, bits: u8) -> Command {
        Command([0x08 | (device as u64) << 32, (bits - 1) as u64 & 31, table & 0x000f_ffff_ffff_ff00 | VALID, 0])
    }

    /// MAPD (5.3.11): a device has none any more.
    pub const fn unmap_device(device: u32) -> Command {
        Command([0x08 | (device as u64) << 32, 0, 0, 0])
    }

    /// MAPC (5.3.9): a collection is a redistributor's.
    pub const fn map_collection(collection: u16, target: Target) -> Command {
        Command::about(0x09, target.0 | collection as u64 | VALID)
    }

    /// MAPTI (5.3.13): a message makes this line, for a collection.
    pub const fn map_event(event: Event, line: u32, collection: u16) -> Command {
        let Command([first, second, ..]) = Command::of(0x0a, event, 0);
        Command([first, second | (line as u64) << 32, collection as u64, 0])
    }

    /// MOVI (5.3.15): a message is another collection's.
    pub const fn move_event(event: Event, collection: u16) -> Command {
        Command::of(0x01, event, collection as u64)
    }

    /// INV (5.3.6): what is written of a message's line counts.
    pub const fn reread(event: Event) -> Command {
        Command::of(0x0c, event, 0)
    }

    /// SYNC (5.3.17): all before it is done as far as this redistributor sees.
    pub const fn settle(target: Target) -> Command {
        Command::about(0x05, target.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each made by hand from the manual's pictures.
    #[test]
    fn commands_are_as_the_manual_draws_them() {
        let event = Event { device: 0x10, number: 3 };
        let at = Target::by_address(0x080a_1234_5678);
        let third = Target::by_number(2);
        let golden: [(Command, [u64; 4]); 9] = [
            (Command::map_device(0x10, 0x4123_4567, 5), [0x0000_0010_0000_0008, 4, 0x8000_0000_4123_4500, 0]),
            (Command::unmap_device(0x10), [0x0000_0010_0000_0008, 0, 0, 0]),
            (Command::map_collection(7, third), [0x09, 0, 0x8000_0000_0002_0007, 0]),
            (Command::map_collection(1, at), [0x09, 0, 0x8000_080a_1234_0001, 0]),
            (Command::map_event(event, 8193, 7), [0x0000_0010_0000_000a, 0x0000_2001_0000_0003, 7, 0]),
            (Command::move_event(event, 5), [0x0000_0010_0000_0001, 3, 5, 0]),
            (Command::reread(event), [0x0000_0010_0000_000c, 3, 0, 0]),
            (Command::settle(third), [0x05, 0, 0x0002_0000, 0]),
            (Command::settle(at), [0x05, 0, 0x080a_1234_0000, 0]),
        ];
        for (command, words) in golden {
            assert_eq!(command.0, words, "{command:x?}");
        }
    }
}
