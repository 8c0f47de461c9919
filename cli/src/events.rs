// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis ctl events`: what monitors were told of, a line each, with a line for what was lost.

use crate::asking::Asking;
use crate::session::Outputs;
use crate::standing::Standing;
use crate::status::{Doing, Failure, Status};
use serde_json::{Value, json};
use std::time::Duration;
use trellis_idl::control::{Ask, EventState, Part};
use trellis_idl::event::EventKind;
use trellis_idl::kernel::ExitHeader;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(100);

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    /// The names of guests and servers.
    standing: Standing,
    is_json: bool,
    /// The number of the next one.
    next: u64,
}

impl Events {
    /// Shows those that are remembered, and with `follow` those that come, as long as somebody reads and the system runs.
    pub fn show(asking: &mut Asking, follow: bool, is_json: bool, outputs: &mut Outputs) -> Result<Status, Failure> {
        let standing = Standing::of(&asking.ask(&Ask::Status)?);
        let mut events = Events { standing, is_json, next: 0 };
        loop {
            let lines = events.lines(&asking.ask(&Ask::Events(events.next))?);
            write!(outputs.out, "{lines}").and_then(|()| outputs.out.flush()).doing(|| "write the output".into())?;
            if !follow {
                return Ok(Status::Well);
            }
            std::thread::sleep(EVERY);
        }
    }

    /// The lines of an answer.
    fn lines(&mut self, parts: &[Part]) -> String {
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Event(event) => {
                    text += &self.lost(event.sequence);
                    text += &if self.is_json { format!("{}\n", self.json(event)) } else { self.line(event) };
                    self.next = event.sequence.saturating_add(1);
                }
                Part::Until(next, _) => {
                    text += &self.lost(*next);
                    self.next = *next;
                }
                // Parts of other answers, and of later versions.
                _ => {}
            }
        }
        text
    }

    /// What is missing before this number.
    fn lost(&self, number: u64) -> String {
        match number.saturating_sub(self.next) {
            0 => String::new(),
            lost if self.is_json => format!("{}\n", json!({ "lost": lost })),
            1 => "(1 event lost)\n".into(),
            lost => format!("({lost} events lost)\n"),
        }
    }

    fn line(&self, event: &EventState) -> String {
        let (seen, header) = (&event.seen, ExitHeader(event.seen.header));
        let (server, guest) = (self.standing.server_name(event.server), self.guest(event.guest));
        if let Some(kind) = EventKind::of_note(seen.physical) {
            return format!(
                "{} {server}| {guest} (vCPU {}) {} (heard by rule {}), pc {:#x}, {}\n",
                event.sequence, seen.vcpu, heard(kind), u32::from(seen.rule) + 1, seen.pc, said(seen.verdict),
            );
        }
        let bytes = match width(header) {
            Some(1) => " 1 byte".into(),
            Some(bytes) => format!(" {bytes} bytes"),
            None => String::new(),
        };
        format!(
            "{} {server}| {guest} (vCPU {}) {}{bytes} at {:#x} (page watched by rule {}), pc {:#x}, {}\n",
            event.sequence, seen.vcpu, did(header), seen.physical, u32::from(seen.rule) + 1, seen.pc, said(seen.verdict),
        )
    }

    fn json(&self, event: &EventState) -> Value {
        let (seen, header) = (&event.seen, ExitHeader(event.seen.header));
        let kind = EventKind::of_note(seen.physical);
        let (did, bytes) = kind.map_or_else(|| (did(header).into(), width(header)), |kind| (heard(kind), None));
        let address = Some(seen.physical).filter(|_| kind.is_none());
        json!({
            "sequence": event.sequence, "monitor": self.standing.server_name(event.server), "guest": self.guest(event.guest),
            "vcpu": seen.vcpu, "event": seen.number, "did": did, "bytes": bytes, "address": address,
            "pc": seen.pc, "rule": u32::from(seen.rule) + 1, "verdict": said(seen.verdict), "ticks": seen.time,
        })
    }

    fn guest(&self, guest: u8) -> &str {
        self.standing.guests().iter().find(|known| known.guest == guest).map_or("?", |known| known.name.as_str())
    }
}

/// What the guest did.
fn did(header: ExitHeader) -> &'static str {
    if header.has(ExitHeader::WALK) {
        "walked its tables"
    } else if header.has(ExitHeader::FETCH) {
        "executed"
    } else if header.has(ExitHeader::WRITE) {
        "wrote"
    } else {
        "read"
    }
}

/// The same of what is no access.
fn heard(kind: EventKind) -> String {
    if let Some(register) = kind.register() {
        return format!("wrote {register}");
    }
    let did = match kind {
        EventKind::Identity => "read an ID register",
        EventKind::Firmware => "called firmware (SMC)",
        EventKind::Request => "asked its monitor",
        EventKind::Breakpoint => "ran into a breakpoint",
        EventKind::Power => "switched a vCPU or itself on or off",
        EventKind::Hypercall => "called the hypervisor (HVC)",
        EventKind::Start => "was switched on",
        EventKind::Stop => "was switched off",
        _ => "had a debug exception",
    };
    did.into()
}

/// Bytes of an access, where the hardware said so.
fn width(header: ExitHeader) -> Option<u64> {
    let plain = !header.has(ExitHeader::WALK) && !header.has(ExitHeader::FETCH);
    Some(header.0 >> 8 & 0xff).filter(|bytes| plain && *bytes != 0)
}

fn said(verdict: u8) -> &'static str {
    match verdict {
        0 => "allowed",
        1 => "denied",
        3 => "an exception in the guest",
        4 => "reported",
        _ => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::wire::Seen;

    fn event(sequence: u64, header: u64) -> Part {
        let seen = Seen { place: 0, vcpu: 1, rule: 1, verdict: 1, number: 7, lost: 0, header, physical: 0x4080_0010, pc: 0x4020_0004, time: 9 };
        Part::Event(EventState { sequence, server: 3, guest: 0, seen })
    }

    fn events(is_json: bool) -> Events {
        Events { standing: Standing::default(), is_json, next: 0 }
    }

    #[test]
    fn each_event_is_a_line_and_what_is_missing_is_counted() {
        let mut shown = events(false);
        let text = shown.lines(&[event(0, ExitHeader::WRITE | 8 << 8), event(1, 1 << 8), event(5, ExitHeader::FETCH), Part::Until(8, 100)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("(vCPU 1) wrote 8 bytes at 0x40800010 (page watched by rule 2), pc 0x40200004, denied"), "{text}");
        assert!(lines[1].contains("read 1 byte at") && lines[2] == "(3 events lost)" && lines[3].starts_with("5 "), "{text}");
        assert_eq!((lines[4], lines.len(), shown.next), ("(2 events lost)", 5, 8));
        assert_eq!(shown.lines(&[event(8, 0), Part::Until(9, 100)]).lines().count(), 1, "and goes on behind it");
        // A system that has started again counts from the beginning.
        assert_eq!((shown.lines(&[Part::Until(2, 100)]), shown.next), (String::new(), 2));
    }

    #[test]
    fn what_is_no_access_has_no_address() {
        let Part::Event(mut heard) = event(0, 2) else { panic!() };
        (heard.seen.physical, heard.seen.verdict) = (EventKind::Context.note(3), 4);
        let text = events(false).lines(&[Part::Event(heard)]);
        assert!(text.ends_with("(vCPU 1) wrote CONTEXTIDR_EL1 (heard by rule 2), pc 0x40200004, reported\n"), "{text}");
        let line: Value = serde_json::from_str(events(true).lines(&[Part::Event(heard)]).trim()).expect("an object");
        assert_eq!((&line["did"], &line["address"]), (&json!("wrote CONTEXTIDR_EL1"), &Value::Null));
    }

    #[test]
    fn as_json_each_line_is_an_object() {
        let text = events(true).lines(&[event(2, ExitHeader::WRITE | 8 << 8), Part::Until(3, 100)]);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert_eq!((&lines[0]["lost"], &lines[1]["did"], &lines[1]["bytes"], &lines[1]["verdict"]), (&json!(2), &json!("wrote"), &json!(8), &json!("denied")));
    }
}
