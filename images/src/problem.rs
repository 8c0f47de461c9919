// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is wrong with a manifest: a code, a sentence, the places it is about, and a hint.
//!
//! The readers and checks of this crate collect [`Problem`]s; a [`Report`] hands them to the host tool, which shows
//! them with [`Report::render`] or passes them to `miette` itself.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Every kind of problem; scripts may rely on the text of [`Code::as_str`].
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The code as it is printed.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// The manifest cannot be read.
    Unreadable = "trellis::manifest::unreadable",
    /// The manifest is too long to be one.
    TooLong = "trellis::manifest::too_long",
    /// The manifest is not UTF-8.
    NotText = "trellis::manifest::not_text",
    /// It is not TOML.
    Syntax = "trellis::manifest::syntax",
    /// A key or table stands there twice.
    DuplicateKey = "trellis::manifest::duplicate_key",
    /// No such key here.
    UnknownKey = "trellis::manifest::unknown_key",
    /// A part of the manifest language that this version does not have.
    NotThereYet = "trellis::manifest::not_there_yet",
    /// A key that must be there is not.
    MissingKey = "trellis::manifest::missing_key",
    /// A value of another type is wanted.
    WrongType = "trellis::manifest::wrong_type",
    /// None of the words that may stand here.
    BadChoice = "trellis::manifest::bad_choice",
    /// Not a size.
    BadSize = "trellis::manifest::bad_size",
    /// Not a time.
    BadTime = "trellis::manifest::bad_time",
    /// A number outside its range.
    OutOfRange = "trellis::manifest::out_of_range",
    /// A name with characters that names may not have.
    BadName = "trellis::manifest::bad_name",
    /// A name that belongs to the system.
    ReservedName = "trellis::manifest::reserved_name",
    /// Two names that cannot be told apart.
    DuplicateName = "trellis::manifest::duplicate_name",
    /// No guest at all.
    NoGuests = "trellis::manifest::no_guests",
    /// Every guest has `essential = false`.
    NoEssentialGuest = "trellis::manifest::no_essential_guest",
    /// More guests than an image holds.
    TooManyGuests = "trellis::manifest::too_many_guests",
    /// No such board.
    UnknownBoard = "trellis::board::unknown",
    /// A board file that cannot be read as one.
    BadBoard = "trellis::board::malformed",
    /// A board file that contradicts itself.
    BoardContradiction = "trellis::board::contradiction",
    /// The guests do not fit into the board's memory.
    MemoryDoesNotFit = "trellis::board::memory",
    /// The board has no such CPU.
    NoSuchCpu = "trellis::board::no_such_cpu",
    /// The board's CPUs tell fewer address spaces apart.
    TooManyVmids = "trellis::board::vmids",
    /// The board cannot show a guest this interrupt controller.
    GicNotOnBoard = "trellis::board::gic",
    /// The board's CPUs have no scalable vectors.
    SveNotOnBoard = "trellis::board::sve",
    /// The budgets on a CPU come to more than the CPU.
    CpuOverbooked = "trellis::board::cpu_overbooked",
    /// The board has no such device.
    UnknownDevice = "trellis::device::unknown",
    /// A device that two ask for.
    DeviceTaken = "trellis::device::taken",
    /// A device that is not alone on its pages.
    DevicePageShared = "trellis::device::page_shared",
    /// A device that could write to memory of others.
    DeviceDma = "trellis::device::dma",
    /// An interrupt that cannot be handed on.
    DeviceLine = "trellis::device::line",
    /// More devices, or larger ones, than there is room for.
    TooManyDevices = "trellis::device::too_many",
    /// No such server.
    UnknownServer = "trellis::server::unknown",
    /// A server that has nothing to do.
    IdleServer = "trellis::server::idle",
    /// More servers than an image holds.
    TooManyServers = "trellis::server::too_many",
    /// A server's program that cannot be one.
    BadProgram = "trellis::server::program",
    /// A signer of programs that cannot be one, or a counter without one.
    SwapKey = "trellis::swap::key",
    /// Not a range of pages that could be watched.
    WatchPages = "trellis::watch::pages",
    /// A rule for a guest that is not there.
    WatchUnknownGuest = "trellis::watch::unknown_guest",
    /// A rule for a guest that another monitor watches, or none.
    WatchNotItsMonitor = "trellis::watch::not_its_monitor",
    /// Watched pages that are no memory of the guest's.
    WatchOutsideMemory = "trellis::watch::outside_memory",
    /// Two rules that contradict each other.
    WatchContradiction = "trellis::watch::contradiction",
    /// A guest that could leave the view in which it is watched.
    WatchEvaded = "trellis::watch::evaded",
    /// More rules than a monitor holds.
    TooManyRules = "trellis::watch::too_many_rules",
    /// More guests than a monitor can watch, or more monitors than a guest can have.
    TooManyWatched = "trellis::watch::too_many",
    /// More vCPUs than a guest may have.
    TooManyVcpus = "trellis::guest::too_many_vcpus",
    /// No vCPU.
    NoVcpus = "trellis::guest::no_vcpus",
    /// Memory that is not whole blocks.
    MemoryAlignment = "trellis::guest::memory_alignment",
    /// Too little memory for what is to be loaded.
    MemoryTooSmall = "trellis::guest::memory_too_small",
    /// A budget of more time than its period has.
    BudgetOverPeriod = "trellis::guest::budget_over_period",
    /// No length that scalable vectors can have.
    SveLength = "trellis::guest::sve_length",
    /// A key that means nothing for this kind of guest.
    KeyDoesNotApply = "trellis::guest::key_does_not_apply",
    /// The kind said is not the kind of this kernel.
    KindConflict = "trellis::guest::kind_conflict",
    /// A command line that cannot be handed over.
    BadCommandLine = "trellis::guest::command_line",
    /// A file that is not there or cannot be read.
    FileMissing = "trellis::guest::file_missing",
    /// A file without content.
    EmptyFile = "trellis::guest::empty_file",
    /// No such download.
    UnknownDownload = "trellis::guest::unknown_download",
    /// A download, or a guest of ours, that could not be had.
    NotAvailable = "trellis::guest::not_available",
    /// Not an arm64 Image.
    NotAnImage = "trellis::guest::not_an_image",
    /// An arm64 Image that cannot run here.
    ImageUnsupported = "trellis::guest::image_unsupported",
    /// A raw kernel that is something else.
    NotRaw = "trellis::guest::not_raw",
    /// Not an ELF file, or a broken one.
    NotAnElf = "trellis::guest::not_an_elf",
    /// An ELF file for another machine.
    ElfWrongMachine = "trellis::guest::elf_wrong_machine",
    /// An ELF file with nothing to load, or with too many pieces.
    ElfSegments = "trellis::guest::elf_segments",
    /// An ELF file that starts outside of what it loads.
    ElfEntry = "trellis::guest::elf_entry",
    /// Something is loaded outside of the guest's memory.
    OutsideMemory = "trellis::guest::outside_memory",
    /// Two things are loaded to the same place.
    Overlap = "trellis::guest::overlap",
    /// Too many things to load.
    TooManyLoads = "trellis::guest::too_many_loads",
}

/// The text that problems point into.
pub type Text = Arc<NamedSource<String>>;

/// One thing that is wrong.
#[derive(Clone)]
pub struct Problem {
    code: Code,
    message: String,
    labels: Vec<LabeledSpan>,
    help: Option<String>,
    text: Option<Text>,
}

impl Problem {
    /// A problem that is about no place in particular.
    pub fn new(code: Code, message: impl Into<String>) -> Problem {
        Problem { code, message: message.into(), labels: Vec::new(), help: None, text: None }
    }

    /// Points at a place; the first one is the one whose line and column are printed.
    pub fn at(mut self, span: Range<usize>, label: impl Into<String>) -> Problem {
        let length = span.end.saturating_sub(span.start);
        let label = Some(label.into());
        self.labels.push(match self.labels.is_empty() {
            true => LabeledSpan::new_primary_with_span(label, (span.start, length)),
            false => LabeledSpan::new(label, span.start, length),
        });
        self
    }

    /// Says what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.help = Some(hint.into());
        self
    }

    /// Says which text the places are in; the first one said stays.
    pub fn within(mut self, text: &Text) -> Problem {
        self.text.get_or_insert_with(|| text.clone());
        self
    }

    /// What kind of problem this is.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn first_place(&self) -> usize {
        self.labels.first().map_or(0, LabeledSpan::offset)
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code.as_str()))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        match self.labels.is_empty() {
            true => None,
            false => Some(Box::new(self.labels.iter().cloned())),
        }
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.text.as_deref().map(|text| text as &dyn SourceCode)
    }
}

/// All that is wrong, in the order of the text.
#[derive(Clone)]
pub struct Report {
    problems: Vec<Problem>,
}

impl Report {
    /// Of these problems; the order of the text is made here.
    pub fn new(mut problems: Vec<Problem>) -> Report {
        problems.sort_by_key(Problem::first_place);
        Report { problems }
    }

    /// The problems, first one first.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// As text, each with its code, place, source line and hint; with colours for a terminal or without.
    pub fn render(&self, colours: bool) -> String {
        let theme = if colours { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(110).with_links(false);
        let mut text = String::new();
        for problem in &self.problems {
            // Writing into a String cannot fail; what the handler itself cannot show is shown plainly.
            if handler.render_report(&mut text, problem).is_err() {
                text.push_str(&format!("{}: {}\n", problem.code.as_str(), problem.message));
            }
            text.push('\n');
        }
        text
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problems[..] {
            [] => f.write_str("nothing is wrong"),
            [one] => write!(f, "{one}"),
            [first, rest @ ..] => write!(f, "{first} (and {} more)", rest.len()),
        }
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.problems.iter().map(|problem| problem as &dyn Diagnostic)))
    }
}

/// The word most like `wrong`, if one is like it at all.
pub(crate) fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|word| (strsim::jaro_winkler(&wrong.to_lowercase(), word), word))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_speak_their_area() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(texts.iter().all(|text| text.starts_with("trellis::")));
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }

    #[test]
    fn a_slip_of_the_finger_finds_its_word() {
        assert_eq!(nearest("memroy", ["memory", "kernel"]), Some("memory"));
        assert_eq!(nearest("zzz", ["memory", "kernel"]), None);
    }
}
