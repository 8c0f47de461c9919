// SPDX-License-Identifier: MIT OR Apache-2.0
//! The user's terminal while a guest's console is connected to it: every key goes to the guest at once, unseen.

use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use std::io::{IsTerminal, stdin};

/// Control-] ends the run: Control-C belongs to the guest.
const END_KEY: u8 = 0x1d;

/// While this lives, the terminal hands over keys as they come. Nothing where the standard input is no terminal.
#[derive(Debug)]
pub struct RawInput {
    before: Option<Termios>,
}

impl RawInput {
    /// Says which key ends it, and changes the terminal.
    pub fn enter() -> RawInput {
        let before = if stdin().is_terminal() { tcgetattr(stdin()).ok() } else { None };
        if let Some(before) = &before {
            let mut raw = before.clone();
            let output = raw.output_modes;
            raw.make_raw();
            // Logs go to the same terminal and end their lines with a line feed alone.
            raw.output_modes = output;
            raw.local_modes |= rustix::termios::LocalModes::ISIG;
            for key in [SpecialCodeIndex::VQUIT, SpecialCodeIndex::VSUSP] {
                raw.special_codes[key] = 0;
            }
            raw.special_codes[SpecialCodeIndex::VINTR] = END_KEY;
            if tcsetattr(stdin(), OptionalActions::Now, &raw).is_ok() {
                eprintln!("trellis| connected; Control-] ends the run");
            }
        }
        RawInput { before }
    }
}

impl Drop for RawInput {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // There is nobody left to tell if it fails.
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}
