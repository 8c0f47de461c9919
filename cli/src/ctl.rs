// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis ctl`: talks to a system that runs.

use crate::asking::{Asking, name};
use crate::events::Events;
use crate::rules::Rules;
use crate::session::Outputs;
use crate::standing::Standing;
use crate::status::{Doing, Failure, Status};
use crate::top::Top;
use crate::upload::Program;
use crate::{replaced, views_list};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::PathBuf;
use trellis_idl::control::{Ask, Part};

/// The server that is no monitor and can be ended all the same.
const IRQFWD: &str = "irqfwd";
/// The variable that names the socket where the command line does not.
const VARIABLE: &str = "TRELLIS_CONTROL";

/// Talks to a running system, as far as its manifest's `control` allows.
///
/// The system must have been started with `./trellis run MANIFEST --control SOCKET`. Exit status: 0 done, 1 refused or not
/// reached, 2 wrong usage.
#[derive(Args, Clone, Debug)]
pub struct Ctl {
    /// The socket of the running system [default: what the variable TRELLIS_CONTROL says]
    #[arg(long, value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// Prints JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub what: What,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// Shows guests, servers, memory, and what the machine lacks
    Status,
    /// Keeps a guest from running
    Pause {
        /// Its name
        guest: String,
    },
    /// Lets a paused guest go on
    Resume {
        /// Its name
        guest: String,
    },
    /// Starts a guest again from its image
    Reboot {
        /// Its name
        guest: String,
    },
    /// Lists a guest's views and which of its vCPUs are in them
    Views {
        /// Its name
        guest: String,
    },
    /// Ends a monitor as if it had crashed: another one is made, and what waited for a verdict is asked again. So for `irqfwd` and `smmu`
    Kill {
        /// Its name, as the manifest says; `monitor` where there is only one; or `irqfwd` or `smmu`
        monitor: String,
    },
    /// Lists, adds and removes rules of the standard monitor that watches a guest
    Watch(Rules),
    /// Lists what monitors were told of by the rules that log, with a count of what was lost
    Events {
        /// Goes on as they come
        #[arg(long)]
        follow: bool,
    },
    /// Puts another program into a monitor's place, which takes over what the old one knows; its guests go on. So for `irqfwd`
    Swap {
        /// Its name, as the manifest says; `monitor` where there is only one; or `irqfwd`
        monitor: String,
        /// The ELF file of the program
        program: PathBuf,
        /// Its signature [default: PROGRAM.sig, if that is there]
        #[arg(long, value_name = "FILE")]
        signature: Option<PathBuf>,
        /// It begins without what the old one knows
        #[arg(long)]
        fresh: bool,
    },
    /// Shows what CPUs and guests do, all the time on a terminal, once elsewhere
    Top {
        /// Shows it once, also on a terminal
        #[arg(long)]
        once: bool,
    },
}

impl Ctl {
    /// Does it.
    pub fn carry_out(&self, outputs: &mut Outputs) -> Result<Status, Failure> {
        let mut asking = Asking::connect(&self.socket()?)?;
        let answer = match &self.what {
            What::Status => {
                let standing = Standing::of(&asking.ask(&Ask::Status)?);
                if self.json { pretty(&standing.json()) } else { standing.text() }
            }
            What::Pause { guest } => self.order(&mut asking, &Ask::Pause(name(guest)?), guest, "paused")?,
            What::Resume { guest } => self.order(&mut asking, &Ask::Resume(name(guest)?), guest, "goes on")?,
            What::Reboot { guest } => self.order(&mut asking, &Ask::Reboot(name(guest)?), guest, "starts again")?,
            What::Views { guest } => {
                let parts = asking.ask(&Ask::Views(name(guest)?))?;
                if self.json { pretty(&views_list::json(&parts)) } else { views_list::text(&parts) }
            }
            What::Watch(rules) => rules.carry_out(&mut asking, self.json)?,
            What::Kill { monitor } if monitor == IRQFWD => {
                asking.ask(&Ask::Kill(name(IRQFWD)?))?;
                let text = format!("{IRQFWD} was ended and made again; its guests go on\n");
                if self.json { pretty(&json!({ "server": IRQFWD, "done": true })) } else { text }
            }
            What::Kill { monitor } => {
                let monitor = asking.monitor(monitor)?;
                let parts = asking.ask(&Ask::Kill(monitor.clone()))?;
                self.replaced(&monitor, "was ended and made again", &parts)?
            }
            What::Swap { monitor, program, signature, fresh } => {
                let monitor = if monitor == IRQFWD { name(IRQFWD)? } else { asking.monitor(monitor)? };
                let parts = Program::read(monitor.clone(), program, signature.as_deref(), *fresh)?.send(&mut asking)?;
                self.replaced(&monitor, &format!("is {} now", program.display()), &parts)?
            }
            What::Events { follow } => return Events::show(&mut asking, *follow, self.json, outputs),
            What::Top { once } => return Top::show(&mut asking, *once, self.json, outputs),
        };
        write!(outputs.out, "{answer}").and_then(|()| outputs.out.flush()).doing(|| "write the output".into())?;
        Ok(Status::Well)
    }

    fn order(&self, asking: &mut Asking, ask: &Ask, guest: &str, what: &str) -> Result<String, Failure> {
        asking.ask(ask)?;
        Ok(if self.json { pretty(&json!({ "guest": guest, "done": true })) } else { format!("guest {guest} {what}\n") })
    }

    fn replaced(&self, monitor: &str, what: &str, parts: &[Part]) -> Result<String, Failure> {
        let known = replaced::of(parts).ok_or_else(|| Failure::says(format!("the system does not say what became of {monitor}")))?;
        let first = format!("{monitor} {what}");
        let text = || if monitor == IRQFWD { replaced::forward_text(&first, &known) } else { replaced::text(&first, &known) };
        Ok(if self.json { pretty(&replaced::json(monitor, &known)) } else { text() })
    }

    fn socket(&self) -> Result<PathBuf, Failure> {
        let named = self.socket.clone().or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
        let hint = format!("name its socket with --socket, or in the variable {VARIABLE}");
        named.ok_or_else(|| Failure::usage("which running system?", hint))
    }
}

/// JSON as it is printed.
pub fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
