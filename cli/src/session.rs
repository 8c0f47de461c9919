// SPDX-License-Identifier: MIT OR Apache-2.0
//! One run of a system as its serial port tells it: bytes in, lines and an exit status out. It knows no emulator.

use crate::frame::{Decoder, Frame, Item};
use crate::lines::Lines;
use crate::names::Names;
use crate::report;
use crate::status::Status;
use crate::timeline::Timeline;
use std::io::{self, Write};
use trellis_idl::interface::HOST;
use trellis_idl::wire::{FrameKind, ROOT_CHANNEL, Report, SECOND_LOG};

/// Where a session's lines go.
pub struct Outputs<'a> {
    /// Guests' consoles.
    pub out: &'a mut dyn Write,
    /// Logs of kernel and servers.
    pub log: &'a mut dyn Write,
}

impl std::fmt::Debug for Outputs<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Outputs")
    }
}

/// What root said when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Ticks from the kernel's first instruction to root's.
    pub boot_ticks: u64,
    /// Bytes of memory that the kernel keeps.
    pub kernel_memory: u64,
}

/// What is known about a run so far.
#[derive(Debug)]
pub struct Session {
    names: Names,
    /// The guest whose bytes go to the output raw.
    raw: Option<u8>,
    decoder: Decoder,
    kernel: Lines,
    root: Lines,
    guests: Vec<Lines>,
    servers: Vec<Lines>,
    /// Second logs, by server.
    seconds: Vec<Lines>,
    /// Lines of channels that the plan does not have.
    strange: Lines,
    started: Option<Started>,
    off: Option<bool>,
    has_bad_end: bool,
    /// Root's reports may mean something else than this tool thinks.
    is_foreign: bool,
    hertz: u64,
    timeline: Timeline,
    /// Parts of answers to those who asked by the control channel.
    answers: Vec<Vec<u8>>,
}

impl Session {
    /// A run of the image with these names; the guest with index `raw`, if any, is shown without a prefix.
    pub fn new(names: Names, raw: Option<u8>) -> Session {
        Session {
            guests: names.guests.iter().map(|guest| Lines::of(&guest.name)).collect(),
            servers: names.servers.iter().map(Lines::of).collect(),
            seconds: names.servers.iter().map(Lines::of).collect(),
            kernel: Lines::of("kernel"),
            root: Lines::of("root"),
            strange: Lines::of("unknown"),
            names,
            raw,
            decoder: Decoder::default(),
            started: None,
            off: None,
            has_bad_end: false,
            is_foreign: false,
            hertz: 0,
            timeline: Timeline::default(),
            answers: Vec::new(),
        }
    }

    /// Takes bytes of the serial port.
    pub fn take(&mut self, bytes: &[u8], outputs: &mut Outputs) -> io::Result<()> {
        let mut items = Vec::new();
        self.decoder.push(bytes, &mut items);
        self.show(items, outputs)
    }

    /// Root has said that the machine goes off.
    pub fn is_off(&self) -> bool {
        self.off.is_some()
    }

    /// Parts of answers of the control channel that came since the last time.
    pub fn take_answers(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.answers)
    }

    /// What CPUs did, if the image sends that.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Who is who.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What root said when it started, if it did.
    pub fn started(&self) -> Option<Started> {
        self.started
    }

    /// No more bytes come: shows what is left of every line.
    pub fn finish(&mut self, outputs: &mut Outputs) -> io::Result<()> {
        let mut items = Vec::new();
        self.decoder.finish(&mut items);
        self.show(items, outputs)?;
        for (index, lines) in self.guests.iter_mut().enumerate() {
            lines.finish(if self.raw.is_some() && self.raw != u8::try_from(index).ok() { outputs.log } else { outputs.out })?;
        }
        let logs = self.servers.iter_mut().chain(&mut self.seconds).chain([&mut self.kernel, &mut self.root, &mut self.strange]);
        for lines in logs {
            lines.finish(outputs.log)?;
        }
        Ok(())
    }

    /// How the run ended, provided that it did and nobody ended it.
    pub fn status(&self) -> Status {
        match self.off {
            _ if self.is_foreign => Status::Failed,
            Some(true) if !self.has_bad_end => Status::Well,
            Some(_) => Status::GuestFailed,
            None if self.has_bad_end => Status::GuestFailed,
            None => Status::Failed,
        }
    }

    fn show(&mut self, items: Vec<Item>, outputs: &mut Outputs) -> io::Result<()> {
        for item in items {
            match item {
                Item::Raw(bytes) => self.kernel.push(&bytes, outputs.log)?,
                Item::Frame(frame) => self.frame(frame, outputs)?,
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame, outputs: &mut Outputs) -> io::Result<()> {
        match frame.kind {
            FrameKind::KernelLog => self.kernel.push(&frame.payload, outputs.log),
            FrameKind::ServerLog => self.server(frame.channel).push(&frame.payload, outputs.log),
            FrameKind::Guest => self.guest(&frame, outputs),
            FrameKind::Report => self.report(&frame.payload, outputs),
            FrameKind::Control => {
                self.answers.push(frame.payload);
                Ok(())
            }
        }
    }

    fn server(&mut self, channel: u8) -> &mut Lines {
        match channel {
            ROOT_CHANNEL => &mut self.root,
            // While one monitor takes another's place, both write under one name, each its own lines.
            SECOND_LOG..ROOT_CHANNEL => self.seconds.get_mut(usize::from(channel - SECOND_LOG)).unwrap_or(&mut self.strange),
            _ => self.servers.get_mut(usize::from(channel)).unwrap_or(&mut self.strange),
        }
    }

    fn guest(&mut self, frame: &Frame, outputs: &mut Outputs) -> io::Result<()> {
        if self.raw == Some(frame.channel) {
            outputs.out.write_all(&frame.payload)?;
            return outputs.out.flush();
        }
        let out = if self.raw.is_some() { &mut *outputs.log } else { &mut *outputs.out };
        let lines = self.guests.get_mut(usize::from(frame.channel)).unwrap_or(&mut self.strange);
        lines.push(&frame.payload, out)
    }

    fn report(&mut self, payload: &[u8], outputs: &mut Outputs) -> io::Result<()> {
        let Ok(report) = postcard::from_bytes::<Report>(payload) else {
            return writeln!(outputs.log, "root| sent a report that this tool cannot read");
        };
        match &report {
            Report::Trace { cpu, is_gap, records } => self.timeline.add(*cpu, *is_gap, records),
            Report::Started { boot_ticks, kernel_memory, clock_hz, version, schema } => {
                self.agree(*version, *schema, outputs)?;
                self.hertz = *clock_hz;
                self.timeline.set_hertz(*clock_hz);
                self.started = Some(Started { boot_ticks: *boot_ticks, kernel_memory: *kernel_memory });
            }
            Report::GuestEnded { end, .. } if !report::is_good_end(end) => self.has_bad_end = true,
            // What its last life did not end is a line of its own.
            Report::GuestRebooted { guest, .. } if self.raw != Some(*guest) => {
                let out = if self.raw.is_some() { &mut *outputs.log } else { &mut *outputs.out };
                self.guests.get_mut(usize::from(*guest)).map_or(Ok(()), |lines| lines.finish(out))?;
            }
            Report::Off { well } => self.off = Some(*well),
            _ => {}
        }
        for line in report::sentences(&report, &self.names, self.hertz) {
            writeln!(outputs.log, "root| {line}")?;
        }
        Ok(())
    }

    /// Root and this tool may have been built of different sources: then nothing that follows can be relied on.
    fn agree(&mut self, version: u16, schema: u64, outputs: &mut Outputs) -> io::Result<()> {
        if (version, schema) == (HOST.version, HOST.schema) {
            return Ok(());
        }
        self.is_foreign = true;
        writeln!(
            outputs.log,
            "trellis| this image's root reports by version {version}, schema {schema:#018x}, and this tool reads version {}, \
             schema {:#018x}: make the image again with this tool",
            HOST.version, HOST.schema
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::tests::two_guests;
    use trellis_idl::wire::GuestEnd;

    fn guest(channel: u8, text: &[u8]) -> Vec<u8> {
        Frame { kind: FrameKind::Guest, channel, payload: text.to_vec() }.encode()
    }

    fn report(report: &Report) -> Vec<u8> {
        let payload = postcard::to_stdvec(report).expect("reports encode");
        Frame { kind: FrameKind::Report, channel: 0, payload }.encode()
    }

    fn run(raw: Option<u8>, bytes: &[u8]) -> (String, String, Status) {
        let (mut out, mut log) = (Vec::new(), Vec::new());
        let mut session = Session::new(two_guests(), raw);
        let mut outputs = Outputs { out: &mut out, log: &mut log };
        session.take(bytes, &mut outputs).expect("writing to memory");
        session.finish(&mut outputs).expect("writing to memory");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (text(out), text(log), session.status())
    }

    fn ends(first: GuestEnd, well: bool) -> Status {
        let ended = report(&Report::GuestEnded { guest: 0, end: first });
        run(None, &[ended, report(&Report::Off { well })].concat()).2
    }

    #[test]
    fn guests_go_to_the_output_and_logs_elsewhere() {
        let log = Frame { kind: FrameKind::ServerLog, channel: 1, payload: b"ready\n".to_vec() }.encode();
        let own = Frame { kind: FrameKind::ServerLog, channel: ROOT_CHANNEL, payload: b"starting\n".to_vec() }.encode();
        let bytes = [b"EL2, 1 CPU\n".to_vec(), log, own, guest(0, b"hel"), guest(1, b"hi\n"), guest(0, b"lo\n")].concat();
        let (out, log, status) = run(None, &bytes);
        assert_eq!(out, "db| hi\nweb| hello\n");
        assert_eq!(log, "kernel| EL2, 1 CPU\np2m-web| ready\nroot| starting\n");
        assert_eq!(status, Status::Failed);
    }

    #[test]
    fn a_guest_that_starts_again_begins_a_line() {
        let again = report(&Report::GuestRebooted { guest: 0, times: 1 });
        let (out, _, _) = run(None, &[guest(0, b"li"), guest(1, b"h"), again, guest(0, b"hello\n"), guest(1, b"i\n")].concat());
        assert_eq!(out, "web| li\nweb| hello\ndb| hi\n");
    }

    #[test]
    fn one_console_is_raw_and_the_others_move_to_the_log() {
        let (out, log, _) = run(Some(1), &[guest(0, b"hello"), guest(1, b"\x1b[1m=> ")].concat());
        assert_eq!((out.as_str(), log.as_str()), ("\x1b[1m=> ", "web| hello\n"));
    }

    #[test]
    fn statuses_follow_the_reports() {
        assert_eq!(ends(GuestEnd::Off, true), Status::Well);
        assert_eq!(ends(GuestEnd::Reset, true), Status::Well);
        assert_eq!(ends(GuestEnd::Status(1), true), Status::GuestFailed);
        assert_eq!(ends(GuestEnd::Off, false), Status::GuestFailed);
    }

    #[test]
    fn reports_of_another_interface_are_told_and_the_run_has_failed() {
        let started = |version, schema| {
            report(&Report::Started { boot_ticks: 1, clock_hz: 1, kernel_memory: 1, version, schema })
        };
        let off = report(&Report::Off { well: true });
        let said = |first: Vec<u8>| run(None, &[first, off.clone()].concat());
        let (_, log, status) = said(started(HOST.version, HOST.schema));
        assert!(!log.contains("trellis| ") && status == Status::Well, "{log}");
        for other in [started(HOST.version + 1, HOST.schema), started(HOST.version, !HOST.schema)] {
            let (_, log, status) = said(other);
            assert!(log.contains("make the image again with this tool") && status == Status::Failed, "{log}");
        }
    }

    #[test]
    fn a_channel_outside_the_plan_is_shown_and_breaks_nothing() {
        let strange = Frame { kind: FrameKind::Report, channel: 9, payload: vec![0xff; 9] }.encode();
        let (out, log, status) = run(None, &[guest(77, b"who\n"), strange].concat());
        assert_eq!(out, "unknown| who\n");
        assert_eq!(log, "root| sent a report that this tool cannot read\n");
        assert_eq!(status, Status::Failed);
    }
}
