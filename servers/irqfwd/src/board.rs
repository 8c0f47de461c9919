// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server as it is on the board.

use crate::{Forwarder, Irqfwd};
use crate::messages::Messages;
use trellis_idl::plan::{IrqfwdConfig, MessagePlan};
use trellis_runtime::memory::Mapped;
use trellis_runtime::{Once, Svc, config, log};

/// The server, with what messages go through.
pub type OnBoard = Irqfwd<&'static Messages<Mapped>>;

static FORWARDER: Forwarder<&'static Messages<Mapped>> = Forwarder::new();
static MESSAGES: Once<Messages<Mapped>> = Once::new();

/// Makes it of its configuration. Without a translation service that works it forwards all other lines.
pub fn build() -> Result<OnBoard, &'static str> {
    let config: IrqfwdConfig = config().map_err(|_| "no configuration that is understood")?;
    let gate = config.messages.as_ref().and_then(bring_up);
    Ok(Irqfwd::start(&Svc, config, &FORWARDER, gate))
}

fn bring_up(plan: &MessagePlan) -> Option<&'static Messages<Mapped>> {
    match MESSAGES.get_or_build(&Svc, || Messages::start(Mapped, plan)) {
        Ok(messages) => Some(messages),
        Err(why) => {
            log!("no interrupts of messages: {why:?}");
            None
        }
    }
}
