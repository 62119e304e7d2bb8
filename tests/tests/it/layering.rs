//! Who may import whom (ARCHITECTURE.md), checked against the manifests and the sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use meridian_tests::support::workspace;

/// Each crate, and the crates of the workspace that it may use.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("truetime", &[]),
    ("storage", &["truetime"]),
    ("replication", &["truetime", "storage"]),
    ("txn", &["truetime", "storage", "replication"]),
    ("sql", &["truetime", "storage", "replication", "txn"]),
    ("lab", &[]),
    ("server", &["truetime", "storage", "replication", "txn", "sql", "lab"]),
    ("tests", &["truetime", "storage", "replication", "txn", "sql", "lab", "server"]),
];

/// A third-party crate that defines a layer, and the one folder whose sources may name it.
const OWNED: [(&str, &str); 9] = [
    ("redb", "storage"),
    ("openraft", "replication"),
    ("tonic", "replication/src/net"),
    ("prost", "replication/src/net"),
    ("datafusion", "sql"),
    ("datafusion_proto", "sql"),
    ("sqlparser", "sql"),
    ("arrow", "sql"),
    ("pgwire", "server"),
];

/// The tables of dependencies in a manifest.
const TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

fn manifest(folder: &str) -> toml::Table {
    let path = workspace().join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn dependencies(folder: &str) -> Vec<String> {
    let manifest = manifest(folder);
    assert!(!manifest.contains_key("target"), "{folder}: dependencies per target are not checked");
    let tables = TABLES.iter().filter_map(|name| manifest.get(*name)?.as_table());
    tables.flat_map(toml::Table::keys).cloned().collect()
}

#[test]
fn crates_use_only_what_is_below_them() {
    let root = manifest("");
    let members = root["workspace"]["members"].as_array().expect("members");
    let mut listed: Vec<_> = members.iter().filter_map(|member| member.as_str()).collect();
    let mut known: Vec<_> = ALLOWED.iter().map(|(folder, _)| *folder).collect();
    listed.sort_unstable();
    known.sort_unstable();
    assert_eq!(listed, known, "a crate's place in the layers is missing");
    for (folder, allowed) in ALLOWED {
        for dependency in dependencies(folder) {
            if let Some(other) = dependency.strip_prefix("meridian-") {
                assert!(allowed.contains(&other), "{folder} must not depend on {other}");
            }
        }
    }
}

#[test]
fn what_defines_a_layer_is_a_dependency_of_that_layer_only() {
    for (name, owner) in OWNED {
        let owner = owner.split('/').next().expect("a folder");
        for (folder, _) in ALLOWED {
            let named = dependencies(folder).iter().any(|d| d.replace('-', "_") == name);
            assert!(!named || folder == owner, "{folder} must not depend on {name}");
        }
    }
}

#[test]
fn what_defines_a_layer_is_named_in_that_layer_only() {
    let mut sources = BTreeMap::new();
    for (folder, _) in ALLOWED {
        collect(&workspace().join(folder), &mut sources);
    }
    assert!(sources.len() > 20, "the sources weren't found");
    for (path, text) in &sources {
        let relative = path.strip_prefix(workspace()).expect("inside").to_string_lossy();
        // This file names them all, and a build script may generate code for its layer.
        if relative.ends_with("layering.rs") || relative == "replication/build.rs" {
            continue;
        }
        for (name, owner) in OWNED {
            let line = text.lines().position(|line| imports(line, name));
            let at_home = relative.starts_with(&format!("{owner}/"));
            if let (Some(line), false) = (line, at_home) {
                panic!("{relative}:{}: {name} may be named in {owner}/ only", line + 1);
            }
        }
    }
}

#[test]
fn an_import_is_told_from_a_mention() {
    for line in ["use redb::Database;", "    let db = redb::open();", "x: &redb::ReadTxn"] {
        assert!(imports(line, "redb"), "{line}");
    }
    for line in [
        "//! as redb::Database does",
        "use meridian_sql::arrow::array::Array;",
        "let nodatafusion::x",
        "use crate::arrow::PG_TYPE_KEY;",
        "mod arrow;",
    ] {
        assert!(!imports(line, "redb") && !imports(line, "arrow"), "{line}");
    }
}

/// Whether a line of code has a path that begins with the crate.
fn imports(line: &str, name: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
    })
}

fn collect(folder: &Path, sources: &mut BTreeMap<PathBuf, String>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source is UTF-8");
            sources.insert(path, text);
        }
    }
}
