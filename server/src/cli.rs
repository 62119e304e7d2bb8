//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

const ABOUT: &str = "Meridian: a small Spanner that speaks PostgreSQL";

const LONG_ABOUT: &str = "\
Meridian is a transactional SQL database spread over regions, made to understand and to measure
distributed transactions. Clients connect with PostgreSQL's protocol, psql for example.

Without a command it runs `demo`: a whole cluster in this process, one node per region of a
topology, in real time, over a simulated network that is as slow as the real one would be. Every
node has a port of its own, so that one connects *from* a region and feels its latency.";

const EXAMPLES: &str = "\
Examples:
  meridian                                    three regions, data in ./meridian-data
  meridian --ephemeral --topology local       no latency, nothing kept
  meridian --topology us-eu-3 --epsilon 10ms  clocks known to 10 ms only
  psql -h 127.0.0.1 -p 5433                   connect to the first node";

/// The command line of `meridian`.
#[derive(Debug, Parser)]
#[command(
    name = "meridian",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do; without it, `demo`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `demo`, which may be given without naming it.
    #[command(flatten)]
    pub demo: DemoArgs,
}

/// What `meridian` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a cluster of several regions in this process
    Demo(DemoArgs),
}

impl Cli {
    /// The demo's options, wherever they were given.
    #[must_use]
    pub fn into_demo(self) -> DemoArgs {
        match self.command {
            Some(Command::Demo(demo)) => demo,
            None => self.demo,
        }
    }
}

/// The options of `meridian demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Folder for the cluster's data, created if it isn't there
    #[arg(long, value_name = "DIR", default_value = "./meridian-data")]
    pub data_dir: PathBuf,
    /// Keep the data in memory and forget it at the end
    #[arg(long, conflicts_with = "data_dir")]
    pub ephemeral: bool,
    /// Port of the first node; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 5433,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Regions and the round trips between them: a shipped name or a CSV file
    ///
    /// Shipped: us-eu-3, world-10, metro-3, spanner-osdi12, and local (three nodes in one place,
    /// no added latency). A file holds a symmetric matrix of milliseconds whose first row and
    /// first column name the regions.
    #[arg(long, value_name = "NAME|FILE", default_value = "us-eu-3")]
    pub topology: String,
    /// Number of nodes, 1 to 9, spread over the regions in turn [default: one per region]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub nodes: Option<u8>,
    /// Uncertainty of every node's clock: half of TrueTime's interval
    #[arg(long, value_name = "DURATION", default_value = "4ms", value_parser = duration)]
    pub epsilon: Duration,
    /// Seed of everything that is drawn at random (the network's jitter, election timeouts, ...)
    /// [default: another one every time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// What to log to stderr, e.g. `info` or `warn,meridian_sql=debug` [default: `$RUST_LOG`, else warn]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error} (durations look like 4ms, 250us or 1s)"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<DemoArgs, clap::Error> {
        Cli::try_parse_from([&["meridian"], args].concat()).map(Cli::into_demo)
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn demo_is_what_runs_without_a_command() {
        let plain = parse(&["--port", "6000", "--epsilon", "250us"]).expect("valid");
        let named = parse(&["demo", "--port", "6000", "--epsilon", "250us"]).expect("valid");
        assert_eq!(format!("{plain:?}"), format!("{named:?}"));
        assert_eq!((plain.port, plain.epsilon), (6000, Duration::from_micros(250)));
        let default = parse(&[]).expect("valid");
        assert_eq!((default.port, default.epsilon), (5433, Duration::from_millis(4)));
        assert_eq!(default.data_dir, PathBuf::from("./meridian-data"));
    }

    #[test]
    fn mistakes_are_refused() {
        for args in [
            &["--nodes", "10"][..],
            &["--nodes", "0"],
            &["--port", "0"],
            &["--port", "70000"],
            &["--epsilon", "soon"],
            &["--ephemeral", "--data-dir", "x"],
            &["--port", "6000", "demo"],
            &["serve"],
        ] {
            assert_eq!(parse(args).expect_err("refused").exit_code(), 2, "{args:?}");
        }
    }
}
