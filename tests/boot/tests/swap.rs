// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host that ends a monitor while its guest runs, and puts another into its place.
//!
//! The guest `watched` looks from inside whether each access had just the effect that was ordered, and crashes otherwise.

use trellis_boot_tests::running::System;
use trellis_boot_tests::story;
use trellis_cli::ctl::What;
use trellis_cli::run::Run;
use trellis_cli::status::Status;

/// The example with a host that may do this, and a guest that goes so many rounds on these CPUs.
fn start(control: &str, rounds: u32, cpus: &str) -> System {
    let text = std::fs::read_to_string(story::manifest("monitor.toml")).expect("the manifest");
    let text = text.replace("control = \"full\"", &format!("control = \"{control}\""));
    let text = text.replace("rounds=50", &format!("rounds={rounds}")).replace("cpus = [0, 1]", &format!("cpus = {cpus}"));
    let system = System::start(&text, Run { icount: true, ..Run::default() });
    system.until("its guest ran", |system| system.log.text().contains("watchdog| web (vCPU 0) wrote") || system.log.text().contains("watchdog| web wrote"));
    system
}

fn kill(monitor: &str) -> What {
    What::Kill { monitor: monitor.into() }
}

/// Every access of the guest had the effect that was ordered.
fn ends_well(system: System, cpus: usize) -> String {
    let (out, log) = (system.out.clone(), system.log.clone());
    let outcome = system.run.join().expect("it does not panic");
    let seen = format!("{}\n{}", out.text(), log.text());
    assert_eq!(outcome.map_err(|failure| failure.text(false)), Ok(Status::Well), "{seen}");
    assert!(seen.contains(&format!("web| watched: every access as ordered on {cpus} of {cpus} CPUs")), "{seen}");
    log.text()
}

#[test]
fn a_host_ends_a_monitor_again_and_again_and_its_guest_does_not_notice() {
    let system = start("full", 2_000, "[0, 1]");
    let nobody = system.ctl(kill("nobody"), false).expect_err("there is none").text(false);
    assert!(nobody.contains("there is no monitor nobody") && nobody.contains("there are: watchdog"), "{nobody}");
    let said: Vec<String> = (0..6).map(|life| system.says(kill(if life % 2 == 0 { "watchdog" } else { "monitor" }))).collect();
    for said in &said {
        assert!(said.starts_with("watchdog was ended and made again; 1 guest is watched\n"), "{said}");
    }
    let log = ends_well(system, 2);
    assert_eq!(log.matches("root| watchdog is made again").count(), 6, "{log}");
    assert!(!log.contains("starts again") && !log.contains("faulted"), "{log}");
}

#[test]
fn a_host_that_may_only_look_ends_no_monitor() {
    let system = start("observe", 200, "[0, 1]");
    let refused = system.ctl(kill("watchdog"), false).expect_err("it is refused").text(false);
    assert!(refused.contains("control = \"observe\""), "{refused}");
    assert!(!ends_well(system, 2).contains("is made again"));
}
