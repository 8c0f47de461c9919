// SPDX-License-Identifier: MIT OR Apache-2.0
//! What CPUs and guests do, as a screen that is drawn again and again, or once as text or JSON.

use crate::asking::Asking;
use crate::columns::{self, bytes};
use crate::ctl::pretty;
use crate::session::Outputs;
use crate::standing::Standing;
use crate::status::{Doing, Failure, Status};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Row, Table};
use serde_json::{Value, json};
use std::io::{IsTerminal, stdout};
use std::time::Duration;
use trellis_idl::control::{Ask, Load, Part};

/// Between two looks; also how far back each goes.
const EVERY: Duration = Duration::from_secs(1);

/// One look at a system.
#[derive(Clone, Debug)]
pub struct Top {
    standing: Standing,
    loads: Vec<Load>,
}

impl Top {
    /// Shows it: until the user has enough on a terminal, else once.
    pub fn show(asking: &mut Asking, once: bool, json: bool, outputs: &mut Outputs) -> Result<Status, Failure> {
        if once || json || !stdout().is_terminal() {
            let top = Top::look(asking)?;
            let text = if json { pretty(&top.json()) } else { top.text() };
            write!(outputs.out, "{text}").and_then(|()| outputs.out.flush()).doing(|| "write the output".into())?;
            return Ok(Status::Well);
        }
        // What is wrong is said before the screen is taken.
        let first = Top::look(asking)?;
        let mut terminal = ratatui::try_init().doing(|| "use the terminal as a screen".into())?;
        let outcome = follow(asking, first, &mut terminal);
        ratatui::restore();
        outcome.map(|()| Status::Well)
    }

    fn look(asking: &mut Asking) -> Result<Top, Failure> {
        let standing = Standing::of(&asking.ask(&Ask::Status)?);
        let parts = asking.ask(&Ask::Load(EVERY.as_millis() as u16))?;
        Ok(Top::of(standing, &parts))
    }

    /// Out of answers.
    pub fn of(standing: Standing, parts: &[Part]) -> Top {
        let loads = parts.iter().filter_map(|part| if let Part::Load(load) = part { Some(load.clone()) } else { None });
        Top { standing, loads: loads.collect() }
    }

    /// Of a guest on all CPUs: the share of one CPU that it had, and its exits a second.
    fn guest(&self, guest: u8) -> (f64, f64) {
        let mut sums = (0.0, 0.0);
        for load in self.loads.iter().filter(|load| load.ticks > 0) {
            for own in load.guests.iter().filter(|own| own.guest == guest) {
                sums.0 += own.ticks as f64 / load.ticks as f64;
                sums.1 += f64::from(own.exits) * self.standing.hertz() as f64 / load.ticks as f64;
            }
        }
        sums
    }

    fn interrupts(&self, load: &Load) -> f64 {
        f64::from(load.interrupts) * self.standing.hertz() as f64 / load.ticks.max(1) as f64
    }

    fn guest_rows(&self) -> Vec<Vec<String>> {
        let row = |guest: &trellis_idl::control::GuestState| {
            let (share, exits) = self.guest(guest.guest);
            vec![
                guest.name.to_string(), self.standing.life(guest.life), format!("{:.0} %", share * 100.0), format!("{exits:.0}"),
                guest.vcpus.iter().map(|vcpu| vcpu.cpu.to_string()).collect::<Vec<_>>().join(" "), bytes(guest.memory_bytes),
            ]
        };
        self.standing.guests().iter().map(row).collect()
    }

    /// As text.
    pub fn text(&self) -> String {
        let (name, up) = self.standing.title();
        let mut text = format!("system {name}, up {up:.1} s\n\n");
        let head = ["CPU", "BUSY", "INTERRUPTS/S", "OF THE LAST"].map(String::from).to_vec();
        let row = |load: &Load| {
            let window = load.ticks as f64 * 1000.0 / self.standing.hertz() as f64;
            vec![
                load.cpu.to_string(), format!("{:.0} %", busy(load) * 100.0), format!("{:.0}", self.interrupts(load)),
                format!("{window:.1} ms"),
            ]
        };
        let rows: Vec<_> = std::iter::once(head).chain(self.loads.iter().map(row)).collect();
        text += &columns::lines("", &rows);
        let head = HEAD.map(String::from).to_vec();
        let rows: Vec<_> = std::iter::once(head).chain(self.guest_rows()).collect();
        text + "\n" + &columns::lines("", &rows)
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let (name, up) = self.standing.title();
        let cpus: Vec<Value> = self.loads.iter().map(|load| json!({
            "cpu": load.cpu, "busy": busy(load), "interrupts_per_second": self.interrupts(load),
            "window_seconds": load.ticks as f64 / self.standing.hertz() as f64,
        })).collect();
        let guests: Vec<Value> = self.standing.guests().iter().map(|guest| {
            let (share, exits) = self.guest(guest.guest);
            json!({ "name": guest.name.as_str(), "state": self.standing.life(guest.life), "busy": share, "exits_per_second": exits })
        }).collect();
        json!({ "system": name, "up_seconds": up, "cpus": cpus, "guests": guests })
    }

    /// As a screen.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let (name, up) = self.standing.title();
        let [title, cpus, guests, foot] = Layout::vertical([
            Constraint::Length(1), Constraint::Length(self.loads.len() as u16 + 2), Constraint::Min(3), Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Line::from(format!("system {name}, up {up:.0} s")).style(Style::new().add_modifier(Modifier::BOLD)), title);
        let block = Block::bordered().title("CPUs");
        let inside = block.inner(cpus);
        frame.render_widget(block, cpus);
        let rows = Layout::vertical(self.loads.iter().map(|_| Constraint::Length(1))).split(inside);
        for (load, area) in self.loads.iter().zip(rows.iter()) {
            let label = format!("CPU {}  {:.0} %  {:.0} interrupts/s", load.cpu, busy(load) * 100.0, self.interrupts(load));
            frame.render_widget(Gauge::default().ratio(busy(load)).label(label), *area);
        }
        let widths = [16, 24, 8, 10, 16, 12].map(Constraint::Length);
        let table = Table::new(self.guest_rows().into_iter().map(Row::new), widths)
            .header(Row::new(HEAD).style(Style::new().add_modifier(Modifier::BOLD)))
            .block(Block::bordered().title("guests"));
        frame.render_widget(table, guests);
        frame.render_widget(Line::from("q ends"), foot);
    }
}

const HEAD: [&str; 6] = ["GUEST", "STATE", "BUSY", "EXITS/S", "CPUS", "MEMORY"];

/// The share of time that somebody ran on a CPU.
fn busy(load: &Load) -> f64 {
    if load.ticks == 0 { 0.0 } else { (1.0 - load.idle as f64 / load.ticks as f64).clamp(0.0, 1.0) }
}

fn follow(asking: &mut Asking, mut top: Top, terminal: &mut ratatui::DefaultTerminal) -> Result<(), Failure> {
    loop {
        terminal.draw(|frame| top.draw(frame)).doing(|| "draw the screen".into())?;
        if wants_end()? {
            return Ok(());
        }
        top = Top::look(asking)?;
    }
}

/// Waits until it is time for the next look, or the user has enough.
fn wants_end() -> Result<bool, Failure> {
    if !event::poll(EVERY).doing(|| "wait for keys".into())? {
        return Ok(false);
    }
    let Event::Key(key) = event::read().doing(|| "read keys".into())? else { return Ok(false) };
    let is_end = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
        || key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    Ok(is_end && key.kind == KeyEventKind::Press)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use trellis_idl::control::{Control, GuestLoad, GuestState, Life, Name, SystemState, VcpuState};

    fn top() -> Top {
        let name = |text| Name::try_from(text).expect("a short name");
        let system =
            SystemState { name: name("two"), control: Control::Full, up: 2500, clock_hz: 1000, cpus: 2, kernel_bytes: 1, free_bytes: 1 };
        let guest = |guest, text| GuestState {
            guest, name: name(text), life: Life::Runs, reboots: 0, memory_bytes: 16 << 20, views: [1; 2], tables: [1; 2], stopped: 0,
            vcpus: [VcpuState { cpu: guest, is_on: true, view: 0 }].into_iter().collect(),
        };
        let standing = Standing::of(&[Part::System(system), Part::Guest(guest(0, "web")), Part::Guest(guest(1, "db"))]);
        let load = |cpu, idle, guests: &[GuestLoad]| {
            Part::Load(Load { cpu, ticks: 500, idle, interrupts: 5, guests: guests.iter().copied().collect() })
        };
        let own = |guest, ticks, exits| GuestLoad { guest, ticks, exits };
        Top::of(standing, &[load(0, 125, &[own(0, 250, 40), own(1, 50, 1)]), load(1, 500, &[])])
    }

    #[test]
    fn shares_and_rates_are_of_the_window_that_was_looked_at() {
        let text = top().text();
        let expected = "system two, up 2.5 s\n\nCPU  BUSY  INTERRUPTS/S  OF THE LAST\n0    75 %  10            500.0 ms\n\
            1    0 %   10            500.0 ms\n\nGUEST  STATE  BUSY  EXITS/S  CPUS  MEMORY\n\
            web    runs   50 %  80       0     16 MiB\ndb     runs   10 %  2        1     16 MiB\n";
        assert_eq!(text, expected);
        let json = top().json();
        assert_eq!((json["cpus"][0]["busy"].as_f64(), json["guests"][0]["exits_per_second"].as_f64()), (Some(0.75), Some(80.0)));
    }

    #[test]
    fn the_screen_shows_the_same_and_fits_a_small_one() {
        for (width, height) in [(80, 24), (20, 5), (1, 1)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen of memory");
            terminal.draw(|frame| top().draw(frame)).expect("it draws");
            if width == 80 {
                let seen: String = terminal.backend().buffer().content().iter().map(|cell| cell.symbol()).collect();
                for text in ["system two", "CPU 0  75 %", "web", "80", "q ends"] {
                    assert!(seen.contains(text), "{text} in {seen}");
                }
            }
        }
    }
}
