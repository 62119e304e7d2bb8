//! The command line.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use meridian_txn::CommitProtocol;

use crate::placement::PlacementArgs;
use crate::splits::SplitArgs;

const ABOUT: &str = "Meridian: a small Spanner that speaks PostgreSQL";

const LONG_ABOUT: &str = "\
Meridian is a transactional SQL database spread over regions, made to understand and to measure
distributed transactions. Clients connect with PostgreSQL's protocol, psql for example.

Without a command it runs `demo`: a whole cluster in this process, one node per region of a
topology, in real time, over a simulated network that is as slow as the real one would be. Every
node has a port of its own, so that one connects *from* a region and feels its latency.

`start` runs one node of a real cluster, whose nodes are processes that talk over gRPC; `status`
shows how either kind of cluster stands.";

const EXAMPLES: &str = "\
Examples:
  meridian                                    three regions, data in ./meridian-data
  meridian --ephemeral --topology local       no latency, nothing kept
  meridian --topology us-eu-3 --epsilon 10ms  clocks known to 10 ms only
  psql -h 127.0.0.1 -p 5433                   connect to the first node
  meridian start --config node1.toml          one node of a real cluster
  meridian status --connect 127.0.0.1:5433    nodes, tablets, leaders and replicas";

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
    Demo(Box<DemoArgs>),
    /// Run one node of a cluster of processes, over gRPC
    Start(StartArgs),
    /// Show a cluster's nodes, tablets, leaders and replicas
    Status(StatusArgs),
}

impl Cli {
    /// What to do.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command.unwrap_or_else(|| Command::Demo(Box::new(self.demo)))
    }

    /// The options of a demo; none for other commands.
    #[must_use]
    pub fn into_demo(self) -> Option<DemoArgs> {
        match self.into_command() {
            Command::Demo(demo) => Some(*demo),
            Command::Start(_) | Command::Status(_) => None,
        }
    }
}

/// The options of `meridian start`.
#[derive(Clone, Debug, Args)]
pub struct StartArgs {
    /// The node's configuration, a TOML file (there are samples in the folder examples)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// What to log to stderr, e.g. `info` [default: what the file says, else `$RUST_LOG`, else warn]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// The options of `meridian status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Any node's address for SQL
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5433", value_parser = address)]
    pub connect: Address,
    /// One JSON document instead of tables
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,
    /// Again every second, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn address(text: &str) -> Result<Address, String> {
    let example = "an address looks like 127.0.0.1:5433";
    let (host, port) = text.rsplit_once(':').ok_or(example)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match port.parse() {
        Ok(port) if port > 0 && !host.is_empty() => Ok(Address { host: host.to_owned(), port }),
        _ => Err(example.to_owned()),
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
    /// How transactions commit where a session says nothing (`SET meridian.commit_protocol`)
    ///
    /// With `commit_wait` a commit is released when its timestamp has certainly passed, for external
    /// consistency; `two_phase` is the same without the wait, and serializable.
    #[arg(long, value_name = "NAME", default_value = "commit_wait", value_parser = protocol)]
    pub protocol: CommitProtocol,
    /// For how long old versions are kept: so far back reads in the past may go
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = retention)]
    pub retention: Duration,
    /// Where replicas go when a table asks for nothing.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// When tablets split and merge by themselves.
    #[command(flatten)]
    pub splits: SplitArgs,
    /// Seed of everything that is drawn at random (the network's jitter, election timeouts, ...)
    /// [default: another one every time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// What to log to stderr, e.g. `info` or `warn,meridian_sql=debug` [default: `$RUST_LOG`, else warn]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// A protocol by its name.
pub(crate) fn protocol(name: &str) -> Result<CommitProtocol, String> {
    CommitProtocol::named(name).ok_or_else(|| "it is commit_wait or two_phase".to_owned())
}

/// The shortest retention period: what is read now has to be there until it is read.
const SHORTEST_RETENTION: Duration = Duration::from_secs(10);

/// A retention period.
pub(crate) fn retention(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        period if period < SHORTEST_RETENTION => Err("it is at least 10s".to_owned()),
        period => Ok(period),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error} (durations look like 4ms, 250us or 1s)"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use meridian_txn::{PlacementChange, SplitOptions};

    use super::*;

    fn parse(args: &[&str]) -> Result<DemoArgs, clap::Error> {
        let cli = Cli::try_parse_from([&["meridian"], args].concat())?;
        Ok(cli.into_demo().expect("a demo"))
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
        assert_eq!(SplitOptions::from(default.splits), SplitOptions::default());
        assert_eq!(default.protocol, CommitProtocol::CommitWait);
        assert_eq!(default.retention, meridian_txn::DEFAULT_RETENTION);
        let kept = parse(&["--retention", "10s"]).expect("valid").retention;
        assert_eq!(kept, Duration::from_secs(10));
        let two_phase = parse(&["--protocol", "two_phase"]).expect("valid");
        assert_eq!(two_phase.protocol, CommitProtocol::TwoPhase);
        assert_eq!(PlacementChange::from(default.placement), PlacementChange::default());
        let placement = parse(&["--voters", "5", "--regions", "us,eu", "--leader-region", "eu"]);
        let placement = PlacementChange::from(placement.expect("valid").placement);
        assert_eq!((placement.voters, placement.read_only), (Some(5), None));
        assert_eq!(placement.regions, Some(vec!["us".to_owned(), "eu".to_owned()]));
        assert_eq!(placement.leader_region, Some(Some("eu".to_owned())));
        let args =
            ["--split-size", "1MiB", "--split-load", "off", "--merge-after", "1m"].as_slice();
        let splits = SplitOptions::from(parse(args).expect("valid").splits);
        assert_eq!((splits.split_size, splits.split_load), (Some(1 << 20), None));
        assert_eq!(splits.merge_after, Some(Duration::from_secs(60)));
    }

    #[test]
    fn an_address_is_read_and_written() {
        for text in ["127.0.0.1:5433", "db.example.com:1", "[::1]:65535"] {
            assert_eq!(address(text).expect("valid").to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_refused() {
        for args in [
            &["--nodes", "10"][..],
            &["--nodes", "0"],
            &["--port", "0"],
            &["--port", "70000"],
            &["--epsilon", "soon"],
            &["--split-size", "64"],
            &["--split-load", "0"],
            &["--split-load-window", "off"],
            &["--merge-after", "5"],
            &["--protocol", "calvin"],
            &["--retention", "9s"],
            &["--ephemeral", "--data-dir", "x"],
            &["--port", "6000", "demo"],
            &["serve"],
            &["start"],
            &["status", "--json", "--watch"],
            &["status", "--connect", "nowhere"],
            &["status", "--connect", "127.0.0.1:0"],
        ] {
            assert_eq!(parse(args).expect_err("refused").exit_code(), 2, "{args:?}");
        }
    }
}
