//! What the demo prints when it is up.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::config::{DataPlace, DemoConfig};

/// The nodes and how to reach them, the round trips between their regions, the clocks and the data.
#[must_use]
pub fn banner(config: &DemoConfig) -> String {
    let mut text = format!("Meridian {} is running.\n\n", env!("CARGO_PKG_VERSION"));
    text.push_str(&nodes(config).trim_fmt());
    let _ = write!(text, "\n\nRound trips, {}", config.topology.name());
    if config.topology.longest_round_trip().is_zero() {
        text.push_str(": none added\n");
    } else {
        let _ = write!(text, " (milliseconds)\n{}\n", round_trips(config).trim_fmt());
    }
    let _ = write!(
        text,
        "\nClock uncertainty  {}\nData               {}\n\nPress Ctrl-C to stop.",
        humantime::format_duration(config.epsilon),
        data(&config.data),
    );
    text
}

fn nodes(config: &DemoConfig) -> Table {
    let mut table = table();
    table.set_header(["node", "region", "connect with"]);
    for node in &config.nodes {
        table.add_row([
            node.number.to_string(),
            config.region_name(node).to_owned(),
            format!("psql -h 127.0.0.1 -p {}", node.port),
        ]);
    }
    right_align(&mut table, 0..1);
    table
}

fn round_trips(config: &DemoConfig) -> Table {
    let mut table = table();
    let regions = config.topology.regions();
    table.set_header([&[String::new()], regions].concat());
    for (from, name) in regions.iter().enumerate() {
        let times = (0..regions.len()).map(|to| millis(config.topology.round_trip(from, to)));
        table.add_row(std::iter::once(name.clone()).chain(times));
    }
    right_align(&mut table, 1..regions.len() + 1);
    table
}

pub(crate) fn table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table
}

pub(crate) fn right_align(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn millis(time: Duration) -> String {
    let text = format!("{:.3}", time.as_secs_f64() * 1e3);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn data(place: &DataPlace) -> String {
    match place {
        DataPlace::Memory => "in memory, forgotten at the end".to_owned(),
        DataPlace::Folder(folder) => folder.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn shown(args: &[&str]) -> String {
        let cli = Cli::try_parse_from([&["meridian"], args].concat()).expect("parses");
        banner(&DemoConfig::from_args(cli.into_demo().expect("a demo")).expect("valid"))
    }

    #[test]
    fn everything_that_a_newcomer_needs_is_there() {
        let text = shown(&["--epsilon", "4ms"]);
        for part in ["us-west", "psql -h 127.0.0.1 -p 5435", "146", "0.1", "4ms", "meridian-data"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }

    #[test]
    fn a_topology_without_latency_shows_no_matrix() {
        let text = shown(&["--topology", "local", "--ephemeral", "--epsilon", "0ms"]);
        assert!(text.contains("none added") && text.contains("in memory"), "{text}");
        assert!(text.contains("Clock uncertainty  0s"), "{text}");
    }
}
