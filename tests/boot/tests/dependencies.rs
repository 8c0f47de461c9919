// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dependencies point one way: `idl` ← `kernel/core` ← `kernel/{aarch64,hosted}`; `idl` ← `runtime` ← `servers/*`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use trellis_boot_tests::tree;

/// What a crate of the workspace may build on. Tests may use anything but another room's tests.
fn allowed(folder: &str) -> &'static [&'static str] {
    match folder {
        "idl" => &[],
        "kernel/core" => &["idl"],
        "kernel/aarch64" | "kernel/hosted" => &["idl", "kernel/core"],
        "runtime" | "images" => &["idl"],
        "cli" => &["idl", "images"],
        "guests/platform" => &[],
        // What measures the kernel stands in root's place, and in that of irqfwd.
        "tests/bench" => &["idl", "runtime", "servers/irqfwd"],
        // Wraps servers.
        "tests/faulty" => &["idl", "runtime", "servers/irqfwd", "servers/monitor", "servers/p2m", "servers/smmu", "servers/vcpu"],
        _ if folder.starts_with("servers/") => &["idl", "runtime"],
        _ if folder.starts_with("guests/") => &["guests/platform"],
        // Walks bring the kernel and the real servers together; boot tests only the tool.
        "tests/walks" => {
            &[
                "idl", "kernel/core", "kernel/hosted", "runtime", "servers/root", "servers/p2m", "servers/vcpu", "servers/console",
                "servers/monitor",
            ]
        }
        "tests/boot" => &["idl", "cli", "images"],
        // Targets meet everybody who decodes; what runs them knows nothing else.
        "tests/fuzz" => &[
            "idl", "kernel/core", "kernel/aarch64", "kernel/hosted", "runtime", "servers/root", "servers/vcpu",
            "servers/console", "images", "cli", "guests/platform",
        ],
        "fuzz" => &["tests/fuzz"],
        other => panic!("the crate {other} is new: say in this test what it may build on"),
    }
}

fn manifest(folder: &str) -> toml::Table {
    let path = tree::root().join(folder).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn name(manifest: &toml::Table) -> String {
    manifest["package"]["name"].as_str().expect("a package has a name").to_owned()
}

/// Names of what a crate is built with; what only its tests need is left out.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let mut tables: Vec<&toml::Table> = Vec::new();
    let places = manifest.get("target").and_then(|target| target.as_table()).into_iter();
    let places = places.flat_map(|target| target.values().filter_map(|place| place.as_table()));
    for place in places.chain([manifest]) {
        for kind in ["dependencies", "build-dependencies"] {
            tables.extend(place.get(kind).and_then(|table| table.as_table()));
        }
    }
    let names = tables.into_iter().flat_map(|table| table.iter());
    names.map(|(key, value)| value.get("package").and_then(|name| name.as_str()).unwrap_or(key).to_owned()).collect()
}

#[test]
fn every_arrow_between_crates_is_an_allowed_one() {
    let folders = tree::crates();
    assert!(folders.iter().any(|folder| folder == "kernel/core"), "crates found: {folders:?}");
    let by_name: BTreeMap<String, &String> = folders.iter().map(|folder| (name(&manifest(folder)), folder)).collect();
    let mut wrong = Vec::new();
    for folder in &folders {
        for dependency in dependencies(&manifest(folder)) {
            if let Some(target) = by_name.get(&dependency)
                && !allowed(folder).contains(&target.as_str())
            {
                wrong.push(format!("{folder} must not build on {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_crate_is_in_the_workspace_and_the_other_way_round() {
    let workspace = manifest(".");
    let list = |name: &str| -> BTreeSet<String> {
        let values = workspace["workspace"][name].as_array().expect("it is a list");
        values.iter().filter_map(|member| member.as_str().map(str::to_string)).collect()
    };
    // What stands apart (fuzz targets need a toolchain of their own) is named as excluded.
    let (members, apart) = (list("members"), list("exclude"));
    assert_eq!(tree::crates().into_iter().collect::<BTreeSet<_>>(), members.union(&apart).cloned().collect());
    assert!(members.iter().all(|member| Path::new(&tree::root()).join(member).join("src").is_dir()));
}

/// The fuzzer's programs are a workspace of their own, with a lock file that nothing but the nightly ring reads.
#[test]
fn the_lock_file_of_the_fuzzers_programs_fits_the_workspace() {
    let path = tree::root().join("fuzz/Cargo.lock");
    let lock: toml::Table = std::fs::read_to_string(&path).expect("a lock file").parse().expect("a lock file is TOML");
    let packages = lock["package"].as_array().expect("a lock file lists packages");
    let text = |package: &toml::Value, key| package.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let known: BTreeSet<String> = packages.iter().filter_map(|package| text(package, "name")).collect();
    let ours = tree::crates().into_iter().map(|folder| manifest(&folder)).map(|manifest| (name(&manifest), manifest));
    let ours: BTreeMap<String, toml::Table> = ours.collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for package in packages.iter().filter(|package| package.get("source").is_none()) {
        let name = text(package, "name").expect("a package has a name");
        let wanted = ours.get(&name).map(dependencies).unwrap_or_default();
        let listed = package.get("dependencies").and_then(|list| list.as_array()).into_iter().flatten();
        // A name stands there with its version where there are several.
        let listed = listed.filter_map(|entry| entry.as_str()?.split(' ').next()).map(str::to_owned).collect();
        seen += 1;
        if wanted != listed || !wanted.is_subset(&known) {
            wrong.push(format!("{name}: Cargo.toml has {wanted:?}, fuzz/Cargo.lock {listed:?}"));
        }
    }
    assert!(seen > 1, "the fuzzer's own package and what it builds on");
    assert!(
        wrong.is_empty(),
        "run `cargo metadata --manifest-path fuzz/Cargo.toml >/dev/null` and commit fuzz/Cargo.lock:\n{}",
        wrong.join("\n")
    );
}
