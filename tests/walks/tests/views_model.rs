// SPDX-License-Identifier: MIT OR Apache-2.0
//! Views against a plain reference: a map a view. Random operations and accesses of three vCPUs on two CPUs, with the
//! hosted machine's TLBs in between.
//!
//! `TRELLIS_VIEWS` = how many sequences (1,000 unless told).

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use trellis_hosted::laws;
use trellis_idl::kernel::{ANY_VIEW, Access, GuestCall, Refusal};
use trellis_idl::plan::Populate;
use trellis_idl::wire::{P2mOp, ViewAccess};
use trellis_walks::views::{FIRST, PAGES, VIEWS, Watched, Went};

/// Steps of a sequence.
const LENGTH: usize = 50;

fn sequences() -> u32 {
    std::env::var("TRELLIS_VIEWS").ok().and_then(|count| count.parse().ok()).unwrap_or(1000)
}

#[derive(Clone, Debug)]
enum Step {
    Create(u64, u64, bool),
    Destroy(u64),
    Switch(u64, u64),
    SwitchAll(u64),
    Inside(u64, u64),
    Default(u64, u64),
    Access(u64, u64, u64, u64),
    List(u64, Vec<u64>, u64),
    Remap(u64, u64, u64, u64),
    Show(u64, bool),
    Notify(u64, u64, u64, bool),
    Reset(u64),
    Flush(u64),
    Withdraw(u64, u64),
    Populate(u64, u64),
    LogStart,
    LogStop,
    LogTake(u64),
    Touch(u64, u64, u64),
}

/// What a view is. The host map is view 0.
#[derive(Clone, Default)]
struct View {
    default: u64,
    shown: bool,
    access: BTreeMap<u64, u64>,
    notify: BTreeSet<u64>,
    shows: BTreeMap<u64, u64>,
}

const DEFAULT: u64 = ViewAccess::DEFAULT.0 as u64;
const RX2RW: u64 = ViewAccess::RX2RW.0 as u64;
const N2RWX: u64 = ViewAccess::N2RWX.0 as u64;

#[derive(Clone)]
struct Model {
    views: BTreeMap<u64, View>,
    of: BTreeMap<u64, u64>,
    withdrawn: BTreeSet<u64>,
    log: Option<BTreeSet<u64>>,
}

impl Model {
    fn new() -> Model {
        let host = View { default: 7, shown: true, ..View::default() };
        Model { views: [(0, host)].into(), of: [(0, 0), (1, 0), (2, 0), (3, 0)].into(), withdrawn: BTreeSet::new(), log: None }
    }

    fn access(&self, view: u64, page: u64) -> u64 {
        let found = &self.views[&view];
        match found.access.get(&page).copied().unwrap_or(DEFAULT) {
            DEFAULT if found.default == DEFAULT => self.access(0, page),
            DEFAULT => found.default,
            own => own,
        }
    }

    fn touch(&mut self, vcpu: u64, page: u64, access: u64) -> Went {
        let view = self.of[&vcpu];
        let frame = self.views[&view].shows.get(&page).copied().unwrap_or(page);
        let outside = !(FIRST..FIRST + PAGES).contains(&page);
        if outside || self.withdrawn.contains(&page) || self.withdrawn.contains(&frame) {
            return Went::Refused;
        }
        let now = match (self.access(view, page), access) {
            (RX2RW, 2) => 3,
            (RX2RW, _) => 5,
            (N2RWX, _) => 7,
            (bits, _) => bits,
        };
        if now & access == 0 {
            return Went::Refused;
        }
        match self.access(view, page) {
            RX2RW if access == 2 => drop(self.views.get_mut(&view).expect("there").access.insert(page, 3)),
            N2RWX => drop(self.views.get_mut(&view).expect("there").access.insert(page, 7)),
            _ => {}
        }
        if access == 2 && let Some(log) = &mut self.log {
            log.insert(frame);
        }
        Went::To(frame)
    }
}

/// Where pages are tried.
const PLACES: [u64; 6] = [0, 1, 2, 511, 512, 1023];

/// Few pages, around the edges of blocks and of memory.
fn page() -> impl Strategy<Value = u64> {
    prop::sample::select(PLACES.to_vec()).prop_map(|page| FIRST + page)
}

fn any_page() -> impl Strategy<Value = u64> {
    prop_oneof![20 => page(), 1 => prop::sample::select(vec![0, FIRST - 1, FIRST + PAGES, (1 << 27) - 1, 1 << 27, (1 << 48) - 1])]
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 1..4u64, 1 => prop::sample::select(vec![0, 511, 512, 513, 1023, 1024, 1025])]
}

fn view() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..5u64, 1 => prop::sample::select(vec![5, 6, 511, 512, 65_535])]
}

fn access() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..8u64, 1 => Just(RX2RW), 1 => Just(N2RWX), 2 => Just(DEFAULT)]
}

fn step() -> impl Strategy<Value = Step> {
    let vcpu = || 1..4u64;
    let index = prop_oneof![2 => view(), 1 => Just(ANY_VIEW)];
    prop_oneof![
        3 => (index, access(), any::<bool>()).prop_map(|(v, a, s)| Step::Create(v, a, s)),
        1 => view().prop_map(Step::Destroy),
        3 => (vcpu(), view()).prop_map(|(c, v)| Step::Switch(c, v)),
        1 => view().prop_map(Step::SwitchAll),
        2 => (vcpu(), view()).prop_map(|(c, v)| Step::Inside(c, v)),
        1 => (view(), access()).prop_map(|(v, a)| Step::Default(v, a)),
        4 => (view(), any_page(), pages(), access()).prop_map(|(v, p, n, a)| Step::Access(v, p, n, a)),
        1 => (view(), prop::collection::vec(any_page(), 0..7), access()).prop_map(|(v, p, a)| Step::List(v, p, a)),
        3 => (view(), any_page(), pages(), prop_oneof![3 => any_page(), 1 => Just(u64::MAX)])
            .prop_map(|(v, p, n, to)| Step::Remap(v, p, n, to)),
        1 => (view(), any::<bool>()).prop_map(|(v, s)| Step::Show(v, s)),
        1 => (view(), any_page(), pages(), any::<bool>()).prop_map(|(v, p, n, told)| Step::Notify(v, p, n, told)),
        1 => view().prop_map(Step::Reset),
        1 => view().prop_map(Step::Flush),
        2 => (any_page(), pages()).prop_map(|(p, n)| Step::Withdraw(p, n)),
        2 => (any_page(), pages()).prop_map(|(p, n)| Step::Populate(p, n)),
        1 => Just(Step::LogStart),
        1 => Just(Step::LogStop),
        1 => prop::sample::select(vec![0, 64, 512, 960, 1024, 1, u64::MAX]).prop_map(Step::LogTake),
        24 => (vcpu(), any_page(), prop::sample::select(vec![1, 2, 4])).prop_map(|(c, p, a)| Step::Touch(c, p, a)),
    ]
}

/// Refusals of a view's index alone.
fn check_view(model: &Model, view: u64, may_be_host: bool) -> Result<(), Refusal> {
    match view {
        0 if !may_be_host => Err(Refusal::BadArgument),
        view if view >= VIEWS => Err(Refusal::OutOfRange),
        view if !model.views.contains_key(&view) => Err(Refusal::NotMapped),
        _ => Ok(()),
    }
}

/// The same of a range: also the first page that fails.
fn check_range(first: u64, pages: u64) -> Result<(), (Refusal, u64)> {
    let inside = (FIRST..FIRST + PAGES).contains(&first);
    match first.checked_add(pages) {
        _ if !inside || pages == 0 => Err((Refusal::OutOfRange, first)),
        Some(end) if end <= FIRST + PAGES => Ok(()),
        _ => Err((Refusal::OutOfRange, FIRST + PAGES)),
    }
}

fn at(view: u64, page: u64) -> u64 {
    view << 48 | page
}

/// Takes a step in both. `Quota` is always possible when tables are few; then nothing has changed.
fn take(watched: &Watched, model: &mut Model, step: &Step, poor: bool) -> Result<(), TestCaseError> {
    let said = perform(watched, model, step);
    let before = model.clone();
    let expected = expect(model, step);
    let no_table = matches!((&said, step), (Err((Refusal::Quota, _)), _) | (Err(_), Step::Touch(..)));
    if poor && no_table {
        let after = std::mem::replace(model, before);
        if let Step::Touch(vcpu, page, _) = step {
            // It may have opened up before there was no table for it.
            let view = model.of[vcpu];
            let now = watched.call(P2mOp::ViewAccess, &[at(view, *page)]).map(|values| values[0]);
            if now == Ok(after.access(view, *page)) {
                *model = Model { log: model.log.clone(), ..after };
            }
        }
        return Ok(());
    }
    if poor && let (Step::LogTake(_), Ok(bits), Ok(written)) = (step, said, expected) {
        // An access for which there was no table may have been noted.
        prop_assert_eq!(written & !bits, 0);
        apply(model, step);
        return Ok(());
    }
    prop_assert_eq!(said.map_err(|(refusal, _)| refusal), expected.map_err(|(refusal, _)| refusal), "{:?}", step);
    if let (Err((_, page)), Err((Refusal::OutOfRange, first))) = (said, expected)
        && matches!(step, Step::Access(..))
        && check_view(model, step_view(step), true).is_ok()
    {
        prop_assert_eq!(page, first, "{:?}: the first page that failed", step);
    }
    if said.is_ok() {
        apply(model, step);
    }
    Ok(())
}

/// The view of a step on pages.
fn step_view(step: &Step) -> u64 {
    if let Step::Access(view, ..) = step { *view } else { 0 }
}

/// What p2m, or the kernel, says: a value that is compared.
fn perform(watched: &Watched, model: &Model, step: &Step) -> Result<u64, (Refusal, u64)> {
    let call = |op, given: &[u64]| watched.call(op, given).map(|values| values[0]);
    match step {
        Step::Create(view, access, shown) => call(P2mOp::ViewCreate, &[*view, *access, (*shown).into()]),
        Step::Destroy(view) => call(P2mOp::ViewDestroy, &[*view]),
        Step::Switch(vcpu, view) => call(P2mOp::ViewSwitch, &[*vcpu, *view]),
        Step::SwitchAll(view) => call(P2mOp::ViewSwitch, &[u64::MAX, *view]),
        Step::Inside(vcpu, view) => {
            let x0 = watched.guest_call(*vcpu, GuestCall::Switch, [*view, 0]);
            Refusal::from_register(x0).map_err(|why| (why, 0))
        }
        Step::Default(view, access) => call(P2mOp::ViewSetDefault, &[*view, *access]),
        Step::Access(view, page, pages, access) => call(P2mOp::ViewSetAccess, &[at(*view, *page), *pages, *access]),
        Step::List(view, pages, access) => {
            let mut given = vec![*view, *access, pages.len() as u64];
            given.extend(pages);
            call(P2mOp::ViewSetAccessList, &given)
        }
        Step::Remap(view, page, pages, to) => call(P2mOp::ViewRemap, &[at(*view, *page), *pages, *to]),
        Step::Show(view, shown) => call(P2mOp::ViewShow, &[*view, (*shown).into()]),
        Step::Notify(view, page, pages, told) => {
            call(P2mOp::ViewSetNotify, &[at(*view, *page), *pages, (*told).into()])
        }
        Step::Reset(view) => call(P2mOp::ViewReset, &[*view]),
        Step::Flush(view) => call(P2mOp::ViewFlush, &[*view]),
        Step::Withdraw(page, pages) => call(P2mOp::Withdraw, &[*page, *pages]),
        Step::Populate(page, pages) => call(P2mOp::Populate, &[*page, *pages]),
        Step::LogStart => call(P2mOp::LogStart, &[]),
        Step::LogStop => call(P2mOp::LogStop, &[]),
        Step::LogTake(granule) => call(P2mOp::LogTake, &[*granule]),
        Step::Touch(vcpu, page, access) => {
            let _ = model;
            match watched.touch(*vcpu, *page, Access(*access)) {
                Went::To(page) => Ok(page),
                Went::Told => Ok(u64::MAX),
                Went::Refused | Went::Event(_) | Went::Happens => Err((Refusal::MissingRight, *page)),
            }
        }
    }
}

/// What the reference says that it is.
fn expect(model: &mut Model, step: &Step) -> Result<u64, (Refusal, u64)> {
    let plain = |result: Result<(), Refusal>| result.map_err(|why| (why, 0));
    match step {
        Step::Create(ANY_VIEW, ..) => {
            let free = (1..VIEWS).find(|view| !model.views.contains_key(view));
            free.ok_or((Refusal::Quota, 0))
        }
        Step::Create(view, ..) if *view >= VIEWS => Err((Refusal::OutOfRange, 0)),
        Step::Create(view, ..) if model.views.contains_key(view) => Err((Refusal::Occupied, 0)),
        Step::Create(view, ..) => Ok(*view),
        Step::Destroy(view) => {
            plain(check_view(model, *view, false))?;
            if model.of.values().any(|of| of == view) { Err((Refusal::BadState, 0)) } else { Ok(0) }
        }
        Step::Switch(_, view) => plain(check_view(model, *view, true)).map(|()| 0),
        Step::SwitchAll(view) => {
            plain(check_view(model, *view, true))?;
            if model.views[view].shown { Ok(0) } else { Err((Refusal::NotMapped, 0)) }
        }
        Step::Inside(vcpu, view) => {
            plain(check_view(model, *view, true))?;
            let may = model.views[view].shown || model.of[vcpu] == *view;
            if may { Ok(0) } else { Err((Refusal::NotMapped, 0)) }
        }
        Step::Default(view, _) | Step::Show(view, _) | Step::Reset(view) | Step::Flush(view) => {
            plain(check_view(model, *view, false)).map(|()| 0)
        }
        Step::Access(view, page, pages, _) => {
            plain(check_view(model, *view, true))?;
            check_range(*page, *pages).map(|()| *pages)
        }
        Step::List(view, pages, _) => {
            plain(check_view(model, *view, true))?;
            pages.iter().try_for_each(|page| check_range(*page, 1)).map(|()| pages.len() as u64)
        }
        Step::Remap(view, page, pages, to) => {
            plain(check_view(model, *view, false))?;
            check_range(*page, *pages)?;
            if *to != u64::MAX {
                check_range(*to, *pages)?;
            }
            Ok(*pages)
        }
        Step::Notify(view, page, pages, _) => {
            plain(check_view(model, *view, false))?;
            check_range(*page, *pages).map(|()| *pages)
        }
        Step::Withdraw(page, pages) | Step::Populate(page, pages) => check_range(*page, *pages).map(|()| 0),
        Step::LogStart => Ok(1),
        Step::LogStop => Ok(0),
        Step::LogTake(granule) => {
            let Some(log) = &model.log else { return Err((Refusal::BadState, 0)) };
            if *granule >= PAGES {
                return Err((Refusal::OutOfRange, 0));
            }
            if !granule.is_multiple_of(64) {
                return Err((Refusal::BadArgument, 0));
            }
            let bits = (0..64).filter(|n| log.contains(&(FIRST + granule + n)));
            Ok(bits.fold(0, |word, n| word | 1 << n))
        }
        Step::Touch(vcpu, page, access) => match model.touch(*vcpu, *page, *access) {
            Went::To(page) => Ok(page),
            _ => Err((Refusal::MissingRight, *page)),
        },
    }
}

/// The reference changes. (A list that fails in its middle has changed what came before; such lists are not compared.)
fn apply(model: &mut Model, step: &Step) {
    let lowest = (1..VIEWS).find(|view| !model.views.contains_key(view)).unwrap_or(0);
    let mut edit = |view: &u64| model.views.get_mut(view).expect("it was there").clone();
    match step {
        Step::Create(view, access, shown) => {
            let view = if *view == ANY_VIEW { lowest } else { *view };
            model.views.insert(view, View { default: *access, shown: *shown, ..View::default() });
        }
        Step::Destroy(view) => drop(model.views.remove(view)),
        Step::Switch(vcpu, view) | Step::Inside(vcpu, view) => drop(model.of.insert(*vcpu, *view)),
        Step::SwitchAll(view) => model.of.values_mut().for_each(|of| *of = *view),
        Step::Default(view, access) => {
            let to = View { default: *access, ..edit(view) };
            model.views.insert(*view, to);
        }
        Step::Access(view, page, pages, access) => {
            let mut to = edit(view);
            (*page..page + pages).for_each(|page| { to.access.insert(page, *access); });
            model.views.insert(*view, to);
        }
        Step::List(view, pages, access) if !pages.is_empty() => {
            let mut to = edit(view);
            pages.iter().for_each(|page| { to.access.insert(*page, *access); });
            model.views.insert(*view, to);
        }
        Step::Remap(view, page, pages, to) => {
            let mut changed = edit(view);
            for n in 0..*pages {
                if *to == u64::MAX {
                    changed.shows.remove(&(page + n));
                } else {
                    changed.shows.insert(page + n, to + n);
                }
            }
            model.views.insert(*view, changed);
        }
        Step::Show(view, shown) => {
            let to = View { shown: *shown, ..edit(view) };
            model.views.insert(*view, to);
        }
        Step::Notify(view, page, pages, told) => {
            let mut to = edit(view);
            for page in *page..page + pages {
                if *told { to.notify.insert(page) } else { to.notify.remove(&page) };
            }
            model.views.insert(*view, to);
        }
        Step::Reset(view) => {
            let old = edit(view);
            model.views.insert(*view, View { default: old.default, shown: old.shown, ..View::default() });
        }
        Step::Withdraw(page, pages) => model.withdrawn.extend(*page..page + pages),
        Step::Populate(page, pages) => model.withdrawn.retain(|at| !(*page..page + pages).contains(at)),
        Step::LogStart => model.log = Some(BTreeSet::new()),
        Step::LogStop => model.log = None,
        Step::LogTake(granule) => {
            if let Some(log) = &mut model.log {
                log.retain(|page| !(FIRST + granule..FIRST + granule + 64).contains(page));
            }
        }
        // `Model::touch` changed what it changes.
        Step::Touch(..) | Step::List(..) | Step::Flush(_) => {}
    }
}

/// Every page's access and notice as p2m tells them are the reference's; the kernel knows where each vCPU is.
fn compare(watched: &Watched, model: &Model) -> Result<(), TestCaseError> {
    for view in model.views.keys() {
        for page in PLACES.map(|page| FIRST + page) {
            let found = watched.call(P2mOp::ViewAccess, &[at(*view, page)]).map(|values| values[0]);
            prop_assert_eq!(found, Ok(model.access(*view, page)), "view {} page {:#x}", view, page);
            let told = watched.call(P2mOp::ViewNotify, &[at(*view, page)]).map(|values| values[0]);
            prop_assert_eq!(told, Ok(model.views[view].notify.contains(&page).into()));
        }
    }
    for (vcpu, view) in &model.of {
        prop_assert_eq!(watched.view_of(*vcpu), *view);
    }
    Ok(())
}

/// Every sequence begins with views, and vCPUs in them.
fn begin() -> Vec<Step> {
    let create = |view, access| Step::Create(view, access, view != 3);
    vec![create(1, DEFAULT), create(2, 7), create(3, RX2RW), Step::Switch(1, 1), Step::Switch(2, 2), Step::Switch(3, 3)]
}

fn hold(populate: Populate, poor: bool, share: u32) {
    let config = Config { cases: sequences() / share, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&prop::collection::vec(step(), 1..LENGTH), |steps| {
        let watched = Watched::with_tables(populate, &[], if poor { 12 } else { 128 });
        let mut model = Model::new();
        for step in begin().iter().chain(&steps) {
            // A list that fails in its middle has changed what came before.
            let lists_fail = matches!(step, Step::List(_, pages, _)
                if poor || pages.iter().any(|page| check_range(*page, 1).is_err()));
            if lists_fail {
                continue;
            }
            let quiet = |broken: String| TestCaseError::fail(format!("{step:?}: {broken}"));
            take(&watched, &mut model, step, poor)?;
            laws::quick(&watched.kernel.hosted.borrow()).map_err(quiet)?;
        }
        compare(&watched, &model)?;
        laws::full(&watched.kernel.hosted.borrow()).map_err(TestCaseError::fail)
    });
    if let Err(broken) = result {
        panic!("{broken}");
    }
}

#[test]
fn views_are_what_a_map_a_view_says() {
    hold(Populate::Lazy, false, 2);
}

#[test]
fn views_over_memory_that_was_mapped_at_once_are_the_same() {
    hold(Populate::Eager, false, 4);
}

#[test]
fn views_with_few_tables_refuse_and_stay_as_they_are() {
    hold(Populate::Lazy, true, 4);
}
