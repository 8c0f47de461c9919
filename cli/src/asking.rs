// SPDX-License-Identifier: MIT OR Apache-2.0
//! The other end of the control socket: asks a running system and waits for the whole answer.

use crate::columns::bytes;
use crate::frame::{Decoder, Frame, Item};
use crate::replaced;
use crate::status::{Doing, Failure};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use trellis_idl::control::{Answer, Ask, Head, Name, Part, Refused, Step, Unfit, VERSION};
use trellis_idl::plan::{MAX_ADDED, MAX_RULES, Role};
use trellis_idl::wire::FrameKind;

/// How long a running system may take for a part of an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Questions that are open at a time where many are asked: half of what a relay lets through.
const AT_ONCE: usize = 4;

/// A connection to a running system.
#[derive(Debug)]
pub struct Asking {
    stream: UnixStream,
    decoder: Decoder,
    /// Frames that came and have not been looked at.
    frames: VecDeque<Vec<u8>>,
    number: u32,
}

impl Asking {
    /// Connects to the socket that `trellis run --control` made.
    pub fn connect(path: &Path) -> Result<Asking, Failure> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Failure::hinted(
                format!("no system listens at {}", path.display()),
                "start one with `./trellis run MANIFEST --control SOCKET`, and name the same socket here",
            ),
            _ => Failure::says(format!("could not connect to {}: {error}", path.display())),
        })?;
        stream.set_read_timeout(Some(PATIENCE)).doing(|| "set a time limit".into())?;
        Ok(Asking { stream, decoder: Decoder::default(), frames: VecDeque::new(), number: 0 })
    }

    /// Asks, and gives the parts of the answer without the last, which says that it went well.
    pub fn ask(&mut self, ask: &Ask) -> Result<Vec<Part>, Failure> {
        let number = self.send(ask)?;
        let mut parts = Vec::new();
        loop {
            match self.next(number)? {
                Part::Done => return Ok(parts),
                Part::Refused(Refused::NoGuest) => return Err(self.no_guest(ask)),
                Part::Refused(why) => return Err(refused(why, ask)),
                part => parts.push(part),
            }
        }
    }

    /// Asks many things that are done one after the other, some of them before the first is answered; `each` is called for each
    /// that is done.
    pub fn ask_all(&mut self, asks: impl IntoIterator<Item = Ask>, mut each: impl FnMut()) -> Result<(), Failure> {
        let mut open = VecDeque::new();
        let mut asks = asks.into_iter();
        loop {
            while open.len() < AT_ONCE
                && let Some(ask) = asks.next()
            {
                open.push_back((self.send(&ask)?, ask));
            }
            let Some((number, ask)) = open.pop_front() else { return Ok(()) };
            match self.next(number)? {
                Part::Refused(why) => return Err(refused(why, &ask)),
                _ => each(),
            }
        }
    }

    /// A monitor by its name; `monitor` means the only one.
    pub fn monitor(&mut self, named: &str) -> Result<Name, Failure> {
        let rank = Role::Monitor.rank();
        let monitor = |part| match part {
            Part::Server(server) if server.rank == rank => Some(server.name),
            _ => None,
        };
        let there: Vec<Name> = self.ask(&Ask::Status)?.into_iter().filter_map(monitor).collect();
        if let Some(name) = there.iter().find(|name| name.as_str() == named) {
            return Ok(name.clone());
        }
        match &there[..] {
            [only] if named == "monitor" => Ok(only.clone()),
            [] => Err(Failure::usage(format!("there is no monitor {named}"), "nobody is watched in this system")),
            _ => Err(Failure::usage(format!("there is no monitor {named}"), format!("there are: {}", there.join(", ")))),
        }
    }

    fn send(&mut self, ask: &Ask) -> Result<u32, Failure> {
        self.number += 1;
        let head = Head { version: VERSION, number: self.number };
        let payload = postcard::to_stdvec(&(head, ask)).map_err(|_| Failure::says("this question does not fit a message"))?;
        let frame = Frame { kind: FrameKind::Control, channel: 0, payload }.encode();
        self.stream.write_all(&frame).map_err(|_| hung_up())?;
        Ok(self.number)
    }

    /// The next part of the answer to this question.
    fn next(&mut self, number: u32) -> Result<Part, Failure> {
        loop {
            let payload = self.payload()?;
            let Ok((head, _)) = postcard::take_from_bytes::<Head>(&payload) else { continue };
            if head.number != number {
                continue;
            }
            if head.version != VERSION {
                return Err(foreign(head.version));
            }
            let answer: Answer = postcard::from_bytes(&payload).map_err(|_| {
                Failure::hinted("the system says something that this tool cannot read", "use the tool that made its image")
            })?;
            return Ok(answer.part);
        }
    }

    fn payload(&mut self) -> Result<Vec<u8>, Failure> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(payload) = self.frames.pop_front() {
                return Ok(payload);
            }
            let length = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(hung_up()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(Failure::says(format!("the system has not answered for {} s", PATIENCE.as_secs())));
                }
                Err(_) => return Err(hung_up()),
            };
            let mut items = Vec::new();
            self.decoder.push(&buffer[..length], &mut items);
            self.frames.extend(items.into_iter().filter_map(|item| match item {
                Item::Frame(frame) if frame.kind == FrameKind::Control => Some(frame.payload),
                _ => None,
            }));
        }
    }

    /// Says which guests there are instead.
    fn no_guest(&mut self, ask: &Ask) -> Failure {
        let names = self.ask(&Ask::Status).map(|parts| {
            let name = |part| if let Part::Guest(guest) = part { Some(guest.name.to_string()) } else { None };
            parts.into_iter().filter_map(name).collect::<Vec<_>>().join(", ")
        });
        let sentence = format!("there is no guest {}", subject_of(ask));
        match names {
            Ok(names) => Failure::usage(sentence, format!("there are: {names}")),
            Err(_) => Failure::says(sentence),
        }
    }
}

/// Whom a question is about.
fn subject_of(ask: &Ask) -> &str {
    match ask {
        Ask::Pause(name) | Ask::Resume(name) | Ask::Reboot(name) | Ask::Views(name) | Ask::Kill(name) | Ask::Swap(name) => name,
        Ask::Upload(offer) => &offer.monitor,
        Ask::Watch(watch) => &watch.guest,
        Ask::Status | Ask::Load(_) | Ask::Events(_) | Ask::Piece(_) => "",
    }
}

/// A guest's name as a question carries it.
pub fn name(text: &str) -> Result<Name, Failure> {
    Name::try_from(text).map_err(|_| Failure::usage(format!("there is no guest {text}"), "names have at most 31 letters"))
}

fn hung_up() -> Failure {
    Failure::hinted("the system ended, or no longer talks to us", "what it said last stands where `./trellis run` writes")
}

fn foreign(version: u16) -> Failure {
    Failure::hinted(
        format!("the system speaks version {version} of the control channel, and this tool version {VERSION}"),
        "use the tool that made its image",
    )
}

/// A refusal as a sentence.
pub fn refused(why: Refused, ask: &Ask) -> Failure {
    let guest = subject_of(ask);
    match why {
        Refused::Off => Failure::hinted(
            "the system answers nobody: its manifest says control = \"off\"",
            "write control = \"observe\" or control = \"full\" into it",
        ),
        Refused::ObserveOnly => Failure::hinted(
            "the system only shows itself and takes no orders: its manifest says control = \"observe\"",
            "write control = \"full\" into it",
        ),
        Refused::Version => foreign(0),
        Refused::NotUnderstood => {
            Failure::hinted("the system does not know this question", "use the tool that made its image")
        }
        Refused::NoGuest => Failure::says(format!("there is no guest {guest}")),
        Refused::Ended => Failure::says(format!("guest {guest} has ended")),
        Refused::Kernel(number) => {
            Failure::says(format!("the kernel refused it: {}", replaced::refusal(number)))
        }
        Refused::Server => Failure::hinted(
            format!("guest {guest} could not be started again, and has ended"),
            "why stands in the log of root, where `./trellis run` writes",
        ),
        Refused::NoMonitor => Failure::says(format!("there is no monitor {guest}")),
        Refused::NothingWatched => Failure::says(format!("every guest that monitor {guest} watches has ended")),
        Refused::GivenUp => Failure::says(format!("{guest} was lost too often, and is not made again")),
        Refused::Lost => Failure::hinted(
            format!("monitor {guest} could not be made again; what becomes of its guests stands in the manifest"),
            "why stands in the log of root, where `./trellis run` writes",
        ),
        Refused::StillPaused => Failure::hinted(
            format!("your pause of guest {guest} is over, but a monitor pauses it too"),
            "it goes on when that one resumes it, or is no more (`./trellis ctl kill MONITOR`)",
        ),
        Refused::Unwatched => Failure::hinted(
            format!("nobody watches guest {guest}"), "a guest is watched whose manifest says so: [guest.NAME.monitor]",
        ),
        Refused::NotItsMonitor => Failure::says(format!("that monitor does not watch guest {guest}")),
        Refused::WhichMonitor => Failure::hinted(format!("several monitors watch guest {guest}"), "name one with --monitor"),
        Refused::NoRules => Failure::hinted(
            format!("the monitor of guest {guest} has no rules that can be listed or changed"), "monitor-standard has, and so may one of your own",
        ),
        Refused::Senseless => Failure::hinted(
            "no monitor can do that",
            "execution and debug exceptions cannot be denied, starts and stops of vCPUs can only be reported, and only registers have --ignore and --only-changes",
        ),
        Refused::Elsewhere => Failure::hinted(format!("these pages are not the memory of guest {guest}"), "it sees its memory from 0x40000000 on"),
        Refused::Overlaps => Failure::hinted(
            format!("another rule, or another monitor of guest {guest}, has that already"),
            "each access and each event of a guest is one rule's: `./trellis ctl watch` lists them",
        ),
        Refused::RulesFull => Failure::hinted(
            "the monitor has as many rules as it can",
            format!("at most {MAX_ADDED} are added, and at most {MAX_RULES} are about memory: remove one"),
        ),
        Refused::NoRule => Failure::hinted(format!("no such rule was added for guest {guest}"), "`./trellis ctl watch` lists them"),
        Refused::Manifests => Failure::hinted("this rule is the manifest's, and stays", "those that were added can be removed: from 101 on"),
        why => not_swapped(why, guest),
    }
}

/// Why another program was not put into a monitor's place: everything is as it was.
fn not_swapped(why: Refused, monitor: &str) -> Failure {
    let (sentence, hint) = match why {
        Refused::NoSwap => (
            format!("nothing is kept for another program in {monitor}'s place"),
            "give [server.NAME] of the manifest swap = { memory = \"512K\" }",
        ),
        Refused::TooLarge(most) => (
            format!("the file is too long: {} are kept for it", bytes(most.into())),
            "strip what is not loaded (`llvm-strip`), or keep more in the manifest: swap = { memory = … }",
        ),
        Refused::CutOff(came) => (
            format!("the upload is not whole: {} came", bytes(came.into())),
            "somebody else may upload at the same time; try again",
        ),
        Refused::Digest => ("what came is not what was sent".into(), "try again"),
        Refused::Signature => (
            "it is not signed by whom the manifest names".into(),
            "`./trellis sign PROGRAM --key KEY --counter N` signs it",
        ),
        Refused::Older(lowest) => (
            format!("it is older than what was there before: its number must be {lowest} or higher"),
            "sign a newer one, with a higher --counter",
        ),
        Refused::Unfit(why) => (format!("it is no program for a server: {}", unfit(why)), "link it as docs/watch.md says"),
        Refused::Fails(step) => {
            let step = match step {
                Step::Make => "be made",
                Step::Begin => "begin, or crashed before it was asked anything",
                Step::TakeOver => "take over what the old one knows",
                Step::Watch => "watch the guests",
            };
            (format!("it could not {step}; {monitor} goes on as before"), "what it wrote stands in its log, where `./trellis run` writes")
        }
        Refused::Interface => ("it has another interface than this system".into(), "build it from the sources of this system's image"),
        Refused::State(why) => (
            format!("it does not take over what the old one knows: {}", replaced::refusal(why)),
            "with --fresh it begins without that",
        ),
        other => (format!("refused: {other:?}"), "use the tool that made its image"),
    };
    Failure::hinted(sentence, hint)
}

fn unfit(why: Unfit) -> &'static str {
    match why {
        Unfit::Format => "it is no ELF file, or its headers do not stand at its beginning",
        Unfit::Machine => "it is for another machine",
        Unfit::Segments => "it has nothing that is loaded, or too many segments",
        Unfit::Outside => "a segment lies outside of the file, or of where programs go",
        Unfit::SharedPage => "two of its segments share a page",
        Unfit::WritableCode => "it has writable code",
        Unfit::Entry => "it does not begin in its code",
        Unfit::Memory => "it takes more memory than is kept for it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;
    use std::os::unix::net::UnixListener;

    /// A system that answers one connection with these bytes, each for a question.
    fn system(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, Asking) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody connects");
            for answer in answers {
                let _ = stream.read(&mut [0; 512]);
                let _ = stream.write_all(&answer);
            }
        });
        let asking = Asking::connect(&path).expect("it listens");
        (folder, asking)
    }

    fn part(version: u16, number: u32, part: Part) -> Vec<u8> {
        let payload = postcard::to_stdvec(&Answer { head: Head { version, number }, part }).expect("it encodes");
        Frame { kind: FrameKind::Control, channel: 0, payload }.encode()
    }

    fn failure(answers: Vec<Vec<u8>>) -> Failure {
        let (_folder, mut asking) = system(answers);
        asking.ask(&Ask::Pause(name("web").expect("a short name"))).expect_err("it is refused")
    }

    #[test]
    fn every_refusal_is_a_sentence_of_its_own() {
        let refusals = [
            Refused::Off, Refused::ObserveOnly, Refused::Version, Refused::NotUnderstood, Refused::NoGuest, Refused::Ended,
            Refused::Kernel(3), Refused::Kernel(200), Refused::Server, Refused::NoMonitor, Refused::NothingWatched,
            Refused::GivenUp, Refused::Lost, Refused::NoSwap, Refused::TooLarge(1), Refused::CutOff(1), Refused::Digest,
            Refused::Signature, Refused::Older(3), Refused::Unfit(Unfit::Format), Refused::Unfit(Unfit::Memory),
            Refused::Fails(Step::Begin), Refused::Fails(Step::Watch), Refused::Interface, Refused::State(2), Refused::StillPaused,
            Refused::Unwatched, Refused::NotItsMonitor, Refused::WhichMonitor, Refused::NoRules, Refused::Senseless, Refused::Elsewhere,
            Refused::Overlaps, Refused::RulesFull, Refused::NoRule, Refused::Manifests,
        ];
        let ask = Ask::Reboot(name("web").expect("a short name"));
        let mut sentences: Vec<String> = refusals.iter().map(|why| refused(*why, &ask).text(false)).collect();
        sentences.sort();
        sentences.dedup();
        assert_eq!(sentences.len(), refusals.len(), "{sentences:#?}");
    }

    #[test]
    fn answers_to_others_and_noise_are_passed_over() {
        let answer = [b"noise\0".to_vec(), part(VERSION, 9, Part::Done), part(VERSION, 1, Part::Done)].concat();
        let (_folder, mut asking) = system(vec![answer]);
        assert_eq!(asking.ask(&Ask::Status).expect("it is done"), []);
    }

    #[test]
    fn a_wrong_name_is_told_with_those_that_are_right() {
        use trellis_idl::control::{GuestState, Life};
        let guest = GuestState {
            guest: 0, name: name("db").expect("short"), life: Life::Runs, reboots: 0, memory_bytes: 0, views: [1; 2],
            tables: [0; 2], stopped: 0, vcpus: Default::default(),
        };
        let list = [part(VERSION, 2, Part::Guest(guest)), part(VERSION, 2, Part::Done)].concat();
        let failure = failure(vec![part(VERSION, 1, Part::Refused(Refused::NoGuest)), list]);
        let text = failure.text(false);
        assert!(failure.status == Status::Wrong && text.contains("no guest web") && text.contains("there are: db"), "{text}");
    }

    #[test]
    fn another_version_and_a_system_that_ends_are_told() {
        let foreign = failure(vec![part(VERSION + 1, 1, Part::Refused(Refused::Version))]).text(false);
        assert!(foreign.contains("version 2") && foreign.contains("version 1"), "{foreign}");
        assert!(failure(vec![vec![1, 2, 3]]).text(false).contains("ended"));
        let nobody = Asking::connect(Path::new("/nowhere/s")).expect_err("nobody is there").text(false);
        assert!(nobody.contains("no system listens at /nowhere/s"), "{nobody}");
    }
}
