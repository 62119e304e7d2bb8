//! The configuration of one node of a real cluster: a TOML file, checked.
//!
//! Every mistake is told with its line and with what would be right. Keys that don't exist are
//! mistakes too. All nodes of a cluster have the same list of nodes in the same order, so that most
//! of their files is the same.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use meridian_replication::net::topology::Topology;
use meridian_storage::NodeId;
use meridian_txn::{CommitProtocol, Member, PlacementChange, SplitOptions};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use crate::splits;

/// The most nodes of a cluster.
const MAX_NODES: usize = 100;
/// The greatest number of a node.
const MAX_NUMBER: u64 = 1_000_000;
/// The longest cluster name.
const MAX_NAME: usize = 63;
/// How many replicas vote where nothing else is said, if there are enough nodes.
const DEFAULT_VOTERS: usize = 5;
/// The most that may be asked for.
const MAX_VOTERS: usize = 9;

/// A mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// Where in it, counted from 1, unless something is missing.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, line {line}: {}", self.file, self.problem),
            None => write!(f, "{}: {}", self.file, self.problem),
        }
    }
}

/// One node of the cluster, as the list in the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub id: NodeId,
    /// Where it is.
    pub region: String,
    /// Where it listens for the other nodes: host and port.
    pub address: String,
    /// Where clients reach it: host and port.
    pub sql: Option<String>,
}

/// A node's configuration.
#[derive(Clone, Debug)]
pub struct StartConfig {
    /// The cluster's name.
    pub cluster: String,
    /// This node's number.
    pub id: NodeId,
    /// Its folder.
    pub data_dir: PathBuf,
    /// Where it listens for the other nodes.
    pub listen: String,
    /// Where it listens for clients.
    pub sql: String,
    /// All nodes, itself among them.
    pub nodes: Vec<Entry>,
    /// Latencies to be added.
    pub topology: Option<Topology>,
    /// The longest round trip between two nodes, with what is added.
    pub max_round_trip: Duration,
    /// How far the system's clock may be off.
    pub epsilon: Duration,
    /// How many replicas of a tablet vote, if this node is the first to begin the cluster.
    pub voters: usize,
    /// Whether that is written in the file.
    pub voters_given: bool,
    /// What else is asked for where a table that is created here asks for nothing.
    pub placement: PlacementChange,
    /// When the tablets that this node leads split and merge by themselves.
    pub splits: SplitOptions,
    /// How transactions commit, where a session says nothing.
    pub protocol: CommitProtocol,
    /// For how long old versions are kept in the tablets that this node leads.
    pub retention: Duration,
    /// What to log.
    pub log: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: Spanned<String>,
    node: Spanned<u64>,
    data_dir: Spanned<PathBuf>,
    listen: Option<Spanned<String>>,
    sql: Option<Spanned<String>>,
    topology: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "optional_duration")]
    max_round_trip: Option<Duration>,
    log: Option<String>,
    protocol: Option<Spanned<String>>,
    retention: Option<Spanned<String>>,
    #[serde(default)]
    clock: ClockPart,
    #[serde(default)]
    placement: PlacementPart,
    #[serde(default)]
    tablets: TabletsPart,
    #[serde(default)]
    nodes: Vec<NodePart>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockPart {
    #[serde(default = "default_epsilon", deserialize_with = "duration")]
    epsilon: Duration,
}

impl Default for ClockPart {
    fn default() -> Self {
        Self { epsilon: default_epsilon() }
    }
}

fn default_epsilon() -> Duration {
    Duration::from_millis(4)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlacementPart {
    voters: Option<Spanned<usize>>,
    regions: Option<Vec<Spanned<String>>>,
    leader_region: Option<Spanned<String>>,
    read_only: Option<Vec<Spanned<String>>>,
}

/// The same as on the command line of a demo.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TabletsPart {
    split_size: Option<Spanned<Setting>>,
    split_load: Option<Spanned<Setting>>,
    split_load_window: Option<Spanned<Setting>>,
    merge_after: Option<Spanned<Setting>>,
}

/// A text, or a number without a unit.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a number")]
enum Setting {
    Text(String),
    Number(i64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodePart {
    id: Spanned<u64>,
    region: Spanned<String>,
    address: Spanned<String>,
    sql: Option<Spanned<String>>,
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let parsed = humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!(
            "{text:?} is not a duration: {error} (durations look like \"4ms\", \"250us\" or \"1s\")"
        ))
    })?;
    if parsed > Duration::from_secs(10) {
        let problem = format!("{text} is longer than the 10s that are allowed");
        return Err(serde::de::Error::custom(problem));
    }
    Ok(parsed)
}

fn optional_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

/// A problem and where in the text it begins.
type Problem = (Option<usize>, String);

fn at<T>(value: &Spanned<T>, problem: impl Into<String>) -> Problem {
    (Some(value.span().start), problem.into())
}

impl StartConfig {
    /// Reads and checks a file. Paths in it are relative to its own folder.
    ///
    /// # Errors
    /// The first mistake.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: file.clone(),
            line: None,
            problem: format!("it can't be read: {error}"),
        })?;
        Self::parse(&file, path.parent().unwrap_or(Path::new("")), &text)
    }

    /// Checks the text of a file in `folder`; `file` is its name in errors.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(file: &str, folder: &Path, text: &str) -> Result<Self, ConfigError> {
        let told = |(at, problem): Problem| ConfigError {
            file: file.to_owned(),
            line: at.map(|at| line_of(text, at)),
            problem,
        };
        let parsed: File = toml::from_str(text)
            .map_err(|error| (error.span().map(|span| span.start), error.message().to_owned()))
            .map_err(told)?;
        check(parsed, folder, text).map_err(told)
    }

    /// This node's entry in the list.
    #[must_use]
    pub fn own(&self) -> Option<&Entry> {
        self.nodes.iter().find(|entry| entry.id == self.id)
    }

    /// A node's entry in the list.
    #[must_use]
    pub fn entry(&self, node: NodeId) -> Option<&Entry> {
        self.nodes.iter().find(|entry| entry.id == node)
    }

    /// The addresses of the other nodes.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<NodeId, String> {
        let others = self.nodes.iter().filter(|entry| entry.id != self.id);
        others.map(|entry| (entry.id, entry.address.clone())).collect()
    }

    /// The first voters of a cluster that begins with this list.
    #[must_use]
    pub fn first_voters(&self) -> Vec<NodeId> {
        self.nodes.iter().take(self.voters).map(|entry| entry.id).collect()
    }

    /// The place of a node's region in the topology, if there is one.
    pub(super) fn place(&self, entry: &Entry) -> Option<(&Topology, usize)> {
        let topology = self.topology.as_ref()?;
        Some((topology, topology.region(&entry.region).ok()?))
    }

    /// The members of a cluster that began with `voters`, as this node sees them.
    #[must_use]
    pub fn members(&self, voters: &[NodeId]) -> Vec<Member> {
        let mut entries: Vec<&Entry> = self.nodes.iter().collect();
        let place = |id| voters.iter().position(|voter| *voter == id).unwrap_or(usize::MAX);
        entries.sort_by_key(|entry| place(entry.id));
        let here = self.own().and_then(|own| self.place(own));
        let round_trip = |entry: &Entry| match (here, self.place(entry)) {
            _ if entry.id == self.id => Duration::ZERO,
            (Some((topology, here)), Some((_, there))) => topology.round_trip(here, there),
            _ => Duration::ZERO,
        };
        let members = entries.into_iter().map(|entry| Member {
            id: entry.id,
            region: entry.region.clone(),
            round_trip: round_trip(entry),
        });
        members.collect()
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

fn check(file: File, folder: &Path, text: &str) -> Result<StartConfig, Problem> {
    check_name(&file.cluster)?;
    let entries = check_nodes(&file.nodes, text)?;
    let id = NodeId::new(*file.node.get_ref());
    let Some(own) = entries.iter().find(|entry| entry.id == id) else {
        let listed: Vec<String> = entries.iter().map(|entry| entry.id.get().to_string()).collect();
        let problem = format!(
            "node {} is not in the list of nodes, which has {}",
            id.get(),
            listed.join(", ")
        );
        return Err(at(&file.node, problem));
    };
    let listen = match &file.listen {
        Some(listen) => check_listen(listen)?,
        None => own.address.clone(),
    };
    let sql = match (&file.sql, &own.sql) {
        (Some(sql), _) => check_listen(sql)?,
        (None, Some(sql)) => sql.clone(),
        (None, None) => {
            let problem = "node has no address for SQL: give it sql = \"127.0.0.1:5433\" at the top, \
                           or in its entry of the list of nodes";
            return Err((None, problem.to_owned()));
        }
    };
    if sql == listen {
        let problem = format!("clients and nodes can't both be served at {sql}");
        return Err((file.sql.as_ref().map(|sql| sql.span().start), problem));
    }
    if file.data_dir.get_ref().as_os_str().is_empty() {
        return Err(at(&file.data_dir, "data_dir is empty; it must name a folder"));
    }
    let topology = match &file.topology {
        Some(name) => Some(check_topology(name, folder, &file.nodes)?),
        None => None,
    };
    let added = topology.as_ref().map(Topology::longest_round_trip).unwrap_or_default();
    let voters = check_voters(file.placement.voters.as_ref(), entries.len())?;
    let placement = check_placement(&file.placement, &entries)?;
    let splits = check_splits(&file.tablets)?;
    let protocol = match &file.protocol {
        Some(name) => crate::cli::protocol(name.get_ref()).map_err(|problem| at(name, problem))?,
        None => CommitProtocol::default(),
    };
    let retention = match &file.retention {
        Some(text) => crate::cli::retention(text.get_ref()).map_err(|problem| at(text, problem))?,
        None => meridian_txn::DEFAULT_RETENTION,
    };
    Ok(StartConfig {
        cluster: file.cluster.into_inner(),
        id,
        data_dir: folder.join(file.data_dir.into_inner()),
        listen,
        sql,
        nodes: entries,
        topology,
        max_round_trip: file.max_round_trip.unwrap_or(added).max(added),
        epsilon: file.clock.epsilon,
        voters,
        voters_given: file.placement.voters.is_some(),
        placement,
        splits,
        protocol,
        retention,
        log: file.log,
    })
}

fn check_name(name: &Spanned<String>) -> Result<(), Problem> {
    let text = name.get_ref();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > MAX_NAME || !text.chars().all(allowed) {
        let problem = format!(
            "{text:?} can't be a cluster's name: 1 to {MAX_NAME} letters, digits, \".\", \"_\" and \
             \"-\" are allowed"
        );
        return Err(at(name, problem));
    }
    Ok(())
}

fn check_nodes(parts: &[NodePart], text: &str) -> Result<Vec<Entry>, Problem> {
    if parts.is_empty() || parts.len() > MAX_NODES {
        let problem = format!(
            "there are {} nodes in the list; there must be 1 to {MAX_NODES}, each as [[nodes]] with \
             id, region and address",
            parts.len()
        );
        return Err((None, problem));
    }
    let mut ids: BTreeMap<u64, usize> = BTreeMap::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut entries = Vec::new();
    for part in parts {
        let number = *part.id.get_ref();
        if !(1..=MAX_NUMBER).contains(&number) {
            let problem = format!("a node's id is a number from 1 to {MAX_NUMBER}, not {number}");
            return Err(at(&part.id, problem));
        }
        let line = line_of(text, part.id.span().start);
        if let Some(first) = ids.insert(number, line) {
            let problem = format!("node {number} is listed twice, first in line {first}");
            return Err(at(&part.id, problem));
        }
        if part.region.get_ref().trim().is_empty() {
            return Err(at(&part.region, "a node's region has a name"));
        }
        for address in [Some(&part.address), part.sql.as_ref()].into_iter().flatten() {
            let text_of = check_address(address)?;
            let line = line_of(text, address.span().start);
            if let Some(first) = places.insert(text_of.to_ascii_lowercase(), line) {
                let problem = format!("address {text_of} is used twice, first in line {first}");
                return Err(at(address, problem));
            }
        }
        entries.push(Entry {
            id: NodeId::new(number),
            region: part.region.get_ref().clone(),
            address: part.address.get_ref().clone(),
            sql: part.sql.as_ref().map(|sql| sql.get_ref().clone()),
        });
    }
    Ok(entries)
}

/// Host and port at which somebody can be reached.
fn check_address(address: &Spanned<String>) -> Result<&str, Problem> {
    let text = address.get_ref().as_str();
    let wrong = |why: &str| {
        let problem = format!(
            "{text:?} is not an address: {why} (addresses look like \"127.0.0.1:7433\", \
             \"db1.example.com:7433\" or \"[::1]:7433\")"
        );
        at(address, problem)
    };
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return match (socket.ip(), socket.port()) {
            (_, 0) => Err(wrong("port 0 is none")),
            (ip, _) if unspecified(ip) => Err(wrong("nobody can be reached there")),
            _ => Ok(text),
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    if host.is_empty() || !host.chars().all(allowed) {
        return Err(wrong("its host is no name and no IP address"));
    }
    match port.parse::<u16>() {
        Ok(0) | Err(_) => Err(wrong("its port is not a number from 1 to 65535")),
        Ok(_) => Ok(text),
    }
}

fn unspecified(ip: IpAddr) -> bool {
    ip.is_unspecified()
}

/// As [`check_address`], but 0.0.0.0 and [::] are good places to listen at.
fn check_listen(address: &Spanned<String>) -> Result<String, Problem> {
    let text = address.get_ref();
    match text.parse::<SocketAddr>() {
        Ok(socket) if unspecified(socket.ip()) && socket.port() != 0 => Ok(text.clone()),
        _ => check_address(address).map(str::to_owned),
    }
}

fn check_topology(
    name: &Spanned<String>,
    folder: &Path,
    nodes: &[NodePart],
) -> Result<Topology, Problem> {
    let text = name.get_ref();
    let shipped = Topology::shipped().contains(&text.as_str());
    let path = if shipped { text.clone() } else { folder.join(text).display().to_string() };
    let topology = Topology::load(&path).map_err(|error| at(name, error.to_string()))?;
    for node in nodes {
        topology
            .region(node.region.get_ref())
            .map_err(|error| at(&node.region, format!("topology {text}: {error}")))?;
    }
    Ok(topology)
}

fn check_splits(part: &TabletsPart) -> Result<SplitOptions, Problem> {
    fn set<T, F: Into<T>>(
        option: &mut T,
        given: Option<&Spanned<Setting>>,
        parse: fn(&str) -> Result<F, String>,
    ) -> Result<(), Problem> {
        let Some(given) = given else { return Ok(()) };
        let text = match given.get_ref() {
            Setting::Text(text) => text.clone(),
            Setting::Number(number) => number.to_string(),
        };
        *option =
            parse(&text).map_err(|problem| at(given, format!("{text:?} is {problem}")))?.into();
        Ok(())
    }
    let mut options = SplitOptions::default();
    set(&mut options.split_size, part.split_size.as_ref(), splits::size)?;
    set(&mut options.split_load, part.split_load.as_ref(), splits::load)?;
    set(&mut options.load_window, part.split_load_window.as_ref(), splits::window)?;
    set(&mut options.merge_after, part.merge_after.as_ref(), splits::wait)?;
    Ok(options)
}

fn check_placement(part: &PlacementPart, nodes: &[Entry]) -> Result<PlacementChange, Problem> {
    let region = |name: &Spanned<String>| {
        let text = name.get_ref();
        if nodes.iter().any(|node| node.region == *text) {
            return Ok(text.clone());
        }
        Err(at(name, format!("no node is in region {text:?}")))
    };
    let list = |names: &Option<Vec<Spanned<String>>>| {
        names.as_ref().map(|names| names.iter().map(region).collect()).transpose()
    };
    Ok(PlacementChange {
        voters: None,
        regions: list(&part.regions)?,
        read_only: list(&part.read_only)?,
        leader_region: part.leader_region.as_ref().map(region).transpose()?.map(Some),
    })
}

fn check_voters(given: Option<&Spanned<usize>>, nodes: usize) -> Result<usize, Problem> {
    let Some(given) = given else {
        let most = nodes.min(DEFAULT_VOTERS);
        return Ok(if most.is_multiple_of(2) { most - 1 } else { most });
    };
    let (voters, most) = (*given.get_ref(), nodes.min(MAX_VOTERS));
    if voters.is_multiple_of(2) || voters > most {
        let problem = format!(
            "voters = {voters} is not allowed: an odd number up to {most} is, because a majority \
             of them decides and there are {nodes} nodes"
        );
        return Err(at(given, problem));
    }
    Ok(voters)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &str = r#"cluster = "x"
node = 2
data_dir = "data"

[[nodes]]
id = 1
region = "us-east"
address = "127.0.0.1:7001"
sql = "127.0.0.1:7011"

[[nodes]]
id = 2
region = "us-west"
address = "127.0.0.1:7002"
sql = "127.0.0.1:7012"

[[nodes]]
id = 3
region = "eu-west"
address = "127.0.0.1:7003"
"#;

    fn parse(text: &str) -> Result<StartConfig, ConfigError> {
        StartConfig::parse("node.toml", Path::new("/etc/meridian"), text)
    }

    #[test]
    fn a_list_of_nodes_is_enough() {
        let config = parse(THREE).expect("valid");
        assert_eq!((config.cluster.as_str(), config.id), ("x", NodeId::new(2)));
        assert_eq!(config.data_dir, Path::new("/etc/meridian/data"));
        assert_eq!(
            (config.listen.as_str(), config.sql.as_str()),
            ("127.0.0.1:7002", "127.0.0.1:7012")
        );
        assert_eq!((config.voters, config.epsilon), (3, Duration::from_millis(4)));
        assert_eq!(config.peers().len(), 2);
        assert_eq!(config.max_round_trip, Duration::ZERO);
        assert_eq!(config.retention, meridian_txn::DEFAULT_RETENTION);
        let keeps = parse(&format!("retention = \"24h\"\n{THREE}")).expect("valid").retention;
        assert_eq!(keeps, Duration::from_hours(24));
    }

    #[test]
    fn a_topology_says_how_far_the_others_are() {
        let config = parse(&format!("topology = \"us-eu-3\"\n{THREE}")).expect("valid");
        assert_eq!(config.max_round_trip, Duration::from_millis(146));
        let voters = [NodeId::new(3), NodeId::new(1)];
        let members = config.members(&voters);
        let seen: Vec<_> = members.iter().map(|m| (m.id.get(), m.round_trip.as_millis())).collect();
        assert_eq!(seen, [(3, 146), (1, 66), (2, 0)], "the first voters come first");
    }

    #[test]
    fn replicas_are_placed_where_the_file_says() {
        assert_eq!(parse(THREE).expect("valid").placement, PlacementChange::default());
        let with = |lines: &str| {
            THREE.replacen("[[nodes]]", &format!("[placement]\n{lines}\n\n[[nodes]]"), 1)
        };
        let text = with("regions = [\"eu-west\", \"us-east\"]\nleader_region = \"eu-west\"");
        let placement = parse(&text).expect("valid").placement;
        assert_eq!(placement.regions, Some(vec!["eu-west".to_owned(), "us-east".to_owned()]));
        assert_eq!(placement.leader_region, Some(Some("eu-west".to_owned())));
        assert_eq!((placement.voters, placement.read_only), (None, None));
        for (wrong, expected) in [
            ("leader_region = \"mars\"", "line 6: no node is in region \"mars\""),
            ("read_only = [\"us-east\", \"mars\"]", "no node is in region \"mars\""),
            ("regions = \"us-east\"", "invalid type"),
        ] {
            let problem = parse(&with(wrong)).expect_err(wrong).to_string();
            assert!(problem.contains(expected), "{wrong}: {problem}");
        }
    }

    #[test]
    fn tablets_split_when_the_file_says_so() {
        let with = |lines: &str| {
            THREE.replacen("[[nodes]]", &format!("[tablets]\n{lines}\n\n[[nodes]]"), 1)
        };
        assert_eq!(parse(THREE).expect("valid").splits, SplitOptions::default());
        let text = with("split_size = \"1GiB\"\nsplit_load = 100\nmerge_after = \"off\"");
        let splits = parse(&text).expect("valid").splits;
        let load_window = SplitOptions::default().load_window;
        let (split_size, split_load) = (Some(1 << 30), Some(100));
        assert_eq!(splits, SplitOptions { split_size, split_load, load_window, merge_after: None });
        for (wrong, expected) in [
            ("split_size = 64", "line 6: \"64\" is not a size"),
            ("split_load = \"hot\"", "line 6: \"hot\" is not a number of requests"),
            ("split_load = 1.5", "expected a text or a number"),
            ("split_load_window = \"1h\"", "line 6: \"1h\" is longer than 10m"),
            ("merge_after = \"5\"", "line 6: \"5\" is not a duration"),
            ("split = \"off\"", "unknown field `split`"),
        ] {
            let error = parse(&with(wrong)).expect_err(wrong).to_string();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
    }

    #[test]
    fn voters_are_as_many_as_a_majority_makes_sense_of() {
        let voters: Vec<_> =
            (1..=7).map(|nodes| check_voters(None, nodes).expect("none is asked for")).collect();
        assert_eq!(voters, [1, 1, 3, 3, 5, 5, 5]);
    }

    #[test]
    fn mistakes_are_told_with_their_line_and_what_is_allowed() {
        let cases = [
            (
                "node = 2",
                "node = 4",
                "line 2: node 4 is not in the list of nodes, which has 1, 2, 3",
            ),
            ("node = 2", "node = \"two\"", "line 2: invalid type: string \"two\""),
            ("node = 2", "node = 2\nretention = \"5s\"", "line 3: it is at least 10s"),
            ("node = 2", "node = 2\nprotocol = \"none\"", "line 3: it is commit_wait or two_phase"),
            ("node = 2", "nod = 2", "line 2: unknown field `nod`, expected one of `cluster`"),
            ("cluster = \"x\"\n", "", "missing field `cluster`"),
            ("\"x\"", "\"a b\"", "line 1: \"a b\" can't be a cluster's name"),
            ("id = 3", "id = 1", "line 18: node 1 is listed twice, first in line 6"),
            ("id = 3", "id = 0", "line 18: a node's id is a number from 1"),
            ("7003", "7001", "line 20: address 127.0.0.1:7001 is used twice, first in line 8"),
            ("7003", "7012", "line 20: address 127.0.0.1:7012 is used twice, first in line 15"),
            ("7003", "70033", "line 20: \"127.0.0.1:70033\" is not an address"),
            ("127.0.0.1:7003", "0.0.0.0:7003", "line 20: \"0.0.0.0:7003\" is not an address"),
            ("127.0.0.1:7003", "host", "the port is missing"),
            ("region = \"eu-west\"\n", "", "missing field `region`"),
            ("\nsql = \"127.0.0.1:7012\"", "", "no address for SQL"),
            (
                "[[nodes]]\nid = 1",
                "[placement]\nvoters = 2\n\n[[nodes]]\nid = 1",
                "line 6: voters = 2",
            ),
            (
                "[[nodes]]\nid = 1",
                "[placement]\nvoters = 5\n\n[[nodes]]\nid = 1",
                "there are 3 nodes",
            ),
            (
                "[[nodes]]\nid = 1",
                "[clock]\nepsilon = \"soon\"\n\n[[nodes]]\nid = 1",
                "line 6: \"soon\"",
            ),
            ("[[nodes]]\nid = 1", "[clock]\nepsilon = \"1h\"\n\n[[nodes]]\nid = 1", "the 10s that"),
            ("node = 2", "node = 2\ntopology = \"mars\"", "line 3: topology"),
            (
                "node = 2",
                "node = 2\ntopology = \"local\"",
                "line 8: topology local: there is no region \"us-east\"",
            ),
            ("node = 2", "node = 2\nsql = \"127.0.0.1:7002\"", "can't both be served"),
            ("\"data\"", "\"\"", "line 3: data_dir is empty"),
            ("id = 2", "id 2", "line 12:"),
        ];
        for (right, wrong, expected) in cases {
            assert!(THREE.contains(right), "{right}");
            let text = THREE.replacen(right, wrong, 1);
            let error = parse(&text).expect_err(wrong).to_string();
            assert!(error.starts_with("node.toml") && error.contains(expected), "{wrong}: {error}");
        }
        let empty = parse("cluster = \"x\"\nnode = 1\ndata_dir = \"d\"").expect_err("no nodes");
        assert!(empty.to_string().contains("[[nodes]]"), "{empty}");
    }

    #[test]
    fn the_shipped_examples_are_valid() {
        // Asked for when the test runs: what was compiled may come from a cache.
        let server = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
        let examples = Path::new(&server).parent().expect("a parent").join("examples");
        for (folder, count) in [("three-nodes", 3), ("five-nodes", 5)] {
            let mut lists = Vec::new();
            let mut places = Vec::new();
            for number in 1..=count {
                let path = examples.join(folder).join(format!("node{number}.toml"));
                let config = StartConfig::load(&path).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(
                    (config.id, config.voters),
                    (NodeId::new(number), usize::try_from(count).expect("few"))
                );
                lists.push((config.cluster.clone(), config.nodes.clone()));
                places.push(config.data_dir);
            }
            assert!(lists.windows(2).all(|pair| pair[0] == pair[1]), "one list for all");
            places.sort();
            places.dedup();
            assert_eq!(places.len(), lists.len(), "each has its own folder");
        }
    }
}
