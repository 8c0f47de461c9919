// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the tool ends: the exit statuses that scripts rely on.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use std::io::ErrorKind;
use std::process::ExitCode;
use thiserror::Error;

/// The exit status of `trellis`. The numbers are an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Every guest ended well.
    Well = 0,
    /// Anything that has no number of its own.
    Failed = 1,
    /// The manifest or the command line is wrong.
    Wrong = 2,
    /// A guest crashed or ended with an error.
    GuestFailed = 3,
    /// The time given by `--timeout` is over.
    TimedOut = 4,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> ExitCode {
        ExitCode::from(status as u8)
    }
}

/// Why a command could not do its work: what to show, and the status to end with.
#[derive(Debug)]
pub struct Failure {
    /// What the process ends with.
    pub status: Status,
    /// What the user reads.
    pub report: miette::Report,
}

impl Failure {
    /// The manifest or the command line is wrong.
    pub fn wrong(report: impl Into<miette::Report>) -> Failure {
        Failure { status: Status::Wrong, report: report.into() }
    }

    /// There is nobody left to tell.
    pub fn is_silent(&self) -> bool {
        self.report.downcast_ref::<ReaderGone>().is_some()
    }

    /// What the user reads, with colours for a terminal or without.
    pub fn text(&self, colours: bool) -> String {
        if let Some(report) = self.report.downcast_ref::<trellis_images::Report>() {
            return report.render(colours);
        }
        let theme = if colours { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let mut text = String::new();
        match GraphicalReportHandler::new_themed(theme).render_report(&mut text, self.report.as_ref()) {
            Ok(()) => text,
            Err(_) => self.report.to_string(),
        }
    }

    /// A sentence without a hint, status 1.
    pub fn says(sentence: impl Into<String>) -> Failure {
        Sentence { sentence: sentence.into(), hint: None }.into()
    }

    /// A sentence and what to do about it, status 1.
    pub fn hinted(sentence: impl Into<String>, hint: impl Into<String>) -> Failure {
        Sentence { sentence: sentence.into(), hint: Some(hint.into()) }.into()
    }

    /// A sentence about the command line, status 2.
    pub fn usage(sentence: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure::wrong(Sentence { sentence: sentence.into(), hint: Some(hint.into()) })
    }
}

impl<E: Diagnostic + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { status: Status::Failed, report: error.into() }
    }
}

/// Whoever read our output has seen enough (`| head`): there is nobody to tell.
#[derive(Debug, Error, Diagnostic)]
#[error("nobody reads the output any more")]
struct ReaderGone;

/// What helps against an error of the operating system.
fn way_out(kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::NotFound => "is the name right, and is there such a folder?",
        ErrorKind::PermissionDenied => "this user may not; choose another place, or change its permissions",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "there is no room left; make some, or choose another place (TMPDIR for images)",
        ErrorKind::ReadOnlyFilesystem => "nothing can be written there; choose another place",
        ErrorKind::IsADirectory => "name a file, not a folder",
        _ => return None,
    })
}

#[derive(Debug, Error, Diagnostic)]
#[error("{sentence}")]
struct Sentence {
    sentence: String,
    #[help]
    hint: Option<String>,
}

/// Says what was being done when an operating-system call failed.
pub trait Doing<T> {
    /// `doing` completes the sentence "could not …".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| {
            let sentence = format!("could not {}: {error}", doing());
            match error.kind() {
                ErrorKind::BrokenPipe => Failure { status: Status::Failed, report: ReaderGone.into() },
                kind => Sentence { sentence, hint: way_out(kind).map(str::to_owned) }.into(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_documented_ones() {
        let numbers = [Status::Well, Status::Failed, Status::Wrong, Status::GuestFailed, Status::TimedOut];
        assert_eq!(numbers.map(|status| status as u8), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_wrong_command_line_and_a_failing_tool_differ() {
        assert_eq!(Failure::usage("no such guest", "try web").status, Status::Wrong);
        let missing = std::fs::read("/no/such/file").doing(|| "read the manifest".into());
        let failure = missing.expect_err("the file is not there");
        assert_eq!(failure.status, Status::Failed);
        assert!(failure.report.to_string().starts_with("could not read the manifest: "));
    }

    #[test]
    fn an_error_of_the_system_has_a_way_out_and_a_reader_that_went_away_is_no_news() {
        let fail = |kind: ErrorKind| Err::<(), _>(std::io::Error::from(kind)).doing(|| "write x".into()).expect_err("it fails");
        for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::StorageFull, ErrorKind::IsADirectory] {
            let text = fail(kind).text(false);
            assert!(text.contains("could not write x") && text.contains("help: "), "{text}");
        }
        let gone = fail(ErrorKind::BrokenPipe);
        assert!(gone.is_silent() && gone.status == Status::Failed);
        assert!(!fail(ErrorKind::NotFound).is_silent());
    }
}
