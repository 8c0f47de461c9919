// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host that talks to a running system: looks, pauses, lets go on and restarts a guest, and goes away when it likes.

use std::io::Write;
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use trellis_boot_tests::running::System;
use trellis_boot_tests::story;
use trellis_cli::ctl::What;
use trellis_cli::frame::Frame;
use trellis_cli::run::Run;
use trellis_cli::status::{Failure, Status};
use trellis_idl::wire::FrameKind;

/// The example, with what the host may do; guest `one` has the terminal.
struct Talk(System);

impl Deref for Talk {
    type Target = System;

    fn deref(&self) -> &System {
        &self.0
    }
}

fn start(control: &str) -> Talk {
    let text = std::fs::read_to_string(story::manifest("control.toml")).expect("the manifest");
    let text = text.replace("control = \"full\"", &format!("control = \"{control}\""));
    Talk(System::start(&text, Run { console: Some("one".into()), ..Run::default() }))
}

impl Talk {
    /// Lines that guest `one` has said.
    fn one(&self) -> usize {
        self.out.text().matches("one: line").count()
    }

    /// Numbers of the lines that guest `two` has said, each of its lives apart.
    fn two(&self) -> Vec<Vec<u32>> {
        let text = self.log.text();
        // The last line may not be whole yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lives = whole.split("two| hello from two").skip(1);
        let lines = |life: &str| life.lines().filter_map(|line| line.strip_prefix("two| two: line ")?.parse().ok()).collect();
        let mut lives: Vec<Vec<u32>> = lives.map(lines).collect();
        // One that was started again may have been cut off in the middle of a number.
        if let Some((_, before)) = lives.split_last_mut() {
            for life in before {
                let is_cut = |(index, line): (usize, &u32)| *line as usize != index && index.to_string().starts_with(&line.to_string());
                if life.iter().enumerate().next_back().is_some_and(is_cut) {
                    life.pop();
                }
            }
        }
        lives
    }

    fn two_lines(&self) -> usize {
        self.two().iter().map(Vec::len).sum()
    }

    /// Guest `one` says so many lines more.
    fn one_goes_on(&self, lines: usize) {
        let goal = self.one() + lines;
        self.until("guest one went on", |_| self.one() >= goal);
    }

    fn two_goes_on(&self) {
        let goal = self.two_lines() + 3;
        self.until("guest two went on", |_| self.two_lines() >= goal);
    }

    fn state_of_two(&self) -> String {
        let text = self.ctl(What::Status, true).unwrap_or_else(|failure| panic!("{}", failure.text(false)));
        let after = text.split("\"name\": \"two\"").nth(1).expect("guest two is there");
        let state = after.split("\"state\": \"").nth(1).expect("it has a state");
        state.split('"').next().expect("a word").to_owned()
    }

    /// A key for guest `one`, which ends it and the system with it.
    fn end(mut self) -> (String, Result<Status, Failure>) {
        self.0.keys.write_all(b"x").expect("it listens");
        let outcome = self.0.run.join().expect("it does not panic");
        assert!(!self.0.socket.exists(), "the socket goes with the system");
        (self.0.log.text(), outcome)
    }
}

fn two() -> String {
    "two".to_owned()
}

/// What it says is gathered before it goes out; then it says no more, however long the other one talks.
fn is_silent(system: &Talk) {
    system.one_goes_on(5);
    let said = system.two_lines();
    system.one_goes_on(15);
    assert_eq!(system.two_lines(), said, "a paused guest says nothing\n{}", system.log.text());
}

#[test]
fn a_host_that_may_do_everything_pauses_resumes_and_restarts_a_guest() {
    let system = start("full");
    system.two_goes_on();
    let status = system.says(What::Status);
    assert!(status.contains("control = \"full\"") && status.contains("2 of 4"), "{status}");
    assert_eq!(system.says(What::Pause { guest: two() }), "guest two paused\n");
    is_silent(&system);
    assert_eq!(system.state_of_two(), "paused");
    // Somebody goes away in the middle of a frame, somebody asks without end and never reads: nobody else notices.
    UnixStream::connect(&system.socket).and_then(|mut client| client.write_all(&[7, 5, 0, 1])).expect("it listens");
    let flood = flood(&system.socket);
    system.one_goes_on(10);
    assert_eq!(system.state_of_two(), "paused");
    drop(flood);
    assert_eq!(system.says(What::Resume { guest: two() }), "guest two goes on\n");
    system.two_goes_on();
    let lines = system.two();
    assert!(lines.len() == 1 && lines[0].iter().zip(0..).all(|(line, index)| *line == index), "each line once: {lines:?}");
    assert_eq!(system.says(What::Reboot { guest: two() }), "guest two starts again\n");
    system.until("guest two started again", |_| system.two().len() == 2);
    system.two_goes_on();
    // One that is paused may be started again too, and is not paused any more.
    system.says(What::Pause { guest: two() });
    system.says(What::Reboot { guest: two() });
    system.until("guest two started once more", |_| system.two().len() == 3);
    system.two_goes_on();
    assert_eq!(system.state_of_two(), "runs");
    assert!(system.two().iter().all(|life| life.iter().zip(0..).all(|(line, index)| *line == index)), "{:?}", system.two());
    looks(&system);
    let (log, outcome) = system.end();
    assert_eq!(outcome.map_err(|failure| failure.text(false)), Ok(Status::Well), "{log}");
    assert!(log.contains("guest two starts again, restart 2"), "{log}");
}

/// Everything that only looks.
fn looks(system: &Talk) {
    let views = system.says(What::Views { guest: two() });
    assert!(views.contains("host") && views.contains("rx"), "{views}");
    let top = system.says(What::Top { once: true });
    assert!(top.contains("EXITS/S") && top.contains("two"), "{top}");
    let nobody = system.ctl(What::Views { guest: "nobody".into() }, false).expect_err("there is none").text(false);
    assert!(nobody.contains("there is no guest nobody") && nobody.contains("one, two"), "{nobody}");
}

/// A client that asks as fast as it can, and reads nothing.
fn flood(socket: &Path) -> UnixStream {
    let client = UnixStream::connect(socket).expect("it listens");
    let mut writing = client.try_clone().expect("a second handle");
    thread::spawn(move || {
        // Version 1, a number, a status: as the tool sends it.
        let frame = Frame { kind: FrameKind::Control, channel: 0, payload: vec![1, 1, 0] }.encode();
        while writing.write_all(&frame).is_ok() {}
    });
    client
}

#[test]
fn a_host_that_may_look_changes_nothing_and_is_told_why() {
    let system = start("observe");
    system.two_goes_on();
    for what in [What::Pause { guest: two() }, What::Reboot { guest: two() }] {
        let failure = system.ctl(what, false).expect_err("it is refused");
        assert!(failure.text(false).contains("its manifest says control = \"observe\""), "{}", failure.text(false));
    }
    system.two_goes_on();
    assert_eq!((system.state_of_two().as_str(), system.two().len()), ("runs", 1));
    looks(&system);
    let (log, outcome) = system.end();
    assert_eq!(outcome.map_err(|failure| failure.text(false)), Ok(Status::Well), "{log}");
}

#[test]
fn a_system_that_answers_nobody_has_no_socket() {
    let system = start("off");
    let outcome = system.0.run.join().expect("it does not panic");
    let failure = outcome.expect_err("nobody could ask anything");
    assert!(failure.status == Status::Wrong && failure.text(false).contains("control = \"off\""), "{}", failure.text(false));
    assert!(!system.0.socket.exists());
}
